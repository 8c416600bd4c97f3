"""What samplers with a velocity share: the state and its start."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class UnderdampedState(NamedTuple):
    """State of `sghmc`, `baoab` and `ubu`.

    Attributes:
      count: steps taken, an int32 scalar that stays at 2³¹ - 1 once it is there.
      key: a typed PRNG key, split at every step.
      velocity: v, with the structure, shapes and dtypes of the parameters.
      mass: the mass M of the last step, a scalar: M v² is on average the temperature.
    """

    count: jax.Array  # type: ignore[assignment]
    key: jax.Array
    velocity: Any
    mass: jax.Array


def start(params: Any, count: jax.Array, key: jax.Array) -> UnderdampedState:
    """Velocities of 0, whose mass the first step gives."""
    velocity = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=jnp.result_type(p)), params)
    return UnderdampedState(count, key, velocity, jnp.zeros([], jnp.float32))


def start_with_mass_1(params: Any, count: jax.Array, key: jax.Array) -> UnderdampedState:
    """Velocities of 0 in units in which the mass is 1."""
    return start(params, count, key)._replace(mass=jnp.ones([], jnp.float32))
