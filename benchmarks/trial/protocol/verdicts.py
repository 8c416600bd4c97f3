"""Verdicts: of a setting from all its rivals, of a claim from all its settings."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from .pairs import Entry, gain

LEVEL = 0.01
Verdict = Literal["holds", "fails", "open"]


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


def settings_of(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """The entries of each setting, one for each of its rivals."""
    settings = defaultdict(list)
    for each in entries:
        settings[each["setting"]].append(each)
    return dict(settings)


def judge(entries: Sequence[Entry]) -> list[Entry]:
    """The entries of one claim, each with the `verdict` of its setting.

    A setting holds if the diffusion beats every rival in it: its p is the largest of theirs. It
    fails if the diffusion is worse than some rival: its p is the smallest, times their number. Both
    by Holm over the settings of the claim, at p < 0.01. Else it is open.
    """
    settings = settings_of(entries)
    better = [max(e["p"] if gain(e) > 0 else 1 for e in rivals) for rivals in settings.values()]
    worse = [
        min(len(rivals) * e["p"] if gain(e) < 0 else 1 for e in rivals)
        for rivals in settings.values()
    ]
    verdicts: dict[str, Verdict] = {}
    for setting, holds, fails in zip(settings, holm(better), holm(worse), strict=True):
        verdicts[setting] = "holds" if holds < LEVEL else "fails" if fails < LEVEL else "open"
    return [each | {"verdict": verdicts[each["setting"]]} for each in entries]


def strongest(rivals: Sequence[Entry]) -> Entry:
    """The entry of a setting's strongest rival."""
    return min(rivals, key=gain)


class Setting(NamedTuple):
    """A setting of a claim, whether it is a control, and the entry of its strongest rival."""

    name: str
    control: bool
    entry: Entry

    @property
    def verdict(self) -> Verdict:
        """That of the setting."""
        return self.entry["verdict"]


class Summary(NamedTuple):
    """A claim, its verdict and its settings."""

    claim: str
    verdict: Verdict
    settings: list[Setting]


def summarize(entries: Sequence[Entry], controls: dict[str, Sequence[str]]) -> list[Summary]:
    """Each claim with its verdict.

    It holds if it does in every setting that is no control, fails if it does in one of them, else
    it is open. `controls` are how the names of controls begin.
    """
    summaries = []
    for claim in dict.fromkeys(each["claim"] for each in entries):
        own = settings_of(each for each in entries if each["claim"] == claim)
        settings = [
            Setting(name, name.startswith(tuple(controls[claim])), strongest(rivals))
            for name, rivals in own.items()
        ]
        verdicts = {setting.verdict for setting in settings if not setting.control}
        verdict: Verdict = "fails" if "fails" in verdicts else "open"
        summaries.append(Summary(claim, "holds" if verdicts == {"holds"} else verdict, settings))
    return summaries
