"""Uniform numbers from 16 random bits each."""

from functools import partial
from typing import Any

import jax
import numpy as np

from .bits16 import random_16_bits


@partial(jax.jit, static_argnames=("shape", "dtype"))
def uniform16(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """The middle of one of 2¹⁶ equal cells of (-1, 1): symmetric about 0, and never 0."""
    bits = random_16_bits(key, shape).astype(dtype)
    return bits * np.asarray(2.0**-15, dtype) + np.asarray(2.0**-16 - 1, dtype)
