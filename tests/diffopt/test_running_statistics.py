"""Running means and variances of Flax are no parameters, and those who take parameters say so."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx

import diffopt


class Normalized(nnx.Module):
    def __init__(self, rngs):
        self.dense, self.norm = nnx.Linear(3, 2, rngs=rngs), nnx.BatchNorm(2, rngs=rngs)


class OwnStatistic(nnx.BatchStat):
    pass


def loss(params, *_):
    return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params)) / 2


# name: (a tree with statistics among its parameters, the first of them)
TREES = {
    "linen": (
        lambda: linen.BatchNorm(True).init(jax.random.key(0), jnp.ones((2, 3))),
        r"\['batch_stats'\]\['mean'\]",
    ),
    "nnx": (lambda: nnx.split(Normalized(nnx.Rngs(0)))[1], r"\['norm'\]\['mean'\]"),
    "own": (lambda: {"w": jnp.ones(2), "own": OwnStatistic(jnp.ones(2))}, r"\['own'\]"),
}
CALLS = {
    "sample": lambda params: diffopt.sample(diffopt.sgld(0.1, 1.0), loss, params, num_steps=2),
    "find_step_size": lambda params: diffopt.find_step_size(
        diffopt.sgld, loss, params, temperature=1.0
    ),
    "local_learning_coefficient": lambda params: diffopt.local_learning_coefficient(
        loss, params, jnp.ones((4, 1)), step_size=0.1, num_steps=2, burn_in=1
    ),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", TREES)
def test_a_running_statistic_is_named(name, call):
    make, leaf = TREES[name]
    with pytest.raises(TypeError, match=f"params{leaf} is a running statistic"):
        CALLS[call](make())


def test_the_parameters_beside_them_are_sampled():
    params = nnx.state(Normalized(nnx.Rngs(0)), nnx.Param)
    assert CALLS["sample"](params).losses.shape == (1, 2)
