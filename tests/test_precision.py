"""Dtypes and constants: what 16 bits, 64 bits and weak types do to every sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt

SAMPLERS = {
    "langevin": lambda: diffopt.langevin(0.5, 0.03),
    "sgld": lambda: diffopt.sgld(0.03, 0.5),
    "psgld": lambda: diffopt.psgld(0.03, 0.5, decay=0.999),
    "sghmc": lambda: diffopt.sghmc(0.03, 0.5, momentum=0.999),
    "baoab": lambda: diffopt.baoab(0.3, 0.5, friction=0.003),
    "sgnht": lambda: diffopt.sgnht(0.03, 0.5, momentum=0.999),
}
each_sampler = pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)


@each_sampler
def test_compiled_and_eager_steps_are_the_same_bits_in_bfloat16(make):
    tx = make()
    grads = jnp.linspace(-2, 2, 100, dtype=jnp.bfloat16)
    state = compiled_state = tx.init(grads)
    update = jax.jit(tx.update)
    for _ in range(3):
        eager, state = tx.update(grads, state)
        compiled, compiled_state = update(grads, compiled_state)
        assert eager.dtype == jnp.bfloat16
        np.testing.assert_array_equal(eager, compiled)


@each_sampler
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_scan_keeps_the_dtypes_of_the_state_under_x64(make, dtype):
    with jax.enable_x64(True):
        tx, params = make(), jnp.ones(3, dtype)

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(params, state)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), length=3)
        assert params.dtype == dtype and jnp.isfinite(params).all()
        if hasattr(state, "mass"):
            assert state.mass.dtype == jnp.float32
            assert diffopt.kinetic_temperature(state).overall.dtype == jnp.float32
        temperature = diffopt.configurational_temperature(params, params)
        assert temperature.overall.dtype == temperature.per_leaf.dtype == jnp.float32


@each_sampler
def test_a_weakly_typed_parameter_compiles_once(make):
    tx, weak = make(), jnp.asarray(1.0)
    assert weak.weak_type
    update = jax.jit(tx.update)
    state = tx.init(weak)
    for _ in range(3):
        _, state = update(weak, state)
    assert update._cache_size() == 1


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey], ids=["typed", "raw"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_donated_state_leaves_the_key_of_the_caller_alone(make, compiled):
    tx = diffopt.sgld(0.1, 1.0, key=make(1))
    init = jax.jit(tx.init) if compiled else tx.init
    update = jax.jit(tx.update, donate_argnums=1)
    first, _ = update(jnp.ones(3), init(jnp.ones(3)))
    again, _ = update(jnp.ones(3), init(jnp.ones(3)))
    np.testing.assert_array_equal(first, again)
