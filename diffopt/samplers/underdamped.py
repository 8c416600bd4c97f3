"""What samplers with a velocity share: the state, its start, and steps of another size."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..inputs.scalars import ratio, root


class UnderdampedState(NamedTuple):
    """State of `sghmc`, `baoab` and `ubu`.

    `mass` and `half_kick` say in which units v is and when it is taken, so that the next step may
    be of another size, or of another of these samplers.

    Attributes:
      count: steps taken, an int32 scalar that stays at 2³¹ - 1 once it is there.
      key: a typed PRNG key, split at every step.
      velocity: v, with the structure, shapes and dtypes of the parameters.
      mass: the mass M of the last step, a scalar: M v² is on average the temperature. 0 before the
        first step.
      half_kick: c of the last step, a scalar. v stands half a kick behind the parameters:
        v - c ∇L(θ) is the velocity at θ, whose mean given θ is 0.
    """

    count: jax.Array  # type: ignore[assignment]
    key: jax.Array
    velocity: Any
    mass: jax.Array
    half_kick: jax.Array


def start(params: Any, count: jax.Array, key: jax.Array) -> UnderdampedState:
    """Velocities of 0, whose mass the first step gives."""
    zero = lambda: jnp.zeros([], jnp.float32)  # donated: two buffers
    return UnderdampedState(count, key, start_velocity(params), zero(), zero())


def start_velocity(params: Any) -> Any:
    """Velocities of 0, like the parameters."""
    return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=jnp.result_type(p)), params)


def change_units(
    state: UnderdampedState, grads: Any, mass: jax.Array, half_kick: jax.Array
) -> UnderdampedState:
    """The state with the mass and the half kick of this step, and its velocity in those units.

    The velocity at θ, v - cg, keeps its temperature, Mv². Before the first step, and where nothing
    changes, v stays to the bit. A step of size 0, whose mass is 0, changes nothing.
    """
    mass, half_kick = (
        jnp.where(mass == 0, before, now).astype(jnp.float32)
        for before, now in ((state.mass, mass), (state.half_kick, half_kick))
    )
    a = scale_between(mass, state.mass)
    b = jnp.where(state.mass == 0, 0, half_kick - a * state.half_kick)
    velocity = jax.tree.map(lambda v, g: a * v + b * g, state.velocity, grads)
    return state._replace(velocity=velocity, mass=mass, half_kick=half_kick)


def scale_between(x: jax.Array, y: jax.Array) -> jax.Array:
    """√(y/x), and 1 where they are equal, to the bit, or one of them is 0."""
    same = (x == y) | (x == 0) | (y == 0)
    return jnp.where(same, 1, ratio(root(y), root(x)))
