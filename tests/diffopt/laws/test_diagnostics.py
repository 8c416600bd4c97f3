"""Both temperatures are right within their standard errors, and show a chain at a wrong one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt

T, SIZES = 0.7, {"steep": (5.0, 60_000), "flat": (0.8, 40_000)}  # curvature, parameters
K = {name: k for name, (k, _) in SIZES.items()}


def grad(params):
    return jax.tree.map(lambda p, k: k * p, params, K)


@jax.jit
def exact_state(key):
    keys = dict(zip(SIZES, jax.random.split(key), strict=True))
    return {
        name: jnp.sqrt(T / k) * jax.random.normal(keys[name], (size,))
        for name, (k, size) in SIZES.items()
    }


def temperatures(tx, noise=0.0, steps=300):
    """Both temperatures of the last state of a chain with gradient noise."""

    @jax.jit
    def run():
        def step(carry, key):
            params, state = carry
            xi = jax.random.normal(key, (100_000,))
            xi = {"steep": xi[:60_000], "flat": xi[60_000:]}
            grads = jax.tree.map(lambda g, x: g + noise * x, grad(params), xi)
            updates, state = tx.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        params = exact_state(jax.random.key(1))
        keys = jax.random.split(jax.random.key(2), steps)
        return jax.lax.scan(step, (params, tx.init(params)), keys)[0]

    params, state = run()
    configurational = diffopt.configurational_temperature(params, grad(params))
    return configurational, diffopt.kinetic_temperature(state)


def assert_temperature(temperature, expected):
    """`expected` for each leaf; the standard error of one state is T √(2/d)."""
    total = 0.0
    for name, (_, d) in SIZES.items():
        assert abs(temperature.per_leaf[name] / expected[name] - 1) < 4.5 * np.sqrt(2 / d)
        total += expected[name] * d / 100_000
    assert abs(temperature.overall / total - 1) < 4.5 * np.sqrt(2 / 100_000)


def test_on_the_exact_gaussian_the_configurational_temperature_is_t():
    params = exact_state(jax.random.key(0))
    temperature = diffopt.configurational_temperature(params, grad(params))
    assert_temperature(temperature, dict.fromkeys(SIZES, T))


def test_noise_of_a_minibatch_does_not_shift_the_configurational_temperature():
    params = exact_state(jax.random.key(0))
    noise = exact_state(jax.random.key(3))
    grads = jax.tree.map(jnp.add, grad(params), noise)
    temperature = diffopt.configurational_temperature(params, grads)
    for name, (k, d) in SIZES.items():
        standard_error = np.sqrt((2 * T**2 + T**2 / k**2) / d)
        assert abs(temperature.per_leaf[name] - T) < 4.5 * standard_error


def test_a_baoab_chain_is_at_t_by_both():
    configurational, kinetic = temperatures(diffopt.baoab(0.6, T))
    assert_temperature(configurational, dict.fromkeys(SIZES, T))
    assert_temperature(kinetic, dict.fromkeys(SIZES, T))


@pytest.mark.slow
def test_a_sghmc_chain_shows_its_finite_step_in_both():
    eta, m = 0.2, 0.8
    expected = {name: T / (1 - eta * k / (2 * (1 + m))) for name, (k, _) in SIZES.items()}
    configurational, kinetic = temperatures(diffopt.sghmc(eta, T, momentum=m))
    assert_temperature(configurational, expected)
    assert_temperature(kinetic, expected)


@pytest.mark.slow
def test_a_chain_heated_by_its_gradients_is_shown_by_both():
    eta, m, sigma = 0.1, 0.8, 1.0
    hot = T + eta * sigma**2 / (2 * (1 - m))
    expected = {name: hot / (1 - eta * k / (2 * (1 + m))) for name, (k, _) in SIZES.items()}
    configurational, kinetic = temperatures(diffopt.sghmc(eta, T, momentum=m), noise=sigma)
    assert_temperature(configurational, expected)
    assert_temperature(kinetic, expected)
    assert configurational.overall > 1.3 * T and kinetic.overall > 1.3 * T


def test_positions_that_have_not_spread_are_cold_while_the_velocities_are_not():
    tx = diffopt.baoab(0.1, T, friction=5.0)
    params = {"flat": jnp.zeros(50_000)}
    state = tx.init(params)
    step = jax.jit(tx.update)
    for _ in range(12):
        updates, state = step(jax.tree.map(lambda p: 0.01 * p, params), state)
        params = optax.apply_updates(params, updates)
    cold = diffopt.configurational_temperature(params, jax.tree.map(lambda p: 0.01 * p, params))
    assert cold.overall < 0.02 * T
    assert diffopt.kinetic_temperature(state).overall == pytest.approx(T, rel=0.03)
