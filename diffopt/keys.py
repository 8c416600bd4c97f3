"""PRNG keys: what a user may give, and the typed key that a state holds."""

from typing import Any

import jax
import jax.numpy as jnp


def check_key(key: Any) -> None:
    """Raise a TypeError unless `key` is an int, a 0-d integer array, a raw or a typed PRNG key."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", ())
    if dtype is None:
        good = isinstance(key, int) and not isinstance(key, bool)
    elif shape:
        raw = jax.eval_shape(lambda: jax.random.PRNGKey(0))
        good = shape == raw.shape and dtype == raw.dtype
    else:
        good = jnp.issubdtype(dtype, jax.dtypes.prng_key) or jnp.issubdtype(dtype, jnp.integer)
    if not good:
        raise TypeError(f"key must be an int or a single PRNG key, got {key!r}")


def make_key(key: int | jax.Array) -> jax.Array:
    """A typed PRNG key from any key that `check_key` accepts, in memory of its own.

    A state may be donated, and the caller's key must outlive it.
    """
    if jnp.ndim(key) == 1:
        return jax.random.wrap_key_data(jnp.array(key, copy=True))
    if jnp.issubdtype(getattr(key, "dtype", int), jax.dtypes.prng_key):
        return jnp.copy(key)
    return jax.random.key(key)
