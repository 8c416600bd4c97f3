"""lattice_walk as an Optax transformation; its laws are in laws/test_lattice_walk.py.

Two of its steps are equal in half of their elements, where the contract of all samplers asks that
none are, and it has one noise: so it has no row in the registry.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt
from tests.helpers import assert_close, assert_equal, assert_like, of_name, path, run

pytestmark = pytest.mark.slow

PARAMS = {
    "low": jnp.linspace(-2, 2, 300, dtype=jnp.bfloat16),
    "w": jnp.linspace(-1, 2, 60).reshape(6, 10),
    "z": jnp.full(40, 1 - 2j, jnp.complex64),
    "scalar": jnp.asarray(0.5),
    "empty": jnp.zeros((0, 4)),
    "none": None,
}
GRADS = jax.tree.map(lambda p: p / 2 - 1, PARAMS)
TX = diffopt.lattice_walk(0.25, 0.5)  # steps of 1/2


def test_compiled_it_is_the_same_and_keeps_structure_shapes_and_dtypes():
    state = TX.init(PARAMS)
    update = jax.jit(TX.update)
    for _ in range(2):
        eager, after = TX.update(GRADS, state, PARAMS)
        compiled, same = update(GRADS, state, PARAMS)
        assert_equal(compiled, eager)
        assert_equal(same, after)
        assert_like(eager, PARAMS)
        assert_like(after, state)
        state = after
    assert update._cache_size() == 1
    assert [int(count) for count in of_name(state, "count")] == [2]


def test_steps_keys_and_chains_differ():
    grads = jnp.zeros(1_000)
    state = TX.init(grads)
    first, after = TX.update(grads, state)
    second, _ = TX.update(grads, after)
    other = diffopt.lattice_walk(0.25, 0.5, key=1)
    third, _ = other.update(grads, other.init(grads))
    chains = diffopt.split_keys(state, 2)
    fourth, fifth = jax.vmap(TX.update, in_axes=(None, 0))(grads, chains)[0]
    found = np.stack([first, second, third, fourth, fifth])
    equal = (found[:, None] == found[None]).mean(2)[np.triu_indices(5, 1)]
    assert (abs(equal - 0.5) < 4.5 * 0.5 / 1_000**0.5).all()


def test_schedules_are_read_at_the_count_and_may_end_at_zero():
    ends = lambda start: optax.linear_schedule(start, 0.0, 2)
    eta = path(diffopt.lattice_walk(ends(0.25), 0.5), jnp.ones(50), lambda p: p, 4)
    sizes = abs(np.diff(eta, axis=0))
    np.testing.assert_allclose(sizes[0], np.sqrt(2 * 0.125 * 0.5), rtol=1e-6)
    assert (sizes[1:] == 0).all()
    T = path(diffopt.lattice_walk(0.25, ends(0.5)), jnp.ones(50), lambda p: p, 4)
    np.testing.assert_allclose(T[3], T[2] * 0.75, rtol=1e-6)


def test_it_works_in_optaxs_wrappers_and_in_low_precision():
    params = {"w": jnp.ones(8), "b": jnp.ones(3)}
    for tx in (
        optax.MultiSteps(TX, 2),
        optax.masked(TX, {"w": True, "b": False}),
        optax.inject_hyperparams(diffopt.lattice_walk)(0.25, temperature=0.5),
        optax.chain(diffopt.gaussian_prior(1.0, 0.5), TX),
        diffopt.low_precision(TX),
    ):
        last, state, _ = run(tx, params, lambda p: p, 4)
        assert_like(last, params)
        assert_like(state, tx.init(params))
    warm = optax.inject_hyperparams(diffopt.lattice_walk)(0.25, temperature=0.5)
    assert_close(path(warm, params, lambda p: p, 3), path(TX, params, lambda p: p, 3))


def test_under_x64_and_strict_promotion():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        wide = jnp.zeros(20, "float64")
        updates, _ = jax.jit(TX.update)(wide, TX.init(wide))
        assert updates.dtype == jnp.float64
        np.testing.assert_allclose(abs(updates), 0.5, rtol=1e-15)
    with jax.numpy_dtype_promotion("strict"):
        assert_like(jax.eval_shape(TX.update, GRADS, TX.init(PARAMS))[0], PARAMS)


@pytest.mark.slow
def test_find_step_size_takes_it_and_gives_it_longer_steps_than_sgld():
    """Its law is exact on a quadratic until it clips, where that of sgld is off by ηk/2."""
    loss = lambda p: jnp.sum(p**2) / 2
    longest = [
        diffopt.find_step_size(make, loss, jnp.zeros(3), temperature=1.0)[0]
        for make in (diffopt.lattice_walk, diffopt.sgld)
    ]
    assert longest[0] > 1.5 * longest[1]


@pytest.mark.parametrize(
    "arguments,error,message",
    [
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be finite and > 0, got 0.0"),
        ({"temperature": -1.0}, ValueError, "temperature must be finite and ≥ 0, got -1.0"),
        ({"temperature": "1"}, TypeError, "temperature must be a number"),
        ({"key": 1.5}, TypeError, "key must be an int or a single PRNG key, got 1.5"),
        ({"noise": "gaussian"}, TypeError, "noise"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        diffopt.lattice_walk(**{"learning_rate": 0.1, "temperature": 0.5} | arguments)


def test_integer_parameters_are_refused_by_name():
    with pytest.raises(TypeError, match=r"params\['n'\] has dtype int32"):
        TX.init({"n": jnp.arange(3)})
