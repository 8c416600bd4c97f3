"""The tables of the main job's runs."""

from functools import partial

from ..lib.tables import Tables, load, markdown, origin
from . import report


def tables() -> Tables:
    """Those of the last networks, and of the averages."""
    return {
        "digits": partial(comparison, "digits.json", report.COLUMNS),
        "cifar10": partial(comparison, "cifar10.json", report.COLUMNS),
        "cifar10_average": partial(comparison, "cifar10.json", report.AVERAGE_COLUMNS),
    }


def comparison(file: str, columns: tuple[report.Column, ...]) -> str:
    """The optimizers of a run of `benchmarks.compare`."""
    metrics = load(file)
    head = ["optimizer", *(column.title for column in columns)]
    rows = report.rows(metrics, columns).items()
    machine = {"date": metrics["versions"]["date"], "versions": metrics["versions"]}
    body = markdown(head, ([name, *(cell.text for cell in cells)] for name, cells in rows))
    return body + origin(file, machine, metrics["config"]["command"])
