"""Every sampler at one step size and temperature, on leaves of every kind: the contract's subject.

The samplers are the rows of `tests.helpers.SAMPLERS`. A new one is tested here once it has a row.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

import diffopt
from tests.helpers import SAMPLERS

ETA, T = 0.1, 0.5
KEY = 7
QUICK = ("sghmc",)  # it has all that a state may have but a metric; the others are slow


def each(names):
    """A test of every sampler that is named, in the default suite of those that are `QUICK`."""
    marks = lambda name: [pytest.mark.slow] * (name not in QUICK)
    return pytest.mark.parametrize("name", [pytest.param(v, marks=marks(v)) for v in names])


each_sampler = each(SAMPLERS)
each_with_a_noise = each(v for v in SAMPLERS if SAMPLERS[v].takes_noise)
# They move on where the step size is 0: by their momentum, or by rounding at random.
COASTING = ("low_precision",)


def tree(dtype):
    """Parameters of every kind of leaf."""
    return {
        "w": jnp.linspace(-1, 2, 6).reshape(2, 3).astype(dtype),
        "b": jnp.ones(3, dtype),
        "scalar": jnp.asarray(0.5, dtype),
        "empty": jnp.zeros((0, 4), dtype),
        "none": None,
    }


def setting(name, dtype=None):
    """Parameters and gradients for the sampler of that name."""
    params = tree(dtype or SAMPLERS[name].dtype)
    return params, jax.tree.map(lambda p: p / 2 - 1, params)


def tolerance(name):
    """Float rounding, or a spacing of bfloat16, which a rounding at random can make of it."""
    if SAMPLERS[name].dtype == "bfloat16":
        return {"rtol": 2.0**-7, "atol": 2.0**-9}
    return {"rtol": 1e-5, "atol": 1e-6}


def cheap(key, shape, dtype):
    """A noise that compiles in no time, for what does not depend on it: a number for each leaf."""
    word = jax.random.key_data(key)[0]
    return jnp.full(shape, (word >> 8).astype(dtype) * 2.0**-23 - 1)


@functools.cache
def maker(name, noise=cheap):
    """The factory of a sampler, whose noise `inject_hyperparams` cannot take for a schedule."""

    def make(step_size, temperature, *, key=KEY):
        return SAMPLERS[name].make_noisy(step_size, temperature, key=key, noise=noise)

    return make


@functools.cache
def standard(name, noise=cheap):
    """The sampler at the step size ETA and the temperature T, and its compiled update."""
    tx = maker(name, noise)(ETA, T)
    return tx, jax.jit(tx.update)


def step(tx, params, grads):
    return jax.jit(tx.update)(grads, tx.init(params), params)[0]


def unlike(name, a, b):
    """Whether two draws differ: in every element, or in some where it is a coin that is tossed."""
    return (a != b).any() if SAMPLERS[name].tosses else (a != b).all()


def exact(name, params, state):
    """The parameters, and what `low_precision` keeps of them beside."""
    return diffopt.exact_params(params, state) if name == "low_precision" else params


def leaf_by_leaf(fn, *trees):
    return jax.tree.leaves(jax.tree.map(fn, *trees))
