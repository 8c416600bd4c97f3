"""What the claims share: settings and their tuning, cells that are run once, and their times."""

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...lib import machine
from ...lib.files import write_json

Settings = dict[str, Any]  # the hyperparameters of one method
Result = dict[str, Any]  # "values" of each metric, one a pair, and "seconds" in all
# setting, method, every trial of it with its score: the less the better
Record = Callable[[str, str, list[tuple[Settings, float]]], None]
Keep = Callable[[str, Any, Callable[[], Result]], Result]


def open_store(
    folder: Path | None, report_progress: Callable[[str], None] = lambda text: None
) -> Keep:
    """`keep(name, what, compute)`: the result of a cell, computed once for all that ask for it.

    `what` decides the result, beside the name and the program. With a folder, results are read from
    there and written there, so that a run that was killed goes on; those of another processor or of
    other versions, and those that are damaged, are computed anew. Each computation is reported.
    """
    memory: dict[str, Result] = {}
    held: dict[str, Lock] = {}  # of the claims that are tried at a time, one computes a cell
    made_by = {"cpu": machine.cpu(), "versions": machine.versions(machine.NUMERICS)}

    def read(file: Path) -> Result | None:
        try:
            cell = json.loads(file.read_text("utf-8"))
            return cell["result"] if cell["made_by"] == made_by else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(name: str, what: Any, compute: Callable[[], Result]) -> Result:
        text = json.dumps([name, what])
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        with held.setdefault(digest, Lock()):
            if digest in memory:
                return memory[digest]
            file = folder / f"{digest}.json" if folder else None
            result = read(file) if file else None
            if result is None:
                report_progress(f"{name}, run {len(memory) + 1}")
                result = compute()
                if file:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    cell = {"name": name, "what": what, "made_by": made_by, "result": result}
                    write_json(file, cell)
            memory[digest] = result
            return result

    return keep


COMPILED: dict[Any, Any] = {}
COMPILING: dict[Any, Lock] = {}


def run_timed(
    program: Any, *arguments: Any, static: dict[str, Any], **traced: Any
) -> tuple[Any, float]:
    """What a jitted program gives, as NumPy, and its seconds once it is compiled.

    Numbers are traced, so that a program compiles once for all values of its hyperparameters.
    """
    arguments, traced = jax.tree.map(jnp.asarray, (arguments, traced))
    shapes = jax.tree.map(lambda x: f"{x.dtype}{x.shape}", (arguments, traced))
    key = program, tuple(sorted(static.items())), repr(shapes)
    with COMPILING.setdefault(key, Lock()):
        if key not in COMPILED:
            COMPILED[key] = program.lower(*arguments, **static, **traced).compile()
    start = time.perf_counter()
    result = jax.block_until_ready(COMPILED[key](*arguments, **traced))
    return jax.tree.map(np.asarray, result), time.perf_counter() - start


def grid(**axes: Sequence[Any]) -> list[Settings]:
    """Every combination of the values of the axes."""
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]
