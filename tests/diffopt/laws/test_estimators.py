"""Gradient estimators against closed forms: their variance, and the chains that they make."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_diabetes

import diffopt

pytestmark = pytest.mark.slow

# The noise of the gradient, near the mode of a logistic regression


def test_variance_near_the_mode_is_that_of_the_linearised_gradients():
    """By a factor near N/d below that of plain batches.

    Draws come in pairs at ±δ, in which what is left out, odd in δ, cancels.
    """
    rows, d, n, batches = 100_000, 10, 100, 2000
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, d))
    sign = np.where(rng.random(rows) < 1 / (1 + np.exp(-x @ np.linspace(-1, 1, d))), 1.0, -1.0)
    mode = np.zeros(d)
    for _ in range(20):
        p = 1 / (1 + np.exp(-x @ mode))
        curvature = (x.T * (p * (1 - p))) @ x
        mode -= np.linalg.solve(curvature, x.T @ (p - (sign > 0)))
    half = rng.multivariate_normal(np.zeros(d), np.linalg.inv(curvature), size=4)
    away = np.concatenate([half, -half])

    loss = lambda w, batch: jnp.mean(jax.nn.softplus(-batch[1] * (batch[0] @ w)))
    grad = jax.grad(loss)
    center, *data = (jnp.asarray(a, jnp.float32) for a in (mode, x, sign))
    estimators = {
        "plain": diffopt.GradientEstimator(
            lambda params: (), lambda params, batch, state: (grad(params, batch), state)
        ),
        "control_variate": diffopt.control_variate(grad, center, data),
        "svrg": diffopt.svrg(grad, data, 1000),  # whose center is the mode here
    }
    one = x * (p - (sign > 0))[:, None]
    change = [x * (p * (1 - p) * (x @ delta))[:, None] for delta in away]
    spread = lambda g: np.sum(np.var(g, axis=0)) / n  # of batches drawn with replacement
    near = np.mean([spread(g) for g in change])
    theory = {"plain": spread(one), "control_variate": near, "svrg": near}
    ratios = {}
    for name, estimator in estimators.items():

        @jax.jit
        def measure(theta, key, data):
            state = estimator.init(center)

            def error(key):
                index = jax.random.randint(key, (n,), 0, rows)
                batch = jax.tree.map(lambda a: a[index], data)
                return estimator.update(theta, batch, state)[0] - exact

            exact = grad(theta, data)
            errors = jax.lax.map(error, jax.random.split(key, batches), batch_size=100)
            return jnp.sum(errors**2, axis=1)

        keys = jax.random.split(jax.random.key(1), len(away))
        thetas = jnp.asarray(mode + away, jnp.float32)
        squares = np.concatenate(
            [measure(t, k, data) for t, k in zip(thetas, keys, strict=True)]
        ).astype(float)
        error = squares.std() / np.sqrt(len(squares))
        assert abs(squares.mean() - theory[name]) < 4.5 * error, name
        ratios[name] = squares.mean()
    assert 0.5 < ratios["plain"] / ratios["control_variate"] / (rows / d) < 2


# Chains of a linear regression

N, D, BATCH, T = 40, 3, 4, 1 / 40
RNG = np.random.default_rng(3)
X = RNG.normal(size=(N, D)) * [0.5, 1.0, 1.5]
Y = X @ [1.0, -1.0, 0.5] + RNG.normal(size=N)
EACH = np.einsum("ni,nj->nij", X, X)  # the Hessian of each example
H = EACH.mean(0)
MODE = np.linalg.solve(H, X.T @ Y / N)
OFF = np.einsum("nij,nkl->ikjl", EACH - H, EACH - H).reshape(D**2, D**2) / N
RESIDUAL = X * (X @ MODE - Y)[:, None]
DATA = jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32)
CENTER = jnp.asarray(MODE, jnp.float32)
GRAD = jax.grad(lambda w, batch: jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2)
CHAINS = 20_000


def noise(second_moment):
    """The covariance of a batch's Σ (H_i - H)δ / n, from E[δδᵀ]."""
    return (OFF @ second_moment.ravel()).reshape(D, D) / BATCH


def stationary(step, pushed, injected, plain):
    """E[δδᵀ] of z ← step z - pushed (g - Hδ) + injected, z starting with δ = θ - mode.

    The gradients' noise has the covariance of (H_i - H)δ, and that at the mode where they are
    `plain`: a linear equation, solved by iteration.
    """
    z = np.zeros_like(step)
    at_mode = plain * RESIDUAL.T @ RESIDUAL / N / BATCH
    for _ in range(20_000):
        z = step @ z @ step.T + pushed @ (noise(z[:D, :D]) + at_mode) @ pushed.T + injected
    return z[:D, :D]


def second_moments(tx, estimator, steps):
    """E[δδᵀ] of many chains after so many steps of independent batches, and its standard error."""

    @jax.jit
    def run(estimator, keys):
        def one(key):
            order_key, noise_key = jax.random.split(key)
            state, opt_state = estimator.init(CENTER), tx.init(CENTER)
            opt_state = opt_state._replace(key=noise_key)

            def step(carry, index):
                params, state, opt_state = carry
                batch = jax.tree.map(lambda a: a[index], DATA)
                grads, state = estimator.update(params, batch, state)
                updates, opt_state = tx.update(grads, opt_state, params)
                return (optax.apply_updates(params, updates), state, opt_state), None

            order = jax.random.randint(order_key, (steps, BATCH), 0, N)
            (params, *_), _ = jax.lax.scan(step, (CENTER, state, opt_state), order)
            return params - CENTER

        return jax.vmap(one)(keys)

    delta = np.asarray(run(estimator, jax.random.split(jax.random.key(5), CHAINS)), float)
    products = delta[:, :, None] * delta[:, None]
    return products.mean(0), products.std(0) / np.sqrt(CHAINS)


PLAIN = diffopt.GradientEstimator(
    jax.tree_util.Partial(lambda params: ()),
    jax.tree_util.Partial(lambda params, batch, state: (GRAD(params, batch), state)),
)
CONTROLLED = diffopt.control_variate(GRAD, CENTER, DATA)
ETA, SIZE, FRICTION = 0.1, 0.4, 1.0


def sgld_law(plain):
    eye = np.eye(D)
    return stationary(eye - ETA * H, ETA * eye, 2 * T * ETA * eye, plain)


def baoab_law(plain):
    eye, h, c = np.eye(D), SIZE, np.exp(-FRICTION * SIZE)
    step = np.block([[eye - h**2 / 2 * (1 + c) * H, h / 2 * (1 + c) * eye], [-c * h * H, c * eye]])
    pushed = np.vstack([h**2 / 2 * (1 + c) * eye, c * h * eye])
    increment = np.vstack([h / 2 * eye, eye])
    return stationary(step, pushed, (1 - c**2) * T * increment @ increment.T, plain)


@pytest.mark.parametrize("name", ["sgld", "baoab"])
@pytest.mark.parametrize("estimator", ["plain", "control_variate"])
def test_stationary_covariance_with_independent_batches(name, estimator):
    tx = {"sgld": diffopt.sgld(ETA, T), "baoab": diffopt.baoab(SIZE, T, friction=FRICTION)}[name]
    law = {"sgld": sgld_law, "baoab": baoab_law}[name]
    plain = estimator == "plain"
    found, error = second_moments(tx, PLAIN if plain else CONTROLLED, 400)
    assert (np.abs(found - law(plain)) < 4.5 * error).all()


@pytest.mark.parametrize("law", [sgld_law, baoab_law])
def test_the_hottest_direction_is_cooled_by_a_factor_like_n_over_d(law):
    excess = lambda plain: np.linalg.eigvals(H @ law(plain) / T).real.max() - 1
    assert excess(True) > 2
    assert 0.5 < excess(True) / excess(False) / (N / D) < 2


def test_svrg_covariance_at_the_end_of_a_cycle():
    """δ_j = (I - ηH) δ_{j-1} - η noise(δ_j - δ_0) + √(2Tη) ξ, and E[δ_j δ_0ᵀ] = (I - ηH)^j S_0."""
    every, cycles = 20, 20
    step, S = np.eye(D) - ETA * H, np.zeros((D, D))
    for _ in range(cycles):
        start, with_start = S, S
        for _ in range(every):
            way = S + start - with_start - with_start.T
            S = step @ S @ step.T + ETA**2 * noise(way) + 2 * T * ETA * np.eye(D)
            with_start = step @ with_start
    tx, estimator = diffopt.sgld(ETA, T), diffopt.svrg(GRAD, DATA, every)
    found, error = second_moments(tx, estimator, every * cycles)
    assert (np.abs(found - S) < 4.5 * error).all()
    quiet = 2 * T * ETA * np.linalg.inv(np.eye(D**2) - np.kron(step, step)) @ np.eye(D).ravel()
    assert (np.abs(found - quiet.reshape(D, D)) > 4.5 * error).any()  # of exact gradients
    assert (np.abs(S - start) < 0.01 * np.diag(S).max()).all()  # cycles repeat


# The posterior of the diabetes data, at equal gradients of examples


def test_every_direction_of_a_posterior_within_ten_percent():
    """Two gradients of 16 examples a step do what one of 32 does not, at the same step size."""
    x, y = ((a - a.mean(0)) / a.std(0) for a in load_diabetes(return_X_y=True))
    x, y = x.astype(np.float32), y.astype(np.float32)
    number, variance = len(y), np.float32(0.5)

    def loss(w, batch):
        return jnp.mean((batch[0] @ w - batch[1]) ** 2) / (2 * variance)

    mode = jnp.asarray(np.linalg.lstsq(x.astype(float), y)[0], jnp.float32)
    curvature, directions = np.linalg.eigh(x.T.astype(float) @ x / variance)

    def ratios(batch_size, grad):
        samples = diffopt.sample(
            diffopt.baoab(0.02, 1 / number, friction=0.3), loss, mode, (x, y),
            num_steps=60_000, burn_in=3000, every=50, num_chains=64,
            batch_size=batch_size, estimator=grad,
        )  # fmt: skip
        away = (np.asarray(samples.draws, float) - np.asarray(mode, float)) @ directions
        each = (away**2).mean(1) * curvature
        return each.mean(0), each.std(0, ddof=1) / np.sqrt(len(each))

    estimator = diffopt.control_variate(jax.grad(loss), mode, (x, y))
    corrected, error = ratios(16, estimator)
    assert (error < 0.03).all()
    assert (np.abs(corrected - 1) < 0.1).all()
    plain, error = ratios(32, None)
    hottest = plain.argmax()
    assert plain[hottest] - 4.5 * error[hottest] > 1.2
