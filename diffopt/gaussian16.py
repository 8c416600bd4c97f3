"""A Gaussian from 16 random bits: four numbers from each block of Threefry."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .cpu_random import in_memory, threefry

RUN = 64  # neighbours along a row that take the same place in their blocks

# -log₂ v = 127 - exponent bits - LOG2(mantissa), and the quantile at u is u QUANTILE(-log₂(1 - u²))
LOG2 = (
    -2.5198293584042597,
    4.086383307929051,
    -2.1341349793764532,
    0.6497117271968287,
    -0.08213069734516608,
)
QUANTILE = (
    1.2534089088836802,
    0.22698747560031005,
    0.008511888199412718,
    -0.0015102268807324138,
    6.975772841441332e-05,
    -7.66225134503693e-07,
)


def _polynomial(coefficients: tuple[float, ...], x: jax.Array) -> jax.Array:
    result = jnp.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        result = result * x + np.float32(c)
    return result


def quantile(bits: jax.Array) -> jax.Array:
    """The normal quantile at the middle of the cell that `bits`, int32 in steps of 2¹⁶, names."""
    u = bits.astype(jnp.float32) * np.float32(2**-31) + np.float32(2**-16)
    v = (1 - u) * (1 + u)
    word = jax.lax.bitcast_convert_type(v, jnp.int32)
    exponent = (word >> 23).astype(jnp.float32)
    mantissa = jax.lax.bitcast_convert_type((word & 0x7FFFFF) | 0x3F800000, jnp.float32)
    return u * _polynomial(QUANTILE, 127 - exponent - _polynomial(LOG2, mantissa))


def blocks(key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Two words of 32 random bits for each element of `shape`."""
    if str(jax.random.key_impl(key)) != "threefry2x32" or math.prod(shape) >= 2**32:
        words = jax.random.bits(key, (2, *shape), jnp.uint32)
        return words[0], words[1]
    counter = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        counter = counter * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return threefry(key, counter)


@partial(jax.jit, static_argnames=("shape", "dtype"))
def gaussian16(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    if math.prod(shape) == 0:
        return jnp.zeros(shape, dtype)
    if len(shape) != 1 and (not shape or (shape[-1] < RUN and shape[-1] % 8)):
        return gaussian16(key, (math.prod(shape),), dtype).reshape(shape)
    runs = [1] * (len(shape) - 1) + [RUN]
    groups = [-(-size // (4 * run)) for size, run in zip(shape, runs, strict=True)]
    axis = max(range(len(shape)), key=groups.__getitem__)
    before, after = (*shape[:axis], groups[axis]), (runs[axis], *shape[axis + 1 :])
    words = in_memory(lambda key: blocks(key, (*before, *after)), key)
    lanes = (*before, 4, *after)
    place = jax.lax.broadcasted_iota(jnp.uint32, lanes, axis + 1)
    first, second = (jnp.expand_dims(word, axis + 1) for word in words)
    word = jnp.where(place < 2, first, second) << (place % 2 * 16) & np.uint32(0xFFFF0000)
    xi = quantile(jax.lax.bitcast_convert_type(word, jnp.int32))
    padded = (*shape[:axis], groups[axis] * 4 * runs[axis], *shape[axis + 1 :])
    return jax.lax.slice_in_dim(xi.reshape(padded), 0, shape[axis], axis=axis).astype(dtype)
