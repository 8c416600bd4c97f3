"""How an increment ξ for a tree of parameters is drawn; samplers get their random numbers here."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._types import Noise, NoiseFunction
from ..inputs.trees import by_shards, check_inexact
from .bits16 import random_16_bits
from .gaussian16 import gaussian16
from .threefry import in_memory, is_constant, random_bits, random_normal

SMALL = 2**16  # elements; smaller leaves share one generator


@partial(jax.jit, static_argnames=("shape", "dtype"))
def gaussian(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Standard normal increments, the same numbers as `jax.random.normal(key, shape, dtype)`."""
    return random_normal(key, shape, dtype)


@partial(jax.jit, static_argnames=("shape", "dtype"))
def rademacher(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Increments ±1 with equal probability, from one random bit each.

    They have the mean, the variance and the third moment of a Gaussian, so an Euler-Maruyama step
    keeps its weak order 1: expectations at a fixed time, and the stationary mean and covariance
    under a quadratic loss, are as with Gaussian increments up to O(η). They do not have its
    fourth moment (1, not 3) or its tails: a step never moves an element by more than √(2Tη), and
    after few steps the chain is a random walk on a lattice. Its law becomes normal as steps add
    up. See Kloeden & Platen, [Numerical Solution of Stochastic Differential
    Equations](https://doi.org/10.1007/978-3-662-12616-5), section 14.1.
    """
    if not shape:
        return rademacher(key, (1,), dtype)[0]
    if not is_constant(shape):
        return jnp.where(random_bits(key, shape, jnp.uint32) & 1, 1, -1).astype(dtype)
    axis = min(range(len(shape)), key=lambda axis: -(-shape[axis] // 32) / max(shape[axis], 1))
    size = shape[axis]
    words_shape = (*shape[:axis], -(-size // 32), *shape[axis + 1 :])
    words = in_memory(random_bits, key, words_shape, jnp.uint32)
    words = jnp.repeat(words, 32, axis=axis)
    words = jax.lax.slice_in_dim(words, 0, size, axis=axis)
    bits = words >> (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) % 32)
    return jnp.where(bits & 1, 1, -1).astype(dtype)


NOISES: dict[str, NoiseFunction] = {
    "gaussian": gaussian,
    "gaussian16": gaussian16,
    "rademacher": rademacher,
}


def get_noise(noise: Noise) -> NoiseFunction:
    """The function that draws the noise called `noise`, or `noise` itself if it is a function.

    Raises:
      ValueError: no noise has that name.
    """
    if callable(noise):
        return noise
    if isinstance(noise, str) and noise in NOISES:
        return NOISES[noise]
    raise ValueError(f"noise must be one of {sorted(NOISES)} or a function, got {noise!r}")


@by_shards
def draw_increments(key: jax.Array, tree: Any, noise: Noise) -> Any:
    """One increment ξ with the structure and shapes of `tree`, independent in every element.

    A leaf below 32 bits gets its increment in float32: `jax.random.normal` in bfloat16 has 128
    distinct values, none beyond 2.52, and variance 0.993. Scale and add first, then round. A
    complex leaf is two real ones: its real and its imaginary part each have variance 1.

    Leaves of fewer than 2¹⁶ elements are drawn together as one vector, so that the biases and
    norms of a network compile one generator; a larger leaf's noise fuses into its update.

    Args:
      key: a typed PRNG key, used for this increment only.
      tree: a tree of arrays of floating or complex dtype.
      noise: a name in `NOISES`, or a function `(key, shape, dtype) -> array`, which is
        called once for each leaf, or once with shape (2, ...) for a complex one.

    Raises:
      TypeError: a leaf has an integer or boolean dtype.
    """
    check_inexact(tree)
    noise_function = get_noise(noise)
    leaves, treedef = jax.tree.flatten(tree)
    dtypes = [np.promote_types(jnp.result_type(leaf), np.float32) for leaf in leaves]
    shapes = [
        (2, *jnp.shape(leaf)) if jnp.issubdtype(dtype, jnp.complexfloating) else jnp.shape(leaf)
        for leaf, dtype in zip(leaves, dtypes, strict=True)
    ]
    sizes = [math.prod(shape) for shape in shapes]

    groups: dict[Any, list[int]] = {}
    for i, size in enumerate(sizes):
        together = is_constant(shapes[i]) and size < SMALL and not callable(noise)
        groups.setdefault(jnp.finfo(dtypes[i]).dtype if together else i, []).append(i)

    xis: list[Any] = [None] * len(leaves)
    for group_key, members in zip(jax.random.split(key, len(groups)), groups.values(), strict=True):
        real = jnp.finfo(dtypes[members[0]]).dtype
        if len(members) == 1:
            parts = [noise_function(group_key, shapes[members[0]], real)]
        else:
            total = sum(sizes[i] for i in members)
            flat = in_memory(noise_function, group_key, (total,), real)
            starts = np.cumsum([0, *(sizes[i] for i in members[:-1])])
            # As it cannot know where a slice starts, XLA leaves `flat` whole on every device.
            starts = jax.lax.optimization_barrier(starts)
            parts = [
                jax.lax.dynamic_slice_in_dim(flat, start, sizes[i])
                for start, i in zip(starts, members, strict=True)
            ]
        for i, part in zip(members, parts, strict=True):
            xi = part.reshape(shapes[i])
            xis[i] = jax.lax.complex(xi[0], xi[1]) if jnp.iscomplexobj(leaves[i]) else xi
    return jax.tree.unflatten(treedef, xis)


@jax.jit
@by_shards
def random_bits_like(key: jax.Array, tree: Any) -> Any:
    """16 random bits for each element of `tree`: a tree of uint32 of its shapes."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    bits = [random_16_bits(k, jnp.shape(leaf)) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(treedef, bits)
