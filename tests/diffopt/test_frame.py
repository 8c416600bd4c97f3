"""The frame of a sampler of one's own: what it does for the equation, whatever that returns."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffopt
from tests.helpers import assert_equal, assert_like


class State(NamedTuple):
    """As a user writes it."""

    count: jax.Array
    key: jax.Array
    velocity: Any
    mass: jax.Array


def test_without_an_init_the_state_counts_and_has_a_key():
    tx = diffopt.sampler(lambda g, xi, state: (g, state))
    state = tx.init({"w": jnp.ones(2)})
    assert isinstance(state, diffopt.SamplerState) and state.count == 0
    assert_equal(state.key, diffopt.sgld(0.1, 1.0).init(jnp.ones(2)).key)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "complex64"])
def test_updates_and_state_are_cast_and_count_and_key_are_its_own(dtype):
    def step(g, xi, state):
        wide = jax.tree.map(lambda x: x.astype("complex64" if dtype == "complex64" else float), g)
        return wide, state._replace(
            count=state.count + 5, key=jax.random.key(9), velocity=wide, mass=1
        )

    init = lambda params, count, key: State(count, key, params, jnp.float32(1))
    tx, params = diffopt.sampler(step, init), {"w": jnp.ones(3, dtype), "none": None}
    state = tx.init(params)
    updates, after = jax.jit(tx.update)(params, state)
    assert_like(updates, params)
    assert_like(after, state)
    assert after.count == 1 and after.key not in (state.key, jax.random.key(9))


def test_the_equation_gets_increments_that_are_those_of_the_samplers_here():
    tx = diffopt.sampler(lambda g, xi, state: (xi, state), key=3)
    zero = {"w": jnp.zeros((4, 5)), "b": jnp.zeros(4)}
    xi, _ = tx.update(zero, tx.init(zero))
    sgld = diffopt.sgld(0.5, 1.0, key=3)
    assert_equal(xi, sgld.update(zero, sgld.init(zero))[0])


def test_the_equation_gets_as_many_independent_increments_as_it_asks_for():
    tx = diffopt.sampler(
        lambda g, xi, state: (jax.tree.map(jnp.multiply, *xi), state), increments=2
    )
    zero = {"w": jnp.zeros(20_000), "b": jnp.zeros(3, jnp.bfloat16), "none": None}
    product, _ = tx.update(zero, tx.init(zero))
    assert_like(product, zero)
    assert abs(product["w"].mean()) < 4.5 / np.sqrt(20_000)
    assert abs((product["w"] ** 2).mean() - 1) < 4.5 * np.sqrt(8 / 20_000)
    for bad, error in ((0, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match=f"increments must be .*, got {bad}"):
            diffopt.sampler(lambda g, xi, state: (g, state), increments=bad)


def test_its_velocities_have_a_kinetic_temperature():
    init = lambda params, count, key: State(count, key, params, jnp.float32(2))
    step = lambda g, xi, state: (g, state._replace(velocity=xi))
    tx, params = diffopt.sampler(step, init), {"w": jnp.zeros(20_000)}
    _, state = tx.update(params, tx.init(params))
    assert abs(diffopt.kinetic_temperature(state).overall / 2 - 1) < 4.5 * np.sqrt(2 / 20_000)
