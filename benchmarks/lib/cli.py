"""The command line of a program: its arguments, its folder, its exit status."""

import argparse
import functools
import io
import math
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class UsageError(Exception):
    """An error that the user can mend, in one sentence without a traceback."""


def first_line(error: Exception) -> str:
    """What an error says, in short."""
    return (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")[:200]


class Terminated(KeyboardInterrupt):
    """SIGTERM, which stops a program as Ctrl-C does."""


def program(name: str) -> Callable[..., Callable[..., int]]:
    """Decorate `main(argv)` of the program called `name`, so that it returns its exit status.

    A `UsageError` is printed in its one sentence, with status 2; an interrupt ends with status 130,
    and SIGTERM with 143. What the encoding of the terminal lacks is shown as question marks.
    """

    def terminate(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher may send it twice
        raise Terminated

    def decorate(main: Callable[[list[str] | None], int | None]) -> Callable[..., int]:
        @functools.wraps(main)
        def wrapped(argv: list[str] | None = None) -> int:
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, io.TextIOWrapper):
                    stream.reconfigure(errors="replace")
            before = signal.signal(signal.SIGTERM, terminate)
            try:
                return main(argv) or 0
            except UsageError as error:
                print(f"{name}: {error}", file=sys.stderr)
                return 2
            except KeyboardInterrupt as stop:
                print(f"{name}: {stop_name(stop)}", file=sys.stderr)
                return stop_status(stop)
            finally:
                signal.signal(signal.SIGTERM, before)

        return wrapped

    return decorate


def stop_name(stop: BaseException) -> str:
    """What a person calls it."""
    if isinstance(stop, Terminated):
        return "terminated"
    return "interrupted" if isinstance(stop, KeyboardInterrupt) else "stopped"


def stop_status(stop: KeyboardInterrupt) -> int:
    """The exit status of a program that was stopped: 128 and the signal's number."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def parser(name: str, doc: str | None, *, out: bool = True) -> argparse.ArgumentParser:
    """The parser of the program called `name`, described by the first line of `doc`.

    With `out` it has the option of the folder that the program writes into.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=(doc or "").splitlines()[0]
    )
    if out:
        parser.add_argument(
            "--out", type=Path, default=Path("runs", name), metavar="DIR",
            help="write the figures into this folder (default %(default)s)",
        )  # fmt: skip
    return parser


def make_folder(path: Path, option: str = "--out") -> Path:
    """The folder that an option names, made if need be and tried before the work begins.

    Raises:
      UsageError: nothing can be written there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise UsageError(f"{option} {path} cannot be written: {error.strerror}") from error
    return path


def writable(text: str) -> Path:
    """The type of an argument that names a file to write, tried before the work begins."""
    path = Path(text)
    try:
        path.open("a").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path} cannot be written: {error.strerror}") from error
    return path


def at_least(least: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number from `least`."""

    def whole(text: str) -> int:
        if not (text.isdecimal() and len(text) < 19) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least}")
        return int(text)

    return whole


at_least_one = at_least(1)


def require_unique(option: str, names: Sequence[Any]) -> None:
    """Check that no name is given twice.

    Raises:
      UsageError: one is.
    """
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{option}: {name} is given twice")


def differences(one: dict[str, Any], two: dict[str, Any], word: str) -> str:
    """What `one` has and what, after `word`, `two` has instead; empty where they are equal."""
    return "; ".join(
        f"{name} {one.get(name)}, {word} {two.get(name)}"
        for name in {**one, **two}
        if one.get(name) != two.get(name)
    )


def positive(text: str) -> float:
    """The type of an argument that is a number above 0, and finite."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0 and finite")
    return number
