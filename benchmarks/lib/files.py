"""Files that appear whole or not at all, in UTF-8 whatever the locale."""

import fcntl
import json
import math
import os
from pathlib import Path
from typing import IO, Any

from .cli import UsageError


def write(path: Path, content: str | bytes) -> None:
    """Write a file beside `path`, then put it in its place.

    Raises:
      UsageError: it cannot be written; what was at `path` is as it was.
    """
    if isinstance(content, str):  # an argument that the locale could not decode has surrogates
        content = content.encode("utf-8", "surrogateescape")
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        try:
            part.write_bytes(content)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error


def write_json(path: Path, value: Any, indent: int = 2) -> None:
    """Write `value` as JSON, as `write` does; a number that is not finite becomes null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: finite(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [finite(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    write(path, json.dumps(finite(value), indent=indent, allow_nan=False) + "\n")


def lock(folder: Path, option: str) -> IO[bytes]:
    """A lock on `folder`, that an option names, held until it is closed or its process ends.

    Raises:
      UsageError: another run holds it.
    """
    file = (folder / f".{option.strip('-')}.lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UsageError(f"{option} {folder} is in use by another run") from error
    except OSError:  # a file system without locks
        pass
    return file
