"""What programs say when something is wrong, and the status they end with."""

import argparse
import math
import signal
import subprocess
import sys

import pytest

from benchmarks.lib import cli
from tests.helpers import ROOT


@pytest.mark.parametrize(
    ("outcome", "status", "sentence"),
    [
        (None, 0, ""),
        (130, 130, ""),
        (cli.UsageError("no such thing"), 2, "x: no such thing\n"),
        (KeyboardInterrupt(), 130, "x: interrupted\n"),
    ],
)
def test_the_status_of_a_program(outcome, status, sentence, capsys):
    @cli.program("x")
    def main(argv):
        """What it does."""
        assert argv == ["--option"]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    assert main(["--option"]) == status and main.__doc__ == "What it does."
    assert capsys.readouterr().err == sentence


def test_other_errors_are_not_hidden():
    @cli.program("x")
    def main(argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main()


def test_a_folder_is_made_and_left_empty(tmp_path):
    folder = cli.make_folder(tmp_path / "a" / "b")
    assert folder.is_dir() and not list(folder.iterdir())


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_folder_that_cannot_be_written(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(cli.UsageError, match=f"^--out {tmp_path / name} cannot be written: "):
        cli.make_folder(tmp_path / name)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (cli.at_least_one, "1", 1),
        (cli.at_least_one, "0", "'0' is not a whole number from 1"),
        (cli.at_least(2), "1", "'1' is not a whole number from 2"),
        (cli.at_least(2), "2.5", "'2.5' is not a whole number from 2"),
        (cli.positive, "1e-3", 1e-3),
        (cli.positive, "0", "'0' is not above 0 and finite"),
        (cli.positive, str(math.inf), "'inf' is not above 0 and finite"),
        (cli.positive, "nan", "'nan' is not above 0 and finite"),
        (cli.positive, "much", "'much' is not a number"),
        (cli.writable, "/proc/x/y", "/proc/x/y cannot be written: No such file or directory"),
    ],
)
def test_types_of_arguments(kind, text, value):
    if isinstance(value, str):
        with pytest.raises(argparse.ArgumentTypeError) as error:
            kind(text)
        assert str(error.value) == value
    else:
        assert kind(text) == value


def test_an_interrupt_while_a_program_imports_is_one_word():
    command = [sys.executable, "-c", "import benchmarks; raise KeyboardInterrupt"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "interrupted\n" and done.returncode == -signal.SIGINT
