"""What is refused, interrupted or out of space destroys nothing, and says so in one sentence."""

import contextlib
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

import benchmarks
from benchmarks.compare import plots, report, run
from benchmarks.compare.__main__ import main
from benchmarks.lib import checkpoint, cli, files
from tests.benchmarks import helpers
from tests.benchmarks.test_compare import predictions, run_record

pytestmark = pytest.mark.slow

JOB = ["--no-claims", "--epochs", "2", "--batch-size", "40", "--seeds", "2", "--optimizers", "sgd"]
EARLIER = '{"an earlier result": 1}'


@pytest.fixture
def out(tmp_path):
    """A folder with an earlier result."""
    for name in ("metrics.json", "report.html"):
        (tmp_path / name).write_text(EARLIER)
    return tmp_path


@pytest.fixture
def before_run(monkeypatch):
    """A function that sets what happens before a run, which then takes no time."""

    def set_up(before):
        def train(optimizer, seed, *_):
            before(seed)
            record = run_record(optimizer.name, [0.5, 0.9], 1.0, seed)
            return record | {"learning_rate": optimizer.learning_rate}, predictions(0.5)

        monkeypatch.setattr(run, "compile_epoch", lambda optimizer, *_: optimizer)
        monkeypatch.setattr(run, "train", train)

    return set_up


def content(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"}


@contextlib.contextmanager
def at_default(number):
    """A signal as a process has it that was not started with `&`."""
    before = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextlib.contextmanager
def largest_file(size):
    """No file can be longer, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--batch-size", "5000"],
        ["--dataset", "cifar10", "--data-dir", "/nowhere"],
        ["--optimizers", "sgd", "sgd"],
        ["--learning-rate", "sgd=1", "sgd=2"],
        ["--epochs", "²"],
        ["--epochs", "9" * 5000],
    ],
)
def test_a_refused_command_writes_nothing(out, arguments, capsys):
    kept = out / "kept"
    assert helpers.status(main, *arguments, "--out", out, "--checkpoint", kept) == 2
    assert len(capsys.readouterr().err.splitlines()[-1]) > 20
    assert set(content(out)) == {out / "metrics.json", out / "report.html"}
    assert not kept.exists()
    assert (out / "metrics.json").read_text() == EARLIER


def test_repeated_names_are_refused(capsys):
    for option, values in (("--optimizers", ["adam", "adam"]), ("--temperature", ["a", "b", "a"])):
        with pytest.raises(cli.UsageError, match=f"^{option}: {values[0]} is given twice$"):
            cli.require_unique(option, values)


def test_an_earlier_result_is_kept_until_a_run_has_finished_and_then_beside(
    out, before_run, monkeypatch
):
    monkeypatch.setattr(report, "write", lambda *_: None)
    seen = []
    before_run(lambda seed: seen.append((out / "metrics.json").read_text()))
    assert helpers.status(main, *JOB, "--out", out) == 0
    assert seen[0] == EARLIER and len(json.loads(seen[1])["runs"]) == 1
    assert (out / "metrics.previous.json").read_text() == EARLIER
    ours = (out / "metrics.json").read_text()

    assert helpers.status(main, *JOB, "--out", out) == 0
    assert (out / "metrics.previous.json").read_text() == ours


def test_a_run_that_goes_on_keeps_the_earlier_result_of_another(out, before_run, monkeypatch):
    monkeypatch.setattr(report, "write", lambda *_: None)
    before_run(lambda seed: None)
    for _ in range(2):
        assert helpers.status(main, *JOB, "--out", out, "--checkpoint", out / "kept") == 0
    assert (out / "metrics.previous.json").read_text() == EARLIER


@pytest.mark.parametrize(
    ("number", "status", "name"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_stopped_before_the_first_run_has_ended(out, before_run, number, status, name, capsys):
    before_run(lambda seed: signal.raise_signal(number))
    handler = signal.getsignal(signal.SIGTERM)
    with at_default(signal.SIGINT):
        assert helpers.status(main, *JOB, "--out", out) == status
    assert signal.getsignal(signal.SIGTERM) is handler
    said = capsys.readouterr()
    assert said.err == f"compare: {name}\n"
    assert f"{name.capitalize()}: no run was finished" in said.out
    assert set(content(out)) == {out / "metrics.json", out / "report.html"}
    assert (out / "metrics.json").read_text() == EARLIER


def test_sigterm_keeps_what_was_finished(out, before_run, monkeypatch, capsys):
    written = []
    monkeypatch.setattr(report, "write", lambda *arguments: written.append(arguments))
    before_run(lambda seed: seed and signal.raise_signal(signal.SIGTERM))
    assert helpers.status(main, *JOB, "--out", out) == 143
    assert "Terminated: keeping the 1 finished runs" in capsys.readouterr().out
    assert len(json.loads((out / "metrics.json").read_text())["runs"]) == len(written) == 1


def test_interrupted_while_pictures_are_drawn(out, before_run, monkeypatch, capsys):
    before_run(lambda seed: None)
    monkeypatch.setattr(plots, "plot_curves", lambda *_: signal.raise_signal(signal.SIGINT))
    with at_default(signal.SIGINT):
        assert helpers.status(main, *JOB, "--out", out) == 130
    assert capsys.readouterr().err == "compare: interrupted\n"
    assert len(json.loads((out / "metrics.json").read_text())["runs"]) == 2
    assert (out / "report.html").read_text() == EARLIER


def test_where_the_disk_is_full(out, before_run, capsys):
    before_run(lambda seed: None)
    with largest_file(500):
        assert helpers.status(main, *JOB, "--out", out) == 2
    sentence = f"compare: {out / 'metrics.json'} cannot be written: File too large\n"
    assert capsys.readouterr().err == sentence
    assert (out / "metrics.previous.json").read_text() == EARLIER
    assert not list(out.glob("*.part"))


def test_where_the_pictures_fill_the_disk(out, before_run, capsys):
    before_run(lambda seed: None)
    with largest_file(10_000):
        assert helpers.status(main, *JOB, "--out", out) == 2
    sentence = f"compare: {out / 'curves.png'} cannot be written: File too large\n"
    assert capsys.readouterr().err == sentence
    assert len(json.loads((out / "metrics.json").read_text())["runs"]) == 2
    assert not (out / "curves.png").exists() and not list(out.glob("*.part"))


def test_where_a_folder_is_in_the_place_of_the_report(tmp_path, before_run, monkeypatch, capsys):
    (tmp_path / "report.html").mkdir()
    before_run(lambda seed: None)
    draw = lambda *arguments: arguments[-1].write_bytes(b"")
    for name in ("plot_curves", "plot_calibration", "plot_certainty"):
        monkeypatch.setattr(plots, name, draw)
    assert helpers.status(main, *JOB, "--out", tmp_path) == 2
    sentence = f"compare: {tmp_path / 'report.html'} cannot be written: Is a directory\n"
    assert capsys.readouterr().err == sentence
    assert len(json.loads((tmp_path / "metrics.json").read_text())["runs"]) == 2


@pytest.mark.parametrize("option", ["--out", "--checkpoint"])
def test_two_runs_in_one_folder(tmp_path, option, before_run, capsys):
    before_run(lambda seed: pytest.fail("it runs"))
    folder = tmp_path / "in use"
    folder.mkdir()
    with files.lock(folder, option):
        assert helpers.status(main, *JOB, "--out", tmp_path, option, folder) == 2
    assert capsys.readouterr().err == f"compare: {option} {folder} is in use by another run\n"
    assert not list(folder.glob("*.json"))
    files.lock(folder, option).close()


def test_a_lock_ends_with_its_process(tmp_path):
    code = "import os, sys; from benchmarks.lib import files; from pathlib import Path;"
    code += "held = files.lock(Path(sys.argv[1]), '--out'); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    assert (tmp_path / ".out.lock").exists()
    files.lock(tmp_path, "--out").close()


def test_a_checkpoint_that_the_disk_has_no_room_for(tmp_path, capsys):
    checkpoints = checkpoint.open_manager(tmp_path / "run")
    state = {"w": jnp.arange(50_000.0)}
    checkpoint.save(checkpoints, 1, state, {})
    with (
        largest_file(10_000),
        pytest.raises(cli.UsageError, match=r"run: epoch 2 is not saved: \S"),
    ):
        checkpoint.save(checkpoints, 2, {"w": jnp.sin(state["w"])}, {})
    checkpoints = checkpoint.open_manager(tmp_path / "run")
    assert checkpoints.all_steps() == [1]
    found, _ = checkpoint.restore(checkpoints, state)
    assert checkpoint.digest(found, None) == checkpoint.digest(state, None)


@pytest.mark.parametrize("settings", ["[]", '"text"', "{", "", b"\xff\xfe"])
def test_settings_that_are_none(tmp_path, settings, before_run, capsys):
    before_run(lambda seed: pytest.fail("it runs"))
    kept = settings.encode() if isinstance(settings, str) else settings
    (tmp_path / "settings.json").write_bytes(kept)
    assert helpers.status(main, *JOB, "--out", tmp_path, "--checkpoint", tmp_path) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    damaged = f"compare: --checkpoint {tmp_path}: {tmp_path / 'settings.json'} is damaged: "
    assert sentence.startswith(damaged)
    assert (tmp_path / "settings.json").read_bytes() == kept


@pytest.mark.parametrize("loss, accuracy", [(math.nan, 0.1), (math.inf, 0.1), (0.0, 1.0)])
def test_networks_that_diverge_at_once_or_are_perfect_are_reported(
    tmp_path, monkeypatch, loss, accuracy, capsys
):
    def train(optimizer, seed, *_):
        record = run_record(optimizer.name, [accuracy] * 2, 1.0, seed)
        scores = {"test_nll": loss, "ece": loss, "learning_rate": optimizer.learning_rate}
        for entry in record["history"]:
            entry |= {"loss": loss, "test_nll": loss, "loss_every_200": [[200, loss]]}
        return record | scores, predictions(math.nan if accuracy < 1 else 1.0)

    monkeypatch.setattr(run, "compile_epoch", lambda optimizer, *_: optimizer)
    monkeypatch.setattr(run, "train", train)
    assert helpers.status(main, *JOB, "langevin", "--sweep", "--out", tmp_path) == 0
    assert all((tmp_path / name).stat().st_size for name in report.FILES)
    json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert "sgd" in capsys.readouterr().out


def test_files_are_whole_or_as_they_were(tmp_path):
    path = tmp_path / "x.txt"
    files.write(path, "η ± √2")
    assert path.read_bytes() == "η ± √2".encode()
    with largest_file(5), pytest.raises(cli.UsageError, match="cannot be written: File too large"):
        files.write(path, "0123456789")
    assert path.read_bytes() == "η ± √2".encode()
    files.write(path, b"caf\xc3\xa9".decode("ascii", "surrogateescape"))  # as argv has it
    assert path.read_text("utf-8") == "café"
    assert list(tmp_path.iterdir()) == [path]


def test_no_text_depends_on_the_locale():
    for path in Path(benchmarks.__file__).parent.rglob("*.py"):
        source = path.read_text("utf-8")
        for call in re.findall(r"\.(?:read_text|write_text|open)\((.*)\)", source):
            assert re.search(r"utf-8|[\"'][wra]b[\"']|\"a\"\)|timeout", call), (path, call)


@pytest.mark.slow  # a process with a locale of its own
def test_a_locale_without_utf_8(tmp_path):
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    out = os.fsencode(tmp_path) + "/café".encode()
    command = [sys.executable, "-m", "benchmarks.compare", *JOB, "--seeds", "1", "--out", out]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    page = (folder / "report.html").read_text("utf-8")
    assert "log-likelihood" in page and "article’s" in page and "café" in page
