"""Methods that train the networks of `networks`, and how the trial sets one beside the others."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ..protocol.cells import Keep, Settings
from ..protocol.pairs import Entry, entry
from . import networks
from .networks import Run, Size, Task


class Method(NamedTuple):
    """An optimizer, which of its predictions count, and what else it is told."""

    optimizer: str
    predictor: str
    options: Mapping[str, Any] = MappingProxyType({})


DIFFUSION, COOLED = "sghmc", "sghmc, cooled"
AVERAGE = {name: Method(name, "average") for name in (DIFFUSION, "momentum", "adamw")}
LAST = {
    COOLED: Method("sghmc", "last", {"cool": 1.0}),
    "momentum, last": Method("momentum", "last"),
    "adamw, last": Method("adamw", "last"),
}
METRICS = {"error": "test error, %", "NLL": "test NLL, nats", "memorised": "memorised, %"}


def compare(
    claim: str,
    task: Task,
    setting: str,
    metric: str,
    methods: dict[str, Method],
    settings: dict[str, Settings],
    wrong: float,
    size: Size,
    keep: Keep,
) -> list[Entry]:
    """The entries of one setting: the first of the methods against the others."""
    results = {}
    for name in [name for name in methods if name in settings]:
        optimizer, predictor, options = methods[name]
        hp = {"epochs": size.epochs} | settings[name] | dict(options)
        result = networks.test_once(keep, task, Run(optimizer, hp, wrong, 0, size.seeds))
        results[name] = (name, result["values"][f"{metric}, {predictor}"], result["seconds"])
    diffusion, *rivals = results.values()
    return [
        entry(claim, setting, METRICS[metric], diffusion, rival, lower_is_better=True)
        for rival in rivals
    ]
