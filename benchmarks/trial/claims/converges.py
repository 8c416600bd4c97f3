"""Does noise converge faster? Gradients until a test NLL is reached, on pairs of digits.

The goal is the NLL at which the best rival ends, seed by seed: the one whose NLL was least where
the settings were found. A method that never reaches it counts as the whole run. Each is tuned for
its NLL at the end, as in `overfits`, and read after every epoch, averages as those of the second
half so far. The control is a goal that is easy, the NLL at which AdamW's average ends.
"""

from functools import partial
from typing import Any

import numpy as np

from ..problems import network_methods
from ..protocol.cells import Keep
from ..protocol.pairs import Entry

METRIC = "gradients until the last test NLL of {}, % of the run"
GOALS_OF = {
    "": "momentum, snapshots",
    ", an easy goal": "adamw, average",
}


def gradients_until(goal: np.ndarray, own: dict[str, Any]) -> np.ndarray:
    """Of each seed the share of the run, in percent, after which the NLL is at the goal."""
    reached = np.asarray(own["curve"]) <= np.reshape(goal, (-1, 1))
    epochs = reached.shape[1]
    return 100 * np.where(reached.any(1), 1 + reached.argmax(1), epochs) / epochs


def run(size: str, keep: Keep) -> list[Entry]:
    """The entries of the claim."""
    entries = []
    for column, method in network_methods.OF_COLUMN.items():
        everyone = network_methods.on_pairs(method, size, keep)
        results = network_methods.with_curves(everyone)
        for which, rival in GOALS_OF.items():
            if rival not in everyone:
                continue
            goal = np.asarray(everyone[rival][0]["NLL"])
            entries += network_methods.compare(
                "converges", column, network_methods.pairs_of(size) + which,
                METRIC.format(rival.replace(", ", " with ")), results,
                partial(gradients_until, goal), control=bool(which),
            )  # fmt: skip
    return entries
