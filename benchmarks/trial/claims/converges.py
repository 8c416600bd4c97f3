"""Does noise converge faster? Gradients until a test NLL is reached, on pairs of digits.

The goal is the NLL at which the best rival ends, seed by seed: the one whose NLL was least where
the settings were found. A method that never reaches it counts as the whole run. Each is tuned for
its NLL at the end, as in `overfits`, and read after every epoch, averages as those of the second
half so far. The control is a goal that is easy, the NLL at which AdamW's average ends. In full the
same number of steps is tried with batches of half the training set, too. On CIFAR-10, where it is
named, the runs are those of `overfits` that train long on 2,000 images.
"""

from functools import partial
from typing import Any

import numpy as np

from ..problems import network_methods
from ..problems.network_methods import IN_LARGE_BATCHES, LONG_TRAINING
from ..problems.networks import PAIRS, Task
from ..protocol.cells import Keep
from ..protocol.pairs import Entry

METRIC = "gradients until the last test NLL of {}, % of the run"
GOAL = "momentum, snapshots"
GOALS = {IN_LARGE_BATCHES: "SAM, cosine", LONG_TRAINING: "adamw, ensemble of 4"}


def gradients_until(goal: np.ndarray, own: dict[str, Any]) -> np.ndarray:
    """Of each seed the share of the run, in percent, after which the NLL is at the goal."""
    reached = np.asarray(own["curve"]) <= np.reshape(goal, (-1, 1))
    epochs = reached.shape[1]
    return 100 * np.where(reached.any(1), 1 + reached.argmax(1), epochs) / epochs


def until_goals(column: str, setting: str, everyone: dict[str, Any]) -> list[Entry]:
    """The entries of the goals that rivals set, if they are among a setting's results."""
    results = network_methods.with_curves(everyone)
    entries = []
    for which, rival in (("", GOALS.get(setting, GOAL)), (", an easy goal", "adamw, average")):
        if rival not in everyone:
            continue
        goal = np.asarray(everyone[rival][0]["NLL"])
        entries += network_methods.compare(
            "converges", column, setting + which, METRIC.format(rival.replace(", ", " with ")),
            results, partial(gradients_until, goal), control=bool(which),
        )  # fmt: skip
    return entries


def run(size: str, keep: Keep, task: Task = PAIRS) -> list[Entry]:
    """The entries of the claim."""
    if task is not PAIRS:
        everyone = network_methods.on_few_images(task, keep)
        return until_goals("article", LONG_TRAINING, everyone)
    return [
        each for runs in network_methods.runs_on_pairs(size, keep) for each in until_goals(*runs)
    ]
