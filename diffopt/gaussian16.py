"""Gaussian increments from 16 random bits each: four from a block of Threefry.

`jax.random.normal` keeps half of the 64 bits of a block, uses 23 of these, and takes an accurate
quantile. An increment of a diffusion needs neither: here a block is computed once into memory and
cut into four, and the quantile of each quarter is two short polynomials.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .cpu_random import counter, in_memory, threefry

ROW = 8  # a vector is drawn as rows of so many elements

# log₂ of a number in [1, 2), exact at both ends, and z/u as a function of -log₂(1 - u²), where z is
# the normal quantile at (1 + u)/2. They are least-maximum fits, of log₂ and of the mean of z in
# each cell of u, and QUANTILE is scaled to the variance 1.
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


def polynomial(coefficients: tuple[float, ...], x: jax.Array) -> jax.Array:
    """The polynomial with these coefficients, the constant first, at the float32 `x`."""
    result = jnp.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        result = result * x + np.float32(coefficient)
    return result


def quantile(word: jax.Array) -> jax.Array:
    """The normal quantile in the middle of one of 2¹⁶ equal cells, the upper 16 bits of `word`.

    `word` is an int32 whose lower bits are 0. The quantile is odd: -z belongs to the cell opposite.
    """
    u = word.astype(jnp.float32) * np.float32(2**-31) + np.float32(2**-16)
    bits = jax.lax.bitcast_convert_type((1 - u) * (1 + u), jnp.int32)
    exponent = (bits >> 23).astype(jnp.float32) - 127
    mantissa = jax.lax.bitcast_convert_type((bits & 0x7FFFFF) | 0x3F800000, jnp.float32)
    return u * polynomial(QUANTILE, -(exponent + polynomial(LOG2, mantissa)))


def random_blocks(key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Two arrays of random words: with a Threefry key, of the block (0, i) for element i."""
    if str(jax.random.key_impl(key)) != "threefry2x32" or math.prod(shape) >= 2**32:
        words = jax.random.bits(key, (2, *shape), jnp.uint32)
        return words[0], words[1]
    return threefry(key, counter(shape))


@partial(jax.jit, static_argnames=("shape", "dtype"))
def gaussian16(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Increments with one of 65,536 values, those of a Gaussian in as many cells of probability.

    Over these values the mean and all odd moments are 0, the variance is 1 to float32 rounding, and
    the moments 4, 6 and 8 are those of a Gaussian to 2·10⁻⁵, 2·10⁻⁴ and 3·10⁻⁴. The distribution
    function is nowhere further than 1.4·10⁻⁵ from that of a Gaussian, half of it the width of a
    cell. Nothing is beyond ±4.43, where a Gaussian is once in 100,000 draws. The values are
    computed in float32 and are the same on every backend to rounding; the bits are the same.

    The array is cut along its longest axis but the last: rows 4i to 4i + 3 share the blocks of row
    i of an array a quarter as long. A vector, or an array of short rows, is drawn in rows of 8.
    Devices draw the numbers of their shards, equal to those of one device, and nothing beyond them
    if a shard holds a multiple of four rows of the cut axis, or all of them. Else XLA lets several
    devices draw the same blocks: each draws up to twice its part if a shard has an even number of
    rows, up to four times if it is odd. Where the axis itself is no multiple of four, so that its
    last block is not used up, devices also exchange numbers.
    """
    size = math.prod(shape)
    if size == 0:
        return jnp.zeros(shape, dtype)
    if max(shape[:-1], default=1) == 1 or (shape[-1] < 64 and shape[-1] % 8):
        rows = (-(-size // (4 * ROW)) * 4, ROW)
        xi = in_memory(gaussian16, key, rows, dtype)
        return xi.reshape(-1)[:size].reshape(shape)
    axis = max(range(len(shape) - 1), key=shape.__getitem__)
    before, after = shape[:axis], shape[axis + 1 :]
    quarter = -(-shape[axis] // 4)
    words = in_memory(random_blocks, key, (*before, quarter, *after))
    first, second = (jnp.expand_dims(word, axis + 1) for word in words)
    place = jax.lax.broadcasted_iota(jnp.uint32, (4, *(1 for _ in after)), 0)
    word = jnp.where(place < 2, first, second) << (place % 2 * 16) & np.uint32(0xFFFF0000)
    word = word.reshape(*before, 4 * quarter, *after)
    word = jax.lax.slice_in_dim(word, 0, shape[axis], axis=axis)
    return quantile(jax.lax.bitcast_convert_type(word, jnp.int32)).astype(dtype)
