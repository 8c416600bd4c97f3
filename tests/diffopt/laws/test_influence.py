"""Influence against closed forms: linear models at every temperature, networks as T → 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffopt

pytestmark = pytest.mark.slow

OPTIONS = dict(sampler=diffopt.baoab, num_chains=64)


def assert_agrees(found, exact):
    errors = (found.values - np.asarray(exact)) / found.standard_errors
    assert found.values.shape == exact.shape
    assert (np.abs(errors) < 4.5).all(), np.abs(errors).max()


# A linear model: ℓᵢ = (xᵢ·w - yᵢ)²/2, so that w is Gaussian of covariance T (H + γ)⁻¹

N, D, T, LOCALIZATION = 12, 3, 0.05, 8.0
X = jax.random.normal(jax.random.key(0), (N, D))
Y = X @ jnp.arange(1.0, 1 + D) + jax.random.normal(jax.random.key(1), (N,))
BEST = jnp.linalg.lstsq(X, Y)[0]
INVERSE = jnp.linalg.inv(X.T @ X / N + T * LOCALIZATION * jnp.eye(D))
NEW_X, NEW_Y = X[:4] + 0.5, Y[:4]
LINEAR = OPTIONS | dict(
    temperature=T, localization=LOCALIZATION, step_size=0.5, num_steps=3000, burn_in=100
)


def residuals(w, x, y):
    return x @ w - y


def losses(w, data):
    return residuals(w, *data) ** 2 / 2


def loss(w, data):
    return losses(w, data).mean()


def influence_on_losses(x, y, new_x, new_y):
    """The classical influence, and what the curvature of both losses adds at T."""
    form = x @ INVERSE @ new_x.T
    slopes = jnp.outer(residuals(BEST, x, y), residuals(BEST, new_x, new_y))
    return -(slopes * form + T * form**2 / 2)


def test_on_the_weights_of_a_linear_model_it_is_the_classical_one():
    found = diffopt.influence(loss, BEST, (X, Y), lambda w: w, **LINEAR)
    assert_agrees(found, -residuals(BEST, X, Y)[:, None] * (X @ INVERSE))


@pytest.mark.parametrize("batch_size", [None, 5])
def test_on_losses_of_a_linear_model_it_has_the_second_order(batch_size):
    on_new = lambda w: losses(w, (NEW_X, NEW_Y))
    few = {} if batch_size is None else dict(step_size=0.02, num_steps=20_000, burn_in=500)
    found = diffopt.influence(loss, BEST, (X, Y), on_new, **LINEAR | few, batch_size=batch_size)
    exact = influence_on_losses(X, Y, NEW_X, NEW_Y)
    if batch_size is None:
        assert_agrees(found, exact)
    else:  # the noise of batches heats the chain
        np.testing.assert_allclose(found.values, exact, atol=0.2 * np.abs(exact).max())


def test_without_an_observable_it_is_of_each_example_on_itself():
    found = diffopt.influence(loss, BEST, (X, Y), **LINEAR)
    assert_agrees(found, jnp.diagonal(influence_on_losses(X, Y, X, Y)))


def test_the_response_to_other_data_is_the_susceptibility():
    shift = lambda w: loss(w, (NEW_X, NEW_Y)) - loss(w, (X, Y))
    found = diffopt.influence(
        loss, BEST, (X, Y), lambda w: loss(w, (X, Y)), perturbation=shift, **LINEAR
    )
    other = influence_on_losses(NEW_X, NEW_Y, X, Y).mean()
    assert_agrees(found, other - influence_on_losses(X, Y, X, Y).mean())


def test_draws_in_segments_are_the_draws_of_one(monkeypatch):
    short = LINEAR | dict(num_steps=400)
    on_new = lambda w: losses(w, (NEW_X, NEW_Y))
    whole = diffopt.influence(loss, BEST, (X, Y), on_new, **short)
    alone = diffopt.influence(loss, BEST, (X, Y), **short)
    monkeypatch.setattr("diffopt.estimate.influence.SEGMENT_BYTES", 64 * 4 * 16 * 101)
    cut = diffopt.influence(loss, BEST, (X, Y), on_new, **short)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, cut)
    cut = diffopt.influence(loss, BEST, (X, Y), **short)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), alone, cut)


def test_the_standard_errors_are_those_of_repetitions():
    runs = [
        diffopt.influence(
            loss, BEST, (X, Y), lambda w: w[0], key=key,
            **LINEAR | dict(num_steps=300, every=2, num_chains=16),
        )
        for key in range(30)
    ]  # fmt: skip
    spread = np.std([run.values for run in runs], axis=0, ddof=1)
    told = np.sqrt(np.mean([run.standard_errors**2 for run in runs], axis=0))
    # a standard deviation of 30 is known to 13 %
    assert (np.abs(told / spread - 1) < 4.5 * 0.13).all(), told / spread


# A network, as T → 0 with the damping γ = T · localization held

DAMPING, COLD = 0.1, 1e-6


def net_losses(w, data):
    x, y = data
    decay = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(w)) / 20
    return (jnp.tanh(x @ w["in"]) @ w["out"] - y) ** 2 / 2 + decay


def net_loss(w, data):
    return net_losses(w, data).mean()


def test_as_the_temperature_falls_it_is_the_classical_one_with_damping():
    params = {"in": 0.5 * jnp.ones((D, 2)).at[0, 1].set(-1.0), "out": jnp.array([1.0, -0.5])}
    data, gradient = (X, Y / 4), jax.jit(jax.grad(net_loss))
    for _ in range(500):  # to a minimum, where the chain has no drift
        params = jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient(params, data))
    new = (NEW_X, NEW_Y / 4)
    found = diffopt.influence(
        net_loss, params, data, lambda w: net_losses(w, new), temperature=COLD,
        localization=DAMPING / COLD, step_size=0.5, num_steps=3000, burn_in=300, **OPTIONS,
    )  # fmt: skip
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    hessian = jax.hessian(lambda w: net_loss(unravel(w), data))(flat)
    jacobian = jax.jacobian(lambda w, data: net_losses(unravel(w), data))
    inverse = jnp.linalg.inv(hessian + DAMPING * jnp.eye(len(flat)))
    assert_agrees(found, -jacobian(flat, data) @ inverse @ jacobian(flat, new).T)


# A part of a network


def test_of_a_part_it_is_that_of_the_smaller_model():
    mask = jnp.array([True, False, True])
    moving, merge = diffopt.take_part({"w": BEST, "b": jnp.zeros([])}, {"w": mask, "b": False})
    whole = lambda p, data: loss(p["w"], data) + p["b"]
    found = diffopt.influence(
        lambda p, data: whole(merge(p), data), moving, (X, Y), lambda p: p["w"], **LINEAR
    )
    part = X[:, mask]
    inverse = jnp.linalg.inv(part.T @ part / N + T * LOCALIZATION * jnp.eye(2))
    assert_agrees(found, -residuals(BEST, X, Y)[:, None] * (part @ inverse))


def test_the_learning_coefficient_of_a_part_is_half_its_size():
    params = {"a": jnp.zeros(4), "b": jnp.zeros((2, 3))}
    mask = jnp.zeros((2, 3), bool).at[1].set(True)
    moving, merge = diffopt.take_part(params, {"a": False, "b": mask})
    bowl = lambda p: (jnp.sum(p["a"] ** 2) + jnp.sum(p["b"] ** 2)) / 2
    estimate = diffopt.local_learning_coefficient(
        lambda p: bowl(merge(p)), moving, temperature=0.01, sampler=diffopt.baoab, step_size=0.5,
        num_steps=2000, burn_in=100, num_chains=32,
    )  # fmt: skip
    assert abs(estimate.mean - 3 / 1.01 / 2) < 4.5 * estimate.standard_error
