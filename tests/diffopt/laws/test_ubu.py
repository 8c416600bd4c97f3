"""ubu: its stationary law on quadratics by linear algebra, and its paths at strong order 2."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.linalg import solve_discrete_lyapunov

import diffopt
from tests.helpers import assert_covariance, run, ubu_covariance

N = 60_000  # independent chains: the elements of one leaf
T = 0.7


@pytest.mark.parametrize(
    "friction,noise",
    [
        (0.3, "gaussian"),
        pytest.param(3.0, "gaussian", marks=pytest.mark.slow),
        pytest.param(0.3, "rademacher", marks=pytest.mark.slow),
    ],
)
def test_it_has_the_covariance_of_the_lyapunov_equation_up_to_its_limit(friction, noise):
    h = 0.8
    limit = 2 * friction / (h * np.tanh(friction * h / 2))
    curvature = {"flat": 0.2, "middle": 0.5 * limit, "steep": 0.95 * limit}
    grads = lambda params: jax.tree.map(lambda p, k: k * p, params, curvature)
    tx = diffopt.ubu(h, T, friction=friction, noise=noise)
    params, state, _ = run(tx, jax.tree.map(lambda _: jnp.zeros(N), curvature), grads, 300)
    for name, k in curvature.items():
        expected = ubu_covariance(h, k, friction, T)
        assert_covariance(params[name], state.velocity[name], expected)


@pytest.mark.slow
def test_minibatch_noise_adds_to_the_variance_of_each_kick():
    h, k, sigma, friction = 0.5, 2.0, 1.5, 1.0
    grads = lambda theta, key: k * theta + sigma * jax.random.normal(key, theta.shape)
    theta, state, _ = run(diffopt.ubu(h, T), jnp.zeros(N), grads, 200, seed=5)
    c = np.exp(-friction * h)
    U, B = np.array([[1, (1 - c) / friction], [0, c]]), np.array([[1, 0], [-h * k, 1]])
    kick = h * sigma * U[:, 1:]
    own = ubu_covariance(h, k, friction, T)
    added = solve_discrete_lyapunov(U @ B, kick @ kick.T)
    assert added[0, 0] > 0.5 * own[0, 0]
    assert_covariance(theta, state.velocity, own + added)


@pytest.mark.slow
def test_it_is_stable_to_the_limit_of_the_docstring_and_not_beyond():
    h, friction = 0.8, 3.0
    limit = 2 * friction / (h * np.tanh(friction * h / 2))
    assert limit * h**2 > 5  # baoab's is 4
    tx = diffopt.ubu(h, 0.0, friction=friction)
    curvature = limit * jnp.array([0.99, 1.01])
    theta, _, _ = run(tx, jnp.ones(2), lambda p: curvature * p, 2_000)
    assert abs(theta[0]) < 1e-3
    assert not abs(theta[1]) < 1e3


@pytest.mark.parametrize("friction", [0.01, 1.0, 4.0])
def test_the_errors_of_the_docstring_are_those_of_the_lyapunov_equation(friction):
    """At the gradients +h²k/12, at the ends of UBU's steps -h²k/6; the rest is of order 4."""
    k, h = 1.3, np.array([0.2, 0.1, 0.05])
    for end, coefficient in ((False, 1 / 12), (True, -1 / 6)):
        found = [ubu_covariance(h, k, friction, T, end)[0, 0] * k / T - 1 for h in h]
        rest = np.abs(found - coefficient * h**2 * k)
        assert np.all(rest < 0.4 * (k + friction**2) * k * h**4)


def double_well(x):
    return (x**2 - 1) ** 2 / 4 + 0.3 * x + jnp.cos(2 * x) / 4


def errors(name, steps, refinement, chains=2_000, friction=1.3):
    """RMS errors of θ and of v less half a kick, for each time step of a halving row.

    All step sizes see one Brownian path: two steps of U put together are one of twice the length.
    """
    make = getattr(diffopt, name)
    drift = lambda h: np.array(
        [[1, -np.expm1(-friction * h) / friction], [0, np.exp(-friction * h)]]
    )

    def spread(h):  # of U's noise at T = 1, of unit increments ξ, ζ
        x, c = friction * h / 2, np.exp(-friction * h)
        along, across = (1 - c) / friction * np.sqrt(np.tanh(x)), h * np.sqrt(x - np.tanh(x)) / x
        return np.array([[along, across], [np.sqrt(1 - c**2), 0]])

    grad = jax.vmap(jax.grad(double_well))
    first, second, key = jax.random.split(jax.random.key(1), 3)
    start = jax.random.normal(first, (chains,)), np.sqrt(T) * jax.random.normal(second, (chains,))
    h = 0.2 / refinement
    noise = np.asarray(jax.random.normal(key, (steps * refinement, 2, chains)))
    noise = np.einsum("ij,sjn->sin", spread(h), noise)

    def end(make, h, noise):
        xi = np.einsum("ij,sjn->sin", np.linalg.inv(spread(h)), noise)

        def step(carry, xi):
            theta, state = carry
            given = iter(xi)
            tx = make(h, T, friction=friction, noise=lambda *_: next(given))
            updates, state = tx.update(grad(theta), state)
            return (theta + updates, state), None

        theta, v = start
        state = make(h, T).init(theta)._replace(velocity=v + h / 2 * grad(theta))
        (theta, state), _ = jax.jit(lambda *c: jax.lax.scan(step, *c))((theta, state), xi)
        return np.stack([theta, state.velocity - h / 2 * grad(theta)])

    exact, found = end(diffopt.ubu, h, noise), []
    for _ in range(int(np.log2(refinement))):
        noise = np.einsum("ij,sjn->sin", drift(h), noise[::2]) + noise[1::2]
        h *= 2
        found.append(np.sqrt(((end(make, h, noise) - exact) ** 2).mean(axis=1)))
    return np.array(found)[2:]  # well above the error of the finest


@pytest.mark.slow
@pytest.mark.parametrize("name,order", [("ubu", 2), ("baoab", 1)])
def test_the_strong_order(name, order):
    with jax.enable_x64(True):
        found = errors(name, steps=5, refinement=64)
    slopes = np.log2(found[1:] / found[:-1])
    assert np.abs(slopes[:-1] - order).max() < 0.15, slopes
    assert np.abs(slopes.mean(axis=0) - order).max() < 0.1, slopes


@pytest.mark.slow
def test_two_wells_are_visited_in_the_right_proportions():
    """All chains start in the shallow well of (θ² - 1)² + 0.15 θ, at temperature 0.4."""
    loss = lambda x: (x**2 - 1) ** 2 + 0.15 * x
    density = lambda x: np.exp(-loss(x) / 0.4)
    deep, shallow = quad(density, -4, 0)[0], quad(density, 0, 4)[0]
    expected, chains = deep / (deep + shallow), 20_000
    grads = lambda theta: 4 * theta * (theta**2 - 1) + 0.15
    theta, _, _ = run(diffopt.ubu(0.05, 0.4, friction=0.5), jnp.ones(chains), grads, 2_400)
    standard_error = np.sqrt(expected * (1 - expected) / chains)
    assert abs((theta < 0).mean() - expected) < 4.5 * standard_error
    second = quad(lambda x: x**2 * density(x), -4, 4)[0] / (deep + shallow)
    fourth = quad(lambda x: x**4 * density(x), -4, 4)[0] / (deep + shallow)
    assert abs((theta**2).mean() - second) < 4.5 * np.sqrt((fourth - second**2) / chains)


# Minibatches: linear regression of 200 examples, at T = 1/200 and friction 1
EXAMPLES, BATCH = 200, 20
RNG = np.random.default_rng(0)
X = RNG.normal(size=(EXAMPLES, 2)) * [1, 2]
Y = X @ [1, -1] + RNG.normal(size=EXAMPLES)
CENTER = np.linalg.lstsq(X, Y)[0]


def hottest(moments):
    """The temperature of the hottest direction of the posterior, over T."""
    return np.linalg.eigvals(X.T @ X @ moments).real.max()


def independent(rng):
    """Twenty batches."""
    return rng.integers(EXAMPLES, size=(20, BATCH))


def epoch(rng):
    return rng.permutation(EXAMPLES).reshape(-1, BATCH)


def two_epochs(rng):
    return np.concatenate([epoch(rng), epoch(rng)])


def forth_and_back(rng):
    order = epoch(rng)
    return np.concatenate([order, order[::-1]])


def exact_hottest(h, order, sweeps):
    """`hottest` of ubu by batches in an order, as a mean over its steps.

    The second moments of (θ, v, 1) obey a linear equation, here a mean over sweeps at random.
    """
    rng, c = np.random.default_rng(1), np.exp(-h)
    drift, both = np.array([[1, 1 - c], [0, c]]), (1 - c) ** 2
    noise = np.array([[2 * h - 3 + 4 * c - c**2, both], [both, 1 - c**2]]) / EXAMPLES
    U, noise = (np.pad(np.kron(a, np.eye(2)), (0, 1)) for a in (drift, noise))
    U[4, 4] = 1
    of_sweep, of_steps = (
        (np.zeros((25, 25)), np.zeros((5, 5))),
        (np.zeros((25, 25)), np.zeros((5, 5))),
    )
    for _ in range(sweeps):
        M, Q = np.eye(5), np.zeros((5, 5))
        batches = order(rng)
        for rows in batches:
            of_steps = of_steps[0] + np.kron(M, M), of_steps[1] + Q
            kick = np.eye(5)
            kick[2:4, :2] = -h * X[rows].T @ X[rows] / BATCH
            kick[2:4, 4] = h * X[rows].T @ (Y[rows] - X[rows] @ CENTER) / BATCH
            M, Q = U @ kick @ M, U @ kick @ Q @ (U @ kick).T + noise
        of_sweep = of_sweep[0] + np.kron(M, M), of_sweep[1] + Q
    after = lambda S, of, n: (of[0] @ S.ravel()).reshape(5, 5) / n + of[1] / n
    moments = np.diag([0.0, 0, 0, 0, 1])
    for _ in range(2_000):
        moments = after(moments, of_sweep, sweeps)
    return hottest(after(moments, of_steps, sweeps * len(batches))[:2, :2])


@pytest.mark.slow
def test_the_batches_of_an_epoch_heat_far_less_than_independent_ones():
    """They make up for one another, and `sample` goes by epochs."""
    loss = lambda w, data: jnp.mean((data[0] @ w - data[1]) ** 2) / 2
    samples = diffopt.sample(
        diffopt.ubu(0.05, 1 / EXAMPLES),
        loss,
        jnp.asarray(CENTER, jnp.float32),
        (jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32)),
        num_steps=4_000,
        burn_in=1_000,
        every=20,
        num_chains=500,
        batch_size=BATCH,
    )
    away = np.asarray(samples.draws, np.float64).reshape(-1, 2) - CENTER
    of_sample = hottest(away.T @ away / len(away))
    assert abs(of_sample - exact_hottest(0.05, two_epochs, 400)) < 0.03
    assert of_sample < 1.12
    assert exact_hottest(0.05, independent, 400) > 1.8


@pytest.mark.slow
def test_an_epoch_forth_and_back_gains_only_where_there_is_little_to_gain():
    """Why `sample` has no symmetric order of minibatches (Paulin et al. 2024)."""
    fresh, symmetric = (
        np.array([exact_hottest(h, order, 1_000) - 1 for h in (0.025, 0.1)])
        for order in (two_epochs, forth_and_back)
    )
    assert 0.002 < symmetric[0] < fresh[0] / 2 < 0.01
    assert 0.3 < fresh[1] < symmetric[1] / 1.2
