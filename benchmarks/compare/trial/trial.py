"""The trial of the article's five claims: what is run, what is tuned."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
CONTROLS: dict[str, Sequence[str]] = {name: claim.CONTROLS for name, claim in CLAIMS.items()}


def run(
    claims: Sequence[str], size: str, out: Path, done: Callable[[str], None]
) -> Iterator[dict[str, list[Any]]]:
    """What each claim adds to `metrics.json`, in turn: entries to `claims`, the cost to `memory`.

    The map of `tuning` is drawn into the folder `out`. Two claims are tried at a time, the cost on
    its own. In full, finished cells are kept in `out` and not run again.
    """
    keep = keeper(out / "trial" if size == "full" else None)

    def entries(claim: str) -> list[Entry]:
        return judge(CLAIMS[claim].run(size, keep))

    pool = ThreadPoolExecutor(min(2, machine.cores()))
    try:
        found = {claim: pool.submit(entries, claim) for claim in claims if claim != "cost"}
        for claim, future in found.items():
            done(claim)
            yield {"claims": future.result()}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    if "tuning" in claims:
        longest, _ = tuning.maps(tuning.SIZES[size][-1], keep)
        tuning.plot_maps(longest, out / "tuning.png")
    if "cost" in claims:
        done("cost")
        yield {"claims": entries("cost"), "memory": cost.memory(size, keep)}


def tune(claims: Sequence[str], done: Callable[[str], None]) -> None:
    """Find the settings of the claims, on seeds and instances that the trial does not have."""
    for claim in (claim for claim in claims if hasattr(CLAIMS[claim], "tune")):
        tuned.store(claim, found(CLAIMS[claim], done))


def found(claim: ModuleType, done: Callable[[str], None]) -> dict[str, Any]:
    """Every trial of a claim with its score, and each method's settings of the least."""
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
        done(f"{setting}, {method}: {least:.4g} with {best}")

    start = time.perf_counter()
    claim.tune(record)
    return {
        "scored_by": claim.SCORED_BY,
        "machine": machine.line(machine.describe()),
        "seconds": round(time.perf_counter() - start),
        "chosen": chosen,
        "trials": trials,
    }
