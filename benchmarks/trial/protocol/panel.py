"""What the trial says, in words and as one dot with its interval."""

import math
from collections.abc import Sequence

import numpy as np

from .pairs import Entry, Verdict, percent
from .verdicts import COLUMNS, Summary

TITLES = {
    "converges": "converges faster",
    "stable": "more stable",
    "overfits": "less overfitting",
    "tuning": "less tuning",
    "cost": "little cost",
    "escapes": "escapes from minima",
}
EDGE = 100.0  # percent, beyond which a gain is drawn at the edge


def effect(entry: Entry) -> str:
    """The difference to a rival in the metric's units, with its interval and its p."""
    name, _, unit = entry["metric"].rpartition(", ")
    name, unit = (name, f" {unit}") if name else (unit, "")
    low, high = entry["interval"]
    return (
        f"{name} {entry['difference']:+.3g} [{low:+.3g}, {high:+.3g}]{unit} beside"
        f" {entry['rival']}, p = {entry['p']:.2g}"
    )


def in_words(entry: Entry) -> str:
    """What a user would feel: the metric of the method and of its strongest rival."""
    name, _, unit = entry["metric"].rpartition(", ")
    name = name or entry["metric"]
    unit = unit.partition(" ")[0] if unit.startswith("%") else ""
    ours, theirs = (
        f"{float(f'{np.mean(entry[values]):.3g}'):g}{unit and ' ' + unit}"
        for values in ("diffusion_values", "rival_values")
    )
    return f"{name}: {ours} by {entry['method']}, {theirs} by {entry['rival']}"


def place(gain: float) -> float:
    """Where a gain in percent is drawn, from -1 to 1, on a logarithmic scale through 0."""
    clipped = min(abs(gain), EDGE)
    return math.copysign(math.log1p(clipped) / math.log1p(EDGE), gain)


def dot(entry: Entry) -> tuple[float, float, float]:
    """The gain on the rival, and the ends of its interval, each from -1 to 1."""
    middle, low, high = (place(each) for each in percent(entry))
    return middle, low, high


def by_claim(summaries: Sequence[Summary]) -> dict[str, dict[str, Summary]]:
    """The summaries of each claim by column, in the order of the titles."""
    return {
        claim: {each.column: each for each in summaries if each.claim == claim}
        for claim in TITLES
        if any(each.claim == claim for each in summaries)
    }


def lines(summaries: Sequence[Summary]) -> list[tuple[str, Verdict, str]]:
    """A line for each claim and column: its title, its verdict, the effect that decides it."""
    return [
        (f"{TITLES[each.claim]}, {COLUMNS[each.column]}", each.verdict,
         f"{each.decisive.name}: {effect(each.decisive.entry)}")
        for each in summaries
    ]  # fmt: skip
