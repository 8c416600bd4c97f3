"""What the increments must be in distribution, at 4.5 standard errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffopt
from diffopt.noise.gaussian16 import gaussian16
from diffopt.noise.increments import draw_increments, gaussian, rademacher

N = 200_000
NOISES = {"gaussian": gaussian, "gaussian16": gaussian16, "rademacher": rademacher}
noises = pytest.mark.parametrize("noise", NOISES)


def close(mean, expected, variance, count):
    assert abs(float(mean) - expected) < 4.5 * (variance / count) ** 0.5


@noises
@pytest.mark.parametrize(
    "shape",
    [
        (N,),
        (20_000, 10),
        *(pytest.param(x, marks=pytest.mark.slow) for x in ((400, 500), (3, 3, 160, 140))),
    ],
)
def test_moments(noise, shape):
    xi = np.asarray(NOISES[noise](jax.random.key(1), shape, jnp.float32), np.float64).ravel()
    fourth, sixth, eighth = (1, 1, 1) if noise == "rademacher" else (3, 15, 105)
    close(xi.mean(), 0, 1, xi.size)
    close((xi**3).mean(), 0, sixth, xi.size)
    if noise != "rademacher":
        close((xi**2).mean(), 1, fourth - 1, xi.size)
        close((xi**4).mean(), fourth, eighth - fourth**2, xi.size)
    else:
        assert (xi**2 == 1).all()


def uncorrelated(a, b):
    close(np.mean(np.asarray(a, np.float64) * np.asarray(b, np.float64)), 0, 1, np.size(a))


@noises
def test_elements_are_independent_at_every_lag(noise):
    xi = np.asarray(NOISES[noise](jax.random.key(2), (N,), jnp.float32))
    for lag in (*range(1, 65), 1000, 1024, 32 * 1000):
        uncorrelated(xi[lag:], xi[:-lag])


@noises
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_elements_are_independent_along_every_axis(noise, axis):
    xi = np.asarray(NOISES[noise](jax.random.key(3), (64, 64, 64), jnp.float32))
    xi = np.moveaxis(xi, axis, 0)
    for lag in range(1, 33):
        uncorrelated(xi[lag:], xi[:-lag])


def test_the_32_bits_of_a_word_are_fair_and_independent_in_pairs_and_triples():
    bits = np.asarray(rademacher(jax.random.key(4), (32, 40_000), jnp.float32), np.float64)
    words = bits.shape[1]
    assert np.abs(bits.mean(1)).max() < 4.5 / words**0.5
    pairs = bits @ bits.T / words
    assert np.abs(pairs - np.eye(32)).max() < 5 / words**0.5  # 496 pairs
    triples = np.einsum("iw,jw,kw->ijk", bits[:12], bits[:12], bits[:12]) / words
    distinct = [triples[i, j, k] for i in range(12) for j in range(i) for k in range(j)]
    assert np.abs(distinct).max() < 5 / words**0.5  # 220 triples


@noises
def test_steps_leaves_and_keys_are_independent(noise):
    params = {"a": jnp.zeros(N), "b": jnp.zeros(N), "small": [jnp.zeros(30_000)] * 2}
    one, two = (draw_increments(jax.random.key(k), params, noise) for k in (5, 6))
    uncorrelated(one["a"], one["b"])
    uncorrelated(one["small"][0], one["small"][1])
    uncorrelated(one["small"][0], one["a"][:30_000])
    uncorrelated(one["a"], two["a"])
    uncorrelated(one["small"][0], two["small"][0])
    tx = diffopt.sgld(1.0, 0.5, noise=noise)
    first, state = tx.update(params, tx.init(params))
    second, _ = tx.update(params, state)
    uncorrelated(first["a"], second["a"])
    uncorrelated(first["a"][1:], second["a"][:-1])


def test_both_parts_of_a_complex_leaf_have_variance_one_and_are_independent():
    xi = np.asarray(
        draw_increments(jax.random.key(7), jnp.zeros(N, jnp.complex64), "gaussian"), complex
    )
    close((xi.real**2).mean(), 1, 2, N)
    close((xi.imag**2).mean(), 1, 2, N)
    uncorrelated(xi.real, xi.imag)


def test_a_bfloat16_leaf_gets_an_increment_of_variance_one():
    xi = np.asarray(
        draw_increments(jax.random.key(8), jnp.zeros(N, jnp.bfloat16), "gaussian"), np.float64
    )
    close((xi**2).mean(), 1, 2, N)
    assert np.abs(xi).max() > 4


@noises
@pytest.mark.parametrize("eta", [pytest.param(0.1, marks=pytest.mark.slow), 0.5])
def test_the_stationary_variance_is_that_of_euler_maruyama(noise, eta):
    T, k = 0.7, 1.0
    tx = diffopt.sgld(eta, T, key=9, noise=noise)

    def step(carry, _):
        theta, state = carry
        updates, state = tx.update(k * theta, state)
        return (theta + updates, state), None

    theta = jnp.zeros(N)
    steps = int(np.ceil(20 / eta))
    (theta, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=steps))((theta, tx.init(theta)))
    theta = np.asarray(theta, np.float64)
    a, s2 = 1 - eta * k, 2 * T * eta
    variance = T / (k * (1 - eta * k / 2))
    # the stationary law Σ aⁱ s ξᵢ: its fourth cumulant is that of ξ times s⁴ / (1 - a⁴)
    kurtosis = 3 * variance**2 + (-2 if noise == "rademacher" else 0) * s2**2 / (1 - a**4)
    close(theta.mean(), 0, variance, N)
    close((theta**2).mean(), variance, kurtosis - variance**2, N)
    fourth = np.mean(theta**4)
    spread = np.std(theta**4) / N**0.5
    assert abs(fourth - kurtosis) < 4.5 * spread
