"""Laws of the methods that perturb, in closed form: `ivon`, `weight_noise`, `label_noise`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.linalg import solve_discrete_lyapunov

import diffopt
from tests.helpers import run

pytestmark = pytest.mark.slow

N = 100_000  # independent elements


def run_perturbed(tx, params, grad, steps, state=None):
    """The last parameters and state of steps with gradients at the perturbed parameters."""

    @jax.jit
    def simulate(params, state):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(grad(diffopt.perturbed(params, state)), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), length=steps)[0]

    return simulate(params, tx.init(params) if state is None else state)


def assert_mean(x, expected, variance=None):
    """The mean of `x` within 4.5 standard errors."""
    x = np.asarray(x, np.float64)
    error = np.sqrt((x.var() if variance is None else variance) / x.size)
    assert abs(x.mean() - expected) < 4.5 * error, (x.mean(), expected, error)


def assert_variance(x, expected):
    """The variance of the normal `x`, whose mean is 0, within 4.5 standard errors."""
    x = np.asarray(x, np.float64)
    ratio = (x**2).mean() / expected
    assert abs(ratio - 1) < 4.5 * np.sqrt(2 / x.size), ratio


def learned(precision, num_examples, h, delta, slow):
    """f of one step, from the factor (1 + (1 + a)²)/2 with a = (1 - β₂)(f - h)/(h + δ) > -1."""
    p = h + delta
    a = np.sqrt(2 * np.float64(precision) / (num_examples * p) - 1) - 1
    return h + a * p / slow


@pytest.mark.parametrize("noise", ["gaussian", "gaussian16", "rademacher"])
def test_the_product_is_unbiased_for_the_diagonal_of_a_hessian(noise):
    """Of a quadratic whose Hessian has entries beside the diagonal."""
    hessian = np.array([[2.0, 0.7, -0.3], [0.7, 1.0, 0.4], [-0.3, 0.4, 0.5]], np.float32)
    tx = diffopt.ivon(0.1, 30.0, hess_decay=0.999, weight_decay=0.5, noise=noise)
    params = jnp.tile(jnp.array([0.3, -0.2, 0.1]), (N, 1))
    state = tx.init(params)
    _, after = tx.update(diffopt.perturbed(params, state) @ hessian, state, params)
    f = learned(after.precision, 30.0, 1.0, 0.5, 1e-3)
    for i in range(3):
        assert_mean(f[:, i], hessian[i, i])


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("parts", [1, 3, 4])
def test_the_product_is_unbiased_however_many_parts_a_step_has(parts, draws):
    k, m, num_examples, slow = 2.0, 0.1, 50.0, 1e-3
    ivon = diffopt.ivon(0.1, num_examples, hess_decay=1 - slow, draws=draws, weight_decay=0.5)
    tx, params = optax.MultiSteps(ivon, parts), jnp.full(N, m)
    state = tx.init(params)
    for _ in range(parts):
        gradient = k * diffopt.perturbed(params, state)
        _, state = tx.update(gradient, state, params)
    assert state.inner_opt_state.count == 1
    assert_mean(learned(state.inner_opt_state.precision, num_examples, 1.0, 0.5, slow), k)


def test_one_step_of_h_has_the_mean_that_the_equation_gives():
    """E[h'] = β₂h + (1 - β₂)k + (1 - β₂)² ((h - k)² + Var f)/(2(h + δ)), with minibatch noise."""
    k, h, delta, m, s, num_examples, slow = 3.0, 0.5, 0.2, 0.3, 0.4, 20.0, 0.2
    tx = diffopt.ivon(0.1, num_examples, hess_init=h, hess_decay=1 - slow, weight_decay=delta)
    params = jnp.full(N, m)
    state = tx.init(params)
    batch = s * jax.random.normal(jax.random.key(5), (N,))
    _, after = tx.update(k * diffopt.perturbed(params, state) + batch, state, params)
    variance = 2 * k**2 + num_examples * (h + delta) * ((k * m) ** 2 + s**2)
    expected = (1 - slow) * h + slow * k + slow**2 * ((h - k) ** 2 + variance) / (2 * (h + delta))
    assert_mean(after.precision / num_examples - delta, expected)


@pytest.mark.slow
def test_h_ends_at_the_curvature_and_draws_have_its_variance():
    """From h₀ = k/4; to first order in 1 - β₂ above k by (1 - β₂) Var f / (2(k + δ))."""
    k, delta, num_examples, slow, eta, n = 2.0, 0.1, 100.0, 2e-3, 0.01, 20_000
    tx = diffopt.ivon(
        eta, num_examples, hess_init=k / 4, momentum=0.0, hess_decay=1 - slow, weight_decay=delta
    )
    params, state = run_perturbed(tx, jnp.ones(n), lambda p: k * p, 5000)
    rate = eta * (k / 4 + delta)  # of m ← m - rate (km + kε + δm)/(h + δ)
    spread = (rate * k / (k + delta)) ** 2 / (1 - (1 - rate) ** 2) / (num_examples * (k + delta))
    variance = 2 * k**2 + num_examples * (k + delta) * k**2 * spread
    h = np.float64(state.precision) / num_examples - delta
    error = 4.5 * np.sqrt(slow * variance / 2 / n) + (slow * variance) ** 2  # and second order
    assert abs(h.mean() - (k + slow * variance / (2 * (k + delta)))) < error
    draw = diffopt.perturbed(params, state, key=7) - params
    assert_variance(draw * np.sqrt(state.precision), 1.0)
    assert abs(np.var(draw) * num_examples * (k + delta) - 1) < 4.5 * np.sqrt(2 / n) + 2 * slow * k


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_mean_has_its_stationary_law(momentum):
    """h = k held fixed: (m, M) is a linear recursion, and ε its noise."""
    k, delta, num_examples, eta, n = 1.5, 0.1, 40.0, 0.2, 50_000
    tx = diffopt.ivon(
        eta, num_examples, hess_init=k, momentum=momentum, hess_decay=1.0, weight_decay=delta
    )
    params, state = run_perturbed(tx, jnp.zeros(n), lambda p: k * p, 400)
    kick = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    M_row = np.array([(1 - momentum) * k, momentum])  # M' of (m, M)
    m_row = kick[0] - eta * (M_row + delta * kick[0])
    noise = np.array([-eta, 1.0]) * (1 - momentum) * k  # of ε in (m', M')
    covariance = solve_discrete_lyapunov(
        np.stack([m_row, M_row]), np.outer(noise, noise) / (num_examples * (k + delta))
    )
    assert_variance(params, covariance[0, 0])
    assert_mean(params, 0.0)
    np.testing.assert_allclose(state.precision, num_examples * (k + delta), rtol=1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 1e-4])
@pytest.mark.parametrize("hess_decay", [0.0, 0.9, 0.99999])
def test_the_precision_stays_positive_whatever_the_gradients_are(hess_decay, weight_decay):
    tx = diffopt.ivon(
        1e-3, 1e6, hess_init=1e-3, hess_decay=hess_decay, weight_decay=weight_decay, clip=1.0
    )
    params, update = jnp.ones(2000), jax.jit(tx.update)
    state = tx.init(params)
    rng = np.random.default_rng(0)
    for step in range(60):
        sizes = 10.0 ** rng.uniform(-30, 25, size=2000)
        epsilon = np.asarray(diffopt.perturbed(jnp.zeros(2000), state))
        against = -np.sign(epsilon) if step % 3 else rng.choice([-1, 1], 2000)
        updates, state = update(jnp.asarray(sizes * against, jnp.float32), state, params)
        precision = np.asarray(state.precision)
        assert np.isfinite(precision).all() and (precision > 0).all()
        assert np.isfinite(diffopt.perturbed(params, state)).all()
        assert np.isfinite(updates).all()


def test_the_least_factor_is_a_half():
    """f = h - (h + δ)/(1 - β₂), that is a = -1: h + δ is halved; it is so at no other f."""
    tx = diffopt.ivon(0.1, 10.0, hess_decay=0.5, weight_decay=0.0)
    params = jnp.zeros(1001)
    state = tx.init(params)
    epsilon = diffopt.perturbed(params, state)
    f = jnp.linspace(-2, 0, 1001)
    _, after = tx.update(f / (10 * epsilon), state, params)
    factor = np.asarray(after.precision / state.precision)
    np.testing.assert_allclose(factor, (1 + (1 + 0.5 * (f - 1)) ** 2) / 2, rtol=1e-4)
    assert factor.min() >= 0.5 - 1e-6 and abs(factor.argmin() - 500) <= 5


@pytest.mark.parametrize("theta", [-0.5, 0.0, 1.0])
def test_weight_noise_takes_the_gradient_of_the_convolved_loss(theta):
    """L = θ⁴/4 + θ²/2: E ∇L(θ + ε) = θ³ + 3θ std² + θ, and the gradient's variance."""
    std = 0.4
    tx, params = diffopt.weight_noise(std), jnp.full(N, theta)
    p = diffopt.perturbed(params, tx.init(params))
    assert_mean(p**3 + p, theta**3 + 3 * theta * std**2 + theta)
    assert_variance(p - params, std**2)


def test_weight_noise_trains_the_convolved_loss():
    """The double well (θ² - 1)²/4 has its minima at ±√(1 - 3 std²) after convolution."""
    std, n = 0.3, 20_000
    tx = optax.chain(diffopt.weight_noise(std), optax.sgd(1e-3))
    params, _ = run_perturbed(tx, jnp.full(n, 0.8), lambda p: p**3 - p, 4000)
    minimum, variance = np.sqrt(1 - 3 * std**2), float(params.var())
    assert variance < 1e-3  # of the noise of the gradient, and it pulls the mean inwards
    expected = minimum - 1.5 * variance / minimum
    assert abs(params.mean() - expected) < 4.5 * np.sqrt(variance / n) + 10 * variance**2


def test_relative_noise_is_in_units_of_the_filters_norms():
    rng = np.random.default_rng(0)
    kernel = np.float32(rng.normal(size=(5, 40_000)) * [[1], [2], [3], [0.1], [1]])
    params = {"kernel": kernel.T, "bias": np.float32([3.0, 4.0])}
    tx = diffopt.weight_noise(0.02, relative=True)
    noise = jax.tree.map(jnp.subtract, diffopt.perturbed(params, tx.init(params)), params)
    norms = np.linalg.norm(kernel, axis=1)
    for i in range(5):
        assert_variance(noise["kernel"][:, i], (0.02 * norms[i]) ** 2)
    keys = jax.random.split(jax.random.key(0), 20_000)
    state = tx.init(params["bias"])
    bias = jax.vmap(lambda key: diffopt.perturbed(params["bias"], state, key))(keys)
    assert_variance(bias - params["bias"], 0.1**2)


def test_label_noise_has_the_covariance_of_its_law():
    """Of the gradient by the weights of a linear layer, one example: std² Jᵀ C J."""
    K, std, x = 4, 0.7, jnp.array([1.0, -0.5, 2.0])
    w = jax.random.normal(jax.random.key(1), (3, K)) / 2
    p = jax.nn.softmax(x @ w)

    def gradient(key):
        loss = lambda w: optax.softmax_cross_entropy(
            x @ w, diffopt.label_noise(key, jnp.array(2), std, K)
        )
        return jax.grad(loss)(w).ravel()

    g = np.asarray(jax.vmap(gradient)(jax.random.split(jax.random.key(2), N)), np.float64)
    one = np.ones(K)
    p = np.asarray(p, np.float64)
    C = np.eye(K) - np.outer(p, one) - np.outer(one, p) + K * np.outer(p, p)
    J = np.asarray(jax.jacobian(lambda w: x @ w.reshape(3, K))(w.ravel()), np.float64)
    expected = std**2 * J.T @ C @ J
    centered = g - g.mean(0)
    measured = centered.T @ centered / N
    diagonal = np.diag(expected)
    error = np.sqrt((np.outer(diagonal, diagonal) + expected**2) / N)
    assert (np.abs(measured - expected) < 4.5 * error + 1e-7).all()
    clean = J.T @ (p - np.eye(K)[2])
    assert (np.abs(g.mean(0) - clean) < 4.5 * np.sqrt(diagonal / N) + 1e-6).all()


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_the_temperature_of_label_noise_is_the_variance_of_a_linear_model(momentum):
    """Full batches: T(I - ηG/2)⁻¹, and with momentum m T(I - ηG/(2(1 + m)))⁻¹."""
    rng = np.random.default_rng(0)
    x, y = np.float32(rng.normal(size=(6, 2))), np.float32(rng.normal(size=6))
    T, eta, chains = 0.01, 0.2, 40_000
    G = x.T.astype(np.float64) @ x / 6
    tx = optax.sgd(eta, momentum=momentum or None)

    def grad(params, key):
        keys = jax.random.split(key, chains)

        def one(w, key):
            noisy = diffopt.label_noise(key, y, temperature=T, learning_rate=eta / (1 - momentum))
            return jax.grad(lambda w: jnp.mean((x @ w - noisy) ** 2) / 2)(w)

        return jax.vmap(one)(params, keys)

    best = np.linalg.solve(x.T @ x, x.T @ y)
    params, *_ = run(tx, jnp.tile(best, (chains, 1)), grad, 150, seed=3)
    centered = np.asarray(params, np.float64) - best
    measured = centered.T @ centered / chains
    expected = T * np.linalg.inv(np.eye(2) - eta * G / (2 * (1 + momentum)))
    diagonal = np.diag(expected)
    error = np.sqrt((np.outer(diagonal, diagonal) + expected**2) / chains)
    assert (np.abs(measured - expected) < 4.5 * error).all(), (measured, expected)
