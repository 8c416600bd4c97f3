"""Does noise make tuning easier? One run at customary settings; in full, a grid of them.

Pairs of digits at what is customary: momentum's step of 0.1 and decay of 5e-4, on a cosine;
AdamW's of 1e-3 and 0.01, averaged; noise of 3 % of each filter's norm inside momentum's gradients,
or at T = 1/N. The control is the tuned settings of `overfits`.

The grid is that of digits, and CIFAR-10 where it is named, with 40 % wrong labels: every point of
two decades of steps and of decays. What counts is the share of the grid within 2 points of the
accuracy of the best, and within 5 % of its NLL: the best of a method and its rivals. The noise is
the same at every point, fixed beforehand: T = 1/N on digits, a tenth of that on CIFAR-10, where 1/N
is too hot for the network to learn, and 3 % of each filter's norm, as on pairs of digits. Methods
with noise have momentum's grid, around the point that was tuned for momentum; AdamW has its own.

In full, methods as they come have one run on each of twelve small tables; a pair is a table. The
control is momentum and AdamW at the best point of a grid.
"""

import itertools
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from ...lib import plots
from ...lib.plots import plt
from ..problems import network_methods, networks, small_table_methods, small_tables
from ..problems.network_methods import ARTICLE, METHODS, UNTUNED
from ..problems.networks import PAIRS, Run, Size, Task
from ..protocol import frozen_settings
from ..protocol.cells import Keep
from ..protocol.pairs import Entry, entry

WRONG = 0.4
RIVALS = ("momentum", "adamw")
NOISY = "weight noise"
# how many times colder than 1/N, and what it is called
COLDER = {"digits": (1, "sghmc at T = 1/N"), "CIFAR-10": (10, "sghmc at T = 1/(10 N)")}
SCALES = (0.1, 1.0, 10.0)
METRICS = {
    "error": "share of the grid within 2 points of the best, %",
    "NLL": "share of the grid within 5 % of the best NLL, %",
}
SIZES: dict[str, dict[str, tuple[Size, ...]]] = {
    "digits": {
        "quick": (Size(10, 12),),
        "default": (Size(30, 16),),
        "full": (Size(30, 32), Size(150, 32)),
    },
    "CIFAR-10": {
        "quick": (Size(2, 12),),
        "default": (Size(6, 12),),
        "full": (Size(30, 12),),
    },
}


def optimizers(task: Task) -> dict[str, tuple[str, str, dict[str, float]]]:
    """Of each method on the grid its optimizer, whose grid that is, and its noise."""
    colder, tempered = COLDER[task.name]
    return {
        tempered: ("sghmc", "momentum", {"temperature": 1 / (colder * task.train)}),
        NOISY: ("weight noise", "momentum", dict(network_methods.NOISE)),
        "momentum": ("sghmc", "momentum", {}),
        "adamw": ("adamw", "adamw", {}),
    }


def points(task: Task, method: str) -> list[dict[str, float]]:
    """The grid of a method: step sizes times weight decays, the steps outside."""
    _, own, noise = optimizers(task)[method]
    center = frozen_settings.load(f"{task.prefix}overfits")["40 %"][f"{own}, average"]
    return [
        {
            "learning_rate": step * center["learning_rate"],
            "weight_decay": decay * center["weight_decay"],
        }
        | noise
        for step, decay in itertools.product(SCALES, SCALES)
    ]


def maps(size: Size, keep: Keep, task: Task) -> tuple[dict[str, Any], dict[str, float]]:
    """For each method its values of each metric, `[points, seeds]`, and the seconds."""
    values: dict[str, Any] = {}
    seconds = {}
    for method, (optimizer, *_) in optimizers(task).items():
        runs = [
            Run(optimizer, {"epochs": size.epochs} | hp, WRONG, 0, size.seeds)
            for hp in points(task, method)
        ]
        cells = [networks.test_once(keep, task, run) for run in runs]
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


MOMENTUM = {"learning_rate": 0.1, "weight_decay": 5e-4}
ADAMW = {"learning_rate": 1e-3, "weight_decay": 0.01}
CUSTOMARY: dict[str, Any] = {
    ARTICLE: MOMENTUM | {"temperature": 1 / PAIRS.train},
    UNTUNED: MOMENTUM,
    "momentum, cosine": MOMENTUM,
    "adamw, average": ADAMW,
}


def at_customary_settings(size: str, keep: Keep) -> list[Entry]:
    """The entries of one run each."""
    frozen = frozen_settings.load("pairs, overfits")["0 %"]
    known = {ARTICLE, UNTUNED, *network_methods.rivals(size)}
    methods = {method: METHODS[method] for method in CUSTOMARY if method in known}
    entries = []
    for name, settings in (("customary", CUSTOMARY), ("tuned", frozen)):
        results = network_methods.run_methods(
            PAIRS, methods, settings, 0.0, networks.SIZES["pairs"][size], keep
        )
        for column, method in (("article", ARTICLE), ("best", UNTUNED)):
            others = {rival: of for rival, of in results.items() if rival not in (ARTICLE, UNTUNED)}
            entries += network_methods.compare(
                "tuning", column, f"pairs of digits, {name} settings", "test NLL, nats",
                {method: results[method]} | others, itemgetter("NLL"), control=name == "tuned",
            )  # fmt: skip
    return entries


def on_small_tables(keep: Keep) -> list[Entry]:
    """The entries of one run a table as methods come; a pair is a table.

    The regret on a split is the NLL less that of the best method there. The control is the grid.
    """
    n = len(small_table_methods.TUNED_SEEDS)
    found: dict[str, list[Any]] = {
        "baoab": [
            small_table_methods.sample_table(name, None, keep) for name in small_tables.TABLES
        ]
    }
    for method in small_table_methods.DEFAULTS:
        found[method] = [
            small_table_methods.train_by_default(name, method, keep) for name in small_tables.TABLES
        ]
    for method in small_table_methods.GRIDS:
        found[f"{method}, best of 25"] = [
            small_table_methods.train_tuned(name, method, keep) for name in small_tables.TABLES
        ]
    nll = {m: np.array([each["values"]["NLL"][:n] for each in of]) for m, of in found.items()}
    least = np.min(list(nll.values()), 0)  # of each table and split
    results = {
        m: ({"regret": (of - least).mean(1)}, sum(each["seconds"] for each in found[m]))
        for m, of in nll.items()
    }
    tuned = [f"{method}, best of 25" for method in small_table_methods.GRIDS]
    entries = []
    for name, omitted in (
        ("defaults", tuned),
        ("rivals tuned", list(small_table_methods.DEFAULTS)),
    ):
        entries += network_methods.compare(
            "tuning", "best", f"twelve tables, {name}", "regret in test NLL, nats",
            {m: of for m, of in results.items() if m not in omitted}, itemgetter("regret"),
            control=omitted is not tuned,
        )  # fmt: skip
    return entries


def run(size: str, keep: Keep, task: Task = PAIRS) -> list[Entry]:
    """The entries of the claim."""
    entries = []
    if task is PAIRS:
        entries = at_customary_settings(size, keep)
        if size != "full":
            return entries
        entries += on_small_tables(keep)
        task = networks.DIGITS
    _, tempered = COLDER[task.name]
    columns = {"article": tempered, "best": NOISY}
    for each in SIZES[task.name][size]:
        values, seconds = maps(each, keep, task)
        for metric, predictor, (column, method) in itertools.product(
            METRICS, ("average", "last"), columns.items()
        ):
            name = f"{metric}, {predictor}"
            shares = share_near_best({m: values[m][name] for m in (method, *RIVALS)}, metric)
            ours, *theirs = ((m, share, seconds[m]) for m, share in shares.items())
            setting = f"{task.prefix}{each.epochs} epochs, {predictor}: {metric}"
            entries += [
                entry("tuning", column, setting, METRICS[metric], ours, rival,
                      lower_is_better=False)
                for rival in theirs
            ]  # fmt: skip
    return entries


def plot_maps(values: dict[str, Any], path: Path, task: Task) -> None:
    """Mean test error of the average over the grid of each method, in a panel each."""
    fig, axes = plt.subplots(2, 2, figsize=(plots.WIDTH, 1.1 * plots.WIDTH), layout="constrained")
    errors = {method: of["error, average"].mean(1).reshape(3, 3) for method, of in values.items()}
    least = min(float(each.min()) for each in errors.values())
    for ax, (method, grid) in zip(axes.flat, errors.items(), strict=True):
        ax.imshow(grid, cmap="RdYlGn_r", vmin=least, vmax=least + 20, origin="lower")
        for (i, j), error in np.ndenumerate(grid):
            weight = "bold" if error <= least + 2 else "normal"
            ax.text(j, i, f"{error:.1f}", ha="center", va="center", fontweight=weight)
        steps, decays = (
            list(dict.fromkeys(f"{point[name]:.2g}" for point in points(task, method)))
            for name in ("learning_rate", "weight_decay")
        )
        ax.set_xticks(range(3), decays)
        ax.set_yticks(range(3), steps)
        ax.set(title=method, xlabel="weight decay", ylabel="step size")
    plots.save(fig, path)
