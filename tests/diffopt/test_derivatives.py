"""A step can be differentiated by its hyperparameters, also at temperature 0."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers import SAMPLERS

GRADS = jnp.array([0.3, -1.0, 0.0])


def after_three_steps(name, eta, T):
    tx, params = SAMPLERS[name].make(eta, T), jnp.ones(3)
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(GRADS * params, state, params)
        params = optax.apply_updates(params, updates)
    return (params**2).sum()


def difference(f, x, h):
    return (f(x + h) - f(x - h)) / (2 * h)


# a rounding at random has no derivative, and the plain √T of midpoint none at 0
@pytest.mark.slow
@pytest.mark.parametrize("name", [v for v in SAMPLERS if v not in ("low_precision", "midpoint")])
def test_gradients_match_finite_differences_above_0_and_the_limit_at_0(name):
    h, rtol = (1e-3, 1e-3) if SAMPLERS[name].sums else (1e-6, 1e-5)  # which are in float32
    with jax.enable_x64(True):
        f = jax.jit(lambda eta, T: after_three_steps(name, eta, T))
        gradient = jax.jit(jax.grad(f, (0, 1)))
        by_eta, by_T = gradient(0.1, 0.05)
        np.testing.assert_allclose(by_eta, difference(lambda x: f(x, 0.05), 0.1, h), rtol=rtol)
        np.testing.assert_allclose(by_T, difference(lambda x: f(0.1, x), 0.05, h), rtol=rtol)
        at_0, by_T = gradient(0.1, 0.0)
        np.testing.assert_allclose(at_0, difference(lambda x: f(x, 0.0), 0.1, h), rtol=rtol)
        assert np.isfinite(by_T)
