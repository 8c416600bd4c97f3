"""psgld at its stationary law, and how far that law is from exp(-L/T)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.integrate import quad

import diffopt
from tests import helpers

N, T, K = 100_000, 0.7, 2.0  # chains; the loss is Kθ²/2


def run(tx, theta, steps, curvature=K):
    return np.asarray(helpers.run(tx, theta, lambda x: curvature * x, steps)[0], np.float64)


def moments_of_the_step(eta, eps):
    """E θ² and E θ⁴ of the chain with decay 0, from its transition density on a grid."""
    x = np.linspace(-5, 5, 1001)
    G = 1 / (np.abs(K * x) + eps)
    mean, variance = x - eta * G * K * x, 2 * T * eta * G
    transition = np.exp(-((x - mean[:, None]) ** 2) / (2 * variance[:, None]))
    transition /= transition.sum(axis=1, keepdims=True)
    equations = transition.T - np.eye(len(x))
    equations[0] = 1  # in place of one that follows from the others: probabilities add up to 1
    density = np.linalg.solve(equations, np.eye(len(x))[0])
    return density @ x**2, density @ x**4


def variance_of_the_diffusion(eps):
    """E θ² under p(θ) ∝ exp(-Kθ²/2T) / G(θ), the law without the Γ drift."""
    density = lambda x: np.exp(-K * x**2 / (2 * T)) * (abs(K * x) + eps)
    return quad(lambda x: x**2 * density(x), 0, 8)[0] / quad(density, 0, 8)[0]


@pytest.mark.parametrize("eta,eps", [(0.1, 0.5), (0.3, 2.0)])
def test_the_law_of_the_step_where_the_preconditioner_keeps_up(eta, eps):
    theta = run(diffopt.psgld(eta, T, decay=0.0, eps=eps), jnp.zeros(N), 150)
    second, fourth = moments_of_the_step(eta, eps)
    assert abs((theta**2).mean() - second) < 4.5 * np.sqrt((fourth - second**2) / N)


@pytest.mark.parametrize("eps", [0.5, 2.0])
def test_without_gamma_small_steps_converge_to_a_biased_law(eps):
    """The error of the step halves with it, but what remains is the law p ∝ exp(-L/T)/G."""
    biased = variance_of_the_diffusion(eps)
    errors = [moments_of_the_step(eta, eps)[0] - biased for eta in (0.08, 0.04, 0.02)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)
    assert biased > 1.2 * T / K


@pytest.mark.slow
def test_the_bias_vanishes_where_the_preconditioner_averages_over_many_states():
    """decay → 1: G is a constant and the variance T / (K (1 - ηGK/2))."""
    eta, eps = 0.15, 1e-5

    def variance(decay, steps):
        theta = jnp.sqrt(T / K) * jax.random.normal(jax.random.key(5), (20_000,))
        return run(diffopt.psgld(eta, T, decay=decay, eps=eps), theta, steps).var()

    G = 1 / np.sqrt(K * T)  # 1/√E g², up to the correction itself
    for _ in range(20):
        exact = T / (K * (1 - eta * G * K / 2))
        G = 1 / np.sqrt(K**2 * exact)
    slow, fast = variance(0.999, 4_000) / exact - 1, variance(0.9, 200) / exact - 1
    assert fast > 0.1
    assert abs(slow) < 0.02


def test_one_step_size_serves_curvatures_that_differ_by_1_000():
    """At a step five times beyond the stability of sgld on the steepest, 10 % from T/k at most."""
    curvature = np.array([1.0, 10.0, 100.0, 1000.0])
    spread = jnp.repeat(jnp.asarray(curvature, jnp.float32), 5_000)
    theta = jnp.sqrt(T / spread) * jax.random.normal(jax.random.key(6), spread.shape)
    tx = diffopt.psgld(0.01, T, decay=0.999)
    start = tx.init(theta)._replace(nu=spread * T)  # E g²
    tx = optax.GradientTransformation(lambda _: start, tx.update)
    theta = run(tx, theta, 4_000, spread)
    scaled = theta.reshape(4, -1).var(axis=1) * curvature / T
    euler_maruyama = 1 / (1 - 0.01 * np.sqrt(curvature / T) / 2)
    assert np.all(np.abs(scaled / euler_maruyama - 1) < 0.1)
