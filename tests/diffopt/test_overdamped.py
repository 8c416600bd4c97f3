"""langevin, sgld and psgld: their steps and limits. Their contract is that of all samplers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt
from tests.helpers import assert_close, path

PARAMS = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(3)}
GRADS = jax.tree.map(lambda p: p / 2 - 1, PARAMS)


def step(tx):
    return jax.jit(tx.update)(GRADS, tx.init(PARAMS), PARAMS)[0]


def ones(key, shape, dtype):
    """A known increment, ξ = 1."""
    return jnp.ones(shape, dtype)


# langevin and sgld


def test_the_steps_are_those_of_the_docstrings():
    T, eta = 0.7, 0.04
    noisy = step(diffopt.langevin(T, learning_rate=eta, noise=ones))
    assert_close(noisy, jax.tree.map(lambda g: g + np.sqrt(2 * T / eta), GRADS), rtol=1e-6)
    noisy = step(diffopt.langevin(T, noise=ones))
    assert_close(noisy, jax.tree.map(lambda g: g + np.sqrt(2 * T), GRADS), rtol=1e-6)
    updates = step(diffopt.sgld(eta, T, noise=ones))
    expected = jax.tree.map(lambda g: -eta * g + np.sqrt(2 * T * eta), GRADS)
    assert_close(updates, expected, rtol=1e-6)


def test_at_temperature_zero_sgld_is_sgd_and_langevin_the_identity():
    chex.assert_trees_all_equal(step(diffopt.sgld(0.01, 0.0)), step(optax.sgd(0.01)))
    chex.assert_trees_all_equal(step(diffopt.langevin(0.0)), GRADS)


@pytest.mark.slow
def test_langevin_before_sgd_is_sgld_with_the_sign_of_the_noise_turned():
    sgld = step(diffopt.sgld(0.01, 0.1, key=5))
    drift = jax.tree.map(lambda g: -0.01 * g, GRADS)
    expected = jax.tree.map(lambda d, u: d - (u - d), drift, sgld)
    with_lr = optax.chain(diffopt.langevin(0.1, learning_rate=0.01, key=5), optax.sgd(0.01))
    without = optax.chain(diffopt.langevin(0.1 / 0.01, key=5), optax.sgd(0.01))
    for chain in (with_lr, without):
        assert_close(step(chain), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("end", [pytest.param(0.0, marks=pytest.mark.slow), -1e-10])
def test_where_the_learning_rate_or_the_diffusion_ends_langevin_adds_no_noise(end):
    slipping = lambda count: jnp.where(count < 1, 0.1, end)
    for tx in (diffopt.langevin(1.0, learning_rate=slipping), diffopt.langevin(slipping)):
        update = jax.jit(tx.update)
        noisy, state = update(GRADS, tx.init(PARAMS))
        assert not jnp.allclose(noisy["w"], GRADS["w"])
        chex.assert_trees_all_equal(update(GRADS, state)[0], GRADS)


def test_langevin_takes_its_learning_rate_by_name_only():
    with pytest.raises(TypeError, match="positional argument"):
        diffopt.langevin(0.5, 0.03)


# psgld


@pytest.mark.parametrize(
    "decay,eps", [(0.99, 1e-5), pytest.param(0.0, 0.1, marks=pytest.mark.slow)]
)
def test_at_zero_temperature_psgld_is_rmsprop(decay, eps):
    bumpy = lambda params: jax.tree.map(lambda p: -3 * jnp.sin(3 * p) + 0.2 * p, params)
    reference = optax.rmsprop(0.002, decay=decay, eps=eps, eps_in_sqrt=False)
    cold = diffopt.psgld(0.002, 0.0, decay=decay, eps=eps)
    assert_close(path(cold, PARAMS, bumpy, 100), path(reference, PARAMS, bumpy, 100), rtol=1e-4)


def test_the_step_of_psgld_is_that_of_the_docstring():
    eta, T, decay, eps, g = 0.04, 0.7, 0.9, 0.1, np.array([0.3, -2.0, 0.0], np.float32)
    tx = diffopt.psgld(eta, T, decay=decay, eps=eps, noise=ones)
    nu = np.array([1.0, 2.0, 0.0])
    updates, state = tx.update(jnp.asarray(g), tx.init(jnp.zeros(3))._replace(nu=jnp.asarray(nu)))
    nu = decay * nu + (1 - decay) * g**2
    G = 1 / (np.sqrt(nu) + eps)
    np.testing.assert_allclose(state.nu, nu, rtol=1e-6)
    np.testing.assert_allclose(updates, -eta * G * g + np.sqrt(2 * T * eta * G), rtol=1e-5)


def test_a_complex_element_has_one_preconditioner_and_two_noises():
    g = jnp.array([3 + 4j, 1j], jnp.complex64)
    tx = diffopt.psgld(0.1, 0.5, decay=0.0)
    updates, state = tx.update(g, tx.init(g))
    np.testing.assert_allclose(state.nu, [25.0, 1.0], rtol=1e-6)
    assert updates.dtype == jnp.complex64 and state.nu.dtype == jnp.float32
    assert jnp.all(updates.real != updates.imag)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)])
def test_squared_gradients_of_16_bits_neither_underflow_nor_stop_adding_up(dtype):
    g, decay = jnp.array([1e-4, 1.0], dtype), 0.999
    tx = diffopt.psgld(0.1, 0.0, decay=decay)

    def step(state, _):
        updates, state = tx.update(g, state)
        return state, updates

    state, updates = jax.jit(lambda: jax.lax.scan(step, tx.init(g), length=2_000))()
    exact = np.asarray(g, np.float64)
    nu = (1 - decay**2_000) * exact**2
    assert state.nu.dtype == jnp.float32
    np.testing.assert_allclose(state.nu, nu, rtol=1e-3)
    np.testing.assert_allclose(
        np.asarray(updates[-1], np.float64), -0.1 * exact / (np.sqrt(nu) + 1e-5), rtol=1e-2
    )
