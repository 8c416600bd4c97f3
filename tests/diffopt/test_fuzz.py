"""Any tree, any sampler, any wrapper: what an update keeps, and that no two leaves share noise."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import diffopt
from tests.helpers import SAMPLERS, assert_close, assert_like

pytestmark = pytest.mark.slow

ETA, T = 0.01, 0.1
SHAPES = [(), (1,), (3,), (2, 3), (0,), (2, 0, 3), (70, 3), (33, 64)]
DTYPES = ["float32", "bfloat16", "float16", "complex64"]

leaves = st.none() | st.tuples(st.sampled_from(SHAPES), st.sampled_from(DTYPES))
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=6,
)


def is_spec(x):
    return isinstance(x, tuple) and len(x) == 2 and isinstance(x[1], str)


def fill(tree, key):
    """Normal numbers in place of (shape, dtype)."""
    specs, treedef = jax.tree.flatten(tree, is_leaf=is_spec)
    keys = jax.random.split(key, len(specs))
    draw = lambda k, spec: jax.random.normal(k, *spec)
    return jax.tree.unflatten(treedef, [draw(k, s) for k, s in zip(keys, specs, strict=True)])


def alternate(tree, values):
    """A tree like `tree` of `values` in turn."""
    leaves, treedef = jax.tree.flatten(tree)
    return jax.tree.unflatten(treedef, [v for v, _ in zip(itertools.cycle(values), leaves)])


def masked(make, noise):
    mask = lambda tree: alternate(tree, [True, True, False])
    return optax.masked(make(ETA, T, noise=noise), mask)


def partition(make, noise):
    groups = {name: make(ETA, T, key=key, noise=noise) for key, name in enumerate("ab")}
    return optax.partition(groups, lambda tree: alternate(tree, "ab"))


def inject(make, noise):
    # optax.scale by an injected rate takes the rate's dtype
    if make == SAMPLERS["langevin"].make_noisy:
        return optax.inject_hyperparams(lambda T: make(ETA, T, noise=noise))(T=T)
    return optax.inject_hyperparams(lambda eta, T: make(eta, T, noise=noise))(eta=ETA, T=T)


WRAPPERS = {
    "none": lambda make, noise: make(ETA, T, noise=noise),
    "chain": lambda make, noise: optax.chain(
        optax.clip_by_global_norm(1.0), make(ETA, T, noise=noise), optax.scale(0.5)
    ),
    "masked": masked,
    "partition": partition,
    "MultiSteps": lambda make, noise: optax.MultiSteps(make(ETA, T, noise=noise), 2),
    "inject_hyperparams": inject,
    "low_precision": lambda make, noise: diffopt.low_precision(make(ETA, T, noise=noise), key=5),
}

cases = given(
    tree=trees.filter(lambda tree: tree is not None),  # None: no parameters were given
    sampler=st.sampled_from([name for name in SAMPLERS if name != "low_precision"]),
    wrapper=st.sampled_from(list(WRAPPERS)),
    noise=st.sampled_from(["gaussian", "gaussian16", "rademacher"]),
)


def check(tree, sampler, wrapper, noise):
    dtypes = {spec[1] for spec in jax.tree.leaves(tree, is_leaf=is_spec)}
    if wrapper == "inject_hyperparams":  # Optax has no dtype for numbers of both
        assume(not dtypes >= {"bfloat16", "float16"})
    if wrapper == "MultiSteps":  # whose sums are real
        assume("complex64" not in dtypes)
    tx = WRAPPERS[wrapper](SAMPLERS[sampler].make_noisy, noise)
    params, grads = fill(tree, jax.random.key(0)), fill(tree, jax.random.key(1))
    state = tx.init(params)
    update = jax.jit(tx.update)
    for _ in range(2):  # MultiSteps moves at the second
        updates, after = update(grads, state, params)
        assert_like(updates, grads)
        assert_like(after, state)
        moved = optax.apply_updates(params, updates)
        assert_like(moved, params)
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves((updates, moved)))

        spacing = 2.0**-6 if wrapper == "low_precision" else 2.0**-8
        exact = all(spec.dtype in ("float32", "complex64") for spec in jax.tree.leaves(grads))
        close = {"rtol": 1e-5, "atol": 1e-5} if exact else {"rtol": spacing, "atol": spacing}
        eager, _ = tx.update(grads, state, params)
        assert_close(eager, updates, **close)
        state = after

    if noise == "gaussian" and not SAMPLERS[sampler].tosses:
        still = jax.tree.map(jnp.zeros_like, grads)
        state = tx.init(params)
        for _ in range(2):
            updates, state = update(still, state, params)
        precise = [x for x in jax.tree.leaves(updates) if x.dtype in ("float32", "complex64")]
        parts = [np.ravel(part(x)) for x in precise for part in (np.real, np.imag)]
        numbers = np.concatenate([[], *parts])
        numbers = numbers[numbers != 0]
        # 2²³ equally probable numbers: two of n are equal by chance n²/2²⁴ times
        assert len(numbers) - len(np.unique(numbers)) <= 3 + 4 * len(numbers) ** 2 / 2**24
        first = [(x.size, *np.ravel(x)[:3]) for x in precise if x.size > 2 and np.any(x)]
        assert len(set(first)) == len(first)


quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]
common = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": quiet}


@cases
@settings(max_examples=12, **common)
def test_an_update_keeps_what_it_has_to(tree, sampler, wrapper, noise):
    check(tree, sampler, wrapper, noise)


@pytest.mark.slow
@cases
@settings(max_examples=300, **common)
def test_an_update_keeps_what_it_has_to_in_many_cases(tree, sampler, wrapper, noise):
    check(tree, sampler, wrapper, noise)
