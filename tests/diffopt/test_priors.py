"""The Gaussian prior as a gradient: where it pulls, how hard, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt

PARAMS = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(3)}
GRADS = jax.tree.map(jnp.cos, PARAMS)


def pulled(tx, params=PARAMS, start=PARAMS):
    return tx.update(GRADS, tx.init(start), params)[0]


def assert_equal(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, other)


def test_at_zero_it_is_weight_decay_of_temperature_over_variance():
    decay = optax.add_decayed_weights(0.5 / 4.0)
    assert_equal(pulled(diffopt.gaussian_prior(4.0, 0.5)), pulled(decay))


def test_is_the_gradient_of_the_log_density_times_the_temperature():
    center = jax.tree.map(lambda p: p + 2.0, PARAMS)

    def energy(params):  # -T log N(params; center, variance)
        logs = jax.tree.map(
            lambda p, c: jnp.sum(jax.scipy.stats.norm.logpdf(p, c, 4.0**0.5)), params, center
        )
        return -0.5 * sum(jax.tree.leaves(logs))

    expected = jax.tree.map(jnp.add, GRADS, jax.grad(energy)(PARAMS))
    assert_equal(pulled(diffopt.gaussian_prior(4.0, 0.5, center=center)), expected)


@pytest.mark.parametrize("center", [1.5, np.float32(1.5), jnp.array(1.5)])
def test_a_number_is_the_center_of_every_parameter(center):
    expected = jax.tree.map(lambda g, p: g + 0.125 * (p - 1.5), GRADS, PARAMS)
    assert_equal(pulled(diffopt.gaussian_prior(4.0, 0.5, center=center)), expected)


def test_init_is_where_it_pulls_back_to():
    tx = diffopt.gaussian_prior(4.0, 0.5, center="init")
    assert_equal(pulled(tx), GRADS)
    moved = jax.tree.map(lambda p: p + 8.0, PARAMS)
    assert_equal(pulled(tx, moved), jax.tree.map(lambda g: g + 1.0, GRADS))


def test_the_temperature_may_be_a_schedule():
    tx = diffopt.gaussian_prior(1.0, lambda count: jnp.where(count == 0, 1.0, 3.0))
    updates, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    assert_equal(updates, jax.tree.map(lambda g, p: g + p, GRADS, PARAMS))
    updates, state = tx.update(GRADS, state, PARAMS)
    assert_equal(updates, jax.tree.map(lambda g, p: g + 3 * p, GRADS, PARAMS))
    assert int(state.count) == 2


def test_dtypes_and_empty_leaves_stay():
    params = {"a": jnp.ones(3, jnp.bfloat16), "b": None}
    tx = diffopt.gaussian_prior(1.0, 1.0, center="init")
    updates, state = tx.update(params, tx.init(params), params)
    assert updates["a"].dtype == state.center["a"].dtype == jnp.bfloat16
    assert updates["b"] is None


def test_state_and_parameters_may_be_donated():
    tx = diffopt.gaussian_prior(1.0, 1.0, center="init")
    params = jnp.ones(4)
    state = tx.init(params)
    update = jax.jit(lambda p, s: tx.update(p, s, p), donate_argnums=(0, 1))
    updates, state = update(params, state)
    np.testing.assert_array_equal(updates, 1.0)


def test_the_law_under_a_sampler_is_that_of_likelihood_times_prior():
    # L = k(θ - a)²/2 at T under N(c, s²): precision k/T + 1/s², mean by weights
    k, a, T, c, variance = 2.0, 1.0, 0.5, -3.0, 0.4
    tx = optax.chain(diffopt.gaussian_prior(variance, T, center=c), diffopt.baoab(0.4, T))

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(k * (params - a), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = jnp.zeros(100_000)
    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=100))(
        (params, tx.init(params))
    )
    precision = k / T + 1 / variance
    mean = (k / T * a + c / variance) / precision
    assert abs(params.mean() - mean) < 4.5 / (precision * params.size) ** 0.5
    assert abs(params.var() * precision - 1) < 4.5 * (2 / params.size) ** 0.5


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"variance": 0.0}, ValueError, "variance"),
        ({"variance": -1.0}, ValueError, "variance"),
        ({"variance": "1"}, TypeError, "variance"),
        ({"temperature": -1.0}, ValueError, "temperature"),
        ({"temperature": float("nan")}, ValueError, "temperature"),
        ({"center": "start"}, ValueError, "center must be .* got 'start'"),
        ({"center": float("inf")}, ValueError, "center must be finite"),
        ({"center": {"w": "init", "b": 0.0}}, TypeError, "center must be made of numbers"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        diffopt.gaussian_prior(**{"variance": 1.0, "temperature": 1.0} | arguments)


def test_what_update_and_init_refuse():
    tx = diffopt.gaussian_prior(1.0, 1.0)
    with pytest.raises(ValueError, match="needs params"):
        tx.update(GRADS, tx.init(PARAMS))
    with pytest.raises(TypeError, match="floating-point"):
        tx.init({"steps": jnp.arange(3)})
    for center, error, message in (
        (
            {"w": jnp.zeros([3]), "b": jnp.zeros(3)},
            ValueError,
            r"center\['\w'\] must have the shape",
        ),
        (None, TypeError, "center must have the structure"),
        ({"other": 1.0}, TypeError, "center must have the structure"),
        (1j, TypeError, "must be real"),
    ):
        with pytest.raises(error, match=message):
            diffopt.gaussian_prior(1.0, 1.0, center=center).init(PARAMS)
