"""The committed results of the settings that a run leaves out."""

from typing import Any

from ..lib.tables import load
from .protocol.pairs import Entry

FILE = "trial_full.json"


def left_out(entries: list[Entry]) -> list[Entry]:
    """The committed entries of all settings and rivals but those of `entries`, with their date."""
    run = {what_of(each) for each in entries}
    return [each for each in dated(load(FILE)) if what_of(each) not in run]


def what_of(entry: Entry) -> tuple[str, ...]:
    """What an entry is about: no two entries of a run are about the same."""
    return tuple(entry[name] for name in ("claim", "column", "setting", "rival"))


def dated(metrics: dict[str, Any]) -> list[Entry]:
    """The entries of a run, and of those before it that it left out."""
    machine = metrics["machine"]
    origin = {
        "date": machine["date"],
        "cpu": machine["cpu"],
        "versions": machine["versions"],
        "command": metrics["config"]["command"],
    }
    return [each | origin for each in metrics["claims"]] + metrics.get("full", [])
