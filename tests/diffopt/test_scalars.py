"""What a number may be: a float that JAX computes with, or a schedule of such floats."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt

TOO_SMALL = (1e-46, 1e-39)
TOO_LARGE = (1e39, 10**400, np.float64(1e300))


@pytest.mark.parametrize("value", TOO_SMALL + TOO_LARGE)
@pytest.mark.parametrize(
    ("name", "make"),
    {
        "learning_rate": lambda x: diffopt.sgld(x, 1.0),
        "step_size": lambda x: diffopt.baoab(x, 1.0),
        "eps": lambda x: diffopt.psgld(0.1, 1.0, eps=x),
        "peak": lambda x: diffopt.cyclical_schedule(x, 10),
    }.items(),
)
def test_what_float32_makes_0_or_infinite_is_refused_by_name(name, make, value):
    with pytest.raises(ValueError, match=f"{name} must be finite and > 0, got"):
        make(value)


@pytest.mark.parametrize("value", TOO_LARGE)
def test_a_temperature_beyond_float32_is_refused_by_name(value):
    with pytest.raises(ValueError, match="temperature must be finite"):
        diffopt.sgld(0.1, value)


def test_what_float32_rounds_to_1_is_refused_by_name():
    for make in (diffopt.sghmc, diffopt.sgnht):
        with pytest.raises(ValueError, match=r"momentum must be < 1, got 0.999999999, in float32"):
            make(0.1, 1.0, momentum=1 - 1e-9)
    with jax.enable_x64(True):
        diffopt.sghmc(0.1, 1.0, momentum=1 - 1e-9)


def test_0_in_an_array_of_numpy_is_taken_as_one_of_jax():
    """`optax.inject_hyperparams` makes arrays of numbers, and its schedules may reach 0."""
    for zero in (np.array(0.0), jnp.array(0.0), np.array(-1e-10)):
        updates, _ = (tx := diffopt.sgld(zero, 1.0)).update(jnp.ones(2), tx.init(jnp.ones(2)))
        assert not updates.any()
    for zero in (0.0, np.float32(0)):
        with pytest.raises(ValueError, match=r"learning_rate must be finite and > 0, got"):
            diffopt.sgld(zero, 1.0)


@pytest.mark.parametrize(
    ("schedule", "error", "message"),
    [
        (lambda count: jnp.ones(3), TypeError, r"temperature at step 0 must be a real scalar.*3"),
        (lambda count: jnp.nan * count, ValueError, "temperature at step 0 must be finite"),
        (lambda count: -1.0, ValueError, "temperature at step 0 must be finite and ≥ 0, got -1"),
        (lambda count: 1j, TypeError, "temperature at step 0 must be a number"),
        (lambda count: None, TypeError, "temperature at step 0 must be a number"),
    ],
)
def test_a_schedule_of_anything_else_is_refused_at_construction(schedule, error, message):
    for make in (lambda T: diffopt.sgld(0.1, T), lambda T: diffopt.baoab(0.1, T)):
        with pytest.raises(error, match=message):
            make(schedule)


def test_a_schedule_may_start_at_0_and_be_built_in_a_traced_function():
    params = jnp.ones(2)
    warmup = optax.linear_schedule(0.0, 0.1, 10)
    for make in (lambda s: diffopt.sgld(s, 1.0), lambda s: diffopt.sgld(0.1, s)):
        make(warmup)

    @jax.jit
    def step(peak):
        tx = diffopt.sgld(lambda count: peak * (count + 1), 0.0)
        return tx.update(params, tx.init(params))[0]

    np.testing.assert_allclose(step(0.1), -0.1, rtol=1e-6)
    with pytest.raises(TypeError, match="temperature at step 0 must be a real scalar"):
        jax.jit(lambda x: diffopt.sgld(0.1, lambda count: x * count).init(params))(jnp.ones(3))


@pytest.mark.parametrize("make", [diffopt.sgld, diffopt.sghmc, diffopt.sgnht, diffopt.baoab])
def test_a_subnormal_temperature_is_0(make):
    params = jnp.ones(3)
    updates = [(tx := make(0.1, T)).update(params, tx.init(params))[0] for T in (1e-38, 1e-44, 0.0)]
    for update in updates:
        np.testing.assert_array_equal(update, updates[-1])
    nan = make(0.1, lambda count: jnp.where(count < 1, 1.0, jnp.nan))
    _, state = nan.update(params, nan.init(params))
    assert jnp.isnan(nan.update(params, state)[0]).all()  # and does not pass for 0
