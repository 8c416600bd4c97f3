"""PRNG keys: what a user may give, and the key that a state holds, apart from all of the user's."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_key(key: Any) -> None:
    """Raise unless `key` is an int of 64 bits, a 0-d integer array, a raw or a typed PRNG key."""
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
    if isinstance(key, int) and not -(2**63) <= key < 2**63:
        raise ValueError(f"key must be an int from -2⁶³ to 2⁶³ - 1, got {key}")


def derive_key(key: int | jax.Array, role: str) -> jax.Array:
    """A typed PRNG key for one `role`, from any key that `check_key` accepts.

    `key` itself and what splits from it belong to the user: network weights drawn from
    `jax.random.key(0)` and noise drawn from it would be the same numbers. `fold_in(key, i)` is no
    way out, because it equals `split(key, n)[i]`. So the digest of the role's name is folded in,
    128 bits in four words, where no tree of splits and folds over small numbers gets.
    """
    key = _lift(key)
    if jnp.ndim(key) == 1:
        derived = jax.random.wrap_key_data(jnp.asarray(key))
    elif jnp.issubdtype(getattr(key, "dtype", int), jax.dtypes.prng_key):
        derived = jnp.asarray(key)
    else:
        derived = jax.random.key(key)
    digest = hashlib.sha256(f"diffopt {role}".encode()).digest()
    for word in np.frombuffer(digest[:16], ">u4"):
        derived = jax.random.fold_in(derived, np.uint32(word))
    return derived


def _lift(key: int | jax.Array) -> int | jax.Array:
    """`key`, bound to no device where it has been put on one: it goes where the parameters are."""
    if not isinstance(key, jax.Array) or isinstance(key, jax.core.Tracer):
        return key
    if not key.committed or len(key.devices()) > 1:
        return key
    with jax.ensure_compile_time_eval():
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            return jnp.asarray(np.asarray(key))
        words = np.asarray(jax.random.key_data(key))
        return jax.random.wrap_key_data(jnp.asarray(words), impl=jax.random.key_impl(key))
