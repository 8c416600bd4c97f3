"""The line that shows how far a run is, and Ctrl-C between its chunks."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

WIDTH = 20


@contextmanager
def hear_interrupts() -> Iterator[list[bool]]:
    """A list that is empty until the first Ctrl-C; the second is a KeyboardInterrupt."""
    heard: list[bool] = []
    ours = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if ours else None
    if before is not signal.default_int_handler:
        yield heard
        return

    def hear(*_: Any) -> None:
        heard.append(True)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, hear)
    try:
        yield heard
    finally:
        signal.signal(signal.SIGINT, before)


def show_progress(total: int) -> Callable[[int, str], None]:
    """A function that writes how many of `total` steps are done, over the line before, to stderr.

    A terminal that cannot show the line never ends a run: the line is given up.
    """
    began = time.perf_counter()
    first_chunk: list[tuple[float, int]] = []  # it compiles: its seconds, and its steps

    def write(done: int, text: str) -> None:
        seconds = time.perf_counter() - began
        left = ""
        if first_chunk:
            after, steps = seconds - first_chunk[0][0], done - first_chunk[0][1]
            left = f" + {_clock(after / max(steps, 1) * (total - done))} left"
        else:
            first_chunk.append((seconds, done))
        filled = WIDTH * done // total
        _write(
            f"\r{'━' * filled}{'─' * (WIDTH - filled)} {done}/{total} {text}"
            f" {_clock(seconds)}{left}  "
        )

    return write


def end_progress() -> None:
    """Leave the line as it stands."""
    _write("\n")


def _write(text: str) -> None:
    stream = sys.stderr
    if stream is None:
        return
    with suppress(OSError, ValueError):  # full, or closed
        encoding = getattr(stream, "encoding", None) or "utf-8"
        plain = text.replace("━", "=").replace("─", "-")
        stream.write(text if _can_encode(text, encoding) else plain)
        stream.flush()


def _can_encode(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
