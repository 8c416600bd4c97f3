"""Methods that train the networks of `networks`, and how the trial sets one beside the others."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from ..protocol import frozen_settings
from ..protocol.cells import Keep, Settings, grid
from ..protocol.pairs import Entry, entry
from . import networks
from .networks import LARGE_BATCHES, PAIRS, Run, Size, Task


class Method(NamedTuple):
    """An optimizer, which of its predictions count, what else it is told, whose grid it has."""

    optimizer: str
    predictor: str
    options: Mapping[str, Any] = MappingProxyType({})
    grid: str = "momentum"


NOISE, COSINE = {"weight_std": 0.03}, {"cycles": 1}
ARTICLE, COOLED = "sghmc", "sghmc, cooled"
BEST, UNTUNED, BAYES = "weight noise, mean weights", "weight noise, cosine", "ivon, average"
ARTICLES = {
    ARTICLE: Method("sghmc", "average", {}, "sghmc"),
    COOLED: Method("sghmc", "last", {"cool": 1.0}, "sghmc"),
}
BESTS = {
    BEST: Method("weight noise", "mean weights", NOISE),
    UNTUNED: Method("weight noise", "last", NOISE | COSINE),
    BAYES: Method("ivon", "average", COSINE, "ivon"),
}
RIVALS = {
    "momentum, average": Method("sghmc", "average"),
    "momentum, mean weights": Method("sghmc", "mean weights"),
    "momentum, cosine": Method("sghmc", "last", COSINE),
    "momentum, snapshots": Method("sghmc", "average", {"cycles": 4}),
    "adamw, average": Method("adamw", "average", {}, "adamw"),
    "adamw, mean weights": Method("adamw", "mean weights", {}, "adamw"),
}
RIVALS_IN_FULL = {
    "adamw, cosine": Method("adamw", "last", COSINE, "adamw"),
    "SAM, cosine": Method("sam", "last", COSINE),
    "momentum, last": Method("sghmc", "last"),
    "momentum, stopped early": Method("sghmc", "stopped early"),
    "momentum, ensemble of 4": Method("sghmc", "average", {"members": 4}),
    "momentum, cosine, smooth labels": Method("sghmc", "last", COSINE | {"smoothing": 0.1}),
    "adamw, last": Method("adamw", "last", {}, "adamw"),
    "adamw, stopped early": Method("adamw", "stopped early", {}, "adamw"),
    "adamw, ensemble of 4": Method("adamw", "average", {"members": 4}, "adamw"),
}
METHODS = ARTICLES | BESTS | RIVALS | RIVALS_IN_FULL
POSTERIOR = "sghmc, prior by fan-in"
ON_FEW_IMAGES = {
    POSTERIOR: Method("sghmc", "average"),
    "momentum, the same decay": Method("sghmc", "average"),
    "adamw, average": Method("adamw", "average"),
    "adamw, cosine": Method("adamw", "last", COSINE),
    "adamw, ensemble of 4": Method("adamw", "average", {"members": 4, "cycles": 4}),
}
IN_LARGE_BATCHES = "pairs of digits, batches of 400"
LONG_TRAINING = "CIFAR-10, 2,000 images, long training"
GRIDS = {
    "pairs": {
        "momentum": grid(learning_rate=[0.1, 0.2, 0.4], weight_decay=[2e-3, 4e-3, 8e-3]),
        "sghmc": grid(
            learning_rate=[0.1], weight_decay=[2e-3, 4e-3, 8e-3], temperature=[1e-5, 3e-5, 1e-4]
        ),
        "ivon": grid(learning_rate=[0.5, 1.0, 1.5], weight_decay=[2e-3, 4e-3, 8e-3]),
        "adamw": grid(learning_rate=[6e-3, 1.2e-2, 2.4e-2], weight_decay=[0.1, 0.3, 1.0]),
    },
    "pairs, batches of 400": {
        "momentum": grid(learning_rate=[0.1, 0.2, 0.4], weight_decay=[2e-3, 4e-3, 8e-3]),
        "sghmc": grid(
            learning_rate=[0.4], weight_decay=[1e-3, 2e-3, 4e-3], temperature=[3e-6, 1e-5, 3e-5]
        ),
        "adamw": grid(learning_rate=[6e-3, 1.2e-2, 2.4e-2], weight_decay=[0.3, 1.0, 3.0]),
    },
    "digits": {
        "momentum": grid(learning_rate=[0.003, 0.01, 0.03], weight_decay=[1e-3, 3e-3, 1e-2, 3e-2]),
        "sghmc": grid(
            learning_rate=[0.01, 0.03], weight_decay=[3e-3, 1e-2], temperature=[2e-4, 6e-4, 2e-3]
        ),
        "adamw": grid(learning_rate=[3e-4, 1e-3, 3e-3], weight_decay=[0.03, 0.1, 0.3, 1.0]),
    },
    "CIFAR-10": {
        "momentum": grid(learning_rate=[0.01, 0.03], weight_decay=[2e-3, 5e-3, 1e-2, 2e-2]),
        "sghmc": grid(
            learning_rate=[0.01, 0.03], weight_decay=[5e-3, 1e-2], temperature=[5e-5, 2e-4]
        ),
        "adamw": grid(learning_rate=[5e-4, 2e-3], weight_decay=[0.5, 1.0, 2.0, 4.0]),
    },
    "digits, the CNN": {
        "momentum": grid(learning_rate=[0.003, 0.01, 0.03, 0.1], weight_decay=[1e-4, 1e-3]),
        "sghmc": grid(
            learning_rate=[0.01, 0.03], weight_decay=[1e-4, 1e-3], temperature=[1e-5, 1e-4]
        ),
        "adamw": grid(learning_rate=[3e-4, 1e-3, 3e-3, 1e-2], weight_decay=[0.01, 0.1]),
    },
}
METRICS = {"error": "test error, %", "NLL": "test NLL, nats"}


def run_methods(
    task: Task, methods: Mapping[str, Method], settings: dict[str, Settings], wrong: float,
    size: Size, keep: Keep,
) -> dict[str, tuple[dict[str, Any], float]]:  # fmt: skip
    """Of each method error, NLL and curve by its own predictor, `[seeds]`, and the seconds."""
    results = {}
    for name in [name for name in methods if name in settings]:
        optimizer, predictor, options, _ = methods[name]
        hp = {"epochs": size.epochs} | settings[name] | dict(options)
        result = networks.test_once(keep, task, Run(optimizer, hp, wrong, 0, size.seeds))
        own = {kind: result["values"][f"{kind}, {predictor}"] for kind in (*METRICS, "curve")}
        results[name] = own, result["seconds"]
    return results


def compare(
    claim: str,
    column: str,
    setting: str,
    metric: str,
    results: dict[str, tuple[dict[str, Any], float]],
    measure: Callable[[dict[str, Any]], Any],
    *,
    control: bool = False,
) -> list[Entry]:
    """The entries of one setting: the first of the methods against the others.

    `measure` makes of a method's results its values, the less the better.
    """
    values = {
        name: (name, np.asarray(measure(own)).tolist(), s) for name, (own, s) in results.items()
    }
    method, *rivals = values.values()
    return [
        entry(claim, column, setting, metric, method, rival, lower_is_better=True, control=control)
        for rival in rivals
    ]


OF_COLUMN = {"article": ARTICLE, "best": BEST}


def rivals(size: str) -> dict[str, Method]:
    """Those of a size: the shortest compiles no AdamW."""
    if size == "quick":
        return {name: of for name, of in RIVALS.items() if of.optimizer != "adamw"}
    return RIVALS | (RIVALS_IN_FULL if size == "full" else {})


def pairs_of(size: str) -> str:
    """The name of the task at a size: in full there are more seeds."""
    seeds = networks.SIZES["pairs"][size].seeds
    return "pairs of digits" + (f", {seeds} seeds" if size == "full" else "")


def on_pairs(
    method: str, size: str, keep: Keep, task: Task = PAIRS
) -> dict[str, tuple[dict[str, Any], float]]:
    """The results on pairs of digits: a method's, and of all rivals that are tuned there."""
    methods = {method: METHODS[method]} | rivals(size)
    settings = frozen_settings.load(f"{task.prefix}overfits")["0 %"]
    return run_methods(task, methods, settings, 0.0, networks.SIZES[task.name][size], keep)


def runs_on_pairs(
    size: str, keep: Keep
) -> list[tuple[str, str, dict[str, tuple[dict[str, Any], float]]]]:
    """What several claims read: column, name and results; in full in large batches too."""
    tasks = {pairs_of(size): PAIRS} | ({IN_LARGE_BATCHES: LARGE_BATCHES} if size == "full" else {})
    return [
        (column, name, on_pairs(method, size, keep, task))
        for column, method in OF_COLUMN.items()
        for name, task in tasks.items()
    ]


def on_few_images(task: Task, keep: Keep) -> dict[str, tuple[dict[str, Any], float]]:
    """The results of long training on few images of CIFAR-10, the `task`: of all methods."""
    few = networks.few_images(task)
    settings = frozen_settings.load(f"{few.prefix}overfits")["0 %"]
    return run_methods(few, ON_FEW_IMAGES, settings, 0.0, networks.LONG, keep)


def with_curves(results: dict[str, tuple[dict[str, Any], float]]) -> dict[str, Any]:
    """Those of the results that predict after every epoch."""
    return {name: of for name, of in results.items() if len(of[0]["curve"][0]) > 1}
