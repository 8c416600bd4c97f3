"""The bits of `jax.random`, fast on a CPU.

The problem: `jax.random.bits` is an elementwise function of a key and a counter (Threefry-2x32),
but XLA's CPU backend runs it as passes over whole arrays, because the lowering of its rounds does
not fuse with what uses the numbers. In a noisy update that is most of the cost. Written out in
`jax.numpy` with the rounds unrolled, the same function fuses into the update: large arrays of
random numbers are never stored, and the numbers stay the same, bit for bit.

The tricks. "Costs" is the time of one `sgld` update without the trick over that with it: medians of
interleaved steps on 2 cores of an AMD EPYC (Zen 5), 2026-11-21, on jax 0.10.2 and 0.12.0.1.

`on_cpu`: Threefry written out, where JAX computes the same numbers.
    Costs 3.4 and 4.4 (Gaussian, two leaves of 2048 x 2048: 4.4 ns a parameter on jax 0.10).
    Held by `test_the_fused_form_is_the_one_used_on_a_cpu` and the tests of equality with
    `jax.random.normal`. Delete it when XLA's CPU backend fuses `jax.random.bits`.

`in_memory`: words that are used 4 or 32 times over, or by many small leaves, are computed once.
    Costs 3.5 and 4.9 (Rademacher, the same leaves: 0.44 ns), and half of the time to compile a
    ResNet-18 tree. Held by `test_a_step_is_one_pass_over_memory`. Delete it when XLA no longer
    computes anew, at each use, what it can fuse.

`optimization_barrier`, in `in_memory`: XLA fuses nothing into or out of a conditional, but it
    removes one whose condition is a constant; behind the barrier it cannot know. Costs what
    `in_memory` costs, and goes with it.

`shape[-1] < 64`: a leaf of short rows is drawn as one flat vector, then reshaped.
    Costs 6.1 and 11 (Gaussian, a leaf of 400,000 x 10: 4.8 ns): the loop over a row shorter than
    the vectors of the processor is scalar. Held by `test_short_rows_are_drawn_as_one_vector`.
    Delete it when XLA vectorizes across rows.

What is here changes speed only. The barrier in `increments` and `trees.by_shards` are about many
devices.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(key: jax.Array, counter: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 with 20 rounds of the blocks (0, `counter`), as one elementwise expression.

    Salmon et al., [Parallel random numbers: as easy as 1, 2,
    3](https://doi.org/10.1145/2063384.2063405), SC 2011.
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


def counter(shape: tuple[int, ...]) -> jax.Array:
    """The index of each element of an array of `shape` in the order of memory, as uint32."""
    index = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        index = index * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return index


def fused_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`jax.random.bits(key, shape)`, written so that it fuses on a CPU."""
    x0, x1 = threefry(key, counter(shape))
    return x0 ^ x1


def fused_normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`jax.random.normal(key, shape)`, written so that it fuses on a CPU: √2 erf⁻¹(u)."""
    mantissa = fused_bits(key, shape) >> np.uint32(9)
    unit = jax.lax.bitcast_convert_type(mantissa | np.uint32(0x3F800000), jnp.float32) - 1
    low = np.nextafter(np.float32(-1), np.float32(0))
    return np.float32(np.sqrt(2)) * jax.lax.erf_inv(unit * (1 - low) + low)


def is_constant(shape: tuple[Any, ...]) -> bool:
    """Whether `shape` is of numbers alone, with no symbolic dimension, as of `jax.export`."""
    return all(isinstance(size, int) for size in shape)


def on_cpu(
    fused: Callable[[jax.Array], jax.Array],
    plain: Callable[[jax.Array], jax.Array],
    key: jax.Array,
    shape: tuple[int, ...],
) -> jax.Array:
    """`fused(key)` on a CPU, where JAX computes its numbers so too; elsewhere `plain(key)`.

    JAX draws element i of an array from the counter i if the key is a Threefry key and
    `jax_threefry_partitionable` is on, its default.
    """
    impl = str(jax.random.key_impl(key))
    partitionable = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
    if impl != "threefry2x32" or not partitionable:
        return plain(key)
    if not is_constant(shape) or math.prod(shape) >= 2**32:
        return plain(key)
    return jax.lax.platform_dependent(key, cpu=fused, default=plain)


def in_memory(draw: Callable[..., Any], key: jax.Array, *args: Any) -> Any:
    """`draw(key, *args)`, arrays, on a CPU computed once into memory, not again at every use.

    XLA fuses nothing into or out of a conditional whose condition it cannot know. The branch not
    taken depends on the key too: `jax.shard_map` wants both to vary over the same devices.
    """

    plain = lambda key: draw(key, *args)

    def conditional(key: jax.Array) -> Any:
        true = jax.lax.optimization_barrier(jnp.array(True))

        def never(key: jax.Array) -> Any:
            filled = lambda out: jnp.full(out.shape, jax.random.key_data(key)[0], out.dtype)
            return jax.tree.map(filled, jax.eval_shape(plain, key))

        return jax.lax.cond(true, plain, never, key)

    return jax.lax.platform_dependent(key, cpu=conditional, default=plain)


def random_bits(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """`jax.random.bits(key, shape, dtype)` of 32-bit words, fused on a CPU."""
    plain = partial(jax.random.bits, shape=shape, dtype=dtype)
    return on_cpu(partial(fused_bits, shape=shape), plain, key, shape)


def random_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """`jax.random.normal(key, shape, dtype)`, fused on a CPU where the dtype is float32."""

    def plain(key: jax.Array) -> jax.Array:
        return jax.random.normal(key, shape, dtype)

    def fused(key: jax.Array) -> jax.Array:
        if shape and shape[-1] < 64 and shape[-1] % 8:  # no whole vectors in a row: a scalar loop
            return in_memory(fused_normal, key, (math.prod(shape),)).reshape(shape)
        return fused_normal(key, shape)

    return on_cpu(fused, plain, key, shape) if dtype == jnp.float32 else plain(key)
