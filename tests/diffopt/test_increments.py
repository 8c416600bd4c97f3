import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt
from diffopt import noise as noise_module
from diffopt.noise import SMALL, check_key, draw, gaussian, get_noise, make_key, rademacher

KEY = jax.random.key(5)
SHAPES = [(), (0,), (1,), (2, 0, 3), (3, 3, 24, 64), (40, 30, 3, 3)]
NOISES = ["gaussian", "rademacher"]


def same(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and bool(jnp.all(a == b))


def normal(key, shape=(123, 16), dtype=jnp.float32):
    return jax.random.normal(key, shape, dtype)


def ours(key, shape=(123, 16), dtype=jnp.float32):
    return gaussian(key, shape, dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_gaussian_is_jax_random_normal_in_every_shape(shape):
    expected = normal(KEY, shape)
    assert same(ours(KEY, shape), expected)
    assert same(jax.jit(lambda key: ours(key, shape))(KEY), expected)


def test_gaussian_is_jax_random_normal_in_a_million_elements():
    assert same(ours(KEY, (1 << 20,)), normal(KEY, (1 << 20,)))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("partitionable", [True, False])
def test_gaussian_is_jax_random_normal_for_every_key(impl, partitionable):
    key = jax.random.key(5, impl=impl)
    with jax.threefry_partitionable(partitionable):
        assert same(ours(key), normal(key))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_gaussian_is_jax_random_normal_in_every_dtype_and_x64(dtype):
    with jax.enable_x64(True):
        assert same(ours(KEY, dtype=dtype), normal(KEY, dtype=dtype))


def test_gaussian_is_jax_random_normal_with_another_default_implementation():
    with jax.default_prng_impl("rbg"):
        key = make_key(5)
        assert str(jax.random.key_impl(key)) == "rbg"
        assert same(ours(key), normal(key))


def test_gaussian_is_jax_random_normal_under_vmap_scan_and_shard_map():
    keys = jax.random.split(KEY, 4)
    assert same(jax.vmap(ours)(keys), jax.vmap(normal)(keys))
    scan = lambda sample: jax.lax.scan(lambda c, key: (c, sample(key)), 0, keys)[1]
    assert same(scan(ours), scan(normal))
    mesh = jax.make_mesh((1,), ("chain",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("chain")
    shard = lambda f: jax.jit(jax.shard_map(jax.vmap(f), mesh=mesh, in_specs=spec, out_specs=spec))
    assert same(shard(ours)(keys), shard(normal)(keys))
    assert same(jax.pmap(ours)(keys[:1]), jax.pmap(normal)(keys[:1]))


def test_the_fused_form_is_the_one_used_on_a_cpu():
    text = lambda f, key: jax.jit(f).lower(key).compile().as_text()
    if jax.default_backend() == "cpu":
        assert "while(" in text(normal, KEY) or "call(" in text(normal, KEY)
        assert "while(" not in text(ours, KEY) and "call(" not in text(ours, KEY)
        assert "conditional(" not in text(ours, KEY)


@pytest.mark.parametrize("shape", [(), (0, 3), (33,), (5, 64), (2, 96, 3)])
def test_rademacher_is_plus_or_minus_one_on_every_path(shape):
    xi = rademacher(KEY, shape, jnp.float32)
    assert xi.shape == shape and xi.dtype == jnp.float32 and bool(jnp.all(jnp.abs(xi) == 1))
    assert same(jax.jit(lambda key: rademacher(key, shape, jnp.float32))(KEY), xi)
    with jax.threefry_partitionable(False):
        assert bool(jnp.all(jnp.abs(rademacher(KEY, shape, jnp.float32)) == 1))
    vmapped = jax.vmap(lambda key: rademacher(key, shape, jnp.float32))(KEY[None])
    assert same(vmapped[0], xi)


def test_rademacher_bits_are_those_of_jax_random_bits():
    words = jax.random.bits(KEY, (1, 8), jnp.uint32)
    bits = (words >> jnp.arange(32, dtype=jnp.uint32)[:, None]) & 1
    assert same(rademacher(KEY, (32, 8), jnp.float32), jnp.where(bits, 1.0, -1.0))


TREE = {
    "large": jnp.zeros((SMALL,)),
    "also large": jnp.zeros((SMALL,)),
    "small": [jnp.zeros(3), jnp.zeros(()), None, jnp.zeros((2, 0)), jnp.zeros((4, 5))],
    "half": jnp.zeros((6,), jnp.bfloat16),
    "complex": jnp.zeros((7,), jnp.complex64),
}


@pytest.mark.parametrize("noise", NOISES)
def test_a_tree_keeps_its_structure_shapes_and_at_least_32_bits(noise):
    xi = draw(KEY, TREE, noise)
    assert jax.tree.structure(xi) == jax.tree.structure(TREE)
    for x, leaf in zip(jax.tree.leaves(xi), jax.tree.leaves(TREE), strict=True):
        assert x.shape == leaf.shape
        assert x.dtype == jnp.promote_types(leaf.dtype, jnp.float32)
    assert draw(KEY, {}, noise) == {} and draw(KEY, None, noise) is None


@pytest.mark.parametrize("noise", NOISES)
def test_the_same_key_gives_the_same_increment_jitted_or_not(noise):
    first = draw(KEY, TREE, noise)
    for other in (draw(KEY, TREE, noise), jax.jit(lambda key: draw(key, TREE, noise))(KEY)):
        assert all(jax.tree.leaves(jax.tree.map(same, first, other)))
    changed = draw(jax.random.key(6), TREE, noise)
    assert not bool(jnp.all(first["large"] == changed["large"]))


def test_no_number_is_used_twice_in_a_tree_or_in_two_trees():
    one, two = (draw(key, TREE, "gaussian") for key in jax.random.split(KEY))
    parts = [
        np.concatenate([np.ravel(x).real, np.ravel(x).imag]) if np.iscomplexobj(x) else np.ravel(x)
        for x in jax.tree.leaves((one, two))
    ]
    numbers = np.concatenate(parts)
    # 23 random bits a number: birthdays leave n²/2²⁴ expected coincidences
    expected = len(numbers) ** 2 / 2**24
    coincidences = len(numbers) - len(np.unique(numbers))
    assert coincidences < expected + 4.5 * expected**0.5
    assert not set(np.ravel(one["large"])[:50]) & set(np.ravel(two["large"])[:50])


def test_a_function_is_called_once_a_leaf_with_its_shape_and_a_key_of_its_own():
    calls = []

    def sample(key, shape, dtype):
        calls.append((shape, dtype, tuple(jax.random.key_data(key).tolist())))
        return jnp.full(shape, 2, dtype)

    params = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2), jnp.bfloat16), "c": jnp.zeros(4, complex)}
    xi = draw(KEY, params, sample)
    assert [call[:2] for call in calls] == [
        ((3,), jnp.float32),
        ((2, 2), jnp.float32),
        ((2, 4), jnp.float32),
    ]
    assert len({call[2] for call in calls}) == 3
    assert same(xi["a"], jnp.full(3, 2.0)) and same(xi["c"], jnp.full(4, 2 + 2j))


def test_an_unknown_noise_is_refused_with_the_known_names():
    with pytest.raises(ValueError, match=r"\['gaussian', 'rademacher'\].*'cauchy'"):
        get_noise("cauchy")


def test_integer_and_boolean_leaves_are_named():
    for leaf in (jnp.arange(3), jnp.array([True])):
        with pytest.raises(TypeError, match=rf"params\['layer'\]\[1\] has dtype {leaf.dtype}"):
            draw(KEY, {"layer": [jnp.ones(2), leaf]}, "gaussian")


@pytest.mark.parametrize(
    "form",
    [3, np.int64(3), jnp.array(3), jax.random.key(3), jax.random.PRNGKey(3)],
    ids=["int", "numpy", "array", "typed", "raw"],
)
def test_every_form_of_a_key_is_the_same_key(form):
    assert same(jax.random.key_data(make_key(form)), jax.random.key_data(jax.random.key(3)))


@pytest.mark.parametrize(
    "bad",
    [
        *(None, "0", 1.5, True, jnp.zeros(3), jnp.zeros(()), [1], KEY[None]),
        *(jnp.zeros(size, jnp.uint32) for size in (0, 3, 4)),
    ],
)
def test_no_other_thing_is_a_key(bad):
    with pytest.raises(TypeError, match="key must be an int or a single PRNG key"):
        check_key(bad)


def test_a_raw_key_has_the_length_of_the_default_generator():
    with jax.default_prng_impl("rbg"):
        check_key(jax.random.PRNGKey(0))
        with pytest.raises(TypeError, match="key must be"):
            check_key(jnp.zeros(2, jnp.uint32))


@pytest.mark.parametrize("noise", NOISES)
def test_a_leaf_of_a_billion_elements_is_traced_without_memory(noise):
    leaf = jax.ShapeDtypeStruct((10**9,), jnp.float32)
    xi = jax.eval_shape(lambda key, x: draw(key, x, noise), KEY, leaf)
    assert xi.shape == leaf.shape and xi.dtype == leaf.dtype


def test_more_elements_than_a_32_bit_counter_has_go_to_jax(monkeypatch):
    def never(key, shape):
        raise AssertionError

    monkeypatch.setattr(noise_module, "fused_normal", never)
    shape = (2**16, 2**16)
    assert jax.eval_shape(lambda key: gaussian(key, shape, jnp.float32), KEY).shape == shape


def compiled_step(tx, params):
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1)).lower(params, tx.init(params), params).compile()


def of_shape(compiled, shape):
    """What the program computes that has the shape of `shape`, outside fused computations."""
    entry = compiled.as_text().split("ENTRY")[1]
    dims = ",".join(map(str, shape))
    found = re.findall(rf"= f32\[{dims}\]\S* ([\w-]+)\(", entry)
    return [op for op in found if op not in ("parameter", "get-tuple-element", "bitcast")]


CPU = pytest.mark.skipif(jax.default_backend() != "cpu", reason="reads the program for a CPU")
SAMPLERS = {
    "sgld": lambda noise: diffopt.sgld(0.1, 0.5, noise=noise),
    "langevin": lambda noise: optax.chain(
        diffopt.langevin(0.5, 0.1, noise=noise), optax.sgd(optax.linear_schedule(0.1, 0.0, 9))
    ),
}


@CPU
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("noise", NOISES)
def test_a_step_is_one_pass_over_memory(sampler, noise):
    params = [jnp.zeros(shape) for shape in ((3, 3, 128, 256), (1 << 18,), (512, 1024))]
    compiled = compiled_step(SAMPLERS[sampler](noise), params)
    assert all(of_shape(compiled, leaf.shape) == ["fusion"] for leaf in params)
    size = sum(leaf.size for leaf in params)
    bits = size / 8 if noise == "rademacher" else 0
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes <= bits + 10_000
    assert memory.alias_size_in_bytes >= 4 * size


@CPU
def test_small_leaves_compile_one_generator():
    params = [jnp.zeros(64 + i) for i in range(20)]
    text = compiled_step(diffopt.sgld(0.1, 0.5), params).as_text()
    assert 1 <= len(re.findall(r" log-plus-one\(", text)) <= 2


SHARDED = """
import re, jax, jax.numpy as jnp, numpy as np, optax, diffopt
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

specs = {"a": P("x", None), "b": P(None, "x"), "c": P("x"), "d": P(), "e": P(None, None, "x", None)}
shapes = {"a": (512, 256), "b": (256, 512), "c": (1 << 17,), "d": (64,), "e": (3, 3, 256, 64)}
params = {k: jnp.zeros(shape) for k, shape in shapes.items()}
for noise in ("gaussian", "rademacher"):
    tx = diffopt.sgld(0.1, 0.5, noise=noise)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    expected = jax.jit(step)(params, tx.init(params), params)[0]
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
        args = {k: jax.device_put(v, NamedSharding(mesh, specs[k])) for k, v in params.items()}
        with jax.set_mesh(mesh):
            compiled = jax.jit(step).lower(args, tx.init(args), args).compile()
            got = compiled(args, tx.init(args), args)[0]
        for k in params:
            np.testing.assert_array_equal(got[k], expected[k])
            assert got[k].sharding.is_equivalent_to(args[k].sharding, args[k].ndim)
        assert not re.findall("all-gather|all-reduce|all-to-all|permute", compiled.as_text())
print("equal")
"""


def test_eight_devices_draw_the_numbers_of_one_and_exchange_none():
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], env=os.environ | env, capture_output=True, text=True
    )
    assert done.stdout == "equal\n", done.stderr
