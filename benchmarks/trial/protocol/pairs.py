"""Paired differences, their intervals and p-values.

The diffusion and a rival have one value for each pair: an instance, a seed, or two runs that follow
each other. Pairs share their data, their start and the order of their examples.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

RESAMPLES = 9_999
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
