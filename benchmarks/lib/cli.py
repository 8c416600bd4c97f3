"""The command line of a program: its arguments, its folder, its exit status."""

import argparse
import functools
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path


class Refusal(Exception):
    """What cannot be done, told in one sentence."""


def program(name: str) -> Callable[..., Callable[..., int]]:
    """Decorate `main(argv)` of the program called `name`, so that it returns its exit status.

    A `Refusal` is told in its one sentence, with status 2; an interrupt ends with status 130.
    """

    def decorate(main: Callable[[list[str] | None], int | None]) -> Callable[..., int]:
        @functools.wraps(main)
        def wrapped(argv: list[str] | None = None) -> int:
            try:
                return main(argv) or 0
            except Refusal as refusal:
                print(f"{name}: {refusal}", file=sys.stderr)
                return 2
            except KeyboardInterrupt:
                print(f"{name}: interrupted", file=sys.stderr)
                return 130

        return wrapped

    return decorate


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


def make_folder(path: Path) -> Path:
    """The folder of `--out`, made if need be and tried before the work begins.

    Raises:
      Refusal: nothing can be written there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise Refusal(f"--out {path} cannot be written: {error.strerror}") from error
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
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least}")
        return int(text)

    return whole


at_least_one = at_least(1)


def positive(text: str) -> float:
    """The type of an argument that is a number above 0, and finite."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0 and finite")
    return number
