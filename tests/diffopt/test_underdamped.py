"""sghmc, baoab, ubu and sgnht: their steps and limits. Their contract is that of all samplers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt
from diffopt.samplers.ubu import _transverse_variance
from tests.helpers import assert_close, path, run, ubu_covariance

PARAMS = {"w": jnp.array([[0.5, -1.0], [2.0, 0.1]]), "b": jnp.array([0.3, -0.7])}


def loss(params):
    """Not convex: a sum of cosines in a shallow bowl, with every parameter coupled."""
    x = jnp.concatenate([jnp.ravel(p) for p in jax.tree.leaves(params)])
    return jnp.sum(jnp.cos(3 * x)) + 0.1 * jnp.sum(x**2) + jnp.prod(jnp.tanh(x))


grad = jax.grad(loss)


def ones(key, shape, dtype):
    """A known increment, ξ = 1."""
    return jnp.ones(shape, dtype)


@pytest.mark.parametrize("make", [diffopt.sghmc, diffopt.sgnht])
@pytest.mark.parametrize("m", [pytest.param(0.0, marks=pytest.mark.slow), 0.5])
def test_at_zero_temperature_it_is_sgd_with_momentum(make, m):
    found = path(make(0.02, 0.0, momentum=m, noise=ones), PARAMS, grad, 100)
    reference = path(optax.sgd(0.02, momentum=m), PARAMS, grad, 100)
    assert_close(found, reference, rtol=2e-5, atol=2e-6)
    assert np.abs(found["w"][-1] - PARAMS["w"]).max() > 0.1


def test_sghmc_without_momentum_is_sgld():
    found = path(diffopt.sghmc(0.02, 0.5, momentum=0.0, key=3), PARAMS, grad, 100)
    reference = path(diffopt.sgld(0.02, 0.5, key=3), PARAMS, grad, 100)
    assert_close(found, reference, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("friction", [pytest.param(0.0, marks=pytest.mark.slow), 0.7])
def test_at_zero_temperature_baoab_is_damped_leapfrog(friction):
    h = 0.1
    found = path(diffopt.baoab(h, 0.0, friction=friction, noise=ones), PARAMS, grad, 100)

    @jax.jit
    def leapfrog(theta, v):
        kicked = jax.tree.map(lambda v, g: v - h * g, v, grad(theta))
        v = jax.tree.map(lambda v: np.exp(-friction * h) * v, kicked)
        return jax.tree.map(lambda p, a, b: p + h * (a + b) / 2, theta, kicked, v), v

    theta, v = PARAMS, jax.tree.map(jnp.zeros_like, PARAMS)
    for i in range(100):
        theta, v = leapfrog(theta, v)
        assert_close(jax.tree.map(lambda p: p[i], found), theta, rtol=1e-4, atol=1e-4)


def test_at_zero_temperature_and_without_friction_ubu_is_leapfrog():
    found, reference = (
        path(make(0.1, 0.0, friction=0.0), PARAMS, grad, 100)
        for make in (diffopt.ubu, diffopt.baoab)
    )
    assert_close(found, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [diffopt.baoab, pytest.param(diffopt.ubu, marks=pytest.mark.slow)])
def test_leapfrog_keeps_the_energy(make):
    """θ²/2 + v²/2, taken where both are known at one time, stays within O(h²) for 10,000 steps."""
    h, theta = 0.1, jnp.array([1.0])
    tx = make(h, 0.0, friction=0.0)
    theta, state, _ = run(tx, theta, lambda p: p, 10_000)
    v = state.velocity - h / 2 * theta
    assert abs(float((theta**2 + v**2)[0]) - 1) < h**2


def test_the_steps_are_those_of_the_docstrings():
    g, T, m = jnp.array([0.3, -2.0]), 0.7, 0.8
    v0, theta = jnp.array([0.1, 0.2]), jnp.zeros(2)

    def step(tx, **start):
        updates, state = tx.update(g, tx.init(theta)._replace(velocity=v0, **start))
        return np.asarray(updates), state

    eta = 0.04
    updates, state = step(diffopt.sghmc(eta, T, momentum=m, noise=ones))
    v = m * v0 - eta * g + np.sqrt(2 * (1 - m) * eta * T)
    np.testing.assert_allclose(updates, v, rtol=1e-6)
    np.testing.assert_allclose(state.velocity, v, rtol=1e-6)
    np.testing.assert_allclose(state.mass, (1 + m) / (2 * eta), rtol=1e-6)
    np.testing.assert_allclose(state.half_kick, eta / (1 + m), rtol=1e-6)

    h, gamma = 0.2, 1.5
    updates, state = step(diffopt.baoab(h, T, friction=gamma, noise=ones))
    kicked, c = v0 - h * g, np.exp(-gamma * h)
    v = c * kicked + np.sqrt((1 - c**2) * T)
    np.testing.assert_allclose(updates, h * kicked / 2 + h * v / 2, rtol=1e-6)
    np.testing.assert_allclose(state.velocity, v, rtol=1e-6)
    assert state.mass == 1

    updates, state = step(diffopt.ubu(h, T, friction=gamma, noise=ones))
    variances = 2 * gamma * h - 3 + 4 * c - c**2, 1 - c**2
    both = (1 - c) ** 2
    along = both / np.sqrt(variances[1])
    drawn = np.sqrt(T) * (along + np.sqrt(variances[0] - along**2)) / gamma
    np.testing.assert_allclose(updates, (1 - c) / gamma * kicked + drawn, rtol=1e-6)
    np.testing.assert_allclose(state.velocity, c * kicked + np.sqrt((1 - c**2) * T), rtol=1e-6)
    assert state.mass == 1

    alpha = jnp.float32(0.4)
    updates, state = step(diffopt.sgnht(eta, T, momentum=m, noise=ones), friction=alpha)
    v = (1 - alpha) * v0 - eta * g + np.sqrt(2 * (1 - m) * eta * T)
    kinetic = (2 - alpha) * (v @ v) / (2 * eta * 2)
    np.testing.assert_allclose(updates, v, rtol=1e-6)
    expected = 1 / max(1 / 0.4 - (kinetic / T - 1) / 2, 1)
    np.testing.assert_allclose(state.friction, expected, rtol=1e-5)


def test_the_thermostat_starts_at_one_minus_momentum_and_stops_at_one():
    tx = diffopt.sgnht(0.1, 1e-6, momentum=0.8)
    state = tx.init(jnp.zeros(4))
    assert state.friction == jnp.float32(0.2)
    _, state = tx.update(jnp.full(4, 100.0), state)
    assert state.friction == 1
    _, state, _ = run(tx, jnp.zeros(1000), lambda p: p, 500)
    assert 0.1 < state.friction < 0.4


def test_the_noise_of_ubu_loses_no_digits():
    """(x - tanh x)/x², whose terms cancel to the third order."""
    x = np.geomspace(1e-7, 50, 400)
    with np.errstate(all="ignore"):
        exact = np.where(x < 3e-3, x / 3 * (1 - 0.4 * x**2), (x - np.tanh(x)) / x**2)
    np.testing.assert_allclose(_transverse_variance(jnp.float32(x)), exact, rtol=1e-5)


@pytest.mark.slow
def test_a_state_of_one_sampler_serves_another_at_its_temperature():
    """The velocities of sghmc are √M times smaller than those of baoab and ubu, whose mass is 1."""
    makers = {
        "sghmc": lambda: diffopt.sghmc(0.01, 0.5),
        "baoab": lambda: diffopt.baoab(0.1, 0.5),
        "ubu": lambda: diffopt.ubu(0.1, 0.5),
    }
    params = jnp.zeros(40_000)
    margin = 4.5 * np.sqrt(2 / params.size)
    for first in makers:
        moved, state, _ = run(makers[first](), params, lambda p: p, 300)
        for second in makers:
            keep = lambda p, s: (jnp.mean(p**2), diffopt.kinetic_temperature(s).overall)
            _, _, found = run(makers[second](), moved, lambda p: p, 100, state=state, keep=keep)
            for x in found:
                assert (abs(np.asarray(x) / 0.5 - 1) < margin + 0.003).all(), (first, second)


@pytest.mark.parametrize("name", ["sghmc", "sgnht", "baoab", "ubu"])
def test_a_step_of_0_moves_nothing_and_the_next_goes_on_with_the_velocity(name):
    make = getattr(diffopt, name)
    g, params = jnp.array([0.3, -2.0]), jnp.ones(2)
    tx = make(lambda count: jnp.where(count == 1, 0.0, 0.1), 0.5)
    _, first = tx.update(g, tx.init(params))
    updates, still = tx.update(g, first)
    assert_close(updates, jnp.zeros(2), atol=0)
    assert (still.velocity != 0).all() and diffopt.kinetic_temperature(still).overall > 0
    _, expected = make(0.1, 0.5).update(g, first._replace(key=still.key))
    _, found = tx.update(g, still)
    assert_close(found.velocity, expected.velocity, rtol=1e-5)


@pytest.mark.parametrize("x", [1e-4, 0.3, 2.0, 30.0])
def test_the_half_kick_of_ubu_is_the_mean_velocity_of_its_law(x):
    """cov(θ, v)/Var θ over the curvature, which is small."""
    h, k = 0.5, 1e-5
    state = diffopt.ubu(h, 1.0, friction=x / h).init(jnp.zeros(1))
    _, state = diffopt.ubu(h, 1.0, friction=x / h).update(jnp.zeros(1), state)
    law = ubu_covariance(h, k, x / h, 1.0)
    expected = law[0, 1] / law[0, 0] / k if x > 0.1 else h / 2
    np.testing.assert_allclose(state.half_kick, expected, rtol=1e-3)
