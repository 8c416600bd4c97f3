"""gaussian16 as an array function: its numbers, shapes, dtypes, transformations and devices."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.random import threefry_2x32
from scipy import special

import diffopt
from diffopt.noise.bits16 import random_blocks
from diffopt.noise.gaussian16 import gaussian16
from diffopt.noise.increments import draw_increments

pytestmark = pytest.mark.slow

KEY = jax.random.key(5)
SHAPES = [(), (0,), (1,), (7,), (2, 0, 3), (1, 1), (5, 64), (6, 5, 8), (3, 3, 24, 64), (40, 3, 3)]


def same(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and bool(jnp.all(a == b))


def near(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and bool(jnp.allclose(a, b, 1e-5, 1e-6))


def test_the_words_are_the_blocks_of_jax_random_bits():
    first, second = random_blocks(KEY, (12, 34))
    assert same(first ^ second, jax.random.bits(KEY, (12, 34), jnp.uint32))
    data = np.asarray(jax.random.key_data(KEY))
    counts = np.concatenate([np.zeros(12 * 34, np.uint32), np.arange(12 * 34, dtype=np.uint32)])
    expected = threefry_2x32(data, counts).reshape(2, 12, 34)
    assert same(first, expected[0]) and same(second, expected[1])


@pytest.mark.parametrize(("shape", "axis"), [((8, 64), 0), ((10, 64), 0), ((3, 12, 8), 1)])
def test_a_number_is_the_quantile_of_a_quarter_of_its_block(shape, axis):
    blocks_shape = tuple(-(-n // 4) if i == axis else n for i, n in enumerate(shape))
    first, second = (np.asarray(word) for word in random_blocks(KEY, blocks_shape))
    halves = [first & 0xFFFF, first >> 16, second & 0xFFFF, second >> 16]
    cells = np.stack(halves, axis + 1).astype(np.uint16).view(np.int16).astype(np.float64)
    cells = cells.reshape(*shape[:axis], -1, *shape[axis + 1 :]).take(range(shape[axis]), axis)
    expected = np.sqrt(2) * special.erfinv((2 * cells + 1) / 2**16)
    assert np.abs(gaussian16(KEY, shape, jnp.float32) - expected).max() < 0.11
    middle = np.abs(expected) < 3
    assert np.abs(gaussian16(KEY, shape, jnp.float32) - expected)[middle].max() < 1e-3


def test_a_vector_and_short_rows_are_drawn_in_rows_of_eight():
    rows = gaussian16(KEY, (16, 8), jnp.float32).ravel()
    assert near(gaussian16(KEY, (125,), jnp.float32), rows[:125])
    assert near(gaussian16(KEY, (25, 5), jnp.float32), rows[:125].reshape(25, 5))
    assert near(gaussian16(KEY, (), jnp.float32), rows[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_jitted_or_not(shape):
    xi = gaussian16(KEY, shape, jnp.float32)
    assert xi.shape == shape and xi.dtype == jnp.float32 and bool(jnp.all(jnp.abs(xi) < 4.43))
    fused = jax.jit(lambda key: 1 + gaussian16(key, shape, jnp.float32))(KEY)
    assert near(fused, 1 + xi)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_every_key(impl):
    xi = np.asarray(gaussian16(jax.random.key(5, impl=impl), (200, 500), jnp.float32), np.float64)
    assert abs(xi.mean()) < 4.5 / xi.size**0.5
    assert abs((xi**2).mean() - 1) < 4.5 * (2 / xi.size) ** 0.5


def test_the_words_do_not_depend_on_how_jax_orders_its_counters():
    expected = gaussian16(KEY, (20, 64), jnp.float32)
    with jax.threefry_partitionable(False):
        assert same(gaussian16(KEY, (20, 64), jnp.float32), expected)


def test_x64_and_16_bits_are_casts():
    expected = gaussian16(KEY, (20, 64), jnp.float32)
    assert same(gaussian16(KEY, (20, 64), jnp.bfloat16), expected.astype(jnp.bfloat16))
    with jax.enable_x64(True):
        assert same(gaussian16(KEY, (20, 64), jnp.float64), expected.astype(jnp.float64))


def test_vmap_and_scan_draw_what_single_calls_draw():
    keys = jax.random.split(KEY, 3)
    draw = lambda key: gaussian16(key, (12, 64), jnp.float32)
    expected = jnp.stack([draw(key) for key in keys])
    assert near(jax.vmap(draw)(keys), expected)
    assert near(jax.lax.scan(lambda carry, key: (carry, draw(key)), 0, keys)[1], expected)


def test_more_blocks_than_a_32_bit_counter_has_are_traced_without_memory():
    for shape in ((10**9,), (2**17, 2**18)):
        draw = lambda key, shape=shape: gaussian16(key, shape, jnp.float32)
        assert jax.eval_shape(draw, KEY).shape == shape


def test_a_tree_of_all_dtypes():
    tree = {
        "large": jnp.zeros((300, 300)),
        "small": [jnp.zeros(3), jnp.zeros(()), None, jnp.zeros((2, 0)), jnp.zeros((4, 5))],
        "half": jnp.zeros((6,), jnp.bfloat16),
        "complex": jnp.zeros((7,), jnp.complex64),
    }
    xi = draw_increments(KEY, tree, "gaussian16")
    assert jax.tree.structure(xi) == jax.tree.structure(tree)
    for x, leaf in zip(jax.tree.leaves(xi), jax.tree.leaves(tree), strict=True):
        assert x.shape == leaf.shape and x.dtype == jnp.promote_types(leaf.dtype, jnp.float32)
    jitted = jax.jit(lambda key: draw_increments(key, tree, "gaussian16"))(KEY)
    assert all(jax.tree.leaves(jax.tree.map(near, xi, jitted)))


CPU = pytest.mark.skipif(jax.default_backend() != "cpu", reason="reads the program for a CPU")


@CPU
def test_a_step_computes_a_block_once_and_stores_two_bytes_a_number():
    params = [jnp.zeros((512, 1024)), jnp.zeros((3, 3, 128, 256))]
    tx = diffopt.sgld(0.1, 0.5, noise="gaussian16")

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, tx.init(params), params)
    compiled = lowered.compile()
    entry = compiled.as_text().split("ENTRY")[1]
    for leaf in params:
        dims = ",".join(map(str, leaf.shape))
        found = re.findall(rf"= f32\[{dims}\]\S* ([\w-]+)\(", entry)
        assert [op for op in found if op != "parameter"] == ["fusion"]
    assert compiled.memory_analysis().temp_size_in_bytes <= 2 * sum(p.size for p in params) + 10_000


SHARDED = """
import re, jax, jax.numpy as jnp, numpy as np, optax, diffopt
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

# a leaf, how it is sharded, and how many times its part a device draws
cases = {
    "rows": ((512, 256), P("x"), 1),
    "columns": ((1002, 800), P(None, "x"), 1),
    "kernel": ((3, 3, 256, 64), P(None, None, "x"), 1),
    "vector": ((1 << 17,), P("x"), 1),
    "even": ((8016, 100), P("x"), 2),
    "odd": ((8008, 100), P("x"), 4),
    "small": ((64,), P(), 0),
}
tx = diffopt.sgld(0.1, 0.5, noise="gaussian16")
params = {name: jnp.zeros(shape) for name, (shape, _, _) in cases.items()}

def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

expected = jax.jit(step)(params, tx.init(params), params)[0]
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    args = {k: jax.device_put(v, NamedSharding(mesh, cases[k][1])) for k, v in params.items()}
    with jax.set_mesh(mesh):
        compiled = jax.jit(step).lower(args, tx.init(args), args).compile()
        got = compiled(args, tx.init(args), args)[0]
    for k in params:
        np.testing.assert_allclose(got[k], expected[k], 1e-5, 1e-6)
        assert got[k].sharding.is_equivalent_to(args[k].sharding, args[k].ndim)
    text = compiled.as_text()
    assert not re.findall("all-gather|all-reduce|all-to-all|permute", text)
    count = lambda dims: np.prod([int(n) for n in dims.split(",")])
    blocks = re.findall(r"= \\(u32\\[([\\d,]+)\\]\\S* u32\\[\\1\\]\\S*\\) conditional", text)
    drawn = 4 * sum(map(count, blocks))
    bound = sum(times * params[k].size / 8 for k, (_, _, times) in cases.items())
    assert 0.5 * bound < drawn < 1.01 * bound, (drawn, bound)
print("equal")
"""


@CPU
def test_eight_devices_draw_the_numbers_of_one_and_little_more_than_their_parts():
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], env=os.environ | env, capture_output=True, text=True
    )
    assert done.stdout == "equal\n", done.stderr
