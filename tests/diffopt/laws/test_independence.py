"""Chains with split keys are independent, and each still has the sampler's law."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt

SIZE, CHAINS, STEPS = 50_000, 4, 60
ETA, TEMPERATURE = 0.2, 0.5
VARIANCE = TEMPERATURE / (1 - ETA / 2)  # of the Euler-Maruyama chain on |θ|²/2


@pytest.fixture(scope="module")
def chains():
    """The last two states `[2, CHAINS, SIZE]` of CHAINS chains on a quadratic loss."""
    tx = diffopt.sgld(ETA, TEMPERATURE)

    def step(carry, _):
        params, state = carry
        updates, state = jax.vmap(tx.update)(params, state)
        params = optax.apply_updates(params, updates)
        return (params, state), None

    @jax.jit
    def run(params):
        carry = params, diffopt.split_keys(tx.init(params[0]), CHAINS)
        carry, _ = jax.lax.scan(step, carry, length=STEPS)
        last, _ = step(carry, None)
        return jnp.stack([carry[0], last[0]])

    return np.asarray(run(jnp.zeros([CHAINS, SIZE])), np.float64)


def test_each_chain_has_the_stationary_variance(chains):
    """A variance of N Gaussians has the standard error variance · √(2/N)."""
    for chain in chains[1]:
        assert abs(chain.var() / VARIANCE - 1) < 4.5 * np.sqrt(2 / SIZE)


@pytest.mark.parametrize("lag", [0, 1])
def test_chains_are_uncorrelated(chains, lag):
    """A correlation of N independent pairs has the standard error 1/√N.

    At lag 1 a chain whose key were one step behind another's would show.
    """
    for i in range(CHAINS):
        for j in range(CHAINS):
            if i != j:
                correlation = np.corrcoef(chains[0, i], chains[lag, j])[0, 1]
                assert abs(correlation) < 4.5 / np.sqrt(SIZE)


def test_the_mean_over_chains_has_its_variance_over_their_number(chains):
    variance = chains[1].mean(0).var()
    assert abs(variance * CHAINS / VARIANCE - 1) < 4.5 * np.sqrt(2 / SIZE)
