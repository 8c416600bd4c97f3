"""Gaussian increments from 16 random bits each: the normal quantile by two short polynomials."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .bits16 import random_16_bits

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


def quantile(bits: jax.Array) -> jax.Array:
    """The normal quantile in the middle of one of 2¹⁶ equal cells, named by an int16.

    It is odd: the cells i and -1 - i have opposite quantiles.
    """
    u = bits.astype(jnp.float32) * np.float32(2**-15) + np.float32(2**-16)
    word = jax.lax.bitcast_convert_type((1 - u) * (1 + u), jnp.int32)
    exponent = (word >> 23).astype(jnp.float32) - 127
    mantissa = jax.lax.bitcast_convert_type((word & 0x7FFFFF) | 0x3F800000, jnp.float32)
    return u * polynomial(QUANTILE, -(exponent + polynomial(LOG2, mantissa)))


@partial(jax.jit, static_argnames=("shape", "dtype"))
def gaussian16(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Increments with one of 65,536 values: a Gaussian's quantiles at cells of equal probability.

    Over these values the mean and all odd moments are 0, the variance is 1 to float32 rounding, and
    the moments 4, 6 and 8 are a Gaussian's to 2·10⁻⁵, 2·10⁻⁴ and 3·10⁻⁴. The distribution function
    is within 1.4·10⁻⁵ of a Gaussian's everywhere; the width of a cell is half of this. No value is
    beyond ±4.43, which a Gaussian exceeds once in 100,000 draws. The values are
    computed in float32 and are the same on every backend to rounding; the bits are the same.
    `random_16_bits` says which elements share a block, and what a device draws of a shard.
    """
    bits = random_16_bits(key, shape)
    return quantile(bits.astype(jnp.int16)).astype(dtype)
