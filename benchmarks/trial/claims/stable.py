"""Does noise keep a network able to learn? A stream that never ends.

Every task shows digits once under a new permutation of their pixels, and what counts is how many
are classified right before they are learned from, late in the stream. The diffusion is `sgld` after
weight decay; its rivals are SGD, momentum, Adam, AdamW, SGD with weight decay, with decay towards
the initial weights, and with layer norm, each tuned. Decay and noise come apart: each is also there
alone. The control is a stream without change.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..problems.streams import Method, follow
from ..protocol import frozen_settings
from ..protocol.cells import Keep, Record, grid
from ..protocol.pairs import Entry, entry

SCORED_BY = "mean online error of the last quarter of 30 tasks, 4 seeds"
CONTROLS = ("one task for ever",)
METRICS = {
    "late": "online accuracy, last quarter of the tasks, %",
    "change": "online accuracy, late less early, %",
}
DIFFUSION = "sgld with decay"
NOISE = "sgld without decay"
WITHOUT_DECAY = {
    NOISE: Method("sgld"),
    "sgd": Method("sgd"),
    "momentum": Method("sgd"),
    "adam": Method("adamw"),
}
RIVALS = {
    "sgd": Method("sgd"),
    "momentum": Method("sgd"),
    "adam": Method("adamw"),
    "adamw": Method("adamw"),
    "sgd with decay": Method("sgd"),
    "sgd with decay to the start": Method("sgd"),
    "sgd with decay, layer norm": Method("sgd", True),
}
METHODS = {DIFFUSION: Method("sgld"), **WITHOUT_DECAY, **RIVALS}

decays = grid(learning_rate=[0.1, 0.3], weight_decay=[1e-3, 3e-3, 1e-2])
GRIDS = {
    DIFFUSION: grid(learning_rate=[0.1], weight_decay=[1e-3, 3e-3], temperature=[1e-5, 3e-5, 1e-4]),
    NOISE: grid(learning_rate=[0.1, 0.3], temperature=[3e-6, 1e-5, 3e-5]),
    "sgd": grid(learning_rate=[0.02, 0.05, 0.1, 0.2, 0.3, 0.5]),
    "momentum": grid(learning_rate=[0.003, 0.01, 0.02, 0.03, 0.05, 0.1], momentum=[0.9]),
    "adam": grid(learning_rate=[3e-4, 1e-3, 2e-3, 4e-3, 7e-3, 1e-2]),
    "adamw": grid(learning_rate=[0.001, 0.003], weight_decay=[0.1, 0.3, 1.0]),
    "sgd with decay": decays,
    "sgd with decay to the start": [point | {"to_start": 1.0} for point in decays],
    "sgd with decay, layer norm": decays,
}


class Size(NamedTuple):
    """How many tasks a stream has, and how many seeds."""

    tasks: int
    seeds: int
    control: bool


SIZES = {
    "quick": Size(20, 12, control=False),
    "default": Size(100, 16, control=True),
    "full": Size(400, 24, control=True),
}


def run(size: str, keep: Keep) -> list[Entry]:
    """The entries of the claim."""
    chosen, frozen = SIZES[size], frozen_settings.load("stable")["stream"]

    def against(
        setting: str, metric: str, diffusion: str, rivals: dict[str, Method], changes: bool
    ) -> list[Entry]:
        results = {}
        for name in (diffusion, *rivals):
            amount: dict[str, Any] = {
                "changes": changes, "tasks": chosen.tasks, "first_seed": 0, "seeds": chosen.seeds
            }  # fmt: skip
            result = keep(
                f"stream, {METHODS[name]}",
                [frozen[name], amount],
                partial(follow, METHODS[name], frozen[name], **amount),
            )
            results[name] = (name, result["values"][metric], result["seconds"])
        return [
            entry("stable", setting, METRICS[metric], results[diffusion], results[rival],
                  lower_is_better=False)
            for rival in rivals
        ]  # fmt: skip

    tasks = f"{chosen.tasks} tasks"
    alone = {name: method for name, method in WITHOUT_DECAY.items() if name != NOISE}
    plain = {name: method for name, method in RIVALS.items() if not method.layer_norm}
    if size == "quick":
        return against(f"{tasks}: late", "late", DIFFUSION, plain, True)
    entries = [
        *against(f"{tasks}: late", "late", DIFFUSION, RIVALS, True),
        *against(f"{tasks}: late less early", "change", DIFFUSION, RIVALS, True),
        *against(f"{tasks}, noise without decay: late", "late", NOISE, alone, True),
    ]
    few = {name: RIVALS[name] for name in ("sgd", "sgd with decay", "adam")}
    return entries + against(CONTROLS[0], "late", DIFFUSION, few, False)


def tune(record: Record) -> None:
    """Six trials of each method, on short streams that the trial does not have."""
    amount: dict[str, Any] = {"changes": True, "tasks": 30, "first_seed": 1000, "seeds": 4}
    for name, method in METHODS.items():
        late = [follow(method, hp, **amount)["values"]["late"] for hp in GRIDS[name]]
        scores = [100 - float(np.mean(values)) for values in late]
        record("stream", name, list(zip(GRIDS[name], scores, strict=True)))
