"""Priors as gradients: where they pull, how hard, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt
from tests.helpers import assert_close

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


@pytest.mark.parametrize("form", [float, np.float32, jnp.asarray, jnp.float16])
def test_each_leaf_and_each_element_may_have_its_variance(form):
    variance = {"w": jnp.arange(1.0, 7.0).reshape(2, 3), "b": form(4.0)}
    expected = jax.tree.map(lambda g, p, s: g + 0.5 * (p - 1.5) / s, GRADS, PARAMS, variance)
    assert_equal(pulled(diffopt.gaussian_prior(variance, 0.5, center=1.5)), expected)


def test_by_fan_in_it_is_the_tree_of_fan_in_variance():
    variance = diffopt.fan_in_variance(PARAMS)
    assert variance == {"w": 1.0, "b": 1.0}  # 2 over an input axis of 2, and a bias
    params = {"w": jnp.ones((8, 3)), "b": jnp.ones(3)}
    tx = diffopt.gaussian_prior("fan_in", 0.5)
    updates, _ = tx.update(params, tx.init(params), params)
    assert_equal(updates, {"w": jnp.full((8, 3), 3.0), "b": jnp.full(3, 1.5)})


def test_the_fan_in_of_every_kind_of_leaf():
    shapes = {
        "dense": (10, 4), "conv": (5, 5, 3, 6), "bias": (6,), "scale": (), "empty": (0, 4)
    }  # fmt: skip
    params = {name: jnp.ones(shape) for name, shape in shapes.items()} | {"none": None}
    found = diffopt.fan_in_variance(params, 3.0, other=0.5)
    assert found == {
        "dense": 0.3, "conv": 3 / 75, "bias": 0.5, "scale": 0.5, "empty": 3.0, "none": None
    }  # fmt: skip
    outputs_first = {"dense": jnp.ones((4, 10)), "conv": jnp.ones((6, 3, 5, 5))}
    assert diffopt.fan_in_variance(outputs_first, out_axis=0) == {"dense": 0.2, "conv": 2 / 75}
    stack = {"w": jnp.ones((12, 10, 4)), "b": jnp.ones((12, 4))}
    one = diffopt.fan_in_variance(jax.tree.map(lambda p: p[0], stack))
    assert one == {"w": 0.2, "b": 1.0}
    diffopt.gaussian_prior(one, 1.0).init(stack)
    shape_alone = jax.ShapeDtypeStruct((10, 4), jnp.float32)
    assert diffopt.fan_in_variance({"w": shape_alone}) == {"w": 0.2}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scale": 0.0}, ValueError, "scale must be finite and > 0, got 0.0"),
        ({"other": -1.0}, ValueError, "other must be finite and > 0, got -1.0"),
        ({"out_axis": 2}, ValueError, r"out_axis must be an axis of params\['w'\].*got 2"),
        ({"out_axis": 1.5}, TypeError, "out_axis must be an int, got 1.5"),
        ({"params": {"n": jnp.arange(3)}}, TypeError, "floating-point"),
    ],
)
def test_what_fan_in_variance_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        diffopt.fan_in_variance(**{"params": PARAMS} | arguments)


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
        ({"variance": "fan"}, ValueError, "variance must be .* got 'fan'"),
        ({"variance": {"w": 1.0, "b": -2.0}}, ValueError, r"variance\['b'\] must be .* got -2.0"),
        ({"variance": {"w": np.zeros(2)}}, ValueError, r"variance\['w'\] must be finite and > 0"),
        ({"variance": {"w": np.array([1.0, np.inf])}}, ValueError, r"variance\['w'\] must be fin"),
        ({"variance": {"w": np.ones(2, complex)}}, TypeError, r"variance\['w'\] must be real"),
        ({"variance": {"w": "fan_in"}}, TypeError, r"variance\['w'\] must be a number"),
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
        (
            {"w": jnp.zeros(()), "b": jnp.zeros(3), "c": 1.0},
            TypeError,
            "center must have the struct",
        ),
        (None, TypeError, "center must have the structure"),
        ({"other": 1.0}, TypeError, "center must have the structure"),
        (1j, TypeError, "must be real"),
    ):
        with pytest.raises(error, match=message):
            diffopt.gaussian_prior(1.0, 1.0, center=center).init(PARAMS)
    for variance, error, message in (
        ({"w": jnp.ones(3), "b": 1.0}, ValueError, r"variance\['w'\] must have the shape \(2, 3\)"),
        ({"w": 1.0}, TypeError, "variance must have the structure"),
    ):
        with pytest.raises(error, match=message):
            diffopt.gaussian_prior(variance, 1.0).init(PARAMS)


# hierarchical_prior: its law is in laws/test_hierarchical_prior.py


def test_it_is_the_gaussian_prior_of_its_precision_half_old_and_half_new():
    tx = diffopt.hierarchical_prior(0.5, every=3)
    update, state, precisions = jax.jit(tx.update), tx.init(PARAMS), []
    for _ in range(7):
        before = state.precision
        updates, state = update(GRADS, state, PARAMS)
        variance = jax.tree.map(lambda a, b: 2 / (a + b), before, state.precision)
        assert_equal(updates, pulled(diffopt.gaussian_prior(variance, 0.5)))
        precisions.append(float(state.precision["w"]))
    assert len(set(precisions)) == 3 and len({*precisions[:3]}) == 1
    assert int(state.count) == 7


def test_at_zero_temperature_gradients_pass():
    assert_equal(pulled(diffopt.hierarchical_prior(0.0)), GRADS)


def test_it_keeps_dtypes_and_counts_a_complex_element_twice():
    params = {
        "low": jnp.ones(5, jnp.bfloat16), "z": jnp.full(50_000, 1 + 1j), "empty": jnp.ones((0, 3)),
        "none": None,
    }  # fmt: skip
    tx = diffopt.hierarchical_prior(1.0)
    start = tx.init(params)
    updates, state = tx.update(params, start, params)
    like = lambda tree: jax.tree.map(lambda x: (jnp.shape(x), x.dtype), tree)
    assert like(updates) == like(params) and like(state) == like(start)
    assert abs(state.precision["z"] - 1) < 4.5 / 50_000**0.5  # mean |θ|² = 2, of two numbers each
    assert tx.update({}, tx.init({}), {})[0] == {}


@pytest.mark.slow
def test_its_state_may_be_donated():
    """Each leaf has a precision of its own, not one buffer for all."""
    tx, params = diffopt.hierarchical_prior(1.0), {"a": jnp.ones(3), "b": jnp.ones(2)}
    expected = tx.update(params, tx.init(params), params)
    assert_close(jax.jit(tx.update, donate_argnums=1)(params, tx.init(params), params), expected)


@pytest.mark.slow
def test_it_works_under_multisteps_masked_scan_and_in_chains():
    params = jax.tree.map(lambda p: p + 1, PARAMS)
    prior = diffopt.hierarchical_prior(0.5)
    for tx in (
        optax.MultiSteps(optax.chain(prior, diffopt.sgld(0.1, 0.5)), 2),
        optax.chain(optax.masked(prior, {"w": True, "b": False}), diffopt.sgld(0.1, 0.5)),
        optax.inject_hyperparams(diffopt.hierarchical_prior, static_args="every")(0.5),
    ):
        step = lambda state, _, tx=tx: (tx.update(GRADS, state, params)[1], None)
        jax.lax.scan(step, tx.init(params), length=3)
    states = diffopt.split_keys(prior.init(params), 4)
    _, states = jax.vmap(prior.update, in_axes=(None, 0, None))(GRADS, states, params)
    assert len(set(states.precision["w"].tolist())) == 4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"temperature": -1.0}, ValueError, "temperature must be .* got -1.0"),
        ({"shape": 0.0}, ValueError, "shape must be finite and > 0, got 0.0"),
        ({"rate": float("inf")}, ValueError, "rate must be finite and > 0, got inf"),
        ({"every": 0}, ValueError, "every must be ≥ 1, got 0"),
        ({"every": 1.5}, TypeError, "every must be an int, got 1.5"),
        ({"key": "0"}, TypeError, "key must be an int or a single PRNG key"),
    ],
)
def test_bad_arguments_of_the_hierarchical_prior_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        diffopt.hierarchical_prior(**{"temperature": 1.0} | arguments)


def test_the_hierarchical_prior_needs_floating_point_params():
    tx = diffopt.hierarchical_prior(1.0)
    with pytest.raises(ValueError, match="hierarchical_prior needs params"):
        tx.update(GRADS, tx.init(PARAMS))
    with pytest.raises(TypeError, match="floating-point"):
        tx.init({"steps": jnp.arange(3)})
