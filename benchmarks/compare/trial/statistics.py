"""What a trial says: paired differences, their intervals and p-values, and verdicts.

The diffusion and a rival have one value for each pair: an instance, a seed, or two runs that follow
each other. Pairs share their data, their start and the order of their examples.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np

LEVEL = 0.01
RESAMPLES = 9_999
Verdict = Literal["holds", "fails", "open"]
Entry = dict[str, Any]


def interval(differences: Sequence[float], *, coverage: float = 0.95) -> list[float]:
    """The bootstrap interval of the mean, by percentiles of 9,999 resamples of the pairs."""
    values = np.asarray(differences, float)
    chosen = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    tail = 50 * (1 - coverage)
    return [float(end) for end in np.percentile(values[chosen].mean(1), [tail, 100 - tail])]


@lru_cache
def sign_flips(pairs: int) -> np.ndarray:
    """All signs of up to 16 pairs, 65,536 random ones of more: `[flips, pairs]`."""
    if pairs <= 16:
        return 1.0 - 2 * ((np.arange(2**pairs)[:, None] >> np.arange(pairs)) & 1)
    random = np.random.default_rng(0).choice((1.0, -1.0), (2**16, pairs))
    random[0] = 1  # those that were found
    return random


def p_value(differences: Sequence[float]) -> float:
    """Two-sided p of a mean of 0, by flipping the signs of the pairs.

    No law of the differences is assumed but that it is symmetric if there is no effect.
    """
    values = np.asarray(differences, float)
    sums = np.abs(sign_flips(len(values)) @ values)
    return float((sums >= np.abs(values.sum()) - 1e-9 * np.abs(values).sum()).mean())


def entry(
    claim: str,
    setting: str,
    metric: str,
    diffusion: tuple[str, Sequence[float], float],
    rival: tuple[str, Sequence[float], float],
    *,
    lower_is_better: bool,
) -> Entry:
    """A diffusion beside a rival, each as (name, its value of every pair, its seconds in all).

    `difference` is the diffusion's mean less the rival's, in units of the metric.

    Raises:
      ValueError: the values are no pairs, or one is not finite.
    """
    ours, theirs = np.asarray(diffusion[1], float), np.asarray(rival[1], float)
    if ours.shape != theirs.shape or not np.isfinite([ours, theirs]).all():
        raise ValueError(f"{claim}, {setting}: values must be finite pairs, got {ours}, {theirs}")
    differences = ours - theirs
    return {
        "claim": claim,
        "setting": setting,
        "metric": metric,
        "lower_is_better": lower_is_better,
        "diffusion": diffusion[0],
        "rival": rival[0],
        "diffusion_values": ours.tolist(),
        "rival_values": theirs.tolist(),
        "diffusion_seconds": diffusion[2],
        "rival_seconds": rival[2],
        "difference": float(differences.mean()),
        "interval": interval(differences),
        "p": p_value(differences),
    }


def gain(entry: Entry) -> float:
    """By how much the diffusion is better, in units of the metric; negative where it is worse."""
    return -entry["difference"] if entry["lower_is_better"] else entry["difference"]


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
