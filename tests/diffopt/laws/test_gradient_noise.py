"""Noise of minibatches that differs by direction: what a chain makes of it, and a warning."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import brentq

import diffopt

pytestmark = pytest.mark.slow

ETA, T, M = 0.05, 0.5, 0.9
CURVATURE = np.array([0.2, 1.0, 4.0])
NOISE = np.array([0.0, 1.0, 3.0])  # standard deviations of the gradients' noise
CHAINS = 40_000  # of each kind of direction


def variance(alpha, eta=ETA):
    """Var θ of v ← (1 - α) v - ηkθ + increments of the written variance, θ ← θ + v."""
    increments = 2 * (1 - M) * eta * T + eta**2 * NOISE**2
    return increments / (eta * CURVATURE * alpha * (2 - eta * CURVATURE / (2 - alpha)))


def friction(eta=ETA):
    """The friction at which a thermostat of all directions together reads T."""
    excess = lambda alpha: np.mean(CURVATURE * variance(alpha, eta)) - T
    return brentq(excess, 1e-3, 1.0, xtol=1e-12)


@pytest.fixture(scope="module")
def chains():
    """For a sampler the variance of each kind of direction and what the temperatures read."""
    k, sigma = (jnp.asarray(x, jnp.float32)[:, None] for x in (CURVATURE, NOISE))

    def measure(tx):
        def step(carry, key):
            params, state = carry
            noisy = lambda key: k * params + sigma * jax.random.normal(key, params.shape)
            updates, state = tx.update(noisy(key), state, params)
            return (optax.apply_updates(params, updates), state), None

        @jax.jit
        def run():
            params = jnp.sqrt(T / k) * jax.random.normal(jax.random.key(7), (3, CHAINS))
            keys = jax.random.split(jax.random.key(8), 800)
            (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), keys)
            configurational = diffopt.configurational_temperature(params, k * params).overall
            kinetic = diffopt.kinetic_temperature(state).overall
            return jnp.mean(params**2, axis=1), configurational, kinetic

        return run()

    return {
        "sgnht": measure(diffopt.sgnht(ETA, T, momentum=M)),
        "sghmc": measure(diffopt.sghmc(ETA, T, momentum=M)),
    }


def test_a_thermostat_reads_t_while_no_direction_is_at_t(chains):
    variances, configurational, kinetic = chains["sgnht"]
    expected = variance(friction())
    assert (abs(variances / expected - 1) < 4.5 * np.sqrt(2 / CHAINS)).all()
    temperatures = CURVATURE * expected / T
    assert temperatures[0] < 0.4
    assert temperatures[2] > 1.8
    error = 4.5 * np.sqrt(2 * np.sum(temperatures**2) / 9 / CHAINS)
    assert abs(configurational / T - 1) < error
    assert abs(kinetic / T - 1) < error


def test_without_a_thermostat_each_direction_is_as_hot_as_its_own_noise_makes_it(chains):
    variances, _, _ = chains["sghmc"]
    assert (abs(variances / variance(1 - M) - 1) < 4.5 * np.sqrt(2 / CHAINS)).all()
    finite_step = 1 - ETA * CURVATURE / (2 * (1 + M))
    np.testing.assert_allclose(
        variance(1 - M) * CURVATURE * finite_step, T + ETA * NOISE**2 / (2 * (1 - M))
    )


@pytest.mark.parametrize("eta", [0.01, 0.001])
def test_a_thermostat_shares_the_heat_out_to_first_order_in_the_step(eta):
    a = eta * NOISE**2 / (2 * (1 - M))
    foretold = T * (T + a) / (T + a.mean())
    exact = CURVATURE * variance(friction(eta), eta)
    assert (abs(foretold / exact - 1) < eta * CURVATURE.max()).all()


def test_gradients_foretell_it(chains):
    B = 500
    grads = 1.0 + NOISE * jax.random.normal(jax.random.key(9), (B, 3))
    hvp = lambda v: jnp.asarray(CURVATURE, jnp.float32) * v
    a = diffopt.gradient_noise_temperature(grads, ETA, momentum=M, hvp=hvp)
    found = chains["sghmc"][0][2] * CURVATURE[2] * (1 - ETA * CURVATURE[2] / (2 * (1 + M)))
    error = 4.5 * (np.sqrt(2 / B) + np.sqrt(2 / CHAINS))
    assert abs((T + a.noisiest) / found - 1) < error
    assert abs((T + a.stiffest) / found - 1) < error
