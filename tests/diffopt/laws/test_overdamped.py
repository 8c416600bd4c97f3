"""Stationary variances of the Euler-Maruyama diffusions, against closed forms.

One leaf of 200,000 elements under L = kθ²/2 is 200,000 independent chains. They start at their
stationary law, so that a wrong step shows as a drift from it; bounds are 4.5 standard errors.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt

CHAINS = 200_000
K, ETA, T = 2.0, 0.3, 0.7
EULER = T / (K * (1 - ETA * K / 2))


def run(tx, steps=60, k=K, start=EULER, shape=(CHAINS,), dtype=jnp.float32):
    """Parameters after `steps` steps on kθ²/2 from a normal law of variance `start`."""

    @jax.jit
    def simulate(params):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(k * params.conj(), state, params)
            return (optax.apply_updates(params, updates.conj()), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=steps)[0][0]

    normals = jax.random.normal(jax.random.key(99), shape, jnp.float32)
    return simulate((jnp.sqrt(start) * normals).astype(dtype))


def assert_normal(x, variance):
    """Mean, variance and fourth moment of a normal law, each within 4.5 standard errors."""
    x = np.asarray(x, np.float64).ravel() / np.sqrt(variance)
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - moment) < 4.5 * np.sqrt(spread / x.size), f"moment {power}"


@pytest.mark.parametrize(
    "tx",
    [
        diffopt.sgld(ETA, T),
        optax.chain(diffopt.langevin(T, learning_rate=ETA), optax.sgd(ETA)),
        optax.chain(diffopt.langevin(T / ETA), optax.sgd(ETA)),
        diffopt.sgld(lambda _: ETA, lambda _: T),
    ],
    ids=["sgld", "langevin with a learning rate", "langevin without", "schedules"],
)
def test_stationary_variance(tx):
    assert_normal(run(tx), EULER)


def test_stationary_law_is_reached_from_a_point():
    assert_normal(run(diffopt.sgld(ETA, T), start=0.0), EULER)


def test_free_diffusion_spreads_at_rate_two_d():
    assert_normal(run(diffopt.sgld(ETA, T), k=0.0, start=0.0, steps=20), 2 * T * ETA * 20)


def test_weight_decay_is_a_gaussian_prior():
    tx = optax.chain(
        optax.add_decayed_weights(0.5), diffopt.langevin(T, learning_rate=ETA), optax.sgd(ETA)
    )
    assert_normal(run(tx, k=0.0, start=T / 0.5, steps=300), T / (0.5 * (1 - ETA * 0.5 / 2)))


def test_a_complex_parameter_is_two_real_ones():
    z = run(diffopt.sgld(ETA, T), start=0.0, dtype=jnp.complex64)
    assert_normal(z.real, EULER)
    assert_normal(z.imag, EULER)
    correlation = float(jnp.mean(z.real * z.imag)) / EULER
    assert abs(correlation) < 4.5 / np.sqrt(CHAINS)


def test_momentum_after_langevin_multiplies_the_temperature():
    """At a small step the variance is D / (1 - m) / k, as langevin's docstring says."""
    eta, m = 0.01, 0.5
    tx = optax.chain(diffopt.langevin(T, learning_rate=eta), optax.sgd(eta, momentum=m))
    x = run(tx, start=T / (1 - m) / K, steps=600)
    # Lyapunov equation of θ' = θ + v', v' = mv - ηkθ + √(2Tη) ξ
    a = np.array([[1 - eta * K, m], [-eta * K, m]])
    q = 2 * T * eta * np.ones((2, 2))
    covariance = np.linalg.solve(np.eye(4) - np.kron(a, a), q.ravel()).reshape(2, 2)
    assert abs(covariance[0, 0] - T / (1 - m) / K) < 0.02
    assert_normal(x, covariance[0, 0])


def test_noise_is_independent_across_steps_leaves_and_elements():
    tx = diffopt.langevin(0.5, key=3)
    leaves = {"a": jnp.zeros((CHAINS // 2, 2)), "b": jnp.zeros((CHAINS // 2, 2))}

    def draw(state, _):
        updates, state = tx.update(leaves, state)
        return state, updates

    _, xi = jax.lax.scan(draw, tx.init(leaves), length=3)
    columns = np.concatenate([np.asarray(xi[name]) for name in "ab"], axis=2)
    columns = np.moveaxis(columns, 1, 2).reshape(12, -1)
    errors = (columns @ columns.T / columns.shape[1] - np.eye(12)) * np.sqrt(columns.shape[1])
    assert np.abs(np.triu(errors, 1)).max() < 4.5
    assert np.abs(np.diag(errors)).max() < 4.5 * np.sqrt(2)
    neighbours = (columns[:, 1:] * columns[:, :-1]).mean(1) * np.sqrt(columns.shape[1])
    assert np.abs(neighbours).max() < 4.5
