"""Numbers that may be constants or schedules: how they are checked, and read at a step."""

import math
import numbers
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def check_number(name: str, value: Any, *, positive: bool = False, below: float = math.inf) -> None:
    """Raise unless `value` is a finite number ≥ 0 (> 0 where `positive`) and < `below`.

    A tracer is taken as it is. So is a 0-d `jax.Array` at zero or a rounding error below it,
    because `optax.inject_hyperparams` hands over the value of a schedule as such an array.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real | np.ndarray | jax.Array):
        raise TypeError(f"{name} must be a number or a 0-d array, got {value!r}")
    shape, dtype = getattr(value, "shape", ()), jnp.result_type(value)
    if shape or not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise TypeError(f"{name} must be a real scalar, got shape {shape} and dtype {dtype}")
    try:
        number = float(value)
    except jax.errors.ConcretizationTypeError:
        return
    if isinstance(value, jax.Array) and -1e-6 <= number <= 0:
        return
    if not math.isfinite(number) or number < 0 or (positive and number == 0):
        raise ValueError(f"{name} must be finite and {'>' if positive else '≥'} 0, got {value!r}")
    if number >= below:
        raise ValueError(f"{name} must be < {below}, got {value!r}")


def check_int(name: str, value: Any, *, least: float = -math.inf) -> int:
    """`value` as an int; raise unless it is one, and ≥ `least`."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name} must be an int, got {value!r}")
    if number < least:
        raise ValueError(f"{name} must be ≥ {least}, got {value!r}")
    return number


def check_scalar(name: str, value: Any, *, positive: bool = False) -> None:
    """Raise unless `value` is a schedule or a number as `check_number` asks for."""
    if not callable(value):
        check_number(name, value, positive=positive)


def as_float(value: jax.typing.ArrayLike) -> jax.Array:
    """A float scalar that a 16-bit leaf does not round first, as it does a Python float."""
    return jnp.asarray(value, float)


def value_at(value: optax.ScalarOrSchedule, count: jax.Array) -> jax.Array:
    """The value at step `count`, clamped at 0: a schedule may end a rounding error below it."""
    return jnp.maximum(as_float(value(count) if callable(value) else value), 0.0)
