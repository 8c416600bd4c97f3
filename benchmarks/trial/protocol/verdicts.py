"""Verdicts: of a setting from all its rivals, of a claim from all its tests."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from .pairs import LEVEL, Entry, Verdict, gain, percent

COLUMNS = {"article": "the article's step", "best": "diffopt's best"}


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's p-values of n tests: the k-th smallest times n - k + 1, no smaller than those before.

    Holm 1979, [A simple sequentially rejective multiple test
    procedure](https://www.jstor.org/stable/4615733).
    """
    order = np.argsort(ps)
    scaled = np.asarray(ps, float)[order] * np.arange(len(ps), 0, -1)
    adjusted = np.empty(len(ps))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted.tolist()


def verdict_of(entries: Sequence[Entry]) -> Verdict:
    """The verdict of several tests by Holm's p-values, at p < 0.01.

    Holds if the method is better in all of them, fails if it is worse in one, else open.
    """
    clear = [p < LEVEL for p in holm([each["p"] for each in entries])]
    if any(sure and gain(each) < 0 for sure, each in zip(clear, entries, strict=True)):
        return "fails"
    better = all(sure and gain(each) > 0 for sure, each in zip(clear, entries, strict=True))
    return "holds" if better and entries else "open"


class Setting(NamedTuple):
    """A setting of a claim, its verdict over all rivals, and the entry of the strongest one."""

    name: str
    control: bool
    verdict: Verdict
    entry: Entry


class Summary(NamedTuple):
    """A claim in one column, its verdict, the setting that decides it, and all settings."""

    claim: str
    column: str
    verdict: Verdict
    decisive: Setting
    settings: list[Setting]


def summarize_settings(entries: Iterable[Entry]) -> list[Setting]:
    """The settings of one claim in one column."""
    settings: dict[str, list[Entry]] = {}
    for each in entries:
        settings.setdefault(each["setting"], []).append(each)
    return [
        Setting(name, rivals[0]["control"], verdict_of(rivals), min(rivals, key=gain))
        for name, rivals in settings.items()
    ]


def summarize(entries: Sequence[Entry]) -> list[Summary]:
    """Each claim in each column, with its verdict.

    A claim is as many tests as it has rivals in settings that are no controls: it holds if the
    method beats each of them, and fails if one beats the method, after Holm over all. The setting
    that decides is the worst of them, by its gain on its strongest rival in percent.
    """
    summaries = []
    for claim, column in dict.fromkeys((each["claim"], each["column"]) for each in entries):
        own = [each for each in entries if (each["claim"], each["column"]) == (claim, column)]
        tests = [each for each in own if not each["control"]] or own
        settings = summarize_settings(own)
        verdict = verdict_of(tests)
        named = {each["setting"] for each in tests}
        shown = [setting for setting in settings if setting.name in named]
        alike = [setting for setting in shown if setting.verdict == verdict] or shown
        decisive = min(alike, key=lambda setting: percent(setting.entry)[0])
        summaries.append(Summary(claim, column, verdict, decisive, settings))
    return summaries


def count_won(entries: Sequence[Entry]) -> dict[tuple[str, str], tuple[int, int]]:
    """Of each claim and column in how many settings, no controls, all rivals are beaten: of all."""
    counts = {}
    for each in summarize(entries):
        won = [setting.verdict == "holds" for setting in each.settings if not setting.control]
        counts[each.claim, each.column] = sum(won), len(won)
    return counts
