"""split_keys: chains that are independent, in whatever their state is wrapped."""

import jax
import jax.numpy as jnp
import optax
import pytest

import diffopt
from tests.helpers import normals


def keys_of(state):
    leaves = jax.tree.leaves(state)
    return [x for x in leaves if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]


def distinct(keys):
    rows = jax.random.key_data(keys).reshape(len(keys), -1)
    return len({tuple(row) for row in rows.tolist()})


PARAMS = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2), "none": None}
TRANSFORMATIONS = {
    "sgld": diffopt.sgld(0.1, 1.0),
    "chain": optax.chain(
        optax.trace(0.9), diffopt.langevin(1.0, learning_rate=0.1), diffopt.langevin(1.0, key=1)
    ),
    "multi_steps": optax.MultiSteps(diffopt.sgld(0.1, 1.0), 2).gradient_transformation(),
    "int_key": optax.inject_hyperparams(diffopt.sgld)(0.1, temperature=1.0, key=7),
    "typed_key": optax.inject_hyperparams(diffopt.sgld)(0.1, 1.0, key=jax.random.key(7)),
    "raw_key": diffopt.sgld(0.1, 1.0, key=jax.random.PRNGKey(7)),
    "rbg_key": diffopt.sgld(0.1, 1.0, key=jax.random.key(7, impl="rbg")),
    "masked": optax.masked(diffopt.sgld(0.1, 1.0), {"w": True, "b": False, "none": None}),
    "optax": optax.noisy_sgd(0.1, key=jax.random.key(0)),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_every_leaf_gains_an_axis_and_every_key_its_own_value(name):
    state = TRANSFORMATIONS[name].init(PARAMS)
    states = diffopt.split_keys(state, 5)
    assert jax.tree.structure(states) == jax.tree.structure(state)
    for leaf, leaves in zip(jax.tree.leaves(state), jax.tree.leaves(states), strict=True):
        assert leaves.shape == (5, *leaf.shape) and leaves.dtype == leaf.dtype
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            assert jnp.array_equal(leaves, jnp.stack([leaf] * 5))
    assert keys_of(states)
    for keys in keys_of(states):
        assert distinct(keys) == 5


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in ("chain", "int_key")))
        for name in TRANSFORMATIONS
    ],
)
def test_no_two_chains_take_the_same_step(name):
    tx = TRANSFORMATIONS[name]
    params = jax.tree.map(lambda p: jnp.broadcast_to(p, (5, *p.shape)), PARAMS)
    state = diffopt.split_keys(tx.init(PARAMS), 5)

    @jax.jit
    def step(params, state):
        updates, state = jax.vmap(tx.update)(params, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(2):
        params, state = step(params, state)
    w = params["w"]
    assert all((w[i] != w[j]).all() for i in range(5) for j in range(i))


def test_an_array_of_keys_is_split_key_by_key():
    keys = jax.random.split(jax.random.key(0), (2, 3))
    chains = diffopt.split_keys({"keys": keys}, 4)["keys"]
    assert chains.shape == (4, 2, 3)
    assert distinct(chains.reshape(-1)) == 24


def test_vmap_of_init_gives_every_chain_the_same_noise():
    """The trap that `split_keys` removes: the chains merge into one on a convex loss."""
    tx = diffopt.sgld(0.1, temperature=1.0)
    start = normals(0, 8, 3)

    @jax.jit
    def run(params, state):
        def step(carry, _):
            params, state = carry
            updates, state = jax.vmap(tx.update)(params, state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), length=300)[0][0]

    trapped = run(start, jax.vmap(tx.init)(start))
    assert jnp.std(trapped, axis=0).max() < 1e-5
    assert jnp.std(run(start, diffopt.split_keys(tx.init(start[0]), 8)), axis=0).min() > 0.3


def test_a_state_without_keys_is_copied():
    state = diffopt.split_keys(optax.sgd(0.1, momentum=0.9).init(PARAMS), 3)
    assert jax.tree.leaves(state)[0].shape == (3, 2)


def test_inside_jit():
    keys = jax.jit(lambda s: diffopt.split_keys(s, 3))(diffopt.sgld(0.1, 1.0).init(PARAMS)).key
    assert distinct(keys) == 3


@pytest.mark.parametrize("num_chains", [0, -1])
def test_at_least_one_chain(num_chains):
    with pytest.raises(ValueError, match="num_chains must be ≥ 1"):
        diffopt.split_keys(diffopt.sgld(0.1, 1.0).init(PARAMS), num_chains)
