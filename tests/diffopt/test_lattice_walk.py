"""What lattice_walk has beside the contract; its laws are in laws/test_lattice_walk.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt
from tests.helpers import path

pytestmark = pytest.mark.slow

TX = diffopt.lattice_walk(0.25, 0.5)  # steps of 1/2


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


@pytest.mark.slow
def test_find_step_size_takes_it_and_gives_it_longer_steps_than_sgld():
    """Its law is exact on a quadratic until it clips, where that of sgld is off by ηk/2."""
    loss = lambda p: jnp.sum(p**2) / 2
    longest = [
        diffopt.find_step_size(make, loss, jnp.zeros(3), temperature=1.0)[0]
        for make in (diffopt.lattice_walk, diffopt.sgld)
    ]
    assert longest[0] > 1.5 * longest[1]


def test_it_has_one_noise():
    with pytest.raises(TypeError, match="noise"):
        diffopt.lattice_walk(0.1, 0.5, noise="gaussian")
