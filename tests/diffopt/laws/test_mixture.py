"""Modes found on the 25 Gaussians of Zhang et al. 2020, by the benchmark that draws them."""

import numpy as np
import pytest

import diffopt
from benchmarks.mixture import CENTRES, VARIANCE, chains, modes_found


@pytest.fixture(scope="module")
def samples():
    return chains(steps=100_000, cycles=400, peak=0.1, explore=0.25, seeds=4)


@pytest.mark.slow
def test_sgld_finds_few_modes_and_cyclical_sgld_all(samples):
    assert max(modes_found(chain) for chain in samples["SGLD"]) <= 3
    assert [modes_found(chain) for chain in samples["cyclical SGLD"]] == [25] * 4


@pytest.mark.slow
def test_the_spread_around_a_centre_is_that_of_the_mode(samples):
    """In the last 60 steps of each cycle, between that of a step of 0 and of the first of them."""
    late = samples["cyclical SGLD"].reshape(4, 400, -1, 2)[:, :, -60:].reshape(-1, 2)
    offset = late - 2 * np.clip(np.rint(late / 2), -2, 2)
    assert np.mean(np.abs(offset) < 0.9) > 0.99
    eta = float(diffopt.cyclical_schedule(0.1, 250)(190))
    longest = (1 + eta / 2) / (1 - eta / VARIANCE / 2)  # with the gradients' noise
    assert 1 < offset[np.abs(offset).max(axis=1) < 0.9].var() / VARIANCE < longest


def test_a_mode_counts_once_and_only_with_enough_samples():
    assert modes_found(np.repeat(CENTRES[:3], [100, 99, 500], axis=0)) == 2
