"""Does noise keep a network from fitting wrong labels? Digits with labels replaced at random.

No clean validation set says when to stop. The diffusion is `sghmc`, averaged, or cooled to one
network; its rivals are momentum and AdamW, averaged, stopped early, with mean weights, with
snapshots, and an ensemble at equal cost, each tuned by as many trials on noisy validation labels;
and both as they come, untuned. The control is clean labels.
"""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from . import digits, tuned
from .cells import Keep, Record, Settings, grid
from .digits import TRAIN, Run, Size
from .statistics import Entry, entry

SCORED_BY = "mean NLL of the noisy validation labels, 8 seeds"
CONTROLS = ("clean labels",)


class Method(NamedTuple):
    """An optimizer, which of its predictions count, and what else it is told."""

    optimizer: str
    predictor: str
    options: Mapping[str, Any] = MappingProxyType({})


DIFFUSION, COOLED = "sghmc", "sghmc, cooled"
AVERAGES = {
    DIFFUSION: Method("sghmc", "average"),
    "momentum": Method("momentum", "average"),
    "momentum, mean weights": Method("momentum", "mean weights"),
    "momentum, stopped early": Method("momentum", "stopped early"),
    "momentum, snapshots": Method("momentum", "average", {"cycles": 4}),
    "momentum, ensemble of 4": Method("momentum", "average", {"members": 4}),
    "adamw": Method("adamw", "average"),
    "adamw, stopped early": Method("adamw", "stopped early"),
}
SINGLES = {
    COOLED: Method("sghmc", "last", {"cool": 1.0}),
    "momentum, last": Method("momentum", "last"),
    "momentum, stopped early": AVERAGES["momentum, stopped early"],
    "momentum, mean weights": AVERAGES["momentum, mean weights"],
    "adamw, last": Method("adamw", "last"),
    "adamw, stopped early": AVERAGES["adamw, stopped early"],
}
METHODS = AVERAGES | SINGLES
# As they come: customary values, and a temperature of 1/N.
UNTUNED: dict[str, Settings] = {
    DIFFUSION: {"learning_rate": 0.01, "weight_decay": 5e-4, "temperature": 1 / TRAIN},
    "momentum": {"learning_rate": 0.01, "weight_decay": 5e-4},
    "adamw": {"learning_rate": 0.001, "weight_decay": 0.01},
}
GRIDS = {
    "sghmc": grid(
        learning_rate=[0.01, 0.03], weight_decay=[3e-3, 1e-2], temperature=[2e-4, 6e-4, 2e-3]
    ),
    "momentum": grid(learning_rate=[0.003, 0.01, 0.03], weight_decay=[1e-3, 3e-3, 1e-2, 3e-2]),
    "adamw": grid(learning_rate=[3e-4, 1e-3, 3e-3], weight_decay=[0.03, 0.1, 0.3, 1.0]),
}
SHARES = {
    "quick": (("40 %", 0.4),),
    "default": (("40 %", 0.4), ("0 %", 0.0)),
    "full": (("20 %", 0.2), ("40 %", 0.4), ("60 %", 0.6), ("0 %", 0.0)),
}
METRICS = {"error": "test error, %", "NLL": "test NLL, nats", "memorised": "memorised, %"}


def compared(
    claim: str,
    setting: str,
    metric: str,
    methods: dict[str, Method],
    settings: dict[str, Settings],
    wrong: float,
    size: Size,
    keep: Keep,
) -> list[Entry]:
    """The entries of one setting: the first of the methods against the others."""
    found = {}
    for name in [name for name in methods if name in settings]:
        optimizer, predictor, options = methods[name]
        hp = {"epochs": size.epochs} | settings[name] | dict(options)
        result = digits.tested(keep, Run(optimizer, hp, wrong, 0, size.seeds))
        found[name] = (name, result["values"][f"{metric}, {predictor}"], result["seconds"])
    diffusion, *rivals = found.values()
    return [
        entry(claim, setting, METRICS[metric], diffusion, rival, lower_is_better=True)
        for rival in rivals
    ]


def run(size: str, keep: Keep) -> list[Entry]:
    """The entries of the claim."""
    of = partial(compared, "overfits", size=digits.SIZES[size], keep=keep)
    frozen = tuned.load("overfits")
    entries = []
    for name, wrong in SHARES[size]:
        # one choice of settings for all shares of wrong labels, another for clean ones
        best = frozen["40 %" if wrong else "0 %"]
        if not wrong:
            for metric in ("error", "NLL"):
                setting = f"{CONTROLS[0]}, tuned: {metric}"
                entries += of(setting, metric, AVERAGES, best, wrong)
            continue
        for metric in ("error", "memorised"):
            setting = f"{name} wrong labels, untuned: {metric}"
            entries += of(setting, metric, AVERAGES, UNTUNED, wrong)
        if size != "quick":
            for metric in ("error", "NLL"):
                setting = f"{name} wrong labels, tuned: {metric}"
                entries += of(setting, metric, AVERAGES, best, wrong)
            setting = f"{name} wrong labels, tuned, one network: error"
            entries += of(setting, "error", SINGLES, best, wrong)
    return entries


def tune(record: Record) -> None:
    """Twelve trials of each method at 40 % wrong labels, and of the averages at 0 %."""
    epochs = digits.SIZES["default"].epochs
    few = (DIFFUSION, "momentum", "adamw", COOLED, "momentum, last", "adamw, last")
    clean = {name: METHODS[name] for name in few}
    for share, wrong, methods in (("40 %", 0.4, METHODS), ("0 %", 0.0, clean)):
        scores: dict[str, list[dict[str, float]]] = {}
        for name, (optimizer, predictor, options) in methods.items():
            points = GRIDS[optimizer]
            shared = f"{optimizer} {options}"  # the predictors of one run share their trials
            if shared not in scores:
                fixed = {"epochs": epochs, **options}
                runs = [Run(optimizer, hp | fixed, wrong, 1000, 8) for hp in points]
                scores[shared] = [digits.validate(run) for run in runs]
            values = [score[predictor] for score in scores[shared]]
            record(share, name, list(zip(points, values, strict=True)))
