"""The thermostat of sgnht: its stationary law, hot starts, and temperatures that fall to 0."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt


def chains(tx, start, steps, burn=0, grads=lambda x, key: x):
    """The state after `steps`, and the means over those after `burn` of functions of θ and α."""
    state = jax.vmap(tx.init)(start)
    state = state._replace(key=jax.random.split(jax.random.key(1), len(start)))

    def step(carry, key):
        params, state = carry
        updates, state = jax.vmap(tx.update)(grads(params, key), state)
        params = optax.apply_updates(params, updates)
        alpha = state.friction
        return (params, state), jnp.stack(
            [(params**2).mean(1), alpha, alpha**2, 1 / alpha, 1 / alpha**2], axis=1
        )

    def run(start, state):
        keys = jax.random.split(jax.random.key(2), steps)
        (params, state), seen = jax.lax.scan(step, (start, state), keys)
        return params, state, seen[burn:].mean(0), seen[:, :, 1].min()

    return jax.jit(run)(start, state)


@pytest.mark.slow
@pytest.mark.parametrize("d", [1, 3])
def test_few_parameters_keep_the_boltzmann_law_and_the_friction_its_inverse_gamma(d):
    """1/α is a gamma variable of shape 2d + 1 and rate 2d(1 - m), up to 3(1 - m) for the step."""
    m, T, n = 0.99, 0.5, 300
    tx = diffopt.sgnht(1e-2, T, momentum=m)
    start = np.sqrt(T) * jax.random.normal(jax.random.key(0), (n, d))
    _, _, means, least = chains(tx, start, steps=10_000, burn=1_000)

    def bias_and_error(values, exact):
        return values.mean() / exact - 1, values.std() / np.sqrt(n) / exact

    square, alpha, _, tau, tau2 = np.asarray(means, np.float64).T
    A = 1 - m
    for values, exact, order in (
        (square, T, 0.0),
        (alpha, A, 0.03),
        (tau, (2 * d + 1) / (2 * d * A), 0.03),
        (tau2, (2 * d + 1) * (2 * d + 2) / (2 * d * A) ** 2, 0.06),
    ):
        bias, error = bias_and_error(values, exact)
        assert abs(bias) < 4.5 * error + order, (bias, error, exact)
    assert least > 0


def test_one_parameter_at_the_default_momentum_keeps_its_variance():
    start = jax.random.normal(jax.random.key(0), (1_000, 1))
    _, _, means, _ = chains(diffopt.sgnht(1e-2, 1.0), start, steps=6_000, burn=500)
    square = np.asarray(means[:, 0], np.float64)
    assert abs(square.mean() - 1) < 4.5 * square.std() / np.sqrt(len(square))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("m", "steps"), [(0.99, 3_000), pytest.param(0.999, 20_000, marks=pytest.mark.slow)]
)
def test_a_hot_start_does_not_wind_the_thermostat_up(m, steps):
    params = 1_000
    start = jnp.full((20, params), 100.0)
    end, _, _, _ = chains(diffopt.sgnht(1e-3, 1.0, momentum=m), start, steps=steps)
    # steps of η = 1e-3 on θ²/2: the stationary variance is 1, and what is left of 100 is nothing
    per_chain = np.asarray((end**2).mean(1), np.float64)
    bound = 4.5 * max(per_chain.std(ddof=1), np.sqrt(2 / params)) / np.sqrt(20)
    assert abs(per_chain.mean() - 1) < bound


@pytest.mark.slow
def test_a_temperature_that_falls_to_0_leaves_momentum_m_and_no_chain_diverges():
    T = optax.piecewise_interpolate_schedule("linear", 1.0, {500: 1.0, 1_000: 0.0})
    tx = diffopt.sgnht(1e-2, lambda count: jnp.where(count < 1_000, T(count), 0.0))
    start = jax.random.normal(jax.random.key(0), (2_000, 1))
    end, _, _, least = chains(tx, start, steps=2_500)
    assert least > 0
    assert jnp.abs(end).max() < 1e-3


def test_at_t_0_it_is_momentum_whatever_the_friction_was():
    params = {"w": jnp.arange(3.0), "n": None}
    grads = lambda p: jax.tree.map(lambda x: 0.5 * x + 1, p)
    hot = diffopt.sgnht(0.1, 1e-6)
    state, moved = hot.init(params), params
    for _ in range(3):  # velocities far hotter than T drive the friction up
        updates, state = hot.update(grads(moved), state)
        moved = optax.apply_updates(moved, updates)
    assert state.friction > 0.9

    cold, sgd = diffopt.sgnht(0.1, 0.0), optax.sgd(0.1, momentum=0.9)
    trace = (sgd.init(params)[0]._replace(trace=jax.tree.map(lambda v: -v / 0.1, state.velocity)),)
    expected_state = (*trace, *sgd.init(params)[1:])
    expected = moved
    for _ in range(5):
        updates, state = cold.update(grads(moved), state)
        moved = optax.apply_updates(moved, updates)
        updates, expected_state = sgd.update(grads(expected), expected_state)
        expected = optax.apply_updates(expected, updates)
    np.testing.assert_allclose(moved["w"], expected["w"], rtol=1e-5)
