"""Does noise keep a network from overfitting? Few examples of many classes; wrong labels.

Two digits side by side, in 100 classes of 8 examples each on average, shown 80 times. The
article's step is `sghmc`, averaged; diffopt's best is momentum whose gradients are taken at
perturbed weights (`weight_noise`), with mean weights. Rivals are momentum and AdamW, tuned by as
many trials on a validation split, with averages, mean weights, cosines and snapshots; in full SAM,
ensembles at equal cost, early stopping and smooth labels too, and `ivon`, which decides nothing.
The control is a quarter of the run, when little has overfitted. In full the same number of steps is
tried with batches of half the training set, too. In full, and on CIFAR-10 where it is named, the
article's step is tried on wrong labels, and no clean validation set says when to stop. On 2,000
images of CIFAR-10 the article's CNN trains long: `sghmc` at T = 0.5/N under a prior by fan-in,
averaged, beside the same step and decay at T = 0, and beside AdamW. In full, `baoab` samples a
network of 50 tanh units on small tables, beside an ensemble of AdamW.
"""

from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np

from ..problems import network_methods, networks, small_table_methods, small_tables
from ..problems.network_methods import (
    ARTICLE,
    ARTICLES,
    BAYES,
    BEST,
    BESTS,
    COOLED,
    LONG_TRAINING,
    METHODS,
    METRICS,
    RIVALS,
    RIVALS_IN_FULL,
    Method,
)
from ..problems.networks import LARGE_BATCHES, PAIRS, SIZES, Run, Task
from ..protocol import frozen_settings
from ..protocol.cells import Keep, Record, Settings
from ..protocol.pairs import Entry

SCORED_BY = "mean NLL of the noisy validation labels, 8 seeds (4 of pairs, 2 of the article's CNN)"
SHARES = {
    "quick": (("40 %", 0.4),),
    "default": (("40 %", 0.4), ("0 %", 0.0)),
    "full": (("20 %", 0.2), ("40 %", 0.4), ("60 %", 0.6), ("0 %", 0.0)),
}
TUNING_SEEDS = {
    "pairs": 4, "pairs, batches of 400": 4, "digits": 8, "CIFAR-10": 2, "digits, the CNN": 2
}  # fmt: skip


def run(size: str, keep: Keep, task: Task = PAIRS) -> list[Entry]:
    """The entries of the claim."""
    if task is not PAIRS:
        few = [] if size == "quick" else after_long_training(keep, task)
        return with_wrong_labels(size, keep, task) + few
    runs = network_methods.runs_on_pairs(size, keep)
    entries = [each for of in runs for each in after_training(*of)]
    if size != "full":
        return entries
    with_ivon = network_methods.on_pairs(BAYES, size, keep)
    return [
        *entries,
        *after_training("best", network_methods.pairs_of(size), with_ivon, ", ivon"),
        *with_wrong_labels(size, keep, networks.DIGITS),
        *on_small_tables(keep),
    ]


def after_training(column: str, setting: str, results: dict[str, Any], by: str = "") -> list[Entry]:
    """The entries of whole runs, and of a quarter of each; `by` names what decides nothing."""
    of = partial(network_methods.compare, "overfits", column)
    entries = []
    for kind, metric in METRICS.items():
        whole = f"{setting}, 100 classes{by}: {kind}"
        entries += of(whole, metric, results, itemgetter(kind), control=bool(by))
    return entries + of(
        f"{setting}, a quarter of the run{by}: NLL", METRICS["NLL"],
        network_methods.with_curves(results), after_a_quarter, control=True,
    )  # fmt: skip


def after_a_quarter(own: dict[str, Any]) -> np.ndarray:
    """The NLL of each seed before anything has overfitted."""
    curve = np.asarray(own["curve"])
    return curve[:, max(curve.shape[1] // 4, 1) - 1]


def untuned(task: Task) -> dict[str, Settings]:
    """Methods as they come: customary values, and a temperature of 1/N."""
    momentum = {"learning_rate": 0.01, "weight_decay": 5e-4}
    return {
        ARTICLE: momentum | {"temperature": 1 / task.train},
        "momentum, average": momentum,
        "adamw, average": {"learning_rate": 0.001, "weight_decay": 0.01},
    }


def with_wrong_labels(size: str, keep: Keep, task: Task) -> list[Entry]:
    """The entries of the article's step where labels are wrong; the control is clean ones."""
    frozen = frozen_settings.load(f"{task.prefix}overfits")
    averages = {ARTICLE: ARTICLES[ARTICLE]} | RIVALS | RIVALS_IN_FULL
    singles = {COOLED: ARTICLES[COOLED]} | RIVALS | RIVALS_IN_FULL
    singles = {name: of for name, of in singles.items() if of.predictor != "average"}
    results = partial(network_methods.run_methods, task, size=SIZES[task.name][size], keep=keep)
    entries = []
    for name, wrong in SHARES[size]:
        labels = f"{task.prefix}{name} wrong labels" if wrong else f"{task.prefix}clean labels"
        # one choice of settings for all shares of wrong labels, another for clean ones
        tuned = frozen["40 %" if wrong else "0 %"]
        places: list[tuple[str, str, dict[str, Method], dict[str, Settings]]] = [
            (f"{labels}, tuned", kind, averages, tuned) for kind in METRICS
        ]
        if wrong:
            places.append((f"{labels}, untuned", "error", averages, untuned(task)))
            places.append((f"{labels}, tuned, one network", "error", singles, tuned))
        for setting, kind, methods, settings in places:
            entries += network_methods.compare(
                "overfits", "article", f"{setting}: {kind}", METRICS[kind],
                results(methods, settings, wrong), itemgetter(kind),
                control=not wrong,
            )  # fmt: skip
    return entries


def after_long_training(keep: Keep, task: Task) -> list[Entry]:
    """The entries of a posterior, `sghmc` under a prior by fan-in, on few images."""
    results = network_methods.on_few_images(task, keep)
    return [
        each
        for kind, metric in METRICS.items()
        for each in network_methods.compare(
            "overfits", "article", f"{LONG_TRAINING}: {kind}", metric, results, itemgetter(kind)
        )
    ]


def on_small_tables(keep: Keep) -> list[Entry]:
    """The entries of a posterior of 50 tanh units on small tables; of one, by its rows too."""
    entries = []
    places: list[tuple[str, int | None]] = [(name, None) for name in small_tables.TABLES]
    for name, limit in places + [("baseball", rows) for rows in (50, 100, 150)]:
        found = {
            "baoab, posterior": small_table_methods.sample_table(name, limit, keep),
            "adamw, ensemble of 10": small_table_methods.train_table(
                name, limit, keep, ensemble=True
            ),
            "adamw, stopped early": small_table_methods.train_table(
                name, limit, keep, ensemble=False
            ),
            "baoab, T = 0": small_table_methods.sample_table(name, limit, keep, cold=True),
        }
        results = {method: (each["values"], each["seconds"]) for method, each in found.items()}
        setting = f"table, {name}" + (f", {limit} rows" if limit else "")
        entries += network_methods.compare(
            "overfits", "best", f"{setting}: NLL", METRICS["NLL"], results, itemgetter("NLL")
        )
    return entries


def tune(record: Record, task: Task = PAIRS) -> None:
    """As many trials of each method: at 40 % wrong labels, and at 0 %; pairs of digits at 0 %.

    In large batches those methods that are set beside each other by default, and SAM.
    """
    epochs = SIZES[task.name]["default"].epochs
    seeds = TUNING_SEEDS[task.name]
    on_pairs = task in (PAIRS, LARGE_BATCHES)
    names = (ARTICLE, BEST, *RIVALS, "SAM, cosine") if task is LARGE_BATCHES else METHODS
    omitted = (COOLED,) if on_pairs else BESTS
    methods = {name: METHODS[name] for name in names if name not in omitted}
    for share, wrong in (("0 %", 0.0),) if on_pairs else SHARES["default"]:
        scores: dict[str, list[dict[str, float]]] = {}
        for name, (optimizer, predictor, options, grid) in methods.items():
            points = network_methods.GRIDS[task.name][grid]
            shared = f"{optimizer} {grid} {options}"  # predictors of one run share their trials
            if shared not in scores:
                fixed = {"epochs": epochs, **options}
                runs = [Run(optimizer, hp | fixed, wrong, 1000, seeds) for hp in points]
                scores[shared] = [networks.validate(task, run) for run in runs]
            values = [score[predictor] for score in scores[shared]]
            record(share, name, list(zip(points, values, strict=True)))
