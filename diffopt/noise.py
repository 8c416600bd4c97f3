"""How an increment ξ for a tree of parameters is drawn; the only file that draws random numbers."""

import math
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Sampler = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]
Noise = str | Sampler


SMALL = 2**16
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(key: jax.Array, counter: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 with 20 rounds of the blocks (0, `counter`), as one elementwise expression.

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
    """`jax.random.bits(key, shape)`, written so that it fuses on a CPU."""
    counter = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        counter = counter * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    x0, x1 = threefry(key, counter)
    return x0 ^ x1


def fused_normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`jax.random.normal(key, shape)`, written so that it fuses on a CPU: √2 erf⁻¹(u)."""
    mantissa = fused_bits(key, shape) >> np.uint32(9)
    unit = jax.lax.bitcast_convert_type(mantissa | np.uint32(0x3F800000), jnp.float32) - 1
    low = np.nextafter(np.float32(-1), np.float32(0))
    return np.float32(np.sqrt(2)) * jax.lax.erf_inv(unit * (1 - low) + low)


def on_cpu(
    fused: Callable[[jax.Array], jax.Array],
    plain: Callable[[jax.Array], jax.Array],
    key: jax.Array,
    size: int,
) -> jax.Array:
    """`fused(key)` on a CPU, where JAX computes its numbers so too; elsewhere `plain(key)`.

    JAX draws element i of an array from the counter i if the key is a Threefry key and
    `jax_threefry_partitionable` is on. A CPU lowers that to passes over whole arrays.
    """
    impl = str(jax.random.key_impl(key))
    partitionable = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
    if impl != "threefry2x32" or not partitionable or size >= 2**32:
        return plain(key)
    return jax.lax.platform_dependent(key, cpu=fused, default=plain)


def in_memory(sample: Sampler, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """`sample(key, shape, dtype)`, on a CPU computed once into memory, not again at every use.

    XLA fuses nothing into or out of a conditional whose condition it cannot know. The branch not
    taken depends on the key too: `jax.shard_map` wants both to vary over the same devices.
    """

    def conditional(key: jax.Array) -> jax.Array:
        true = jax.lax.optimization_barrier(jnp.array(True))
        never = lambda key: jnp.full(shape, jax.random.key_data(key)[0], dtype)
        return jax.lax.cond(true, lambda key: sample(key, shape, dtype), never, key)

    plain = lambda key: sample(key, shape, dtype)
    return jax.lax.platform_dependent(key, cpu=conditional, default=plain)


def random_bits(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """`jax.random.bits(key, shape, dtype)` of 32-bit words, fused on a CPU."""
    plain = partial(jax.random.bits, shape=shape, dtype=dtype)
    return on_cpu(partial(fused_bits, shape=shape), plain, key, math.prod(shape))


@partial(jax.jit, static_argnames=("shape", "dtype"))
def gaussian(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Standard normal increments, the same numbers as `jax.random.normal(key, shape, dtype)`."""

    def plain(key: jax.Array) -> jax.Array:
        return jax.random.normal(key, shape, dtype)

    def fused(key: jax.Array) -> jax.Array:
        if shape and shape[-1] < 64 and shape[-1] % 8:  # no whole vectors in a row: a scalar loop
            flat = lambda key, shape, dtype: fused_normal(key, shape)
            return in_memory(flat, key, (math.prod(shape),), dtype).reshape(shape)
        return fused_normal(key, shape)

    return on_cpu(fused, plain, key, math.prod(shape)) if dtype == jnp.float32 else plain(key)


@partial(jax.jit, static_argnames=("shape", "dtype"))
def rademacher(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Increments ±1 with equal probability, from one random bit each.

    They have the mean, the variance and the third moment of a Gaussian, so an Euler-Maruyama step
    keeps its weak order 1: expectations at a fixed time, and the stationary mean and covariance
    under a quadratic loss, are as with Gaussian increments up to O(η). They do not have its
    fourth moment (1, not 3) or its tails: a step never moves an element by more than √(2Tη), and
    the law after few steps is that of a random walk on a lattice. It becomes normal as steps add
    up. See Kloeden & Platen, `Numerical Solution of Stochastic Differential Equations
    <https://doi.org/10.1007/978-3-662-12616-5>`_, section 14.1.
    """
    if not shape:
        return rademacher(key, (1,), dtype)[0]
    axis = min(range(len(shape)), key=lambda axis: -(-shape[axis] // 32) / max(shape[axis], 1))
    size = shape[axis]
    words_shape = (*shape[:axis], -(-size // 32), *shape[axis + 1 :])
    words = in_memory(random_bits, key, words_shape, jnp.uint32)
    words = jnp.repeat(words, 32, axis=axis)
    words = jax.lax.slice_in_dim(words, 0, size, axis=axis)
    bits = words >> (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) % 32)
    return jnp.where(bits & 1, 1, -1).astype(dtype)


NOISES: dict[str, Sampler] = {"gaussian": gaussian, "rademacher": rademacher}


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


def make_key(key: Any) -> jax.Array:
    """A typed PRNG key from any key that `check_key` accepts, in memory of its own.

    A state may be donated, and the caller's key must outlive it.
    """
    if jnp.ndim(key) == 1:
        return jax.random.wrap_key_data(jnp.array(key, copy=True))
    if jnp.issubdtype(getattr(key, "dtype", int), jax.dtypes.prng_key):
        return jnp.copy(key)
    return jax.random.key(key)


def get_noise(noise: Noise) -> Sampler:
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


def by_shards(draw: Callable[..., Any]) -> Callable[..., Any]:
    """`draw(key, tree, ...)`, of whose arrays, shaped like those of `tree`, devices draw shards.

    Under explicit sharding every device draws the whole of an array whose type has no sharding.
    """

    @wraps(draw)
    def drawn(key: jax.Array, tree: Any, *args: Any) -> Any:
        axes = jax.sharding.get_abstract_mesh().explicit_axes
        if not axes:
            return draw(key, tree, *args)
        specs = jax.tree.map(lambda leaf: jax.typeof(leaf).sharding.spec, tree)
        shards = jax.sharding.auto_axes(
            lambda key: draw(key, tree, *args), axes=axes, out_sharding=specs
        )
        return shards(key)

    return drawn


@by_shards
def draw(key: jax.Array, tree: Any, noise: Noise) -> Any:
    """One increment ξ with the structure and shapes of `tree`, independent in every element.

    A leaf below 32 bits gets its increment in float32: `jax.random.normal` in bfloat16 has 128
    distinct values, none beyond 2.52, and variance 0.993. Scale and add first, then round. A
    complex leaf is two real ones: its real and its imaginary part each have variance 1.

    Leaves of fewer than 2¹⁶ elements are drawn together as one vector, so that the biases and
    norms of a network compile one generator; a larger leaf's noise fuses into its update.

    Args:
      key: a typed PRNG key, used for this increment only.
      tree: a tree of arrays of floating or complex dtype.
      noise: `"gaussian"`, `"rademacher"`, or a function `(key, shape, dtype) -> array`, which is
        called once for each leaf, or once with shape (2, ...) for a complex one.

    Raises:
      TypeError: a leaf has an integer or boolean dtype.
    """
    check_inexact(tree)
    sample = get_noise(noise)
    leaves, treedef = jax.tree.flatten(tree)
    dtypes = [jnp.promote_types(jnp.result_type(leaf), jnp.float32) for leaf in leaves]
    shapes = [
        (2, *jnp.shape(leaf)) if jnp.issubdtype(dtype, jnp.complexfloating) else jnp.shape(leaf)
        for leaf, dtype in zip(leaves, dtypes, strict=True)
    ]
    sizes = [math.prod(shape) for shape in shapes]

    draws: dict[Any, list[int]] = {}
    for i, size in enumerate(sizes):
        together = size < SMALL and not callable(noise)
        draws.setdefault(jnp.finfo(dtypes[i]).dtype if together else i, []).append(i)

    xis: list[Any] = [None] * len(leaves)
    for draw_key, members in zip(jax.random.split(key, len(draws)), draws.values(), strict=True):
        real = jnp.finfo(dtypes[members[0]]).dtype
        if len(members) == 1:
            parts = [sample(draw_key, shapes[members[0]], real)]
        else:
            total = sum(sizes[i] for i in members)
            flat = in_memory(sample, draw_key, (total,), real)
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
def words(key: jax.Array, tree: Any) -> Any:
    """A random 32-bit word for each element of `tree`, a tree of uint32 of its shapes."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    shapes = [jnp.shape(leaf) for leaf in leaves]
    return jax.tree.unflatten(
        treedef, [random_bits(k, s, jnp.uint32) for k, s in zip(keys, shapes, strict=True)]
    )
