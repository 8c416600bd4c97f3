"""mclmc on quadratics: exp(-L/T) for few dimensions, a closed form of its error for many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

import diffopt
from tests.helpers import assert_close, of_name, path, run

N, T = 200_000, 0.7


def heat(h, mean_curvature):
    """y / tanh y at the root of the docstring: the temperature of every direction, over T."""
    if h == 0:
        return 1.0
    y = brentq(lambda y: 4 * y * np.tanh(y) - h**2 * mean_curvature, 1e-9, 50)
    return y / np.tanh(y)


def stay(h, k, steps, *, friction=1.0, sigma=None, temperature=T):
    """kθ²/T over the elements of one chain that begins at its law, after so many steps."""
    start = np.sqrt(temperature / k) * jax.random.normal(jax.random.key(5), (N,))
    noisy = lambda x, key: k * x + sigma * jax.random.normal(key, x.shape)
    tx = diffopt.mclmc(h, temperature, friction=friction)
    x, state, _ = run(
        tx, start, noisy if sigma else lambda x: k * x, steps, seed=3 if sigma else None
    )
    return np.asarray(k * x**2 / temperature, np.float64), state


@pytest.mark.parametrize("h", [0.3, pytest.param(1.0, marks=pytest.mark.slow), 1.6])
def test_in_many_dimensions_every_direction_is_at_the_temperature_of_the_docstring(h):
    k = jnp.tile(jnp.array([0.25, 1.0]), N // 2)
    found, state = stay(h, k, 150)
    expected = heat(h, 0.625)
    for one in (found[::2], found[1::2]):
        assert abs(one.mean() - expected) < 4.5 * expected * np.sqrt(2 / one.size)
    assert float(jnp.mean(state.direction**2)) == pytest.approx(1, abs=1e-4)


def test_the_error_for_small_steps_is_a_twelfth_of_the_curvature():
    for h in (0.1, 0.3):
        assert heat(h, 0.625) - 1 == pytest.approx(h**2 * 0.625 / 12, rel=0.01)


@pytest.mark.slow
def test_steps_are_stable_to_the_limit_of_the_docstring_and_warm_beyond():
    k = jnp.ones(N).at[:100].set(8.0)
    reach = 4 * heat(0.72, float(k.mean()))
    assert 0.72**2 * 8 > 4 > 0.7**2 * 8 and reach > 0.72**2 * 8  # baoab's limit is passed
    found, _ = stay(0.72, k, 400)
    assert found[:100].mean() < 2
    found, _ = stay(0.9, k, 400)
    assert np.isfinite(found).all() and found[:100].mean() > 10


@pytest.mark.slow
@pytest.mark.parametrize("d", [2, 3, 10])
def test_in_few_dimensions_the_law_is_that_of_the_loss(d):
    chains, h, k = 20_000, 0.1, jnp.linspace(0.5, 2, d)
    starts = jnp.sqrt(T / k) * jax.random.normal(jax.random.key(2), (chains, d))

    def chain(key, theta):
        tx = diffopt.mclmc(h, T, friction=0.5, key=key)
        return run(tx, theta, lambda x: k * x, 300)[0]

    ends = jax.vmap(chain)(jax.random.split(jax.random.key(1), chains), starts)
    found = np.asarray((k * ends**2 / T).mean(0), np.float64)
    assert np.all(np.abs(found - heat(h, 1.25)) < 4.5 * np.sqrt(2 / chains))


@pytest.mark.slow
def test_a_well_that_is_no_quadratic_has_the_moments_of_quadrature():
    """θ⁴/4 in each of three dimensions."""
    chains, h = 20_000, 0.1
    starts = jax.random.normal(jax.random.key(2), (chains, 3))

    def chain(key, theta):
        tx = diffopt.mclmc(h, 1.0, friction=0.5, key=key)
        return run(tx, theta, lambda x: x**3, 300)[0]

    ends = jax.vmap(chain)(jax.random.split(jax.random.key(1), chains), starts)
    x = np.linspace(-6, 6, 100_001)
    density = np.exp(-(x**4) / 4)
    second, fourth = (np.sum(x**p * density) / density.sum() for p in (2, 4))
    error = 4.5 * np.sqrt((fourth - second**2) / chains)
    assert np.all(np.abs(np.asarray(ends**2).mean(0) - second) < error)


@pytest.mark.slow
def test_noise_of_the_same_variance_everywhere_leaves_the_law():
    """Gaussian noise that heats baoab by h σ²/(2γ T): here to 2.8 T."""
    found, _ = stay(0.05, jnp.ones(N), 600, friction=0.1, sigma=2.0, temperature=0.5)
    assert abs(found.mean() - 1) < 4.5 * np.sqrt(2 / N)


@pytest.mark.slow
def test_the_variance_is_proportional_to_the_temperature():
    k = jnp.linspace(0.2, 2, 50)
    paths = [
        path(diffopt.mclmc(0.5, hot), np.sqrt(hot) * jnp.ones(50), lambda x: k * x, 20)
        for hot in (1.0, 0.01)
    ]
    np.testing.assert_allclose(0.1 * paths[0], paths[1], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_direction_keeps_its_size_over_all_leaves_together():
    params = {"w": jnp.ones((4, 3)), "z": jnp.ones(5, jnp.complex64)}
    steep = lambda p: jax.tree.map(lambda x: 1e3 * x, p)
    tx = diffopt.mclmc(0.3, 1.0)
    sizes = run(tx, params, steep, 30, keep=lambda p, s: s.direction)[2]
    squares = sum(np.sum(np.abs(x.reshape(30, -1)) ** 2, 1) for x in jax.tree.leaves(sizes))
    np.testing.assert_allclose(squares, 12 + 2 * 5, rtol=1e-5)


def test_no_gradient_is_too_large_for_a_turn():
    scales = jnp.array([1e4, 1e15, 1e-30, 0.0])
    move = lambda scale: run(diffopt.mclmc(0.1, 1e-3), jnp.ones(6), lambda x: scale * x, 20)[:2]
    x, state = jax.vmap(move)(scales)
    assert np.isfinite(x).all()
    np.testing.assert_allclose(np.mean(state.direction**2, 1), 1, rtol=1e-5)


def test_a_change_of_step_gives_each_half_kick_its_own_size():
    """A step of 0.2 and one of 0.4 without friction, by the exact turn in 64 bits."""
    g, T = np.array([1.0, -2.0, 0.5]), 0.5
    turn = 1.5 / np.sqrt(T) * np.sqrt(np.mean(g**2)) * np.array([0.1, 0.1 + 0.2])
    e = -g / np.sqrt(np.mean(g**2))
    u, expected = np.zeros(3), []
    for h, delta in zip((0.2, 0.4), turn, strict=True):
        u = u + (np.sinh(delta) + (np.cosh(delta) - 1) * np.mean(e * u)) * e
        u = u / np.sqrt(np.mean(u**2))
        expected.append(h * np.sqrt(T) * u)
    steps = lambda count: jnp.where(count == 0, 0.2, 0.4)
    tx = diffopt.mclmc(steps, T, friction=0.0)
    state = tx.init(jnp.zeros(3))
    for move in expected:
        found, state = tx.update(jnp.asarray(g, jnp.float32), state)
        assert_close(found, np.float32(move), rtol=1e-5)
    (half,) = of_name(state, "half_kick")
    assert float(half) == pytest.approx(0.4 / (2 * np.sqrt(T)) * 1.5)


def test_a_temperature_that_ends_at_0_stops_the_chain():
    tx = diffopt.mclmc(0.1, lambda count: jnp.maximum(1.0 - count, 0))
    moved = path(tx, jnp.ones(4), lambda x: x, 4)
    assert (moved[0] != 1).all()
    np.testing.assert_array_equal(moved[1:], np.broadcast_to(moved[0], (3, 4)))


def test_what_it_has_no_meaning_for_is_refused():
    with pytest.raises(ValueError, match="temperature must be finite and > 0, got 0"):
        diffopt.mclmc(0.1, 0.0)
    with pytest.raises(ValueError, match="params have one number alone: take baoab"):
        diffopt.mclmc(0.1, 1.0).init({"w": jnp.ones(1), "b": None})
    diffopt.mclmc(0.1, 1.0).init({"w": jnp.ones(1, jnp.complex64)})


@pytest.mark.slow
def test_its_step_size_is_found():
    """At a tolerance of 5 % in the temperature, whatever the dimension."""
    k = jnp.linspace(0.5, 1.5, 200)
    size, found = diffopt.find_step_size(
        diffopt.mclmc, lambda p: jnp.sum(k * p**2) / 2, jnp.zeros(200), temperature=0.1
    )
    assert 0.6 < size < 0.95  # h²k̄ = 0.6 is 5 %
    assert found.measured.kinetic is None  # T whatever the chain does
