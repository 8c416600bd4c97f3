"""The two temperatures: their arithmetic, and where they find what they need."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt

PARAMS = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "b": jnp.array([-2.0])}
GRADS = {"w": jnp.array([[1.0, 1.0], [1.0, -1.0]]), "b": jnp.array([0.5])}


def test_configurational_temperature_is_the_mean_product():
    temperature = diffopt.configurational_temperature(PARAMS, GRADS)
    assert temperature.overall == pytest.approx((2 - 1) / 5)
    assert temperature.per_leaf == {"w": pytest.approx(2 / 4), "b": pytest.approx(-1.0)}


def test_a_complex_element_counts_as_two():
    params, grads = jnp.array([1 + 2j, 3j]), jnp.array([2 + 1j, 1j])
    temperature = diffopt.configurational_temperature(params, grads)
    assert temperature.overall == pytest.approx((2 + 2 + 3) / 4)


def test_low_precision_is_summed_in_float32():
    ones = jnp.ones(10_000, jnp.bfloat16)
    temperature = diffopt.configurational_temperature(ones, ones)
    assert temperature.overall == 1 and temperature.overall.dtype == jnp.float32


def test_none_and_empty_leaves_pass():
    params = {"w": jnp.ones(2), "none": None, "empty": jnp.zeros([0])}
    temperature = diffopt.configurational_temperature(params, params)
    assert temperature.overall == 1
    assert temperature.per_leaf == {"w": 1, "none": None, "empty": 0}


def test_integer_parameters_are_refused_by_name():
    with pytest.raises(TypeError, match=r"\['n'\] has dtype int32"):
        diffopt.configurational_temperature({"n": jnp.arange(2)}, {"n": jnp.arange(2)})


@pytest.mark.parametrize(
    "tx,mass",
    [
        (diffopt.sghmc(0.1, 0.5, momentum=0.8), 1.8 / 0.2),
        (diffopt.baoab(0.1, 0.5), 1.0),
        (diffopt.sgnht(0.1, 0.5, momentum=0.8), 1.8 / 0.2),
    ],
    ids=["sghmc", "baoab", "sgnht"],
)
def test_kinetic_temperature_weighs_the_velocities_of_each_sampler(tx, mass):
    assert diffopt.kinetic_temperature(tx.init(PARAMS)).overall == 0
    _, state = tx.update(GRADS, tx.init(PARAMS))
    squares = jax.tree.map(lambda v: np.square(v, dtype=np.float64), state.velocity)
    temperature = jax.jit(diffopt.kinetic_temperature)(state)
    for name, square in squares.items():
        assert float(temperature.per_leaf[name]) == pytest.approx(mass * square.mean(), rel=1e-5)
    total = sum(square.sum() for square in squares.values())
    assert float(temperature.overall) == pytest.approx(mass * total / 5, rel=1e-5)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
        lambda tx: optax.MultiSteps(tx, 1),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.masked(tx, {"w": True, "b": False}),
        lambda tx: optax.partition({"w": tx, "b": optax.sgd(0.1)}, {"w": "w", "b": "b"}),
    ],
    ids=["chain", "MultiSteps", "apply_if_finite", "masked", "partition"],
)
def test_the_sampler_is_found_inside_other_transformations(wrap):
    tx = wrap(diffopt.baoab(0.1, 0.5))
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    temperature = diffopt.kinetic_temperature(state)
    assert temperature.overall > 0 and temperature.per_leaf["w"] > 0


def test_a_state_without_velocities_or_with_two_is_refused():
    with pytest.raises(ValueError, match="velocity and mass, .*got 0: take configurational"):
        diffopt.kinetic_temperature(optax.sgd(0.1, momentum=0.9).init(PARAMS))
    two = optax.chain(diffopt.baoab(0.1, 0.5), diffopt.sghmc(0.1, 0.5))
    with pytest.raises(ValueError, match="got 2"):
        diffopt.kinetic_temperature(two.init(PARAMS))


def test_a_batch_of_chains_has_a_batch_of_temperatures():
    tx = diffopt.sghmc(0.1, 0.5)
    _, states = jax.vmap(lambda g: tx.update(g, tx.init(jnp.zeros(5))))(jnp.ones([3, 5]))
    temperatures = jax.vmap(diffopt.kinetic_temperature)(states)
    assert temperatures.overall.shape == (3,)
    assert float(temperatures.overall[0]) > 0


def test_the_states_of_many_chains_are_not_taken_for_one():
    tx = diffopt.baoab(0.1, 1.0)
    states = diffopt.split_keys(tx.init(jnp.zeros(3)), 4)
    with pytest.raises(ValueError, match=r"mass must be a scalar, got shape \(4,\)"):
        diffopt.kinetic_temperature(states)
    assert jax.vmap(diffopt.kinetic_temperature)(states).overall.shape == (4,)
