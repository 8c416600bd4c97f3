"""The figures of a comparison."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from ..lib import plots
from ..lib.plots import plt
from ..lib.scores import bin_confidence, selective_accuracy
from .metrics import finished_optimizers, runs_of
from .run import Predictions

COLORS = {
    "sgd": plots.BLUE,
    "momentum": plots.GREEN,
    "adam": plots.ORANGE,
    "langevin": plots.RED,
    "psgld": "#00a5a5",
    "sghmc": plots.VIOLET,
    "baoab": "#c9a227",
    "sgnht": "#8c564b",
    "article": plots.GRAY,
}


def plot_curves(metrics: dict[str, Any], path: Path) -> None:
    """Loss, test error and test NLL by epoch, and test error by learning rate if it was swept.

    A line is the mean over seeds, its band the range. Dots are the loss of every 200 batches.
    """
    panels: dict[str, Callable[[dict[str, Any]], float]] = {
        "training loss": lambda entry: entry["loss"],
        "test error, %": lambda entry: 100 * (1 - entry["test_accuracy"]),
        "test NLL": lambda entry: entry["test_nll"],
    }
    swept = metrics["config"]["sweep"]
    fig, grid = plt.subplots(2, 2, figsize=(plots.WIDTH, 6.6), layout="constrained")
    axes = grid.flat[: 3 + swept]
    for ax in grid.flat[3 + swept :]:
        ax.remove()
    for ax, (title, value) in zip(axes, panels.items(), strict=False):
        for name in finished_optimizers(metrics):
            curves = np.array(
                [[value(entry) for entry in run["history"]] for run in runs_of(metrics, name)]
            )
            epochs = range(1, curves.shape[1] + 1)
            marker = "o" if len(epochs) == 1 else None
            ax.plot(
                epochs, curves.mean(0), color=COLORS[name], label=name, linewidth=1.8, marker=marker
            )
            ax.fill_between(
                epochs, curves.min(0), curves.max(0), color=COLORS[name], alpha=0.15, linewidth=0
            )
        ax.set(title=title, xlabel="epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for name in finished_optimizers(metrics):
        axes[0].plot(*loss_every_200(metrics, name), ".", color=COLORS[name], markersize=4)
    if swept:
        for name in finished_optimizers(metrics):
            runs = [r for r in metrics["runs"] if r["optimizer"] == name and r["seed"] == 0]
            points = sorted((r["learning_rate"], 100 * (1 - r["test_accuracy"])) for r in runs)
            axes[3].plot(*zip(*points, strict=True), color=COLORS[name], marker="o", linewidth=1.8)
        axes[3].set(title="test error, %", xlabel="learning rate", xscale="log")
    for ax in axes:
        plots.log_scale(ax)
        ax.grid(**plots.GRID)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    plots.save(fig, path)


def loss_every_200(metrics: dict[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Where in the epochs every 200 batches end, and their mean loss over the seeds."""
    runs = runs_of(metrics, name)
    means = [[mean for entry in run["history"] for mean in entry["loss_every_200"]] for run in runs]
    steps, losses = np.mean(np.reshape(means, (len(runs), -1, 2)), axis=0).T
    return steps / runs[0]["history"][0]["step"], losses


def plot_calibration(predictions: dict[str, Predictions], labels: np.ndarray, path: Path) -> None:
    """A reliability diagram of each optimizer; below, accuracy against the fraction kept.

    The scale of accuracy below is linear from 99 to 100 %, and logarithmic in the error under it.
    """
    finite = {n: p for n, p in predictions.items() if np.isfinite(p.last).all()}
    columns = min(5, len(predictions))
    rows = -(-len(predictions) // columns)
    heights = rows * min(4, 14 / columns), 4.2
    fig = plt.figure(figsize=(1.5 * plots.WIDTH, sum(heights)), layout="constrained")
    (top,), (bottom,) = fig.subfigures(2, 1, height_ratios=heights, squeeze=False, hspace=0.04)

    panels = top.subplots(rows, columns, sharey=True, squeeze=False)
    for ax in panels.flat[len(predictions) :]:
        ax.remove()
    for ax, name in zip(panels.flat, predictions, strict=False):
        ax.plot([0, 100], [0, 100], color=plots.LIGHT, linewidth=1, linestyle=":")
        title = name if name in finite else f"{name} diverged"
        ax.set(title=title, xlabel="confidence, %", box_aspect=1)
        looks = (("last iterate", plots.GRAY, "none"), ("average", COLORS[name], COLORS[name]))
        for probs, (label, color, face) in zip(finite.get(name, ()), looks, strict=False):
            confidence, accuracy, number = bin_confidence(probs, labels, bins=10).T
            area = 8 + 180 * np.sqrt(number / number.sum())
            ax.plot(100 * confidence, 100 * accuracy, color=color, linewidth=1, alpha=0.4)
            ax.scatter(
                100 * confidence, 100 * accuracy, s=area, facecolor=face, edgecolor=color,
                label=label,
            )  # fmt: skip
    for ax in panels[:, 0]:
        ax.set_ylabel("accuracy, %")
    handles = panels[0, 0].get_legend_handles_labels()
    top.legend(*handles, loc="outside right upper", borderpad=1)

    kept = 100 * np.arange(1, len(labels) + 1) / len(labels)
    last, average = bottom.subplots(1, 2, sharey=True)
    for name, both in finite.items():
        for ax, probs in ((last, both.last), (average, both.average)):
            error = 100 * (1 - selective_accuracy(probs, labels))
            ax.plot(kept, error, color=COLORS[name], label=name, linewidth=1.8)
    last.set_yscale("symlog", linthresh=1)
    ticks = (0, 1, 3, 10, 30, 100)
    last.set_yticks(ticks, [str(100 - tick) for tick in ticks])
    last.invert_yaxis()
    last.set(title="last iterate", xlabel="surest images kept, %", ylabel="accuracy on them, %")
    average.set(title="average", xlabel="surest images kept, %")
    bottom.legend(*last.get_legend_handles_labels(), loc="outside right upper")
    for ax in fig.get_axes():
        ax.grid(**plots.GRID)
    plots.save(fig, path)


def plot_certainty(
    probs: np.ndarray, images: Any, labels: np.ndarray, classes: tuple[str, ...], path: Path
) -> None:
    """The eight surest predictions of `probs` and the eight least sure, over their images."""
    confidence, guess = probs.max(1), probs.argmax(1)
    surest_first = np.argsort(-confidence, kind="stable")
    rows = {"most certain": surest_first[:8], "least certain": surest_first[::-1][:8]}
    fig, axes = plt.subplots(2, 8, figsize=(1.5 * plots.WIDTH, 4.6), layout="constrained")
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for line, (title, chosen) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(title)
        for ax, i in zip(line, chosen, strict=False):
            right = guess[i] == labels[i]
            sure = "> 99.9 %" if confidence[i] > 0.999 else f"{100 * confidence[i]:.1f} %"
            ax.imshow((np.asarray(images[i]) + 1) / 2, cmap="gray_r", vmin=0, vmax=1)
            ax.set_title(f"{classes[guess[i]]}\n{sure}")
            ax.set_xlabel(
                "right" if right else f"is {classes[labels[i]]}",
                color="#17662d" if right else "#94182b",
            )
    plots.save(fig, path)
