"""The posterior of a logistic regression on scikit-learn's breast cancer data, against NUTS."""

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_breast_cancer

import diffopt


@pytest.fixture(scope="module")
def problem():
    """The mean negative log posterior of 31 weights under a N(0, 1) prior, and the examples."""
    x, y = load_breast_cancer(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    x = jnp.asarray(np.column_stack([np.ones(len(x)), x]), jnp.float32)
    sign = jnp.asarray(2 * y - 1, jnp.float32)

    def loss(theta):
        return (jax.nn.softplus(-sign * (x @ theta)).sum() + theta @ theta / 2) / len(sign)

    return loss, len(sign)


@pytest.fixture(scope="module")
def nuts(problem):
    """Samples of NUTS; the effective number is above 14,000 for each weight."""
    loss, n = problem
    density = lambda theta: -n * loss(theta)

    @jax.jit
    def sample(key):
        adapt_key, key = jax.random.split(key)
        adaptation = blackjax.window_adaptation(
            blackjax.nuts, density, is_mass_matrix_diagonal=False
        )
        (state, tuned), _ = adaptation.run(adapt_key, jnp.zeros(31), 500)
        kernel = blackjax.nuts(density, **tuned).step

        def step(state, key):
            state, _ = kernel(key, state)
            return state, state.position

        def chain(key):
            return jax.lax.scan(step, state, jax.random.split(key, 700))[1]

        return jax.lax.map(chain, jax.random.split(key, 16))

    return np.asarray(sample(jax.random.key(0)), np.float64)


@pytest.mark.slow
def test_baoab_agrees_with_nuts_within_5_percent_of_a_posterior_sd(problem, nuts):
    """2,000 chains of 300 steps; both Monte Carlo errors are 1 % of a standard deviation."""
    loss, n = problem
    tx = diffopt.baoab(1.5, temperature=1 / n, friction=0.1)

    @jax.jit
    def sample(theta):
        def step(carry, _):
            theta, state = carry
            updates, state = tx.update(jax.vmap(jax.grad(loss))(theta), state)
            theta = optax.apply_updates(theta, updates)
            return (theta, state), theta

        return jax.lax.scan(step, (theta, tx.init(theta)), length=300)[1][120::6]

    samples = np.asarray(sample(jnp.zeros([2_000, 31])), np.float64).reshape(-1, 31)
    nuts = nuts.reshape(-1, 31)
    assert np.abs((samples.mean(0) - nuts.mean(0)) / nuts.std(0)).max() < 0.05
    assert np.abs(samples.std(0) / nuts.std(0) - 1).max() < 0.05
    assert np.abs(nuts.mean(0) / nuts.std(0)).max() > 2  # the posterior is not the prior
