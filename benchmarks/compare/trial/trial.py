"""The trial of the article's five claims: what is run, what is tuned."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ...lib import machine
from . import cost, escapes, overfits, stable, tuned, tuning
from .cells import Settings, keeper
from .statistics import Entry, judge

CLAIMS: dict[str, ModuleType] = {
    "escapes": escapes,
    "stable": stable,
    "overfits": overfits,
    "tuning": tuning,
    "cost": cost,
}


def run(
    claims: Sequence[str], size: str, folder: Path | None, done: Callable[[str], None]
) -> list[Entry]:
    """The entries of the claims. With a folder, finished cells are kept in it and not run again."""
    keep = keeper(folder)
    entries: list[Entry] = []
    for claim in claims:
        done(claim)
        entries += judge(CLAIMS[claim].run(size, keep))
    return entries


def tune(claims: Sequence[str], done: Callable[[str], None]) -> None:
    """Find the settings of the claims, on seeds and instances that the trial does not have.

    Of each method that with the least score is chosen; the file has the score of every trial.
    """
    for claim in claims:
        if not hasattr(CLAIMS[claim], "tune"):
            continue
        start = time.perf_counter()
        chosen: list[dict[str, Any]] = []
        trials: list[dict[str, Any]] = []

        def record(setting: str, method: str, scores: list[tuple[Settings, float]]) -> None:
            best, least = min(scores, key=lambda s: s[1] if math.isfinite(s[1]) else math.inf)
            where = {"setting": setting, "method": method}
            chosen.append(where | {"settings": best, "score": least})
            trials.extend(
                where | {"settings": hp, "score": score if math.isfinite(score) else None}
                for hp, score in scores
            )
            done(f"{claim}: {setting}, {method}: {least:.4g} with {best}")

        CLAIMS[claim].tune(record)
        found = {
            "scored_by": CLAIMS[claim].SCORED_BY,
            "machine": machine.line(machine.describe()),
            "seconds": round(time.perf_counter() - start),
            "chosen": chosen,
            "trials": trials,
        }
        tuned.store(claim, found)
