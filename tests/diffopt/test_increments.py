"""How an increment for a tree is drawn: its structure, its keys, its kinds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffopt.noise.bits16 import random_16_bits
from diffopt.noise.increments import (
    SMALL,
    draw_increments,
    get_noise,
    rademacher,
    random_bits_like,
)

NOISES = ["gaussian", "gaussian16", "rademacher"]
KEY = jax.random.key(5)


def same(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and bool(jnp.all(a == b))


@pytest.mark.parametrize(
    "shape",
    [(), (5, 64), *(pytest.param(x, marks=pytest.mark.slow) for x in ((0, 3), (33,), (2, 96, 3)))],
)
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
    xi = draw_increments(KEY, TREE, noise)
    assert jax.tree.structure(xi) == jax.tree.structure(TREE)
    for x, leaf in zip(jax.tree.leaves(xi), jax.tree.leaves(TREE), strict=True):
        assert x.shape == leaf.shape
        assert x.dtype == jnp.promote_types(leaf.dtype, jnp.float32)
    assert draw_increments(KEY, {}, noise) == {} and draw_increments(KEY, None, noise) is None


@pytest.mark.parametrize("noise", NOISES)
def test_the_same_key_gives_the_same_increment_jitted_or_not(noise):
    first = draw_increments(KEY, TREE, noise)
    for other in (
        draw_increments(KEY, TREE, noise),
        jax.jit(lambda key: draw_increments(key, TREE, noise))(KEY),
    ):
        assert all(jax.tree.leaves(jax.tree.map(same, first, other)))
    changed = draw_increments(jax.random.key(6), TREE, noise)
    assert not bool(jnp.all(first["large"] == changed["large"]))


def test_no_number_is_used_twice_in_a_tree_or_in_two_trees():
    one, two = (draw_increments(key, TREE, "gaussian") for key in jax.random.split(KEY))
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
    xi = draw_increments(KEY, params, sample)
    assert [call[:2] for call in calls] == [
        ((3,), jnp.float32),
        ((2, 2), jnp.float32),
        ((2, 4), jnp.float32),
    ]
    assert len({call[2] for call in calls}) == 3
    assert same(xi["a"], jnp.full(3, 2.0)) and same(xi["c"], jnp.full(4, 2 + 2j))


def test_an_unknown_noise_is_refused_with_the_known_names():
    with pytest.raises(ValueError, match=r"\['gaussian', 'gaussian16', 'rademacher'\].*'cauchy'"):
        get_noise("cauchy")


def test_integer_and_boolean_leaves_are_named():
    for leaf in (jnp.arange(3), jnp.array([True])):
        with pytest.raises(TypeError, match=rf"params\['layer'\]\[1\] has dtype {leaf.dtype}"):
            draw_increments(KEY, {"layer": [jnp.ones(2), leaf]}, "gaussian")


@pytest.mark.parametrize("noise", NOISES)
def test_a_leaf_of_a_billion_elements_is_traced_without_memory(noise):
    leaf = jax.ShapeDtypeStruct((10**9,), jnp.float32)
    xi = jax.eval_shape(lambda key, x: draw_increments(key, x, noise), KEY, leaf)
    assert xi.shape == leaf.shape and xi.dtype == leaf.dtype


def test_random_bits_are_16_for_each_element_one_key_for_each_leaf():
    tree = {"a": jnp.ones((3, 2), "bfloat16"), "b": jnp.ones(()), "none": None}
    drawn = random_bits_like(KEY, tree)
    for leaf, key in zip("ab", jax.random.split(KEY), strict=True):
        assert same(drawn[leaf], random_16_bits(key, tree[leaf].shape))
        assert int(drawn[leaf].max()) < 2**16
    assert drawn["none"] is None
