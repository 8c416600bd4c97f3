"""The bits of `jax.random` on a CPU: the same numbers, in one pass over memory."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest

import diffopt
from diffopt.noise import threefry
from diffopt.noise.increments import gaussian

SHAPES = [(), (0,), (1,), (2, 0, 3), (3, 3, 24, 64), (40, 30, 3, 3)]
NOISES = ["gaussian", "rademacher"]
KEY = jax.random.key(5)


def same(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and bool(jnp.all(a == b))


def normal(key, shape=(123, 16), dtype=jnp.float32):
    return jax.random.normal(key, shape, dtype)


def ours(key, shape=(123, 16), dtype=jnp.float32):
    return gaussian(key, shape, dtype)


@pytest.mark.parametrize(
    "shape", [pytest.param(x, marks=[pytest.mark.slow] * (0 < len(x) < 4)) for x in SHAPES]
)
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
        key = jax.random.key(5)
        assert str(jax.random.key_impl(key)) == "rbg"
        assert same(ours(key), normal(key))


def test_gaussian_is_jax_random_normal_under_vmap_scan_and_shard_map():
    keys = jax.random.split(KEY, 4)
    expected = jnp.stack([normal(key) for key in keys])
    assert same(jax.jit(jax.vmap(ours))(keys), expected)
    assert same(jax.lax.scan(lambda c, key: (c, ours(key)), 0, keys)[1], expected)
    mesh = jax.make_mesh((1,), ("chain",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("chain")
    shard = jax.shard_map(jax.vmap(ours), mesh=mesh, in_specs=spec, out_specs=spec)
    assert same(jax.jit(shard)(keys), expected)
    assert same(jax.pmap(ours)(keys[:1]), expected[:1])


def test_the_fused_form_is_the_one_used_on_a_cpu():
    text = lambda f, key: jax.jit(f).lower(key).compile().as_text()
    if jax.default_backend() == "cpu":
        assert "while(" in text(normal, KEY) or "call(" in text(normal, KEY)
        assert "while(" not in text(ours, KEY) and "call(" not in text(ours, KEY)
        assert "conditional(" not in text(ours, KEY)


def test_more_elements_than_a_32_bit_counter_has_go_to_jax(monkeypatch):
    def never(key, shape):
        raise AssertionError

    monkeypatch.setattr(threefry, "fused_normal", never)
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
        diffopt.langevin(0.5, learning_rate=0.1, noise=noise),
        optax.sgd(optax.linear_schedule(0.1, 0.0, 9)),
    ),
}


@CPU
@pytest.mark.parametrize("sampler", ["sgld", pytest.param("langevin", marks=pytest.mark.slow)])
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


@CPU
def test_short_rows_are_drawn_as_one_vector():
    text = lambda shape: (
        jax.jit(lambda key: gaussian(key, shape, jnp.float32)).lower(KEY).compile().as_text()
    )
    assert "conditional(" in text((5000, 10)) and "f32[50000]" in text((5000, 10))
    for shape in ((5000, 16), (5000, 65)):
        assert "conditional(" not in text(shape)
