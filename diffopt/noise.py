"""How one increment ξ for a whole tree of parameters is drawn; the only file that calls a PRNG."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Noise = str | Callable[[jax.Array, tuple[int, ...], Any], jax.Array]


ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(key: jax.Array, counter: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 with 20 rounds of the blocks (0, `counter`): one loop, all of it fusible.

    Salmon et al., `Parallel random numbers: as easy as 1, 2, 3
    <https://doi.org/10.1145/2063384.2063405>`_, SC 2011.
    """
    k0, k1 = jax.random.key_data(key)
    ks = (k0, k1, k0 ^ k1 ^ np.uint32(0x1BD11BDA))
    x0, x1 = jnp.broadcast_to(ks[0], counter.shape), counter + ks[1]
    for i in range(5):
        for r in ROTATIONS[i % 2]:
            x0 = x0 + x1
            x1 = x0 ^ ((x1 << np.uint32(r)) | (x1 >> np.uint32(32 - r)))
        x0, x1 = x0 + ks[(i + 1) % 3], x1 + (ks[(i + 2) % 3] + np.uint32(i + 1))
    return x0, x1


def fused_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The same numbers as `jax.random.bits(key, shape)`, element i from counter i alone."""
    counter = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        counter = counter * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    x0, x1 = threefry(key, counter)
    return x0 ^ x1


def fused_normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The same numbers as `jax.random.normal(key, shape)`: √2 erf⁻¹ of uniforms in (-1, 1)."""
    mantissa = fused_bits(key, shape) >> np.uint32(9)
    unit = jax.lax.bitcast_convert_type(mantissa | np.uint32(0x3F800000), jnp.float32) - 1
    low = np.nextafter(np.float32(-1), np.float32(0))
    return np.float32(np.sqrt(2)) * jax.lax.erf_inv(unit * (1 - low) + low)


def is_threefry(key: jax.Array, shape: tuple[int, ...]) -> bool:
    """Whether JAX computes element i of `jax.random.bits(key, shape)` from counter i alone."""
    return (
        str(jax.random.key_impl(key)) == "threefry2x32"
        and jax.config.jax_threefry_partitionable
        and math.prod(shape) < 2**32
    )


@partial(jax.jit, static_argnames=("shape", "dtype"))
def gaussian(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Standard normal increments, the same numbers as `jax.random.normal(key, shape, dtype)`.

    On a CPU JAX lowers Threefry to a loop of whole-array passes; there it is written out instead,
    so that drawing fuses into the update that uses it.
    """

    def plain(key: jax.Array) -> jax.Array:
        return jax.random.normal(key, shape, dtype)

    if dtype != jnp.float32 or not is_threefry(key, shape):
        return plain(key)
    return jax.lax.platform_dependent(key, cpu=lambda key: fused_normal(key, shape), default=plain)


def rademacher(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Increments ±1 with equal probability: mean, variance and third moment of a Gaussian."""
    return jax.random.rademacher(key, shape, dtype)


NOISES = {"gaussian": gaussian, "rademacher": rademacher}


def make_key(key: Any) -> jax.Array:
    """A typed PRNG key from an int, a 0-d integer array, a raw `PRNGKey` or a typed key.

    Raises:
      TypeError: `key` is none of these.
    """
    try:
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0:
            return key
        if key.ndim == 1 and key.dtype == jnp.uint32:
            return jax.random.wrap_key_data(key)
    except AttributeError:
        pass
    if jnp.ndim(key) == 0 and jnp.issubdtype(jnp.result_type(key), jnp.integer):
        return jax.random.key(key)
    raise TypeError(f"key must be an int or a single PRNG key, got {key!r}")


def get_noise(noise: Noise) -> Callable[[jax.Array, tuple[int, ...], Any], jax.Array]:
    """The function that draws the noise called `noise`, or `noise` itself if it is a function.

    Raises:
      ValueError: no noise has that name.
    """
    if callable(noise):
        return noise
    if noise in NOISES:
        return NOISES[noise]
    raise ValueError(f"noise must be one of {sorted(NOISES)} or a function, got {noise!r}")


def check_inexact(tree: Any) -> None:
    """Raise a TypeError that names the first leaf of `tree` that no diffusion can move."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise TypeError(
                "a diffusion needs floating-point parameters, but params"
                f"{jax.tree_util.keystr(path)} has dtype {jnp.result_type(leaf)};"
                " leave it out with optax.masked"
            )


def draw(key: jax.Array, tree: Any, noise: Noise) -> Any:
    """One increment ξ with the structure and shapes of `tree`, independent in every element.

    A leaf below 32 bits gets its increment in float32: `jax.random.normal` in bfloat16 has 128
    distinct values, none beyond 2.52, and variance 0.993. Scale and add first, then round. A
    complex leaf is two real ones: its real and its imaginary part each have variance 1.

    Args:
      key: a typed PRNG key, used for this increment only.
      tree: a tree of arrays of floating or complex dtype.
      noise: `"gaussian"`, `"rademacher"`, or a function `(key, shape, dtype) -> array`.

    Raises:
      TypeError: a leaf has an integer or boolean dtype.
    """
    check_inexact(tree)
    sample = get_noise(noise)

    def leaf_noise(leaf_key: jax.Array, leaf: jax.Array) -> jax.Array:
        dtype = jnp.promote_types(jnp.result_type(leaf), jnp.float32)
        if not jnp.issubdtype(dtype, jnp.complexfloating):
            return sample(leaf_key, jnp.shape(leaf), dtype)
        real = jnp.finfo(dtype).dtype
        re_key, im_key = jax.random.split(leaf_key)
        re, im = (sample(k, jnp.shape(leaf), real) for k in (re_key, im_key))
        return jax.lax.complex(re, im)

    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    xis = [leaf_noise(k, leaf) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(treedef, xis)
