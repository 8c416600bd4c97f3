"""The committed results of the settings that a run leaves out."""

from typing import Any

from ..lib.tables import load
from .protocol.pairs import Entry

FILE = "trial_full.json"


def left_out(entries: list[Entry]) -> list[Entry]:
    """The committed entries of all settings but those of `entries`, with date and versions."""
    run = {(each["claim"], each["column"], each["setting"]) for each in entries}
    return [
        each
        for each in dated(load(FILE))
        if (each["claim"], each["column"], each["setting"]) not in run
    ]


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
