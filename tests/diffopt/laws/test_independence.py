"""Chains with split keys are independent, and each still has the sampler's law."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt
from tests.helpers import run

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


@pytest.mark.slow
def test_the_key_stream_of_a_million_steps():
    """θ ← aθ + ξ with a = 1/2: no key comes twice, and ξ is white at all lags."""
    steps, chains, a = 10**6, 4, 0.5
    tx, start = diffopt.sgld(a, 1.0), jnp.zeros(4)
    keep = lambda params, state: (params, jax.random.key_data(state.key))
    _, _, (x, keys) = run(tx, start, lambda x: x, steps, keep=keep)
    assert len(np.unique(np.asarray(keys).view(np.uint64))) == steps

    x = np.asarray(x, np.float64)
    xi = x[1:] - a * x[:-1]
    n = xi.size
    assert abs(xi.mean()) < 4.5 / np.sqrt(n)
    assert abs((xi**2).mean() - 1) < 4.5 * np.sqrt(2 / n)
    assert abs((xi**4).mean() - 3) < 4.5 * np.sqrt(96 / n)
    for lag in [*range(1, 33), *(2**i for i in range(6, 20))]:
        assert abs((xi[lag:] * xi[:-lag]).mean()) < 4.5 / np.sqrt(n - lag * chains), lag

    x = x[100:]
    variance, n = 1 / (1 - a / 2), x.size
    error = variance * np.sqrt(2 / n * (1 + a**2) / (1 - a**2))
    assert abs((x**2).mean() - variance) < 4.5 * error
    for lag in (1, 2, 5, 10, 1_000):
        bartlett = (1 + a**2) * (1 - a ** (2 * lag)) / (1 - a**2) - 2 * lag * a ** (2 * lag)
        r = (x[lag:] * x[:-lag]).mean() / (x**2).mean()
        assert abs(r - a**lag) < 4.5 * np.sqrt(bartlett / n), lag
