"""Figures that all look alike."""

import io
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from . import files

RED, BLUE, GRAY, LIGHT = "#d6336c", "#5b8ff9", "#8d8d8d", "#b9bfca"
GREEN, ORANGE, VIOLET = "#61b15a", "#f6a04d", "#7b2cbf"
GRID: dict[str, Any] = {"color": "#eceef2"}
WIDTH = 7.2  # inches: the column of a page of the site; the report's is half as wide again

plt.rcParams |= {"font.size": 12, "axes.titlesize": "medium", "legend.frameon": False}  # the page's


def save(figure: Any, path: Path) -> None:
    """Write the figure, its axes without frames, and forget it."""
    for ax in figure.get_axes():
        ax.spines[["top", "right"]].set_visible(False)
    content = io.BytesIO()
    try:
        figure.savefig(content, dpi=130)
    finally:
        plt.close(figure)
    files.write(path, content.getvalue())


def log_scale(ax: Any) -> None:
    """A logarithmic y axis, where a line has a point to show on it: diverged ones have none."""
    heights = [np.asarray(line.get_ydata(), float) for line in ax.lines]
    if any(np.any((y > 0) & np.isfinite(y)) for y in heights):
        ax.set_yscale("log")
