"""What a comparison shows a person: a table, curves, the article's claims, one HTML page."""

import base64
import html
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rich.box
from rich.console import Console
from rich.table import Table

from .calibration import reliability, selective_accuracy
from .data import Data

FILES = ("metrics.json", "curves.png", "calibration.png", "certainty.png", "report.html")
CLASSES = {
    "digits": tuple("0123456789"),
    "cifar10": (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
    ),
}  # fmt: skip
COLORS = {
    "sgd": "#5b8ff9",
    "momentum": "#61b15a",
    "adam": "#f6a04d",
    "langevin": "#d6336c",
    "psgld": "#00a5a5",
    "sghmc": "#7b2cbf",
    "baoab": "#c9a227",
    "sgnht": "#8c564b",
    "article": "#8d8d8d",
}
# column: what it is called in a narrow table, its scale, its decimals, its value for a run
COLUMNS: dict[str, tuple[str, float, int, Callable[[dict[str, Any]], float]]] = {
    "test accuracy, %": ("accuracy %", 100, 1, lambda run: run["test_accuracy"]),
    "test NLL, nats": ("NLL", 1, 3, lambda run: run["test_nll"]),
    "calibration error, %": ("ECE %", 100, 1, lambda run: run["ece"]),
    "train-test gap, %": (
        "gap %",
        100,
        1,
        lambda run: run["train_accuracy"] - run["test_accuracy"],
    ),
    "time per step, ms": ("ms/step", 1000, 2, lambda run: run["step_time"]),
}

# the same, of the averaged predictions
AVERAGE_COLUMNS: dict[str, tuple[str, float, int, Callable[[dict[str, Any]], float]]] = {
    "test accuracy, %": ("accuracy %", 100, 1, lambda run: run["average"]["test_accuracy"]),
    "test NLL, nats": ("NLL", 1, 3, lambda run: run["average"]["test_nll"]),
    "Brier score": ("Brier", 1, 3, lambda run: run["average"]["brier"]),
    "calibration error, %": ("ECE %", 100, 1, lambda run: run["average"]["ece"]),
    "OOD AUROC": ("AUROC", 1, 3, lambda run: run["average"]["ood_auroc"]),
}

FOLDS: tuple[Callable, ...] = (np.mean, np.min, np.max)


class Predictions(NamedTuple):
    """Probabilities `[test images, classes]` of the last iterate, and their average over epochs."""

    last: np.ndarray
    average: np.ndarray


def save_metrics(out: Path, metrics: dict[str, Any]) -> None:
    """Write `metrics.json`, at once or not at all; a number that is not finite becomes null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: finite(v) for k, v in value.items()}
        if isinstance(value, list):
            return [finite(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    part = out / "metrics.json.part"
    part.write_text(json.dumps(finite(metrics), indent=1, allow_nan=False))
    os.replace(part, out / "metrics.json")


def write(
    out: Path, metrics: dict[str, Any], predictions: dict[str, Predictions], dataset: Data
) -> None:
    """Write every file of `FILES` into the folder `out`.

    `predictions` of the test set of `dataset` are those of one run of each optimizer.
    """
    save_metrics(out, metrics)
    labels = np.asarray(dataset.test_labels)
    shown = "langevin" if "langevin" in predictions else next(iter(predictions))
    classes = CLASSES[metrics["config"]["dataset"]]
    draw_curves(metrics, out / "curves.png")
    draw_calibration(predictions, labels, out / "calibration.png")
    draw_certainty(
        predictions[shown].average, dataset.test_images, labels, classes, out / "certainty.png"
    )
    pictures = {
        name: base64.b64encode((out / f"{name}.png").read_bytes()).decode()
        for name in ("curves", "calibration", "certainty")
    }
    (out / "report.html").write_text(page(metrics, pictures, shown))


def of(metrics: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The runs of one optimizer at its own learning rate, one a seed."""
    lr = metrics["config"]["optimizers"][name]["learning_rate"]
    return [r for r in metrics["runs"] if r["optimizer"] == name and r["learning_rate"] == lr]


def names(metrics: dict[str, Any]) -> list[str]:
    """The optimizers that have a finished run, in the order asked for."""
    return [name for name in metrics["config"]["optimizers"] if of(metrics, name)]


def mean_spread(values: list[float]) -> tuple[float, float]:
    """Mean, and standard deviation: NaN where one value tells nothing of it."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def table(metrics: dict[str, Any], columns: dict[str, Any]) -> dict[str, list[str]]:
    """The cells of each optimizer's row, in the order of `columns`."""

    def cell(name: str, scale: float, decimals: int, value: Callable) -> str:
        mean, spread = mean_spread([scale * value(run) for run in of(metrics, name)])
        spread_too = (
            "" if scale == 1000 or len(of(metrics, name)) == 1 else f" ± {spread:.{decimals}f}"
        )
        return f"{mean:.{decimals}f}{spread_too}"

    return {
        name: [cell(name, *column[1:]) for column in columns.values()] for name in names(metrics)
    }


def kept_epochs(metrics: dict[str, Any]) -> str:
    """Which epochs' predictions are averaged."""
    epochs = metrics["config"]["epochs"]
    return f"epochs {epochs // 2 + 1} to {epochs}"


def show(console: Console, metrics: dict[str, Any]) -> None:
    """Print the table and the claims."""
    setting = metrics["config"]
    last = f"{setting['dataset']}, test set, after {setting['epochs']} epochs"
    average = f"average of the predictions of {kept_epochs(metrics)}"
    for title, columns in ((last, COLUMNS), (average, AVERAGE_COLUMNS)):
        grid = Table(title=title, box=rich.box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
        grid.add_column("optimizer")
        for header, *_ in columns.values():
            grid.add_column(header, justify="right")
        for name, cells in table(metrics, columns).items():
            grid.add_row(name, *cells)
        console.print(grid)
    seeds = setting["seeds"]
    console.print(
        f"Mean ± standard deviation over {seeds} seeds.\n" if seeds > 1 else "One seed.\n"
    )
    color = {"holds": "green", "fails": "red", "open": "yellow"}
    for claim in claims(metrics):
        values = ", ".join(f"{name} {value}" for name, value in claim["values"].items())
        console.print(
            f"[b]{claim['claim'].capitalize()}:[/b]"
            f" [{color[claim['verdict'].split(':')[0]]}]{claim['verdict']}[/]."
            f" {claim['measure'].capitalize()}: {values}.",
            highlight=False,
        )


def good_accuracy(metrics: dict[str, Any]) -> float:
    """Five points below the best optimizer's test accuracy."""
    means = [np.mean([r["test_accuracy"] for r in of(metrics, n)]) for n in names(metrics)]
    return float(max(means)) - 0.05


def claims(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """The article's five claims for the diffusion against SGD, momentum and Adam, as measured.

    Every measure is a number that is better when smaller, one a run. A claim holds if the
    diffusion's mean is below that of every rival by more than the two standard deviations (over
    seeds, or the learning rates of a sweep) together, fails if it is above some rival's by more,
    and is open in between. A network that learned too little to reach the goal of the first claim
    is neither stable nor free of overfitting. A claim is open too with one seed, and for the
    cost: runs that follow one another are timed while the machine changes;
    `benchmarks.train_cost` interleaves them.
    """
    present = names(metrics)
    rivals = [name for name in present if name in ("sgd", "momentum", "adam")]
    if "langevin" not in present or not rivals:
        return []
    goal = good_accuracy(metrics)
    learned = np.mean([r["test_accuracy"] for r in of(metrics, "langevin")]) >= goal

    def epochs_to_goal(run: dict[str, Any]) -> float:
        hits = (h["epoch"] for h in run["history"] if h["test_accuracy"] >= goal)
        return next(hits, len(run["history"]) + 1)

    def wobble(run: dict[str, Any]) -> float:
        steps = np.abs(np.diff([h["test_accuracy"] for h in run["history"]]))
        return 100 * steps[len(steps) // 2 :].mean() if len(steps) else float("nan")

    def swept(name: str) -> list[float]:
        errors = [1 - r["test_accuracy"] for r in metrics["runs"] if r["optimizer"] == name]
        seeds = len(of(metrics, name))
        return [100 * e for e in errors[seeds:]]

    measures: list[tuple[str, str, str, dict[str, list[float]]]] = []

    def measure(claim: str, how: str, unit: str, value: Any) -> None:
        values = {name: [value(run) for run in of(metrics, name)] for name in present}
        measures.append((claim, how, unit, values))

    measure("faster convergence", f"epochs to {goal:.1%} test accuracy", "", epochs_to_goal)
    measure(
        "more stable training", "mean change of test accuracy per epoch, late half", " %", wobble
    )
    measure(
        "less overfitting", "train-test gap", " %",
        lambda run: 100 * (run["train_accuracy"] - run["test_accuracy"]),
    )  # fmt: skip
    if metrics["config"]["sweep"]:
        spread = {name: swept(name) for name in present if swept(name)}
        if len({len(spread.get(name, [])) for name in present}) == 1:
            how = "mean test error at 1/10, 1/3, 3 and 10 times the learning rate"
            measures.append(("less sensitive to the learning rate", how, " %", spread))
    measure(
        "little extra cost",
        "time per step, timed one after another",
        " ms",
        lambda run: 1e3 * run["step_time"],
    )

    def verdict(values: dict[str, list[float]]) -> str:
        mean, spread = mean_spread(values["langevin"])
        lead = [(mean_spread(values[r])[0] - mean, mean_spread(values[r])[1]) for r in rivals]
        if all(gain > spread + other for gain, other in lead):
            return "holds" if learned else "fails"
        return "fails" if any(-gain > spread + other for gain, other in lead) else "open"

    def cost(values: dict[str, list[float]]) -> str:
        rival = "sgd" if "sgd" in rivals else rivals[0]
        return f"open: {np.mean(values['langevin']) / np.mean(values[rival]):.2f} of {rival}"

    def text(how: str, values: list[float], unit: str) -> str:
        if how.startswith("epochs") and min(values) > metrics["config"]["epochs"]:
            return "never"
        return f"{np.mean(values):.3g}{unit}"

    return [
        {
            "claim": claim,
            "measure": how,
            "values": {name: text(how, values[name], unit) for name in present},
            "verdict": cost(values) if claim == "little extra cost" else verdict(values),
        }
        for claim, how, unit, values in measures
    ]


def draw_curves(metrics: dict[str, Any], path: Path) -> None:
    """Loss, test error and test NLL by epoch, and test error by learning rate if it was swept.

    A line is the mean over seeds, its band the range.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    panels: dict[str, Callable[[dict[str, Any]], float]] = {
        "training loss": lambda h: h["loss"],
        "test error, %": lambda h: 100 * (1 - h["test_accuracy"]),
        "test NLL": lambda h: h["test_nll"],
    }
    swept = metrics["config"]["sweep"]
    fig, axes = plt.subplots(1, 3 + swept, figsize=(12 + 3 * swept, 3.8), layout="constrained")
    for ax, (title, value) in zip(axes, panels.items(), strict=False):
        for name in names(metrics):
            curves = [[value(h) for h in run["history"]] for run in of(metrics, name)]
            mean, low, high = ([f(c) for c in zip(*curves, strict=True)] for f in FOLDS)
            epochs = range(1, len(mean) + 1)
            marker = "o" if len(mean) == 1 else None
            ax.plot(epochs, mean, color=COLORS[name], label=name, linewidth=1.8, marker=marker)
            ax.fill_between(epochs, low, high, color=COLORS[name], alpha=0.15, linewidth=0)
        ax.set(title=title, xlabel="epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if swept:
        for name in names(metrics):
            runs = [r for r in metrics["runs"] if r["optimizer"] == name and r["seed"] == 0]
            points = sorted((r["learning_rate"], 100 * (1 - r["test_accuracy"])) for r in runs)
            axes[3].plot(*zip(*points, strict=True), color=COLORS[name], marker="o", linewidth=1.8)
        axes[3].set(title="test error, %", xlabel="learning rate", xscale="log")
    for ax in axes:
        ax.set_yscale("log")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    fig.savefig(path, dpi=140)
    plt.close(fig)


def draw_calibration(predictions: dict[str, Predictions], labels: np.ndarray, path: Path) -> None:
    """A reliability diagram of each optimizer; below, accuracy against the fraction kept.

    The scale of accuracy below is linear from 99 to 100 %, and logarithmic in the error under it.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    finite = {n: p for n, p in predictions.items() if np.isfinite(p.last).all()}
    columns = min(5, len(predictions))
    rows = -(-len(predictions) // columns)
    heights = rows * min(4, 16 / columns), 4.2
    fig = plt.figure(figsize=(13, sum(heights)), layout="constrained")
    (top,), (bottom,) = fig.subfigures(2, 1, height_ratios=heights, squeeze=False, hspace=0.04)

    panels = top.subplots(rows, columns, sharey=True, squeeze=False)
    for ax in panels.flat[len(predictions) :]:
        ax.remove()
    for ax, name in zip(panels.flat, predictions, strict=False):
        ax.plot([0, 100], [0, 100], color="#b9bfca", linewidth=1, linestyle=":")
        title = name if name in finite else f"{name} diverged"
        ax.set(title=title, xlabel="confidence, %", box_aspect=1)
        looks = (("last iterate", "#8a93a3", "none"), ("average", COLORS[name], COLORS[name]))
        for probs, (label, color, face) in zip(finite.get(name, ()), looks, strict=False):
            confidence, accuracy, number = reliability(probs, labels, bins=10).T
            area = 8 + 180 * np.sqrt(number / number.sum())
            ax.plot(100 * confidence, 100 * accuracy, color=color, linewidth=1, alpha=0.4)
            ax.scatter(
                100 * confidence, 100 * accuracy, s=area, facecolor=face, edgecolor=color,
                label=label,
            )  # fmt: skip
    for ax in panels[:, 0]:
        ax.set_ylabel("accuracy, %")
    handles = panels[0, 0].get_legend_handles_labels()
    top.legend(*handles, loc="outside right upper", frameon=False, borderpad=1)

    kept = 100 * np.arange(1, len(labels) + 1) / len(labels)
    last, average = bottom.subplots(1, 2, sharey=True)
    for name, both in finite.items():
        for ax, p in ((last, both.last), (average, both.average)):
            error = 100 * (1 - selective_accuracy(p, labels))
            ax.plot(kept, error, color=COLORS[name], label=name, linewidth=1.8)
    last.set_yscale("symlog", linthresh=1)
    ticks = (0, 1, 3, 10, 30, 100)
    last.set_yticks(ticks, [str(100 - tick) for tick in ticks])
    last.invert_yaxis()
    last.set(title="last iterate", xlabel="surest images kept, %", ylabel="accuracy on them, %")
    average.set(title="average", xlabel="surest images kept, %")
    bottom.legend(*last.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    for ax in (*top.axes, *bottom.axes):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
    fig.savefig(path, dpi=140)
    plt.close(fig)


def draw_certainty(
    probs: np.ndarray, images: Any, labels: np.ndarray, classes: tuple[str, ...], path: Path
) -> None:
    """The eight surest predictions of `probs` and the eight least sure, over their images."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    confidence, guess = probs.max(1), probs.argmax(1)
    surest_first = np.argsort(-confidence, kind="stable")
    rows = {"most certain": surest_first[:8], "least certain": surest_first[::-1][:8]}
    fig, axes = plt.subplots(2, 8, figsize=(13, 4.6), layout="constrained", squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for line, (title, chosen) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(title, fontsize="large")
        for ax, i in zip(line, chosen, strict=False):
            right = guess[i] == labels[i]
            sure = "> 99.9 %" if confidence[i] > 0.999 else f"{100 * confidence[i]:.1f} %"
            ax.imshow((np.asarray(images[i]) + 1) / 2, cmap="gray_r", vmin=0, vmax=1)
            ax.set_title(f"{classes[guess[i]]}, {sure}", fontsize="medium")
            ax.set_xlabel(
                "right" if right else f"is {classes[labels[i]]}",
                color="#17662d" if right else "#94182b",
            )
    fig.savefig(path, dpi=140)
    plt.close(fig)


STYLE = """
:root { --ink: #1d2330; --soft: #5c6575; --line: #e3e6ec; --page: #f6f7f9; --card: #fff; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 3rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.02em; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
p { max-width: 70ch; } .soft { color: var(--soft); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 1rem 1.25rem; overflow-x: auto; }
img { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .5rem .7rem; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; font-size: .85rem; }
td { white-space: nowrap; } td.soft { white-space: normal; }
th:first-child, td:first-child, .text td, .text th { text-align: left; }
tr:last-child td { border-bottom: 0; }
.best { font-weight: 700; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .5em; }
.chip { border-radius: 99px; padding: .1rem .7rem; font-weight: 600; white-space: nowrap; }
.holds { background: #dff3e3; color: #17662d; } .fails { background: #fbe0e3; color: #94182b; }
.open { background: #e9ebf0; color: #4a5262; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.5rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; }
"""


def html_table(metrics: dict[str, Any], columns: dict[str, Any]) -> str:
    """`table` in HTML; bold is the best of each column, of the networks that learned."""
    goal = good_accuracy(metrics)
    learned = [
        name
        for name in names(metrics)
        if np.mean([r["test_accuracy"] for r in of(metrics, name)]) >= goal
    ]

    def best(column: str) -> str:
        value = columns[column][3]
        means = {name: np.mean([value(r) for r in of(metrics, name)]) for name in learned}
        sign = -1 if column in ("test accuracy, %", "OOD AUROC") else 1
        return min(means, key=lambda name: np.nan_to_num(sign * means[name], nan=np.inf))

    winners = [best(column) for column in columns]
    header = "".join(f"<th>{column}</th>" for column in columns)
    body = "".join(
        f'<tr><td><span class="dot" style="background:{COLORS[name]}"></span>{name}</td>'
        + "".join(
            f"<td{' class=best' if name == winner else ''}>{cell}</td>"
            for winner, cell in zip(winners, cells, strict=True)
        )
        + "</tr>"
        for name, cells in table(metrics, columns).items()
    )
    return f'<div class="card"><table><tr><th>optimizer</th>{header}</tr>{body}</table></div>'


def figure(what: str, picture: str) -> str:
    """A PNG in base64 as an image of the page."""
    return f'<div class="card"><img alt="{what}" src="data:image/png;base64,{picture}"></div>'


def page(metrics: dict[str, Any], pictures: dict[str, str], shown: str) -> str:
    """The report as one self-contained HTML page.

    `pictures` are PNGs in base64; `shown` is the optimizer whose most and least certain images
    they show.
    """
    setting, seeds = metrics["config"], metrics["config"]["seeds"]
    accuracy = {n: np.mean([r["test_accuracy"] for r in of(metrics, n)]) for n in names(metrics)}
    first, *others = sorted(accuracy, key=lambda name: -accuracy[name])
    headline = f"{first.capitalize()} reaches {accuracy[first]:.1%} on {setting['dataset']}"
    rest = ", ".join(f"{name} {accuracy[name]:.1%}" for name in others)
    verdicts = "".join(
        f"<tr><td>{c['claim']}</td><td class=soft>{c['measure']}</td>"
        + "".join(f"<td>{value}</td>" for value in c["values"].values())
        + f'<td><span class="chip {c["verdict"].split(":")[0]}">{c["verdict"]}</span></td></tr>'
        for c in claims(metrics)
    )
    listed = "".join(
        f"<tr><td>{name}</td><td>{s['learning_rate']:g}</td><td>{s['temperature']:g}</td></tr>"
        for name, s in setting["optimizers"].items()
    )
    facts = {k: v for k, v in setting.items() if k != "optimizers"} | metrics["versions"]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>diffopt: {html.escape(headline)}</title><style>{STYLE}</style></head><body><main>
<h1>{html.escape(headline)}</h1>
<p class="soft">{html.escape(rest + "." if rest else "")} One convolutional network, the same
initial weights and order of the data for every optimizer, {setting["epochs"]} epochs in batches
of {setting["batch_size"]}.</p>
{figure("Training loss, test error and test NLL by epoch", pictures["curves"])}
<p class="soft">A line is the mean over {seeds} seed{
        "s" if seeds > 1 else ""
    }, its band the range.</p>
<h2>Where each one ended</h2>
{html_table(metrics, COLUMNS)}
<p class="soft">Mean{
        " ± standard deviation over seeds" if seeds > 1 else ""
    } of the last iterate; bold is
best of those within 5 points of the best accuracy. NLL is the
negative log-likelihood of the test labels in nats; calibration error is the gap between confidence
and accuracy (ECE, 15 bins); time per step is that of the fastest epoch, compilation apart.</p>
<h2>What the average of {kept_epochs(metrics)} predicts</h2>
{html_table(metrics, AVERAGE_COLUMNS)}
<p class="soft">The mean of the predicted probabilities after each of these epochs, for every
optimizer alike, at no further gradient evaluation. AUROC is the chance that an image of no class
(photographs for digits, digits for CIFAR-10) gets a prediction of more entropy than a test image.
</p>
<h2>How far its confidence can be trusted</h2>
{figure("Reliability diagrams, and accuracy by fraction kept", pictures["calibration"])}
<p class="soft">Above: test images grouped by the confidence of their prediction, and how often
each group is right; the larger the dot, the more images in it. On the dotted diagonal, what is
predicted with 80 % confidence is right 80 % of the time; under it, the network is overconfident.
Below: the accuracy when it answers only for the images it is surest of and leaves the others to
someone else. A curve that stays high far to the right is that of a network that knows when it
doesn’t know. Its scale spreads out the last percent. All from seed 0.</p>
<h2>What {shown} is most and least certain of</h2>
{figure(f"Test images {shown} is most and least certain of", pictures["certainty"])}
<p class="soft">Over each test image, the class that the averaged prediction of seed 0 gives it and
the confidence in that class; under it, whether that is right and, if not, what it is.</p>
<h2>The article’s claims for the diffusion</h2>
<div class="card text"><table><tr><th>claim</th><th>measured as</th>
{"".join(f"<th>{name}</th>" for name in accuracy)}<th>in this run</th></tr>{verdicts}</table></div>
<p class="soft">A claim holds if langevin beats sgd, momentum and adam, each by more than the
standard deviations (over seeds, or the learning rates of a sweep) together; it fails if one of them
beats langevin by as much; else, and with one seed, it is open. So is the cost here:
<code>python -m benchmarks.train_cost</code> interleaves what it compares. <i>article</i> is the
article’s own listing, which adds N(0, 0.01²) to every weight at every step of size 0.001: a
temperature of 0.05.</p>
<h2>Settings</h2>
<div class="card text"><table><tr><th>optimizer</th><th>learning rate</th><th>temperature</th></tr>
{listed}</table></div>
<h2>Reproduce</h2>
<div class="card"><dl>{
        "".join(
            f"<dt>{k.replace('_', ' ')}</dt><dd>{html.escape(str(v))}</dd>"
            for k, v in facts.items()
        )
    }</dl></div>
</main></body></html>
"""
