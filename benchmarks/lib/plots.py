"""Figures that all look alike."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

RED, BLUE, GRAY, LIGHT = "#d6336c", "#5b8ff9", "#8d8d8d", "#b9bfca"
GREEN, ORANGE, VIOLET = "#61b15a", "#f6a04d", "#7b2cbf"
GRID: dict[str, Any] = {"color": "#eceef2"}


def save(figure: Any, path: Path, dpi: int = 130) -> None:
    """Write the figure, its axes without frames, and forget it."""
    for ax in figure.get_axes():
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=dpi)
    plt.close(figure)
