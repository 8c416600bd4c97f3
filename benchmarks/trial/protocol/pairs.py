"""Paired differences, their intervals and p-values.

A method and a rival have one value for each pair: an instance, a seed, or two runs that follow each
other. Pairs share their data, their start and the order of their examples.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np

LEVEL = 0.01
Entry = dict[str, Any]
Verdict = Literal["holds", "fails", "open"]


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


def interval(differences: Sequence[float]) -> list[float]:
    """The exact 95 % interval of the mean: all that flips of signs would not reject.

    Its ends are quantiles of the means of all subsets of the pairs, which cut the line into pieces
    that are equally likely to hold the centre of a symmetric law.

    Hartigan 1969, [Using subsample values as typical
    values](https://www.jstor.org/stable/2286069).
    """
    values = np.asarray(differences, float)
    chosen = sign_flips(len(values)) > 0
    chosen = chosen[chosen.any(1)]
    return np.percentile(chosen @ values / chosen.sum(1), [2.5, 97.5]).tolist()


def entry(
    claim: str,
    column: str,
    setting: str,
    metric: str,
    method: tuple[str, Sequence[float], float],
    rival: tuple[str, Sequence[float], float],
    *,
    lower_is_better: bool,
    control: bool = False,
) -> Entry:
    """A method of diffopt beside a rival, each as (name, its value of every pair, its seconds).

    `difference` is the method's mean less the rival's, in units of the metric. `verdict` says
    whether the method is better ("holds") or worse ("fails") at p < 0.01, of this pair alone.

    Raises:
      ValueError: the values are no pairs, or one is not finite.
    """
    ours, theirs = np.asarray(method[1], float), np.asarray(rival[1], float)
    if ours.shape != theirs.shape or not np.isfinite([ours, theirs]).all():
        raise ValueError(f"{claim}, {setting}: values must be finite pairs, got {ours}, {theirs}")
    found = {
        "claim": claim,
        "column": column,
        "setting": setting,
        "control": control,
        "metric": metric,
        "lower_is_better": lower_is_better,
        "method": method[0],
        "rival": rival[0],
        "diffusion_values": ours.tolist(),
        "rival_values": theirs.tolist(),
        "diffusion_seconds": method[2],
        "rival_seconds": rival[2],
    }
    return found | statistics(found)


def statistics(entry: Entry) -> Entry:
    """What follows from the values of an entry."""
    differences = np.subtract(entry["diffusion_values"], entry["rival_values"])
    found = {"difference": float(differences.mean()), "interval": interval(differences)}
    p = p_value(differences)
    better = gain(entry | found) > 0
    verdict: Verdict = "open" if p >= LEVEL else "holds" if better else "fails"
    return found | {"p": p, "verdict": verdict}


def gain(entry: Entry) -> float:
    """By how much the method is better, in units of the metric; negative where it is worse."""
    return -entry["difference"] if entry["lower_is_better"] else entry["difference"]


def percent(entry: Entry) -> list[float]:
    """The gain in percent of the rival's mean, and the ends of its interval from low to high."""
    scale = 100 / max(float(np.abs(entry["rival_values"]).mean()), 1e-12)
    sign = -scale if entry["lower_is_better"] else scale
    low, high = sorted(sign * end for end in entry["interval"])
    return [sign * entry["difference"], low, high]
