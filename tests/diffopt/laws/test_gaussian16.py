"""What gaussian16 must be in distribution: its 65,536 values, and draws at 4.5 standard errors."""

import math
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import diffopt
from diffopt.noise.gaussian16 import gaussian16, quantile
from diffopt.noise.increments import SMALL, draw_increments
from tests.helpers import ROOT

pytestmark = pytest.mark.slow

CELLS = 2**16
N = 2**20
VALUES = np.asarray(quantile(jnp.arange(-CELLS // 2, CELLS // 2, dtype=jnp.int16)), np.float64)
GAUSSIAN_MOMENTS = {2: 1, 4: 3, 6: 15, 8: 105}


def draw(seed, shape):
    return np.asarray(gaussian16(jax.random.key(seed), shape, jnp.float32))


def cells(xi):
    """The 16 bits of each number, whose rounding may differ from that of `VALUES`."""
    return np.searchsorted(np.float32((VALUES[1:] + VALUES[:-1]) / 2), xi)


def close(mean, expected, variance, count):
    assert abs(mean - expected) < 4.5 * (variance / count) ** 0.5


def all_normal(z):
    """No score is far out for so many, and their sum of squares is that of standard normals."""
    z = np.ravel(z)
    assert np.abs(z).max() < stats.norm.isf(3.4e-6 / z.size)
    close((z**2).mean(), 1, 2, z.size)


def kolmogorov(counts, cdf_below, cdf_above):
    """√n times the largest distance of the counts in cells from a law on either side of each."""
    n, above = counts.sum(), np.cumsum(counts)
    below = above - counts
    distance = max(np.abs(above / n - cdf_above).max(), np.abs(below / n - cdf_below).max())
    return distance * n**0.5


# The law of a number


def test_the_values_are_as_many_as_the_cells_and_symmetric():
    assert (np.diff(VALUES) > 0).all()
    assert (-VALUES[::-1] == VALUES).all()


def test_mean_and_odd_moments_are_0_and_the_variance_is_1():
    squares = VALUES * VALUES
    powers = (VALUES, VALUES * squares, VALUES * squares * squares)
    assert [math.fsum(power) for power in powers] == [0, 0, 0]
    assert abs((VALUES**2).mean() - 1) < 2**-24


@pytest.mark.parametrize(("order", "error"), [(4, 2e-5), (6, 2e-4), (8, 3e-4)])
def test_even_moments_are_those_of_a_gaussian(order, error):
    assert abs((VALUES**order).mean() / GAUSSIAN_MOMENTS[order] - 1) < error


def test_reach_and_distance_from_a_gaussian():
    assert 4.42 < VALUES.max() < 4.43 and 2 * stats.norm.sf(VALUES.max()) < 1e-5
    cdf = stats.norm.cdf(VALUES)
    edges = np.arange(CELLS + 1) / CELLS
    assert max(np.abs(cdf - edges[1:]).max(), np.abs(cdf - edges[:-1]).max()) < 1.4e-5


# Draws


@pytest.mark.parametrize("shape", [(N,), (1024, 1024), (3, 3, 320, 364), (104_857, 10)])
def test_moments_to_order_8(shape):
    xi = draw(1, shape).astype(np.float64).ravel()
    for order in range(1, 9):
        mean, second = ((VALUES**p).mean() for p in (order, 2 * order))
        close((xi**order).mean(), mean, second - mean**2, xi.size)


def check_law(counts):
    uniform = np.arange(CELLS + 1) / CELLS
    bound = stats.kstwobign.isf(6.8e-6)
    assert kolmogorov(counts, uniform[:-1], uniform[1:]) < bound
    normal = stats.norm.cdf(VALUES)
    assert kolmogorov(counts, normal, normal) < bound
    close(stats.chisquare(counts).statistic, CELLS - 1, 2 * (CELLS - 1), 1)


def test_kolmogorov_smirnov():
    xi = draw(2, (2048, 2048))
    check_law(np.bincount(cells(xi).ravel(), minlength=CELLS))
    for place in range(4):  # in a block
        check_law(np.bincount(cells(xi[place::4]).ravel(), minlength=CELLS))


@pytest.mark.slow
def test_kolmogorov_smirnov_of_a_hundred_million():
    counts = np.zeros(CELLS, int)
    for seed in range(100, 124):
        counts += np.bincount(cells(draw(seed, (2048, 2048))).ravel(), minlength=CELLS)
    assert counts.sum() > 10**8
    check_law(counts)


# Dependence


def autocorrelations(x, axis, lags):
    """The correlations over `lags` along an axis, as standard scores; x has mean 0, variance 1."""
    size = x.shape[axis]
    spectrum = np.fft.rfft(x, 2 * size, axis=axis)
    products = np.fft.irfft(np.abs(spectrum) ** 2, axis=axis)
    others = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    sums = products.sum(axis=others)[1 : lags + 1]
    pairs = x.size // size * (size - np.arange(1, lags + 1))
    return sums / pairs**0.5


VARIANCE_OF_SQUARES = (VALUES**4).mean() - 1


@pytest.mark.parametrize(
    ("shape", "axis", "lags"),
    [
        ((2**20,), 0, 4096),
        ((1024, 1024), 0, 1000),
        ((1024, 1024), 1, 1000),
        ((64, 128, 96), 0, 60),
        ((64, 128, 96), 1, 120),
        ((64, 128, 96), 2, 90),
        ((100_003, 10), 0, 4096),
        ((100_003, 10), 1, 9),
    ],
)
def test_values_and_squares_are_uncorrelated_over_lags_along_every_axis(shape, axis, lags):
    xi = draw(3, shape).astype(np.float64)
    all_normal(autocorrelations(xi, axis, lags))
    all_normal(autocorrelations((xi**2 - 1) / VARIANCE_OF_SQUARES**0.5, axis, lags))


def scores(a, b):
    """Standard scores of the correlations of two arrays: of values, of squares and across."""
    a, b = (np.ravel(x).astype(np.float64) for x in (a, b))
    sa, sb = ((x**2 - 1) / VARIANCE_OF_SQUARES**0.5 for x in (a, b))
    return [(x * y).sum() / a.size**0.5 for x, y in ((a, b), (sa, sb), (a, sb), (sa, b))]


def test_leaves_keys_and_steps_are_uncorrelated():
    large, small = jnp.zeros((512, 512)), jnp.zeros(SMALL - 1)
    params = {"a": large, "b": large, "small": [small, small], "complex": jnp.zeros(SMALL, complex)}
    one, two = (draw_increments(jax.random.key(k), params, "gaussian16") for k in (5, 6))
    pairs = [(one["a"], one["b"]), (one["a"], two["a"]), (one["small"][0], one["small"][1])]
    pairs += [(one["small"][0], np.ravel(one["a"])[: SMALL - 1])]
    pairs += [(one["small"][0], two["small"][0]), (one["complex"].real, one["complex"].imag)]
    tx = diffopt.sgld(1.0, 0.5, noise="gaussian16")
    first, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params))
    second, _ = tx.update(jax.tree.map(jnp.zeros_like, params), state)
    pairs += [(first["a"], second["a"]), (first["a"][1:], second["a"][:-1])]
    pairs += [(first["small"][0], second["small"][0])]
    all_normal([z for a, b in pairs for z in scores(a, b)])


# Bits


def test_the_64_bits_of_a_block_are_fair_and_independent_within_and_between_blocks():
    words = cells(draw(7, (4 * 32, 1024))).reshape(32, 4, 1024).transpose(0, 2, 1).reshape(-1, 4)
    bits = (words[:, :, None] >> np.arange(16) & 1).reshape(-1, 64) * 2.0 - 1
    n = len(bits)
    all_normal(bits.sum(0) / n**0.5)
    within = bits.T @ bits / n**0.5
    all_normal(within[np.triu_indices(64, 1)])
    for lag in (1, 2, 1024):
        all_normal(bits[lag:].T @ bits[:-lag] / (n - lag) ** 0.5)
    triples = np.einsum("ni,nj,nk->ijk", bits[:, ::8], bits[:, 3::8], bits[:, 6::8]) / n**0.5
    all_normal(triples)


def test_runs_and_equal_neighbours_are_as_often_as_by_chance():
    index = cells(draw(8, (1024, 1024)))
    for axis in (0, 1):
        one, two = np.moveaxis(index, axis, 0)[1:], np.moveaxis(index, axis, 0)[:-1]
        equal = int((one == two).sum())
        assert abs(equal - one.size / CELLS) < 4.5 * (one.size / CELLS) ** 0.5
        up = np.diff(np.moveaxis(index, axis, 0), axis=0) > 0
        turns = (up[1:] != up[:-1]).mean()  # of three numbers in a row, 2/3 turn
        close(turns, 2 / 3, 8 / 45, up[1:].size)


# Samplers


@pytest.mark.slow
def test_the_laws_of_every_sampler_hold_with_it():
    families = ("overdamped", "underdamped", "thermostat", "preconditioned", "schedules", "mixture")
    files = [str(Path(__file__).with_name(f"test_{family}.py")) for family in families]
    options = ["-n", "0", "-q", "-p", "tests.gaussian16_for_gaussian"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
