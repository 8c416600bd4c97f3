"""The verdicts of the trial, in a picture and in ten lines."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...lib import plots
from ...lib.plots import plt
from .pairs import Entry, gain
from .verdicts import Summary, Verdict

TITLES = {
    "escapes": "escapes from minima",
    "stable": "stays able to learn",
    "overfits": "overfits less",
    "tuning": "needs less tuning",
    "cost": "costs little",
}
EDGE = 1000.0  # percent, beyond which a gain is drawn at the edge
COLORS = {"holds": "#17662d", "fails": "#94182b", "open": "#6b7280"}


def effect(entry: Entry) -> str:
    """The difference to a rival in the metric's units, with its interval and its p."""
    name, _, unit = entry["metric"].rpartition(", ")
    name, unit = (name, f" {unit}") if name else (unit, "")
    low, high = entry["interval"]
    return (
        f"{name} {entry['difference']:+.3g} [{low:+.3g}, {high:+.3g}]{unit} beside"
        f" {entry['rival']}, p = {entry['p']:.2g}"
    )


def lines(summaries: Sequence[Summary]) -> list[tuple[str, Verdict, str]]:
    """Two lines a claim, each (title, verdict, text): its best setting, and all others."""
    text = []
    for claim, verdict, settings in summaries:
        tests = [setting for setting in settings if not setting.control]
        rank = {"holds": 0, "open": 1, "fails": 2}
        best = min(tests or settings, key=lambda setting: rank[setting.verdict])
        held = sum(setting.verdict == "holds" for setting in tests)
        first = f"(holds in {held} of {len(tests)} settings). {best.name}: {effect(best.entry)}"
        others = [
            f"{setting.name} {setting.verdict}{' (control)' if setting.control else ''}"
            for setting in settings
            if setting is not best
        ]
        text += [(TITLES[claim], verdict, first), ("", verdict, "; ".join(others) or "no other")]
    return text


def plot_verdicts(summaries: Sequence[Summary], path: Path) -> None:
    """Every setting's gain on its strongest rival, in percent of the rival, with its interval."""
    number = sum(len(summary.settings) + 1.6 for summary in summaries)
    fig, ax = plt.subplots(figsize=(13, 0.8 + 0.27 * number), layout="constrained")
    row, rows, labels = 0.0, [], []
    for claim, verdict, settings in summaries:
        ax.text(
            -0.02, row, f"{TITLES[claim]}: {verdict}", transform=ax.get_yaxis_transform(),
            fontsize=13, fontweight="bold", color=COLORS[verdict], ha="right", va="center",
        )  # fmt: skip
        for setting in settings:
            row += 1
            entry, color = setting.entry, COLORS[setting.verdict]
            scale = 100 / max(float(np.abs(entry["rival_values"]).mean()), 1e-12)
            sign = -1 if entry["lower_is_better"] else 1
            ends = np.clip([sign * scale * end for end in entry["interval"]], -EDGE, EDGE)
            ax.plot(ends, [row, row], color=color, linewidth=2.5, solid_capstyle="butt")
            face = "white" if setting.control else color
            middle = np.clip(scale * gain(entry), -EDGE, EDGE)
            ax.plot(middle, row, "o", color=color, markerfacecolor=face)
            ax.text(
                1.01, row, f"{setting.verdict}: {effect(entry)}", color=color, va="center",
                transform=ax.get_yaxis_transform(), fontsize=8.5,
            )  # fmt: skip
            rows.append(row)
            labels.append(f"{setting.name}{' (control)' if setting.control else ''}")
        row += 1.6
    ax.axvline(0, color=plots.LIGHT, linewidth=1)
    ax.set_yticks(rows, labels, fontsize=8.5)
    ax.set(
        xlim=(-1.3 * EDGE, 1.3 * EDGE),
        ylim=(row - 0.4, -0.8),
        xlabel="gain of the diffusion on its strongest rival, % of the rival (right is better)",
    )
    ax.set_xscale("symlog", linthresh=1)
    ticks = [-1000, -100, -10, -1, 0, 1, 10, 100, 1000]
    ax.set_xticks(ticks, map(str, ticks), fontsize=8.5)
    ax.grid(axis="x", **plots.GRID)
    plots.save(fig, path)
