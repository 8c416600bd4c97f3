"""Posteriors through `sample`, against exact ones: within 5 % of a posterior standard deviation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_diabetes

import diffopt

pytestmark = pytest.mark.slow


def within_five_percent(draws, mean, sd):
    """Mean and standard deviation of `[chain, draw, ...]`; chains tell that 5 % are no luck."""
    draws = np.asarray(draws, float)
    each = draws.mean(1)
    error = each.std(0, ddof=1) / np.sqrt(len(each))
    assert (error < 0.02 * sd).all()
    assert (np.abs(each.mean(0) - mean) < 0.05 * sd).all()
    assert (np.abs(draws.std((0, 1)) - sd) < 0.05 * sd).all()


Y = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
SIGMA = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])


def exact_eight_schools():
    """Means and standard deviations of μ and of the eight θ, by quadrature over μ and log τ.

    Given both, y is N(μ, σ² + τ²) and θ is normal, with a precision of 1/σ² + 1/τ².
    """
    mu = np.linspace(-25, 35, 1201)[:, None, None]
    log_tau = np.linspace(-12, 7, 1901)[None, :, None]
    tau = np.exp(log_tau)
    variance = SIGMA**2 + tau**2
    log_p = (-((Y - mu) ** 2) / variance / 2 - np.log(variance) / 2).sum(-1)
    log_p += (-((mu / 5) ** 2) / 2 - np.log1p((tau / 5) ** 2) + log_tau)[..., 0]
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    means = lambda x: (p[..., None] * x).sum((0, 1))
    theta = (Y * tau**2 + mu * SIGMA**2) / variance
    square = theta**2 + tau**2 * SIGMA**2 / variance
    mu_mean, theta_mean = means(mu), means(theta)
    return (
        (mu_mean, np.sqrt(means(mu**2) - mu_mean**2)),
        (theta_mean, np.sqrt(means(square) - theta_mean**2)),
        (means(log_tau), np.sqrt(means(log_tau**2) - means(log_tau) ** 2)),
    )


def test_eight_schools():
    """Not centred: θ = μ + τ z, with μ ~ N(0, 5²), τ ~ half-Cauchy(5) and z ~ N(0, 1)."""

    def loss(params):
        mu, log_tau, z = params["mu"], params["log_tau"], params["z"]
        tau = jnp.exp(log_tau)
        prior = (mu / 5) ** 2 / 2 + jnp.log1p((tau / 5) ** 2) - log_tau + jnp.sum(z**2) / 2
        return prior + jnp.sum(((mu + tau * z - Y) / SIGMA) ** 2) / 2

    params = {"mu": jnp.array(5.0), "log_tau": jnp.array(1.0), "z": jnp.zeros(8)}
    samples = diffopt.sample(
        diffopt.baoab(0.25, temperature=1.0, friction=0.3),
        loss,
        params,
        num_steps=42_000,
        num_chains=64,
        burn_in=2000,
        every=20,
    )
    assert (samples.diverged < 0).all()
    mu, theta, log_tau = exact_eight_schools()
    draws = samples.draws
    within_five_percent(draws["mu"], *mu)
    within_five_percent(draws["log_tau"], *log_tau)
    schools = draws["mu"][..., None] + jnp.exp(draws["log_tau"])[..., None] * draws["z"]
    within_five_percent(schools, *theta)


def test_linear_regression_on_the_diabetes_data():
    """Coefficients, and the 90 % intervals of the predictions, which the posterior has exactly."""
    x, y = load_diabetes(return_X_y=True)
    x = np.concatenate([np.ones((len(x), 1)), (x - x.mean(0)) / x.std(0)], 1).astype(np.float32)
    y = ((y - y.mean()) / y.std()).astype(np.float32)
    noise = np.float32(0.5)  # its variance
    number = len(y)

    def loss(w, batch):
        x, y = batch
        return jnp.mean((x @ w - y) ** 2) / (2 * noise)

    precision = x.T.astype(float) @ x / noise
    covariance = np.linalg.inv(precision)
    mean = covariance @ (x.T.astype(float) @ y) / noise
    step_size = 1.6 / np.sqrt(np.linalg.eigvalsh(precision / number)[-1])
    samples = diffopt.sample(
        diffopt.baoab(step_size, 1 / number, friction=0.1),
        loss,
        jnp.zeros(x.shape[1]),
        (x, y),
        num_steps=6000,
        num_chains=32,
        burn_in=1000,
        every=5,
    )
    within_five_percent(samples.draws, mean, np.sqrt(np.diag(covariance)))

    lines = diffopt.predictions(lambda w, x: x @ w, samples, x, batch_size=1000)
    noise_of_y = jnp.sqrt(noise) * jax.random.normal(jax.random.key(0), lines.shape)
    low, high = jnp.quantile(lines + noise_of_y, jnp.array([0.05, 0.95]), axis=0)
    exact = 2 * 1.6449 * np.sqrt(noise + np.einsum("ni,ij,nj->n", x, covariance, x))
    np.testing.assert_allclose(high - low, exact, rtol=0.05)
