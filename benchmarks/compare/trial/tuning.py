"""Does noise make tuning easier? How much of a grid of step sizes and weight decays is good.

Digits with 40 % wrong labels, at every point of a grid of two decades each. The share of the grid
within 2 points of the accuracy of the best of all optimizers, and within 5 % of its NLL. The
temperature is 1/N at every point, fixed beforehand. SGHMC has momentum's grid, around the point
that was tuned for momentum; AdamW has its own. The control is the tuned point with clean labels.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from ...lib import plots
from ...lib.plots import plt
from . import digits, overfits, tuned
from .cells import Keep
from .digits import TRAIN, Run, Size
from .statistics import Entry, entry

WRONG = 0.4
DIFFUSION, RIVALS = "sghmc at T = 1/N", ("momentum", "adamw")
CONTROLS = ("clean labels at the tuned point",)
SCALES = (0.1, 1.0, 10.0)
METRICS = {
    "error": "share of the grid within 2 points of the best, %",
    "NLL": "share of the grid within 5 % of the best NLL, %",
}
SIZES = {
    "quick": (Size(10, 12),),
    "default": (Size(30, 16),),
    "full": (Size(30, 32), Size(150, 32)),
}


def points(method: str) -> list[dict[str, float]]:
    """The grid of a method: step sizes times weight decays, the steps outside."""
    own = method if method == "adamw" else "momentum"
    center = tuned.load("overfits")["40 %"][own]
    noise = {"temperature": 1 / TRAIN} if method == DIFFUSION else {}
    return [
        {
            "learning_rate": step * center["learning_rate"],
            "weight_decay": decay * center["weight_decay"],
        }
        | noise
        for step, decay in itertools.product(SCALES, SCALES)
    ]


def maps(size: Size, keep: Keep) -> tuple[dict[str, Any], dict[str, float]]:
    """For each method its values of each metric, `[points, seeds]`, and the seconds."""
    values: dict[str, Any] = {}
    seconds = {}
    for method in (DIFFUSION, *RIVALS):
        optimizer = "sghmc" if method == DIFFUSION else method
        cells = [
            digits.tested(keep, Run(optimizer, {"epochs": size.epochs} | hp, WRONG, 0, size.seeds))
            for hp in points(method)
        ]
        values[method] = {
            metric: np.array([cell["values"][metric] for cell in cells])
            for metric in cells[0]["values"]
        }
        seconds[method] = sum(cell["seconds"] for cell in cells)
    return values, seconds


def share_near_best(values: dict[str, np.ndarray], metric: str) -> dict[str, list[float]]:
    """For each method the share of its points near the best, in percent, one a seed.

    The best is that of the means over seeds, of all methods; `values` are `[points, seeds]`.
    """
    best = min(each.mean(1).min() for each in values.values())
    near = best + 2 if metric == "error" else 1.05 * best
    return {name: (100 * (each <= near).mean(0)).tolist() for name, each in values.items()}


def run(size: str, keep: Keep) -> list[Entry]:
    """The entries of the claim."""
    entries = []
    for each in SIZES[size]:
        values, seconds = maps(each, keep)
        for metric, predictor in itertools.product(METRICS, ("average", "last")):
            name = f"{metric}, {predictor}"
            shares = share_near_best({m: of[name] for m, of in values.items()}, metric)
            ours = (DIFFUSION, shares[DIFFUSION], seconds[DIFFUSION])
            entries += [
                entry("tuning", f"{each.epochs} epochs, {predictor}: {metric}", METRICS[metric],
                      ours, (rival, shares[rival], seconds[rival]), lower_is_better=False)
                for rival in RIVALS
            ]  # fmt: skip
        if size == "quick":
            continue
        best = tuned.load("overfits")["0 %"]
        entries += overfits.compared(
            "tuning", f"{CONTROLS[0]}, {each.epochs} epochs: error", "error",
            {name: overfits.METHODS[name] for name in (overfits.DIFFUSION, *RIVALS)},
            best, 0.0, each, keep,
        )  # fmt: skip
    return entries


def plot_maps(values: dict[str, Any], path: Path) -> None:
    """Mean test error of the average over the grid of each method, side by side."""
    fig, axes = plt.subplots(1, len(values), figsize=(12, 3.9), layout="constrained")
    errors = {method: of["error, average"].mean(1).reshape(3, 3) for method, of in values.items()}
    least = min(float(each.min()) for each in errors.values())
    for ax, (method, grid) in zip(axes, errors.items(), strict=True):
        ax.imshow(grid, cmap="RdYlGn_r", vmin=least, vmax=least + 20, origin="lower")
        for (i, j), error in np.ndenumerate(grid):
            weight = "bold" if error <= least + 2 else "normal"
            ax.text(j, i, f"{error:.1f}", ha="center", va="center", fontweight=weight)
        steps, decays = (
            list(dict.fromkeys(f"{point[name]:.2g}" for point in points(method)))
            for name in ("learning_rate", "weight_decay")
        )
        ax.set_xticks(range(3), decays)
        ax.set_yticks(range(3), steps)
        ax.set(title=method, xlabel="weight decay", ylabel="step size")
    plots.save(fig, path)
