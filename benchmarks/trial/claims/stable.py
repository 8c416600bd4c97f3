"""Is training more stable with noise? The last epochs of a run; in full a stream that never ends.

How far the test NLL at the end lies above its least along the run, on pairs of digits at the
settings of `overfits`: 0 for a run that needs no early stopping. The control is the half of the run
before, in which few overfit. On CIFAR-10, where it is named, the runs are those of `overfits` that
train long on 2,000 images.

In the stream every task shows digits once under a new permutation of their pixels, and what counts
is how many are classified right before they are learned from, late in the stream. The diffusion is
`sgld` after weight decay; its rivals are SGD, momentum, Adam, AdamW, SGD with weight decay, with
decay towards the initial weights, and with layer norm, each tuned. Decay and noise come apart: each
is also there alone. Its control is a stream without change.
"""

from functools import partial
from typing import Any

import numpy as np

from ..problems import network_methods
from ..problems.network_methods import LONG_TRAINING
from ..problems.networks import PAIRS, Task
from ..problems.streams import Method, follow
from ..protocol import frozen_settings
from ..protocol.cells import Keep, Record, grid
from ..protocol.pairs import Entry, entry

SCORED_BY = "mean online error of the last quarter of 30 tasks, 4 seeds"
RISE = "test NLL at the end above its least, nats"
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


TASKS, SEEDS = 400, 24  # of a stream


def rise(own: dict[str, Any]) -> np.ndarray:
    """How far each seed's NLL ends above its least."""
    curve = np.asarray(own["curve"])
    return curve[:, -1] - curve.min(1)


def until_half(own: dict[str, Any]) -> dict[str, Any]:
    """The first half of a run."""
    return {"curve": np.asarray(own["curve"])[:, : len(own["curve"][0]) // 2]}


def at_end(column: str, setting: str, everyone: dict[str, Any]) -> list[Entry]:
    """The entries of whole runs, and of the half of each."""
    results = network_methods.with_curves(everyone)
    of = partial(network_methods.compare, "stable", column)
    return of(setting, RISE, results, rise) + of(
        f"{setting}, half of the run", RISE, results, lambda own: rise(until_half(own)),
        control=True,
    )  # fmt: skip


def run(size: str, keep: Keep, task: Task = PAIRS) -> list[Entry]:
    """The entries of the claim."""
    if task is not PAIRS:
        return at_end("article", LONG_TRAINING, network_methods.on_few_images(task, keep))
    entries = [each for runs in network_methods.runs_on_pairs(size, keep) for each in at_end(*runs)]
    return entries + (follow_streams(keep) if size == "full" else [])


def follow_streams(keep: Keep) -> list[Entry]:
    """The entries of the streams."""
    frozen = frozen_settings.load("stable")["stream"]

    def against(
        setting: str, metric: str, diffusion: str, rivals: dict[str, Method], changes: bool
    ) -> list[Entry]:
        results = {}
        for name in (diffusion, *rivals):
            amount: dict[str, Any] = {
                "changes": changes, "tasks": TASKS, "first_seed": 0, "seeds": SEEDS
            }  # fmt: skip
            result = keep(
                f"stream, {METHODS[name]}",
                [frozen[name], amount],
                partial(follow, METHODS[name], frozen[name], **amount),
            )
            results[name] = (name, result["values"][metric], result["seconds"])
        return [
            entry("stable", "article", setting, METRICS[metric], results[diffusion],
                  results[rival], lower_is_better=False, control=not changes)
            for rival in rivals
        ]  # fmt: skip

    alone = {name: method for name, method in WITHOUT_DECAY.items() if name != NOISE}
    few = {name: RIVALS[name] for name in ("sgd", "sgd with decay", "adam")}
    return [
        *against(f"{TASKS} tasks: late", "late", DIFFUSION, RIVALS, True),
        *against(f"{TASKS} tasks: late less early", "change", DIFFUSION, RIVALS, True),
        *against(f"{TASKS} tasks, noise without decay: late", "late", NOISE, alone, True),
        *against("one task for ever", "late", DIFFUSION, few, False),
    ]


def tune(record: Record) -> None:
    """Six trials of each method, on short streams that the trial does not have."""
    amount: dict[str, Any] = {"changes": True, "tasks": 30, "first_seed": 1000, "seeds": 4}
    for name, method in METHODS.items():
        late = [follow(method, hp, **amount)["values"]["late"] for hp in GRIDS[name]]
        scores = [100 - float(np.mean(values)) for values in late]
        record("stream", name, list(zip(GRIDS[name], scores, strict=True)))
