"""Does noise converge faster? Gradients until a test NLL is reached, on pairs of digits.

The goal is the NLL at which AdamW with a cosine ends, seed by seed. A method that never reaches it
counts as the whole run. Each is tuned for its NLL at the end, as in `overfits`, and read after
every epoch, averages as those of the second half so far. The control is a goal that is easy: an NLL
of 2.
"""

from functools import partial
from typing import Any

import numpy as np

from ..problems import network_methods
from ..protocol.cells import Keep
from ..protocol.pairs import Entry

GOAL_OF = "adamw, cosine"
METRIC = "gradients until AdamW's last test NLL, % of the run"
EASY = 2.0


def gradients_until(goal: np.ndarray | float, own: dict[str, Any]) -> np.ndarray:
    """Of each seed the share of the run, in percent, after which the NLL is at the goal."""
    reached = np.asarray(own["curve"]) <= np.reshape(goal, (-1, 1))
    epochs = reached.shape[1]
    return 100 * np.where(reached.any(1), 1 + reached.argmax(1), epochs) / epochs


def run(size: str, keep: Keep) -> list[Entry]:
    """The entries of the claim."""
    entries = []
    for column in ("article", "best"):
        results = network_methods.with_curves(network_methods.on_pairs(column, size, keep))
        goal = np.asarray(results[GOAL_OF][0]["NLL"])
        for setting, metric, target, control in (
            ("pairs of digits", METRIC, goal, False),
            (f"pairs of digits, an NLL of {EASY:g}", "gradients, % of the run", EASY, True),
        ):
            entries += network_methods.compare(
                "converges", column, setting, metric, results,
                partial(gradients_until, target), control=control,
            )  # fmt: skip
    return entries
