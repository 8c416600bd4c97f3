"""What a comparison shows a person: a table, figures, the article's claims, one HTML page."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import rich.box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..lib import files
from ..lib.data import Data
from ..lib.scores import plus_minus
from ..trial.claims import escapes
from ..trial.protocol import panel
from ..trial.protocol.verdicts import COLUMNS as TRIAL_COLUMNS
from ..trial.protocol.verdicts import count_won, summarize
from . import plots
from .metrics import accuracies, averaged_epochs, finished_optimizers, good_accuracy, runs_of, save
from .run import Predictions

FIGURES = ("curves", "calibration", "certainty")
FILES = ("metrics.json", *(f"{name}.png" for name in FIGURES), "report.html")
CLASSES = {
    "digits": tuple("0123456789"),
    "cifar10": (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
    ),
}  # fmt: skip


class Column(NamedTuple):
    """A column of a table: its title, and in a narrow table; its decimals and a run's value."""

    title: str
    short: str
    decimals: int
    value: Callable[[dict[str, Any]], float]
    best: Callable[[list[float]], Any] = np.nanmin
    deviation: bool = True  # over the seeds, shown


COLUMNS = (
    Column("test accuracy, %", "accuracy %", 1, lambda r: 100 * r["test_accuracy"], np.nanmax),
    Column("test NLL, nats", "NLL", 3, lambda r: r["test_nll"]),
    Column("calibration error, %", "ECE %", 1, lambda r: 100 * r["ece"]),
    Column(
        "train-test gap, %", "gap %", 1, lambda r: 100 * (r["train_accuracy"] - r["test_accuracy"])
    ),
    Column("time per step, ms", "ms/step", 2, lambda r: 1000 * r["step_time"], deviation=False),
)
AVERAGE_COLUMNS = (
    Column(
        "test accuracy, %", "accuracy %", 1,
        lambda r: 100 * r["average"]["test_accuracy"], np.nanmax,
    ),
    Column("test NLL, nats", "NLL", 3, lambda r: r["average"]["test_nll"]),
    Column("Brier score", "Brier", 3, lambda r: r["average"]["brier"]),
    Column("calibration error, %", "ECE %", 1, lambda r: 100 * r["average"]["ece"]),
    Column("OOD AUROC", "AUROC", 3, lambda r: r["average"]["ood_auroc"], np.nanmax),
)  # fmt: skip


class Cell(NamedTuple):
    """What a table shows of an optimizer, and whether it is the best of its column."""

    text: str
    best: bool


def rows(metrics: dict[str, Any], columns: tuple[Column, ...]) -> dict[str, list[Cell]]:
    """The cells of each optimizer; the best of a column is one of those that learned."""
    table: dict[str, list[Cell]] = {name: [] for name in finished_optimizers(metrics)}
    goal = good_accuracy(metrics)
    learned = [name for name, accuracy in accuracies(metrics).items() if accuracy >= goal]
    for column in columns:
        values = {name: [column.value(run) for run in runs_of(metrics, name)] for name in table}
        means = {name: float(np.mean(values[name])) for name in learned}
        numbers = [mean for mean in means.values() if not np.isnan(mean)]
        best = column.best(numbers) if numbers else None
        winner = next((name for name in learned if means[name] == best), None)
        for name, cells in table.items():
            of_runs = values[name] if column.deviation else [float(np.mean(values[name]))]
            cells.append(Cell(plus_minus(of_runs, column.decimals), name == winner))
    return table


def write(
    out: Path, metrics: dict[str, Any], predictions: dict[str, Predictions], dataset: Data
) -> None:
    """Write every file of `FILES` into the folder `out`.

    `predictions` of the test set of `dataset` are those of one run of each optimizer.
    """
    save(out, metrics)
    labels = np.asarray(dataset.test_labels)
    shown = "langevin" if "langevin" in predictions else next(iter(predictions))
    classes = CLASSES[metrics["config"]["dataset"]]
    plots.plot_curves(metrics, out / "curves.png")
    plots.plot_calibration(predictions, labels, out / "calibration.png")
    plots.plot_certainty(
        predictions[shown].average, dataset.test_images, labels, classes, out / "certainty.png"
    )
    names: tuple[str, ...] = FIGURES
    if metrics["claims"]:
        if (out / "tuning.png").exists():
            names += ("tuning",)
        if gaps := escapes.gaps(metrics["claims"]):
            escapes.plot_gaps(gaps, out / "escapes.png")
            names += ("escapes",)
    figures = {
        name: base64.b64encode((out / f"{name}.png").read_bytes()).decode() for name in names
    }
    files.write(out / "report.html", page(metrics, figures, shown))


def page(metrics: dict[str, Any], figures: dict[str, str], shown: str) -> str:
    """The report as one self-contained HTML page.

    `figures` are PNGs in base64; `shown` is the optimizer whose most and least certain images
    they show.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    config, machine = metrics["config"], metrics["machine"]
    facts = {k: v for k, v in config.items() if k != "optimizers"}
    facts |= {k: v for k, v in machine.items() if k != "versions"} | machine["versions"]
    summaries = summarize(metrics["claims"])
    return environment.get_template("page.html.jinja").render(
        config=config,
        accuracies=sorted(accuracies(metrics).items(), key=lambda item: -item[1]),
        colors=plots.COLORS,
        figures=figures,
        last=(COLUMNS, rows(metrics, COLUMNS)),
        average=(AVERAGE_COLUMNS, rows(metrics, AVERAGE_COLUMNS)),
        averaged_epochs=averaged_epochs(metrics),
        shown=shown,
        names=finished_optimizers(metrics),
        claims=panel.by_claim(summaries),
        summaries=summaries,
        won=count_won(metrics["claims"] + metrics.get("full", [])),
        earlier=summarize(metrics.get("full", [])),
        titles=panel.TITLES,
        columns=TRIAL_COLUMNS,
        effect=panel.effect,
        in_words=panel.in_words,
        dot=panel.dot,
        memory=metrics.get("memory", []),
        facts={name.replace("_", " "): value for name, value in facts.items()},
    )


def show(console: Console, metrics: dict[str, Any]) -> None:
    """Print the tables and the claims."""
    config = metrics["config"]
    last = f"{config['dataset']}, test set, after {config['epochs']} epochs"
    average = f"average of the predictions of {averaged_epochs(metrics)}"
    for title, columns in ((last, COLUMNS), (average, AVERAGE_COLUMNS)):
        grid = Table(title=title, box=rich.box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
        grid.add_column("optimizer")
        for column in columns:
            grid.add_column(column.short, justify="right")
        for name, cells in rows(metrics, columns).items():
            grid.add_row(name, *(cell.text for cell in cells))
        console.print(grid)
    seeds = config["seeds"]
    console.print(
        f"Mean ± standard deviation over {seeds} seeds.\n" if seeds > 1 else "One seed.\n"
    )
    color = {"holds": "green", "fails": "red", "open": "yellow"}
    for title, verdict, text in panel.lines(summarize(metrics["claims"])):
        says = f"[b]{title.capitalize()}:[/b] [{color[verdict]}]{verdict}[/] "
        console.print(f"{says}{escape(text)}", highlight=False, soft_wrap=True)
