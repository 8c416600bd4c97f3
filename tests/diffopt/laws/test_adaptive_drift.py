"""asgld at its stationary law, which is colder than exp(-L/T), and where it is that of sgld."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.linalg import solve_discrete_lyapunov
from scipy.optimize import brentq

import diffopt
from tests import helpers

pytestmark = pytest.mark.slow

CHAINS, K, T = 100_000, 2.0, 0.7  # the loss is Kθ²/2
SCALE = np.sqrt(K * T)  # of the gradient


def run(tx, start, steps, nu=None):
    """θ after so many steps from a normal law of variance `start`, with ν at `nu` for ever."""
    theta = np.sqrt(start) * jax.random.normal(jax.random.key(99), (CHAINS,))
    state = tx.init(theta)
    if nu is not None:
        state = state._replace(nu=jnp.full(CHAINS, nu), weights=jnp.ones(2))
    return np.asarray(helpers.run(tx, theta, lambda x: K * x, steps, state=state)[0], np.float64)


def variance(eta, a, b1):
    """Of the linear step with √ν = kσ, σ its own standard deviation."""

    def covariance(sigma):
        pull = eta * a / (K * sigma)  # of μ, which is beside θ in the state
        lag = np.array([[1 - eta * K - pull * (1 - b1) * K, -pull * b1], [(1 - b1) * K, b1]])
        return solve_discrete_lyapunov(lag, np.diag([2 * T * eta, 0.0]))[0, 0]

    widest = 1.2 * np.sqrt(T / K)
    return brentq(lambda s: covariance(s) - s**2, 0.2 * widest, widest) ** 2


@pytest.mark.parametrize("a,b1,eta", [(0.5, 0.0, 0.1), (0.5, 0.9, 0.1), (1.0, 0.9, 0.02)])
def test_stationary_variance_of_slow_squares(a, b1, eta):
    expected = variance(eta, a * SCALE, b1)
    tx = diffopt.asgld(eta, T, drift=a * SCALE, b1=b1, b2=1 - 1e-6)
    theta = run(tx, expected, int(6 / (eta * K)), nu=K**2 * expected)
    assert abs((theta**2).mean() / expected - 1) < 4.5 * np.sqrt(2 / CHAINS)


@pytest.mark.parametrize("a", [0.1, 0.5, 3.0])
def test_at_small_steps_it_is_the_root_of_the_docstring(a):
    """And kσ²/T is the number there: far below 1 where a is beyond √(kT)."""
    sigma = (np.sqrt((a * SCALE) ** 2 + 4 * K * T) - a * SCALE) / (2 * K)
    assert K * sigma**2 + a * SCALE * sigma == pytest.approx(T)
    assert variance(1e-6, a * SCALE, 0.9) == pytest.approx(sigma**2, rel=1e-3)
    stated = {0.1: 0.90, 0.5: 0.61, 3.0: 0.09}[a]
    assert K * sigma**2 / T == pytest.approx(stated, abs=0.005)


def test_squares_that_have_to_be_found_give_the_same_law():
    """From ν = 0, with Adam's own decays."""
    expected = variance(0.02, 0.5 * SCALE, 0.9)
    theta = run(diffopt.asgld(0.02, T, drift=0.5 * SCALE), expected, 1_500)
    assert abs((theta**2).mean() / expected - 1) < 0.05


def test_without_drift_it_is_sgld_number_by_number():
    theta = jnp.linspace(-1, 1, 1_000)
    paths = [
        helpers.path(tx, theta, lambda x: K * x, 20)
        for tx in (diffopt.asgld(0.1, T, drift=0.0, key=3), diffopt.sgld(0.1, T, key=3))
    ]
    np.testing.assert_allclose(*paths, rtol=1e-6, atol=1e-6)


def test_a_drift_that_falls_to_0_leaves_the_law_of_sgld():
    eta = 0.1
    tx = diffopt.asgld(eta, T, drift=optax.linear_schedule(5.0, 0.0, 50))
    exact = T / (K * (1 - eta * K / 2))
    theta = run(tx, 25.0, 120)
    assert abs((theta**2).mean() / exact - 1) < 4.5 * np.sqrt(2 / CHAINS)


@pytest.mark.parametrize("b1,b2,eps", [(0.9, 0.999, 1e-8), (0.0, 0.9, 0.1)])
def test_at_zero_temperature_it_is_sgd_and_adam_at_once(b1, b2, eps):
    params = {"w": jnp.linspace(-2, 2, 6).reshape(2, 3), "b": jnp.ones(3)}
    bumpy = lambda params: jax.tree.map(lambda p: -3 * jnp.sin(3 * p) + 0.2 * p, params)
    moments = {"b1": b1, "b2": b2, "eps": eps}
    cold = helpers.path(diffopt.asgld(0.01, 0.0, drift=2.0, **moments), params, bumpy, 100)
    reference = helpers.path(helpers.sgd_and_adam(0.01, 2.0, **moments), params, bumpy, 100)
    helpers.assert_close(cold, reference, rtol=1e-4, atol=1e-5)
