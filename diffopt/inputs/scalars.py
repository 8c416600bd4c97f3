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

    It has to be so in the float that JAX computes with, float32 by default: 1e-46 is 0 there. A
    tracer is taken as it is. So is a 0-d array at zero or a rounding error below it, because
    `optax.inject_hyperparams` hands over the value of a schedule as such an array.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real | np.ndarray | jax.Array):
        raise TypeError(f"{name} must be a number or a 0-d array, got {value!r}")
    if isinstance(value, jax.Array) and jnp.iscomplexobj(value):
        value = _real(name, value)
    shape = getattr(value, "shape", ())
    dtype = value.dtype if isinstance(value, np.ndarray | np.generic | jax.Array) else np.float64
    if shape or not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise TypeError(f"{name} must be a real scalar, got shape {shape} and dtype {dtype}")
    if isinstance(value, jax.core.Tracer):
        return
    working = jnp.result_type(float)
    try:
        with np.errstate(all="ignore"):
            number = float(np.asarray(float(value)).astype(working))
    except OverflowError:
        number = math.inf
    if isinstance(value, np.ndarray | jax.Array) and -1e-6 <= number <= 0:
        return
    least = float(jnp.finfo(working).tiny) if positive else 0.0  # less is flushed to 0
    # an array is compared as a traced one in a traced function
    exact = isinstance(value, jax.Array) or number in (0, value)
    got = f"got {value!r}" if exact else f"got {value!r}, in {working} {number:g}"
    if not math.isfinite(number) or number < least:
        raise ValueError(f"{name} must be finite and {'>' if positive else '≥'} 0, {got}")
    if number >= below:
        raise ValueError(f"{name} must be < {below}, {got}")


def _real(name: str, value: jax.Array) -> jax.Array:
    """The real part: `optax.inject_hyperparams` gives all numbers the dtype of the parameters."""
    if not isinstance(value, jax.core.Tracer) and jnp.any(jnp.imag(value)):
        raise TypeError(f"{name} must be a real scalar, got {value!r}")
    return jnp.real(value)


def check_int(name: str, value: Any, *, least: float = -math.inf, below: float = math.inf) -> int:
    """`value` as an int; raise unless it is one, ≥ `least` and < `below`."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name} must be an int, got {value!r}")
    if number < least:
        raise ValueError(f"{name} must be ≥ {least}, got {value!r}")
    if number >= below:
        raise ValueError(f"{name} must be < {below}, got {value!r}")
    return number


def check_scalar(name: str, value: Any, *, positive: bool = False) -> None:
    """Raise unless `value` is a number as `check_number` asks for, or a schedule of such numbers.

    Of a schedule the value at step 0 is looked at, which may be 0.
    """
    if not callable(value):
        return check_number(name, value, positive=positive)
    try:
        first = value(jnp.zeros([], jnp.int32))
    except jax.errors.ConcretizationTypeError:  # built in a traced function: named at its trace
        return None
    return check_number(f"{name} at step 0", first)


def check_stage(name: str, stage: Any) -> None:
    """Raise a TypeError unless `stage` gives a scalar for a step count."""
    if not callable(stage):
        raise TypeError(f"{name} must be a function, got {stage!r}")
    value = jax.eval_shape(stage, jax.ShapeDtypeStruct((), jnp.int32))
    if not isinstance(value, jax.ShapeDtypeStruct) or value.shape != ():
        raise TypeError(f"{name} must return a scalar for a step count, got {value}")


def as_float(value: jax.typing.ArrayLike) -> jax.Array:
    """A float scalar that a 16-bit leaf does not round first, as it does a Python float."""
    number = float(value) if isinstance(value, numbers.Real) else jnp.real(value)
    return jnp.asarray(number, float)


def value_at(value: optax.ScalarOrSchedule, count: jax.Array) -> jax.Array:
    """The value at step `count`, and 0 where it is less than the least normal number.

    A schedule may end a rounding error below 0, and processors flush subnormal numbers here and
    there.
    """
    number = as_float(value(count) if callable(value) else value)
    return jnp.where(number < jnp.finfo(number.dtype).tiny, 0.0, number)


def ratio(x: jax.typing.ArrayLike, y: jax.Array) -> jax.Array:
    """x / y, and 0 at y = 0."""
    return jnp.where(y == 0, 0, x / jnp.where(y == 0, 1, y))


def root(x: jax.Array) -> jax.Array:
    """√x with gradient 0 at 0, so that a step at T = 0 has gradients by its other arguments."""
    return jnp.where(x == 0, 0, jnp.sqrt(jnp.where(x == 0, 1, x)))
