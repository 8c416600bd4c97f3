"""sghmc, baoab and sgnht at their stationary laws: linear algebra on quadratics, integrals else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.linalg import solve_discrete_lyapunov
from scipy.optimize import brentq

import diffopt
from tests import helpers
from tests.helpers import assert_covariance

N = 60_000  # independent chains: the elements of one leaf
T = 0.7


def run(tx, grads, params, steps):
    """The last parameters and state; `grads(params, key)` may be noisy."""
    return helpers.run(tx, params, grads, steps, seed=99)[:2]


def quadratic(curvature):
    return lambda params, key: jax.tree.map(lambda p, k: k * p, params, curvature)


def sghmc_covariance(a, k, eta, variance):
    """Stationary covariance of (θ, v): v ← (1 - a)v - ηkθ + N(0, variance), θ ← θ + v."""
    step = np.array([[1 - eta * k, 1 - a], [-eta * k, 1 - a]])
    return solve_discrete_lyapunov(step, variance * np.ones((2, 2)))


def baoab_covariance(h, k, friction, temperature):
    """The same for the product of BAOAB's linear maps."""
    c = np.exp(-friction * h)
    B, A = np.array([[1, 0], [-h * k, 1]]), np.array([[1, h / 2], [0, 1]])
    noise = A @ np.array([[0], [np.sqrt((1 - c**2) * temperature)]])
    return solve_discrete_lyapunov(A @ np.diag([1, c]) @ A @ B, noise @ noise.T)


@pytest.mark.parametrize(
    "m,noise",
    [
        pytest.param(0.0, "gaussian", marks=pytest.mark.slow),
        pytest.param(0.5, "rademacher", marks=pytest.mark.slow),
        (0.9, "gaussian"),
    ],
)
def test_sghmc_has_the_covariance_of_the_lyapunov_equation(m, noise):
    eta, curvature = 0.5, {"flat": 0.3, "steep": 0.9 * 2 * (1 + m) / 0.5}
    params = jax.tree.map(lambda _: jnp.zeros(N), curvature)
    tx = diffopt.sghmc(eta, T, momentum=m, noise=noise)
    params, state = run(tx, quadratic(curvature), params, 300)
    for name, k in curvature.items():
        expected = sghmc_covariance(1 - m, k, eta, 2 * (1 - m) * eta * T)
        assert_covariance(params[name], state.velocity[name], expected)
        # the closed forms of the docstring
        correction = 1 - eta * k / (2 * (1 + m))
        closed = T / (k * correction), 2 * eta * T / ((1 + m) * correction)
        np.testing.assert_allclose(np.diag(expected), closed, rtol=1e-9)


@pytest.mark.parametrize(
    "of_the_limit", [*(pytest.param(x, marks=pytest.mark.slow) for x in (0.15, 0.5)), 0.9]
)
def test_baoab_is_exact_up_to_its_limit_of_stability(of_the_limit):
    k = 2.0
    h = of_the_limit * 2 / np.sqrt(k)
    theta, state = run(diffopt.baoab(h, T, friction=1.0), quadratic(k), jnp.zeros(N), 200)
    exact = np.array([[T / k, h * T / 2], [h * T / 2, T]])
    np.testing.assert_allclose(baoab_covariance(h, k, 1.0, T), exact, rtol=1e-9)
    assert_covariance(theta, state.velocity, exact)


@pytest.mark.slow
@pytest.mark.parametrize("make", [diffopt.sghmc, diffopt.baoab, diffopt.ubu])
def test_a_free_particle_in_bfloat16_warms_up_as_its_momentum_says(make):
    """From rest K = T (1 - m²ⁿ) after n steps; 0.999 is 1 in bfloat16, and then K grows for ever.

    Rounding v adds v² 2⁻¹⁴/12 or less to the variance 2(1 - m)ηT of a step: 0.3 % of T or less,
    a ninth of the bound.
    """
    m, step_size, n = 0.999, 0.3, 1_000
    more = {"friction": -np.log(m) / step_size} if make is not diffopt.sghmc else {"momentum": m}
    still = lambda params, key: jnp.zeros_like(params)
    _, state = run(make(step_size, T, **more), still, jnp.zeros(N, jnp.bfloat16), n)
    assert state.velocity.dtype == jnp.bfloat16
    expected = T * (1 - m ** (2 * n))
    assert abs(diffopt.kinetic_temperature(state).overall / expected - 1) < 4.5 * np.sqrt(2 / N)


@pytest.mark.parametrize("sigma", [pytest.param(0.0, marks=pytest.mark.slow), 1.2])
def test_sgnht_has_the_covariance_of_the_lyapunov_equation_at_its_friction(sigma):
    """With one curvature that covariance is T/k in θ, for any step and any noise."""
    eta, m, k = 0.3, 0.9, 3.0

    def grads(theta, key):
        return k * theta + sigma * jax.random.normal(key, theta.shape)

    theta, state = run(diffopt.sgnht(eta, T, momentum=m), grads, jnp.zeros(N), 1_000)
    variance = 2 * (1 - m) * eta * T + (eta * sigma) ** 2
    friction = brentq(lambda a: a * eta * T * (2 - eta * k / (2 - a)) - variance, 1e-3, 1)
    expected = sghmc_covariance(friction, k, eta, variance)
    np.testing.assert_allclose(expected[0, 0], T / k, rtol=1e-9)
    assert_covariance(theta, state.velocity, expected)
    assert abs(float(state.friction) / friction - 1) < 0.02


@pytest.mark.slow
def test_one_thermostat_holds_the_mean_temperature_of_leaves_that_differ():
    eta, m, sigma, curvature = 0.3, 0.9, {"a": 0.0, "b": 1.5}, {"a": 4.0, "b": 0.5}

    def grads(params, key):
        noisy = lambda p, k, s: k * p + s * jax.random.normal(key, p.shape)
        return jax.tree.map(noisy, params, curvature, sigma)

    def covariance(a, name):
        variance = 2 * (1 - m) * eta * T + (eta * sigma[name]) ** 2
        return sghmc_covariance(a, curvature[name], eta, variance)

    def excess(a):
        kinetic = (2 - a) / (2 * eta) * np.mean([covariance(a, name)[1, 1] for name in "ab"])
        return kinetic - T

    params = jax.tree.map(lambda _: jnp.zeros(N), curvature)
    params, state = run(diffopt.sgnht(eta, T, momentum=m), grads, params, 400)
    friction = brentq(excess, 0.01, 1)
    for name in "ab":
        assert_covariance(params[name], state.velocity[name], covariance(friction, name))


def test_sgnht_absorbs_unknown_gradient_noise_where_sghmc_overheats():
    eta, m, k, sigma = 0.1, 0.9, 1.0, 2.0

    def grads(theta, key):
        return k * theta + sigma * jax.random.normal(key, theta.shape)

    hot, _ = run(diffopt.sghmc(eta, T, momentum=m), grads, jnp.zeros(N), 400)
    held, _ = run(diffopt.sgnht(eta, T, momentum=m), grads, jnp.zeros(N), 400)
    overheated = (T + eta * sigma**2 / (2 * (1 - m))) / (k * (1 - eta * k / (2 * (1 + m))))
    assert overheated > 3 * T / k
    bound = 4.5 * np.sqrt(2 / N)
    assert abs(hot.var() / overheated - 1) < bound
    assert abs(held.var() / (T / k) - 1) < bound


@pytest.mark.slow
def test_a_thermostat_of_few_parameters_holds_the_mean_kinetic_temperature():
    """Exact for any number of parameters, as 1/friction could not be stationary else."""
    chains, d = 5_000, 5
    tx = diffopt.sgnht(0.1, T)

    @jax.jit
    @jax.vmap
    def last_temperature(key):
        start = tx.init(jnp.zeros(d))._replace(key=key)

        def step(carry, _):
            theta, state = carry
            updates, state = tx.update(theta**3 + theta, state)
            temperature = diffopt.kinetic_temperature(state).overall
            return (theta + updates, state), (temperature, state.friction)

        _, (temperature, friction) = jax.lax.scan(step, (jnp.zeros(d), start), length=400)
        return temperature[100:].mean(), friction.max()

    temperature, friction = last_temperature(jax.random.split(jax.random.key(0), chains))
    assert float(friction.max()) < 1  # nowhere held at its bound
    assert abs(temperature.mean() - T) < 4.5 * temperature.std() / np.sqrt(chains)


WELLS = {
    "baoab": (diffopt.baoab(0.1, 0.4, friction=0.5), 1200),
    "sghmc": (diffopt.sghmc(0.01, 0.4), 1200),
    "sgnht": (diffopt.sgnht(0.01, 0.4), 1200),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WELLS)
def test_two_wells_are_visited_in_the_right_proportions(name):
    """All chains start in the shallow well of (θ² - 1)² + 0.15 θ, at temperature 0.4."""
    loss = lambda x: (x**2 - 1) ** 2 + 0.15 * x
    density = lambda x: np.exp(-loss(x) / 0.4)
    deep, shallow = quad(density, -4, 0)[0], quad(density, 0, 4)[0]
    expected = deep / (deep + shallow)
    tx, steps = WELLS[name]
    chains = 20_000
    grads = lambda theta, key: 4 * theta * (theta**2 - 1) + 0.15
    theta, _ = run(tx, grads, jnp.ones(chains), steps)
    standard_error = np.sqrt(expected * (1 - expected) / chains)
    assert abs((theta < 0).mean() - expected) < 4.5 * standard_error
    second = quad(lambda x: x**2 * density(x), -4, 4)[0] / (deep + shallow)
    fourth = quad(lambda x: x**4 * density(x), -4, 4)[0] / (deep + shallow)
    assert abs((theta**2).mean() - second) < 4.5 * np.sqrt((fourth - second**2) / chains)


@pytest.mark.parametrize("name", ["baoab", pytest.param("sghmc", marks=pytest.mark.slow)])
def test_a_correlated_gaussian_in_50_dimensions(name):
    """Every entry of the covariance; curvatures from 1 to 100."""
    d, chains = 50, 5_000
    rng = np.random.default_rng(0)
    axes, _ = np.linalg.qr(rng.normal(size=(d, d)))
    curvature = np.geomspace(1, 100, d)
    hessian = (axes * curvature) @ axes.T
    tx, along_axes = {
        "baoab": (diffopt.baoab(0.15, T, friction=2.0), T / curvature),
        "sghmc": (diffopt.sghmc(0.02, T), T / (curvature * (1 - 0.02 * curvature / 3.8))),
    }[name]
    expected = (axes * along_axes) @ axes.T
    theta, _ = run(
        tx, lambda p, key: p @ jnp.asarray(hessian, jnp.float32), jnp.zeros((chains, d)), 150
    )
    theta = np.asarray(theta, np.float64)
    measured = theta.T @ theta / chains
    diagonal = np.diag(expected)
    standard_error = np.sqrt((np.outer(diagonal, diagonal) + expected**2) / chains)
    z = np.abs(measured - expected) / standard_error
    assert z.max() < 5.2  # the largest of 1,275: as likely as one beyond 4.5 is among a handful
    assert abs(np.trace(np.linalg.solve(expected, measured)) / d - 1) < 4.5 * np.sqrt(
        2 / chains / d
    )
