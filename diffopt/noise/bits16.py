"""Sixteen random bits for each element: four elements share a block of Threefry.

`jax.random.bits` computes one block of 64 bits for each element and keeps 32 of them. Here a block
is computed once, into memory, and cut into four.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from .threefry import counter, in_memory, is_constant, threefry

ROW = 8  # a vector is drawn as rows of so many elements


def random_blocks(key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Two arrays of random words: with a Threefry key, of the block (0, i) for element i."""
    if str(jax.random.key_impl(key)) != "threefry2x32" or math.prod(shape) >= 2**32:
        words = jax.random.bits(key, (2, *shape), jnp.uint32)
        return words[0], words[1]
    return threefry(key, counter(shape))


def random_16_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random integers below 2¹⁶ as a uint32 array, the same on every backend.

    The array is cut along its longest axis but the last: rows 4i to 4i + 3 share the blocks of row
    i of an array a quarter as long. A vector, or an array of short rows, is drawn in rows of 8.
    Devices draw the bits that one device would draw for their shards, and nothing beyond if
    a shard holds a multiple of four rows of the cut axis, or all of them. Else XLA lets several
    devices draw the same blocks: each draws up to twice its part if a shard has an even number of
    rows, up to four times if it is odd. Where the axis itself is no multiple of four, so that its
    last block is not used up, devices also exchange numbers.
    """
    if not is_constant(shape):
        return jax.random.bits(key, shape, jnp.uint32) >> 16
    size = math.prod(shape)
    if size == 0:
        return jnp.zeros(shape, jnp.uint32)
    if max(shape[:-1], default=1) == 1 or (shape[-1] < 64 and shape[-1] % 8):
        rows = (-(-size // (4 * ROW)) * 4, ROW)
        return in_memory(random_16_bits, key, rows).reshape(-1)[:size].reshape(shape)
    axis = max(range(len(shape) - 1), key=shape.__getitem__)
    before, after = shape[:axis], shape[axis + 1 :]
    quarter = -(-shape[axis] // 4)
    words = in_memory(random_blocks, key, (*before, quarter, *after))
    first, second = (jnp.expand_dims(word, axis + 1) for word in words)
    ones = lambda axes: (1,) * len(axes)
    place = jax.lax.broadcasted_iota(jnp.uint32, (*ones(before), 1, 4, *ones(after)), axis + 1)
    bits = (jnp.where(place < 2, first, second) >> (place % 2 * np.uint32(16))) & np.uint32(0xFFFF)
    bits = bits.reshape(*before, 4 * quarter, *after)
    return jax.lax.slice_in_dim(bits, 0, shape[axis], axis=axis)
