"""lattice_walk on a quadratic: Ehrenfest's urn; and that minibatch noise leaves its law alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import binom

import diffopt
from tests import helpers

pytestmark = pytest.mark.slow

CHAINS, K, T = 200_000, 2.0, 0.7


def run(tx, theta, steps, grad=lambda x, key: K * x):
    return np.asarray(helpers.run(tx, theta, grad, steps, seed=5)[0], np.float64)


@pytest.mark.parametrize("n", [1, 2, 4, 10])
def test_its_stationary_law_is_that_of_an_urn(n):
    """At ηk = 1/n, up to 1: variance T/k, the fourth moment and each probability are binomial."""
    eta = 1 / (n * K)
    delta = np.sqrt(2 * T * eta)
    balls = jax.random.bernoulli(jax.random.key(1), 0.5, (CHAINS, 2 * n)).sum(1)
    start = delta * (balls.astype(jnp.float32) - n)
    found = np.rint(run(diffopt.lattice_walk(eta, T), start, 8 * n + 1) / delta) + n
    counts = np.bincount(found.astype(int), minlength=2 * n + 1)
    assert len(counts) == 2 * n + 1
    p = binom.pmf(np.arange(2 * n + 1), 2 * n, 0.5)
    assert (abs(counts / CHAINS - p) < 4.5 * np.sqrt(p * (1 - p) / CHAINS)).all()
    x = (found - n) * delta / np.sqrt(T / K)
    assert abs((x**2).mean() - 1) < 4.5 * np.sqrt((2 - 1 / n) / CHAINS)
    assert abs((x**4).mean() - (3 - 1 / n)) < 4.5 * np.sqrt(96 / CHAINS)


@pytest.mark.parametrize("product,stated", [(0.3, 1.005), (0.6, 1.08)])
def test_where_it_clips_it_has_the_law_of_a_birth_and_death_chain(product, stated):
    """By detailed balance between neighbours of the lattice; as warm as the docstring says."""
    eta = product / K
    delta = np.sqrt(2 * T * eta)
    last = int(np.ceil(1 / product))  # the first place that the clip sends back
    places = np.arange(-last, last + 1)
    up = np.clip((1 - product * places) / 2, 0, 1)
    p = np.cumprod([1, *(up[:-1] / (1 - up[1:]))])
    p /= p.sum()
    start = delta * jax.random.choice(jax.random.key(3), places, (CHAINS,), p=jnp.asarray(p))
    x = run(diffopt.lattice_walk(eta, T), start, 40) / delta
    second, fourth = p @ places**2, p @ places**4
    assert abs((x**2).mean() - second) < 4.5 * np.sqrt((fourth - second**2) / CHAINS)
    assert 1 < second * 2 * product < stated


def test_it_is_reached_from_a_point():
    """Of an urn of 8 balls the even places have the variance of all."""
    x = run(diffopt.lattice_walk(1 / (4 * K), T), jnp.zeros(CHAINS), 60)
    assert abs((x**2).mean() * K / T - 1) < 4.5 * np.sqrt((2 - 1 / 4) / CHAINS)


def test_noise_that_is_independent_from_step_to_step_leaves_the_law_alone():
    """Noise of half a step in the gradients, where SGLD is 1.28 times too warm."""
    eta = 0.05 / K
    delta = np.sqrt(2 * T * eta)
    noise = lambda key, x: 0.5 * delta / eta * jax.random.rademacher(key, x.shape, x.dtype)
    start = np.sqrt(T / K) * jax.random.normal(jax.random.key(2), (CHAINS,))
    noisy = lambda x, key: K * x + noise(key, x)
    x = run(diffopt.lattice_walk(eta, T), start, 200, noisy)
    error = 4.5 * np.sqrt(2 / CHAINS)
    assert abs((x**2).mean() * K / T - 1) < error
    heat = (1 + 0.5**2) / (1 - 0.05 / 2)
    y = run(diffopt.sgld(eta, T), start * np.sqrt(heat), 200, noisy)
    assert abs((y**2).mean() * K / T / heat - 1) < error


def test_free_it_spreads_at_the_rate_of_the_diffusion():
    x = run(diffopt.lattice_walk(0.3, T), jnp.zeros(CHAINS), 20, lambda x, key: 0 * x)
    spread = 2 * T * 0.3 * 20
    assert abs((x**2).mean() / spread - 1) < 4.5 * np.sqrt(2 / CHAINS)


def test_the_mean_of_a_step_is_minus_the_gradients_until_it_clips():
    eta, delta = 0.1, np.sqrt(2 * T * 0.1)
    g = jnp.array([-30.0, -2.0, 0.0, 0.001, 1.0, 30.0])[:, None] * jnp.ones(CHAINS)
    tx = diffopt.lattice_walk(eta, T)
    updates, _ = jax.jit(tx.update)(g, tx.init(g))
    assert np.unique(np.abs(updates)) == pytest.approx(delta)
    expected = np.clip(-eta * np.asarray(g[:, 0], np.float64), -delta, delta)
    mean = np.asarray(updates, np.float64).mean(1)
    error = np.sqrt(np.maximum(delta**2 - expected**2, 0) / CHAINS) + 1e-6
    assert (abs(mean - expected) < 4.5 * error).all()


def test_no_step_is_longer_and_a_gradient_that_is_no_number_shows():
    tx = diffopt.lattice_walk(1.0, 0.5)
    g = jnp.array([jnp.inf, -jnp.inf, 3e38, jnp.nan])
    updates, _ = tx.update(g, tx.init(g))
    np.testing.assert_allclose(updates, [-1, 1, -1, np.nan], rtol=1e-6)


def test_a_complex_element_is_two_walks():
    z = jnp.zeros(CHAINS, jnp.complex64)
    tx = diffopt.lattice_walk(0.5, 1.0)
    updates, _ = tx.update(z, tx.init(z))
    np.testing.assert_allclose(abs(updates.real), 1, rtol=1e-6)
    np.testing.assert_allclose(abs(updates.imag), 1, rtol=1e-6)
    assert abs((updates.real * updates.imag).mean()) < 4.5 / np.sqrt(CHAINS)


def test_at_zero_temperature_it_is_sgd_and_just_above_it_is_descent_by_signs():
    params = {"w": jnp.linspace(-2, 2, 6).reshape(2, 3), "b": jnp.ones(3)}
    bumpy = lambda params: jax.tree.map(lambda p: -3 * jnp.sin(3 * p) + 0.2 * p, params)
    cold = helpers.path(diffopt.lattice_walk(0.02, 0.0), params, bumpy, 100)
    helpers.assert_close(cold, helpers.path(optax.sgd(0.02), params, bumpy, 100), rtol=1e-4)
    tx = diffopt.lattice_walk(0.5, 1e-6)
    updates, _ = tx.update(bumpy(params), tx.init(params))
    signs = jax.tree.map(lambda g: -1e-3 * jnp.sign(g), bumpy(params))
    helpers.assert_close(updates, signs, rtol=1e-4)
