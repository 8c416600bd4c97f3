"""No random number of a sampler is one that its user drew."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import diffopt
from diffopt.inputs.keys import check_key, derive_key
from tests.diffopt.contract.helpers import each_with_a_noise
from tests.helpers import SAMPLERS, is_key

SEEDS = range(2)
TREE = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}


def data(keys):
    """The raw words of keys, as a set of tuples."""
    return {tuple(row) for row in np.asarray(jax.random.key_data(keys)).reshape(-1, 2).tolist()}


@jax.jit
def one_level(keys):
    """All that users make of `keys` in one step: splits into a few or many, folds of small ints."""
    split = jax.vmap(lambda key: jax.random.split(key, 40))(keys)  # those of fewer come first
    fold = jax.vmap(lambda key: jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(40)))
    return jnp.concatenate([split.reshape(-1), fold(keys).reshape(-1)])


class Noisy(linen.Module):
    """A Linen module that asks for keys at three depths."""

    depth: int = 0

    @linen.compact
    def __call__(self):
        own = [self.make_rng(name) for name in ("params", "dropout", "params")]
        return own if self.depth == 2 else own + Noisy(self.depth + 1)()


@pytest.fixture(scope="module")
def users():
    """The streams of JAX, NNX, Linen and Equinox users (who split) from a few seeds, three deep."""
    roots = jax.vmap(jax.random.key)(jnp.arange(len(SEEDS)))
    first = one_level(roots)
    second = one_level(first)
    third = one_level(second[:: max(len(second) // 2000, 1)])
    found = data(roots) | data(first) | data(second) | data(third)
    for seed in SEEDS:
        rngs = nnx.Rngs(seed)
        streams = [[rngs.params(), rngs.dropout(), rngs()] for _ in range(8)]
        found |= data(one_level(jnp.stack(list(itertools.chain(*streams)))))
        keys, _ = Noisy().init_with_output({n: roots[seed] for n in ("params", "dropout")})
        found |= data(one_level(jnp.stack(keys)))
    return found


def drawn_keys(make, seed, steps=3):
    """The keys that a sampler draws from in its first steps, and that its states hold."""
    keys = []

    def noise(key, shape, dtype):
        keys.append(key)
        return jax.random.normal(key, shape, dtype)

    tx = make(0.1, 0.1, key=seed, noise=noise)
    state = tx.init(TREE)
    for _ in range(steps):
        held = [x for x in jax.tree.leaves(state) if is_key(x)]
        keys += [key for leaf in held for key in leaf.reshape(-1)]
        _, state = tx.update(TREE, state, TREE)
    return jnp.stack(keys)


@each_with_a_noise
def test_a_sampler_draws_from_no_key_of_its_user(name, users):
    for seed in SEEDS:
        keys = data(one_level(drawn_keys(SAMPLERS[name].make, seed)))
        assert len(keys) > 300 and not keys & users


def test_neither_do_roundings_and_chains(users):
    samplers = data(drawn_keys(SAMPLERS["sgld"].make, 0))
    seen = set()
    for seed in SEEDS:
        tx = diffopt.low_precision(diffopt.sgld(0.1, 0.1, key=seed), key=seed)
        states = [tx.init(TREE), diffopt.split_keys(tx.init(TREE), 8)]
        for state in states:
            keys = data(one_level(jnp.ravel(state.key))) | data(
                one_level(jnp.ravel(state.inner_state.key))
            )
            assert not keys & users and not keys & seen
            seen |= keys
    assert seen & samplers  # the sampler's own keys are among those that the wrapped one holds


def test_initial_weights_and_first_increment_are_uncorrelated():
    """The user's key gives the weights, the sampler's default the noise."""
    _, init = jax.random.split(jax.random.key(0))
    k = jax.random.split(init, 2)
    params = jax.random.normal(k[0], (784, 300)), jax.random.normal(k[1], (300, 300))
    tx = diffopt.sgld(0.1, 1.0)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params))
    for x, xi in zip(params, updates, strict=True):
        correlation = np.corrcoef(x.ravel(), xi.ravel())[0, 1]
        assert abs(correlation) < 4.5 / np.sqrt(x.size)


def test_each_role_has_a_key_of_its_own_for_every_form_of_a_key():
    forms = (3, np.int64(3), jnp.array(3), jax.random.key(3), jax.random.PRNGKey(3))
    keys = [derive_key(form, role) for role in ("sampler", "rounding") for form in forms]
    assert len(data(jnp.stack(keys))) == 2


def chain_states(num_chains, key=0):
    tx = optax.chain(diffopt.langevin(0.1, key=key), diffopt.langevin(0.1, key=key), optax.sgd(1.0))
    return tx, diffopt.split_keys(tx.init(TREE), num_chains)


def test_the_first_chains_of_many_are_the_chains_of_few():
    _, few = chain_states(4)
    _, many = chain_states(8)
    for a, b in zip(few[:2], many[:2], strict=True):
        assert jnp.all(a.key == b.key[:4])


def test_chain_0_is_not_the_unsplit_chain_at_any_step():
    tx, chains = chain_states(4)
    state, unsplit = tx.init(TREE), set()
    for _ in range(5):
        unsplit |= data(one_level(state[0].key[None]))
        _, state = tx.update(TREE, state)
    assert not unsplit & data(one_level(chains[0].key))


def test_two_samplers_of_one_key_are_independent_after_split_keys():
    params = jnp.zeros(200_000)
    tx = optax.chain(diffopt.langevin(0.5), diffopt.langevin(0.5), optax.sgd(1.0))
    split = jax.tree.map(lambda x: x[0], diffopt.split_keys(tx.init(params), 1))
    variance = lambda state: float(tx.update(params, state)[0].var()) / 2
    assert abs(variance(split) - 1) < 4.5 * np.sqrt(2 / params.size)
    assert abs(variance(tx.init(params)) / 2 - 1) < 4.5 * np.sqrt(2 / params.size)  # documented


def test_a_state_made_anew_each_epoch_needs_a_key_for_each_epoch():
    first = lambda key: diffopt.sgld(0.1, 1.0, key=key).update(TREE, init(key))[0]["w"]
    init = lambda key: diffopt.sgld(0.1, 1.0, key=key).init(TREE)
    assert jnp.all(first(0) == first(0))
    epochs = [first(jax.random.fold_in(jax.random.key(0), epoch)) for epoch in range(3)]
    assert len({float(x[0, 0]) for x in epochs}) == 3


@pytest.mark.parametrize(
    "bad",
    [
        *(None, "0", 1.5, True, jnp.zeros(3), jnp.zeros(()), [1], jax.random.key(0)[None]),
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
