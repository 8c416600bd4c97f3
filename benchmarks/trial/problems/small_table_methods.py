"""Methods on small tables: a posterior, ensembles and networks, tuned or as they come."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..protocol.cells import Keep, Result, Settings, grid
from .small_tables import FOLDS, find_step, load, run, score, split

SEEDS, TUNED_SEEDS = range(14), range(4)  # of the splits
STEP_SEED = 1000  # the split on which the step size of a table is found
SHORTER = 0.7  # than the longest step within the tolerance
CHAINS, STEPS, MEMBERS, SHORT, SINGLE = 4, 1500, 10, 600, 6000  # all of them 6,000 gradients
SPENT = 8500  # at most, by the posterior and the search for its step size
GRIDS = {
    "adamw": grid(
        learning_rate=[3e-4, 1e-3, 3e-3, 1e-2, 3e-2], weight_decay=[1e-3, 1e-2, 0.1, 1.0, 10.0]
    ),
    "momentum": grid(
        learning_rate=[3e-3, 1e-2, 3e-2, 0.1, 0.3], weight_decay=[1e-3, 3e-3, 1e-2, 3e-2, 0.1]
    ),
}
DEFAULTS: dict[str, tuple[str, Settings]] = {
    "adamw": ("adamw", {"learning_rate": 1e-3, "weight_decay": 1e-4}),
    "adamw, decay 0.01": ("adamw", {"learning_rate": 1e-3, "weight_decay": 0.01}),
    "momentum": ("momentum", {"learning_rate": 0.1, "weight_decay": 0.0}),
    **{name: (name, {}) for name in ("prodigy", "dowg", "schedule-free adamw", "mechanized adamw")},
}


def evaluate(
    name: str, limit: int | None, method: str, seeds: range, steps: int, folds: Sequence[int],
    settings: Sequence[Settings], kind: str, *, together: bool = True,
) -> Result:  # fmt: skip
    """Test NLL and error on each split, of all networks together or `[splits, networks]`.

    `kind` is "stopped", "average", or "either": by the NLL of the rows held out, given as "held".
    """
    table, seconds = load(name), 0.0
    values: dict[str, list[Any]] = {"NLL": [], "error": [], "held": []}
    for seed in seeds:
        rows = split(table, seed, limit)
        found, took = run(rows, table, method, folds, steps, settings, seed)
        seconds += took
        held, log_p = found["average" if kind == "average" else "stopped"]
        if kind == "either":
            later, of_later = found["average"]
            log_p = np.where((later < held)[:, None, None], of_later, log_p)
            held = np.fmin(later, held)
        groups = [log_p] if together else [each[None] for each in log_p]
        scores = [score(each, table, rows) for each in groups]
        for metric in ("NLL", "error"):
            own = [each[metric] for each in scores]
            values[metric].append(own[0] if together else own)
        values["held"].append(held.mean().item() if together else held.tolist())
    return {"values": values, "seconds": seconds}


def sample_table(name: str, limit: int | None, keep: Keep, *, cold: bool = False) -> Result:
    """Four chains of `baoab` at T = 1/N, averaged; or at T = 0."""

    def find() -> Result:
        table = load(name)
        step_size, gradients = find_step(table, split(table, STEP_SEED, limit))
        return {"values": {"step_size": [step_size], "gradients": [gradients]}, "seconds": 0.0}

    def compute() -> Result:
        step_size = keep(f"{name}, step size", [name, limit], find)["values"]["step_size"][0]
        length = len(load(name).y)
        temperature = 0.0 if cold else 1 / (limit or length - length // 5)
        hp = {"step_size": SHORTER * step_size, "temperature": temperature}
        chains = [-2] * CHAINS, [hp] * CHAINS
        return evaluate(name, limit, "baoab", SEEDS, STEPS, *chains, "average")

    return keep(f"{name}, baoab", [name, limit, cold], compute)


def search_grid(name: str, limit: int | None, method: str, keep: Keep) -> Result:
    """Every point of a method's grid on some splits: `[splits, points]`."""
    points = GRIDS[method]
    of_points = [0] * len(points), points
    compute = lambda: evaluate(
        name, limit, method, TUNED_SEEDS, SHORT, *of_points, "either", together=False
    )
    return keep(f"{name}, {method}, grid", [name, limit], compute)


def train_table(name: str, limit: int | None, keep: Keep, *, ensemble: bool) -> Result:
    """AdamW at the point that is best over the splits of the grid, stopped early."""

    def compute() -> Result:
        held = search_grid(name, limit, "adamw", keep)["values"]["held"]
        settings = GRIDS["adamw"][int(np.nanargmin(np.mean(held, 0)))]
        steps, members = (SHORT, MEMBERS) if ensemble else (SINGLE, 1)
        folds = [i % FOLDS for i in range(members)]
        return evaluate(name, limit, "adamw", SEEDS, steps, folds, [settings] * members, "stopped")

    return keep(f"{name}, adamw", [name, limit, ensemble], compute)


def train_by_default(name: str, method: str, keep: Keep) -> Result:
    """A method as it comes, stopped early or averaged."""
    optimizer, settings = DEFAULTS[method]
    compute = lambda: evaluate(name, None, optimizer, TUNED_SEEDS, SPENT, [0], [settings], "either")
    return keep(f"{name}, {method}", [name, SPENT], compute)


def train_tuned(name: str, method: str, keep: Keep) -> Result:
    """The point of a grid that is best on the rows held out, split by split."""

    def compute() -> Result:
        found = search_grid(name, None, method, keep)
        best = np.nanargmin(found["values"]["held"], 1)
        values = {
            metric: np.asarray(own)[np.arange(len(best)), best].tolist()
            for metric, own in found["values"].items()
        }
        return {"values": values, "seconds": found["seconds"]}

    return keep(f"{name}, {method}, tuned", [name], compute)
