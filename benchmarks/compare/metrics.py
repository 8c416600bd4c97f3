"""`metrics.json`: what was asked for, the machine, and a record of every run."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from ..lib import files
from ..lib.training import second_half


def save(out: Path, metrics: dict[str, Any]) -> None:
    """Write `metrics.json`."""
    files.write_json(out / "metrics.json", metrics, indent=1)


def keep_earlier(out: Path, config: dict[str, Any], goes_on: bool) -> None:
    """Make an earlier `metrics.json` `metrics.previous.json`.

    A run that goes on from checkpoints has its own there, of the same `config`, to be replaced.
    """
    file = out / "metrics.json"
    try:
        if goes_on and json.loads(file.read_text("utf-8"))["config"] == config:
            return
    except (OSError, ValueError, LookupError, TypeError):
        pass  # none, or not of a comparison
    with contextlib.suppress(FileNotFoundError):
        file.replace(out / "metrics.previous.json")


def runs_of(metrics: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The runs of one optimizer at its own learning rate, one a seed."""
    lr = metrics["config"]["optimizers"][name]["learning_rate"]
    return [r for r in metrics["runs"] if r["optimizer"] == name and r["learning_rate"] == lr]


def finished_optimizers(metrics: dict[str, Any]) -> list[str]:
    """The optimizers that have a finished run, in the order asked for."""
    return [name for name in metrics["config"]["optimizers"] if runs_of(metrics, name)]


def accuracies(metrics: dict[str, Any]) -> dict[str, float]:
    """Each optimizer's mean test accuracy."""
    return {
        name: float(np.mean([r["test_accuracy"] for r in runs_of(metrics, name)]))
        for name in finished_optimizers(metrics)
    }


def good_accuracy(metrics: dict[str, Any]) -> float:
    """Five points below the best optimizer's test accuracy."""
    return max(accuracies(metrics).values()) - 0.05


def averaged_epochs(metrics: dict[str, Any]) -> str:
    """Which epochs' predictions are averaged."""
    epochs = second_half(metrics["config"]["epochs"])
    return f"epochs {epochs[0]} to {epochs[-1]}"
