"""hierarchical_prior: its draws, the prior of the parameters alone, and a linear model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.integrate import quad_vec
from scipy.stats import kstest, t

import diffopt

pytestmark = pytest.mark.slow

CHAINS = 20_000


def chains(tx, params, grad, steps):
    """The parameters and states of chains that lead `params`, each with its own noise."""
    start = diffopt.split_keys(tx.init(jax.tree.map(lambda p: p[0], params)), CHAINS)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(grad(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    one = lambda params, state: jax.lax.scan(step, (params, state), length=steps)[0]
    return jax.jit(jax.vmap(one))(params, start)


def test_a_precision_has_its_gamma_law_whatever_the_temperature():
    theta = jnp.array([1.0, -2.0, 0.5])
    for T in (0.1, 1.0):
        tx = diffopt.hierarchical_prior(T, shape=2.0, rate=3.0)
        _, state = chains(tx, jnp.tile(theta, (CHAINS, 1)), jnp.zeros_like, 1)
        shape, rate = 2 + 3 / 2, 3 + float(theta @ theta) / 2
        scaled = np.asarray(state.precision, np.float64) * rate
        assert abs(scaled.mean() - shape) < 4.5 * np.sqrt(shape / CHAINS)
        fourth = 3 * shape**2 + 6 * shape
        assert abs(scaled.var() - shape) < 4.5 * np.sqrt((fourth - shape**2) / CHAINS)


@pytest.mark.parametrize(
    "T,every,sampler",
    [
        (
            1.0,
            1,
            diffopt.sgld(0.004, 1.0),
        ),  # ηTλ/2, the bias of a variance, is 1 % at the mean of λ
        (0.2, 7, diffopt.sgld(0.02, 0.2)),
        (1.0, 1, diffopt.baoab(0.1, 1.0)),  # its velocities stand half a kick behind
    ],
    ids=["sgld", "sgld seldom", "baoab"],
)
def test_without_data_the_parameters_have_a_students_t(T, every, sampler):
    """They start at the law of the parameters with the precision at its mean, far from it."""
    shape, rate = 2.0, 0.5
    tx = optax.chain(diffopt.hierarchical_prior(T, shape=shape, rate=rate, every=every), sampler)
    start = jax.random.normal(jax.random.key(1), (CHAINS, 2)) * np.sqrt(rate / shape)
    theta, _ = chains(tx, start, jnp.zeros_like, 800)
    law = t(2 * shape, scale=np.sqrt(rate / shape))
    for element in np.asarray(theta, np.float64).T:
        for q in (0.01, 0.1, 0.25, 0.75, 0.9, 0.99):
            below = (element < law.ppf(q)).mean()
            assert abs(below - q) < 4.5 * np.sqrt(q * (1 - q) / CHAINS), (q, below)
        gaussian = kstest(element / element.std(), "norm").pvalue
        assert gaussian < 1e-6  # the tails are seen


def quadrature(X, y, shape, rate):
    """Mean and covariance of w in y = Xw + N(0, 1), w ~ N(0, 1/λ), λ ~ Gamma(shape, rate)."""
    A, b, d = X.T @ X, X.T @ y, X.shape[1]

    def moments(log_precision):
        precision = np.exp(log_precision)
        covariance = np.linalg.inv(A + precision * np.eye(d))
        mean = covariance @ b
        log_density = (shape + d / 2) * log_precision - rate * precision
        log_density += np.linalg.slogdet(covariance)[1] / 2 + b @ mean / 2 - b @ b / 2
        second = covariance + np.outer(mean, mean)
        return np.exp(log_density) * np.concatenate([[1], mean, second.ravel()])

    total, *rest = quad_vec(moments, -12, 8)[0]
    mean = np.array(rest[:d]) / total
    return mean, np.array(rest[d:]).reshape(d, d) / total - np.outer(mean, mean)


@pytest.mark.parametrize("make,step", [(diffopt.sgld, 0.02), (diffopt.baoab, 0.2)])
def test_a_linear_model_has_the_posterior_of_a_quadrature(make, step):
    """The loss is a mean over examples and T = 1/N: the priors are not tempered."""
    rng = np.random.default_rng(0)
    N, shape, rate = 6, 1.0, 0.3
    X = rng.normal(size=(N, 2)) * [1, 0.5]
    y = X @ [0.8, -0.5] + rng.normal(size=N)
    mean, covariance = quadrature(X, y, shape, rate)
    features, target = jnp.asarray(X, jnp.float32), jnp.asarray(y, jnp.float32)
    prior = diffopt.hierarchical_prior(1 / N, shape=shape, rate=rate, every=5)
    tx = optax.chain(prior, make(step, 1 / N))
    start = jnp.asarray(rng.multivariate_normal(mean, covariance, CHAINS), jnp.float32)
    grad = lambda w: features.T @ (features @ w - target) / N
    w = np.asarray(chains(tx, start, grad, 1_000)[0], np.float64)
    assert (abs(w.mean(0) - mean) < 4.5 * np.sqrt(np.diag(covariance) / CHAINS)).all()
    centred = w - mean
    products = centred[:, :, None] * centred[:, None]
    error = products.std(0) / np.sqrt(CHAINS)
    assert (abs(products.mean(0) - covariance) < 4.5 * error).all()
    fixed = np.linalg.inv(X.T @ X + shape / rate * np.eye(2))  # of the precision at its mean
    assert (abs(np.diag(covariance - fixed)) > 9 * np.diag(error)).any()
