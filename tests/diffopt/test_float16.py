"""`low_precision` over the whole range of float16: subnormal numbers, and the largest ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt

pytestmark = pytest.mark.slow

N = 200_000


def step(params, change):
    """Add `change`, float32, to the parameters: rounded and exact parameters."""
    tx = diffopt.low_precision(optax.stateless(lambda g, p: change))
    update = jax.jit(tx.update)
    updates, state = update(jnp.ones_like(params), tx.init(params), params)
    params = optax.apply_updates(params, updates)
    return np.asarray(params, np.float64), np.asarray(diffopt.exact_params(params, state))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_a_parameter_is_one_of_two_neighbours_with_the_exact_mean(dtype):
    sizes = [1.0, 6.2e-5, 6.1e-5, 1e-5, 3.21e-7, 5e-8, 1e-8]  # 6.1e-5 is the least normal one
    values = np.array([*sizes, *(-x for x in sizes)], np.float32)
    starts, changes = values.astype(dtype), values / np.float32(300)
    broadcast = lambda x: jnp.broadcast_to(x[:, None], (len(values), N))
    params, exact = step(broadcast(starts), broadcast(changes))
    for p, e, theta in zip(params, exact, starts.astype(np.float32) + changes, strict=True):
        nearest = theta.astype(dtype)
        side = np.inf if nearest.astype(np.float32) < theta else -np.inf
        other = np.nextafter(nearest, np.asarray(side, dtype))
        a, b = float(nearest), float(other)
        assert set(np.unique(p)) == {a, b}
        chance = (float(theta) - a) / (b - a)
        error = np.sqrt(chance * (1 - chance) / N) * abs(b - a)
        assert abs(p.mean() - float(theta)) < 4.5 * error
        assert np.abs(e - theta).max() <= abs(b - a) * 2**-14


def test_a_well_of_subnormal_width_has_the_variance_of_float32():
    deviation = 2.0**-20  # 16 spacings of 2⁻²⁴, and far below the least normal number, 2⁻¹⁴

    def variance(dtype):
        tx = diffopt.low_precision(diffopt.sgld(0.01, temperature=deviation**2))

        def one(carry, _):
            params, state = carry
            updates, state = tx.update(params, state, params)
            return (optax.apply_updates(params, updates), state), None

        params = jnp.zeros(20_000, dtype)
        (params, state), _ = jax.lax.scan(one, (params, tx.init(params)), length=600)
        return jnp.var(diffopt.exact_params(params, state)) / deviation**2

    scan = jax.jit(variance, static_argnums=0)
    assert abs(scan(jnp.float16) - 1 / (1 - 0.01 / 2)) < 4.5 * np.sqrt(2 / 20_000)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_finite_value_within_a_spacing_of_the_largest_number_stays_finite(sign):
    largest = jnp.full(1000, sign * 65504, jnp.float16)
    params, exact = step(largest, jnp.full(1000, sign * 31.0))  # the next number would be 65536
    assert np.unique(params) == [sign * 65504]
    np.testing.assert_allclose(exact, sign * 65535, atol=32 * 2**-14)
    params, _ = step(largest, jnp.full(1000, sign * 1.0))
    assert np.unique(params) == [sign * 65504]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_value_beyond_that_is_infinite(sign):
    params, _ = step(jnp.full(1000, sign * 65504, jnp.float16), jnp.full(1000, sign * 32.0))
    assert np.unique(params) == [sign * np.inf]


def test_a_chain_passes_the_largest_number_and_comes_back():
    tx = diffopt.low_precision(optax.sgd(1.0))
    params = jnp.full(1000, 65472, jnp.float16)
    state = tx.init(params)
    theta = 65472.0
    for gradient in (-24, -24, -12, 20, 40, 40):
        updates, state = jax.jit(tx.update)(jnp.full_like(params, gradient), state, params)
        params, theta = optax.apply_updates(params, updates), theta - gradient
        np.testing.assert_allclose(diffopt.exact_params(params, state), theta, atol=6 * 32 * 2**-14)
