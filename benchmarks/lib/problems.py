"""Laws with known means and variances, to try samplers on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

CENTRES = np.stack(np.meshgrid(*[np.arange(-4.0, 5.0, 2.0)] * 2), axis=-1).reshape(-1, 2)
VARIANCE = 0.03  # of each of the 25 Gaussians


def mixture_energy(theta: jax.Array) -> jax.Array:
    """-log p(θ) of the 25 Gaussians at one point `[2]`, up to a constant."""
    return -jax.nn.logsumexp(-jnp.sum((theta - CENTRES) ** 2, axis=-1) / (2 * VARIANCE))


def logistic_loss(w: jax.Array, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """The mean loss of a batch, with labels ±1."""
    x, sign = batch
    return jnp.mean(jax.nn.softplus(-sign * (x @ w)))


def logistic_rows(
    rng: np.random.Generator, rows: int, weights: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Synthetic rows and labels ±1; the mode of their logistic regression, and its curvature."""
    x = rng.normal(size=(rows, weights))
    sign = np.where(rng.random(rows) < 1 / (1 + np.exp(-x @ np.linspace(-1, 1, weights))), 1, -1)
    w = np.zeros(weights)
    for _ in range(20):  # Newton's method
        p = 1 / (1 + np.exp(-x @ w))
        curvature = (x.T * (p * (1 - p))) @ x
        w -= np.linalg.solve(curvature, x.T @ (p - (sign == 1)))
    return x, sign, w, curvature


class Problem(NamedTuple):
    """A law exp(-loss/T), and numbers `observe(θ)` whose means and deviations are known there."""

    name: str
    loss: Callable[..., jax.Array]
    start: Any
    mean: np.ndarray
    deviation: np.ndarray
    temperature: float = 1.0
    observe: Callable[[jax.Array], jax.Array] = lambda theta: theta
    data: Any = None
    batch_size: int | None = None
    mode: Any = None  # for control variates
    reference_error: float = 0.0  # of the means, in deviations


def gaussian() -> Problem:
    """Curvatures from 1 to 1,000 along the axes."""
    k = np.geomspace(1, 1000, 10)
    loss = lambda theta, batch=None: jnp.sum(jnp.asarray(k, jnp.float32) * theta**2) / 2
    return Problem("Gaussian", loss, 1 / np.sqrt(k), np.zeros(10), 1 / np.sqrt(k))


def eight_schools() -> Problem:
    """θ = (μ, log τ, η₁ ... η₈); given τ all is Gaussian, and τ goes by quadrature."""
    y = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
    sigma = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])

    def loss(theta: jax.Array, batch: Any = None) -> jax.Array:
        mu, tau, eta = theta[0], jnp.exp(theta[1]), theta[2:]
        residual = (y - mu - tau * eta) / sigma
        prior = mu**2 / 50 + jnp.log1p((tau / 5) ** 2) - theta[1] + jnp.sum(eta**2) / 2
        return prior + jnp.sum(residual**2) / 2

    tau = np.exp(np.linspace(-15, 8, 20_001))[:, None]
    spread = sigma**2 + tau**2
    v = 1 / (1 / 25 + np.sum(1 / spread, axis=1, keepdims=True))  # μ given τ
    m = v * np.sum(y / spread, axis=1, keepdims=True)
    log_weight = np.sum(-((y - m) ** 2) / spread - np.log(spread), axis=1, keepdims=True) / 2
    log_weight += np.log(v) / 2 - m**2 / 50 - np.log1p((tau / 5) ** 2) + np.log(tau)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    means = np.hstack([m, np.log(tau), tau * (y - m) / spread])
    variances = np.hstack([v, 0 * tau, sigma**2 / spread + (tau / spread) ** 2 * v])
    mean = np.sum(weight * means, axis=0)
    deviation = np.sqrt(np.sum(weight * (variances + means**2), axis=0) - mean**2)
    return Problem("eight schools", loss, mean + deviation, mean, deviation)


def logistic_regression(rows: int) -> Problem:
    """Synthetic rows in batches of 100; the law by draws of Laplace's approximation, weighted."""
    rng = np.random.default_rng(0)
    x, sign, w, curvature = logistic_rows(rng, rows, 10)
    scale = np.linalg.inv(np.linalg.cholesky(curvature)).T
    normal = rng.normal(size=(2000, 10))
    normal = np.vstack([normal, -normal])
    log_weight = [
        z @ z / 2 - np.sum(np.logaddexp(0, -sign * (x @ (w + scale @ z)))) for z in normal
    ]
    weight = np.exp(log_weight - np.max(log_weight))
    weight /= weight.mean()
    away = normal @ scale.T
    covariance = scale @ scale.T  # the mean of the weight - 1 takes out the error of the draws
    shift = np.mean((weight - 1)[:, None] * away, axis=0)
    square = np.diag(covariance) + np.mean((weight - 1)[:, None] * away**2, axis=0)
    deviation = np.sqrt(square - shift**2)
    data = jnp.asarray(x, jnp.float32), jnp.asarray(sign, jnp.float32)
    return Problem(
        "logistic regression", logistic_loss, w + shift + deviation, w + shift, deviation, 1 / rows,
        data=data, batch_size=100, mode=w,
    )  # fmt: skip


def network(theta: jax.Array, x: jax.Array) -> jax.Array:
    """A function of one input, by eight tanh units: 25 parameters."""
    w, b, v = theta[:24].reshape(3, 8)
    return jnp.tanh(2 * (x[:, None] * w + b)) @ v + theta[24]


def bayesian_network(chains: int, draws: int) -> Problem:
    """A wave seen through noise, with a gap; standard normal priors, and NUTS for the functions."""
    import blackjax

    rng = np.random.default_rng(0)
    places = np.concatenate([rng.uniform(-2, -0.7, 30), rng.uniform(0.6, 2, 30)])
    y = jnp.asarray(np.sin(2 * places) + 0.2 * rng.normal(size=60), jnp.float32)
    x, grid = jnp.asarray(places, jnp.float32), jnp.linspace(-2.5, 2.5, 11)

    def loss(theta: jax.Array, batch: Any = None) -> jax.Array:
        return jnp.mean((network(theta, x) - y) ** 2) / 0.08 + jnp.sum(theta**2) / 120

    log_density = lambda theta: -60 * loss(theta)

    def chain(key: jax.Array) -> jax.Array:
        start_key, warmup_key, key = jax.random.split(key, 3)
        adaptation = blackjax.window_adaptation(blackjax.nuts, log_density)
        start = jax.random.normal(start_key, (25,))
        (state, parameters), _ = adaptation.run(warmup_key, start, num_steps=draws // 2)
        nuts = blackjax.nuts(log_density, **parameters)

        def step(state: Any, key: jax.Array) -> Any:
            state, _ = nuts.step(key, state)
            return state, state.position

        return jax.lax.scan(step, state, jax.random.split(key, draws))[1]

    path = jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(0), chains))
    functions = np.asarray(jax.vmap(jax.vmap(lambda p: network(p, grid)))(path), float)
    mean, deviation = functions.mean((0, 1)), functions.std((0, 1))
    error = np.max(functions.mean(1).std(0, ddof=1) / deviation) / chains**0.5
    return Problem(
        "Bayesian network", loss, path[0, -1], mean, deviation, 1 / 60,
        observe=lambda theta: network(theta, grid), reference_error=float(error),
    )  # fmt: skip


def mixture() -> Problem:
    """25 Gaussians on a grid: the share within 0.6 of each centre, and of none."""
    square = lambda theta: jnp.sum((theta - CENTRES) ** 2, axis=-1)
    inside = lambda theta: jnp.where(square(theta) < 0.36, 1.0, 0.0)
    outside = np.exp(-0.36 / (2 * VARIANCE))
    return Problem(
        "25 Gaussians", lambda theta, batch=None: mixture_energy(theta),
        np.full(2, VARIANCE**0.5), np.append(np.full(25, (1 - outside) / 25), outside), np.ones(26),
        observe=lambda theta: jnp.append(inside(theta), 1 - inside(theta).sum()),
    )  # fmt: skip


PROBLEMS: dict[str, Callable[[bool], Problem]] = {
    "gaussian": lambda quick: gaussian(),
    "eight_schools": lambda quick: eight_schools(),
    "logistic": lambda quick: logistic_regression(1000),
    "network": lambda quick: bayesian_network(8, 100 if quick else 1000),
    "mixture": lambda quick: mixture(),
}
