"""Stochastic gradient Langevin dynamics with an adaptive drift."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._types import Noise
from ..inputs.scalars import as_float, check_number, check_scalar, root, value_at
from .base import sampler


class AdaptiveDriftState(NamedTuple):
    """State of `asgld`.

    Attributes:
      count: steps taken, an int32 scalar that stays at 2³¹ - 1 once it is there.
      key: a typed PRNG key, split at every step.
      mu: the decayed mean of the gradients, of the shapes of the parameters, and float32 where they
        have 16 bits.
      nu: the decayed mean of the squared gradients, likewise; real where they are complex.
      weights: 1 - b1ᵗ and 1 - b2ᵗ, what these means weigh after t steps: a float32 array of two.
    """

    count: jax.Array  # type: ignore[assignment]
    key: jax.Array
    mu: Any
    nu: Any
    weights: jax.Array


def asgld(
    learning_rate: optax.ScalarOrSchedule,
    temperature: optax.ScalarOrSchedule,
    *,
    drift: optax.ScalarOrSchedule = 0.01,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    key: int | jax.Array = 0,
    noise: Noise = "gaussian",
) -> optax.GradientTransformationExtraArgs:
    r"""SGLD with Adam's direction added to its drift.

    One step, element by element, with Adam's moments and their corrections for the start at 0:

        μ ← b1 μ + (1 - b1) g,    ν ← b2 ν + (1 - b2) g²          g = ∇L(θ)
        A = μ/(1 - b1ᵗ) / (√(ν/(1 - b2ᵗ)) + eps)                  t is 1 at the first step
        θ ← θ - η (g + a A) + √(2Tη) ξ                            ξ ~ N(0, I), a is `drift`

    It is a step of SGLD of size η and a step of `optax.adam` of size ηa at once: a has the units of
    a gradient. At a = 0 it is `sgld`, with the same numbers; at T = 0 it is the sum of the updates
    of `optax.sgd(η)` and `optax.adam(ηa, b1, b2, eps)`. The paper's step has no corrections, eps
    within the root, and the gradient of N·L, so that its a is N times ours.

    **Its law is not exp(-L/T).** A is a force of its own, about one in size however small the
    gradient is, and nothing takes it off again. On kθ²/2, where ν averages over many independent
    states of the chain and μ keeps up with it (1/(1 - b2) steps are many times, 1/(1 - b1) a small
    part of the 1/(ηk) steps in which the chain forgets), √ν = kσ and A = θ/σ, so that in the limit
    of small steps the standard deviation σ solves

        k σ² + a σ = T

    which is colder than T: kσ²/T is 0.90, 0.61 and 0.09 for a/√(kT) = 0.1, 0.5 and 3. So a is a
    small bias along a direction where a ≪ √(kT), and along a soft one the drift holds the chain
    within σ ≈ T/a. The law says more for a μ that lags: solve the stationary covariance of the
    linear step for σ with √ν = kσ. Noise in the gradients enters ν and weakens the drift.

    Take its steps for the way in and a law for the stay: a schedule of `drift` that falls to 0
    leaves `sgld`, whose law is exp(-L/T) up to its step.

    Memory: two numbers for each parameter, in 32 bits or more. A step costs Adam's beside SGLD's.
    Choose it to come from the initial weights of a network to where its posterior is, with one
    transformation for both; not for intervals while a > 0.

    Args:
      learning_rate: the step size η > 0: a number, a 0-d array or a schedule of the step count.
      temperature: T ≥ 0, in units of the loss, likewise.
      drift: a ≥ 0, in units of a gradient, likewise: the step of Adam is ηa.
      b1: decay of the mean of gradients, in [0, 1), a number or a 0-d array.
      b2: decay of the mean of squared gradients, in [0, 1), likewise.
      eps: added to the root of the mean of squares, > 0, likewise.
      key: as in `sampler`; each sampler and each chain needs its own.
      noise: as in `sampler`.

    Returns:
      An `optax.GradientTransformationExtraArgs` with an `AdaptiveDriftState`. Its updates have the
      shapes and dtypes of the gradients. A complex element has one ν, of its squared modulus.

    Examples:
      Adam's steps of 0.1 for a hundred steps, and then SGLD.

      >>> import diffopt, jax, jax.numpy as jnp, optax
      >>> drift = optax.linear_schedule(1.0, 0.0, 100)
      >>> tx = diffopt.asgld(0.1, temperature=0.5, drift=drift)
      >>> @jax.jit
      ... def step(carry, _):
      ...     params, state = carry
      ...     updates, state = tx.update(params, state)
      ...     return (optax.apply_updates(params, updates), state), None
      >>> params = jnp.full(10_000, 5.0)  # 10,000 chains in a quadratic well
      >>> (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=200)
      >>> bool(abs(params.var() - 0.5 / (1 - 0.1 / 2)) < 0.03)
      True

    References:
      Kim, Song & Liang, [Stochastic Gradient Langevin Dynamics Algorithms with Adaptive
      Drifts](https://arxiv.org/abs/2009.09535), 2020.
    """
    check_scalar("learning_rate", learning_rate, positive=True)
    check_scalar("temperature", temperature)
    check_scalar("drift", drift)
    check_number("b1", b1, below=1)
    check_number("b2", b2, below=1)
    check_number("eps", eps, positive=True)

    def init(params: Any, count: jax.Array, key: jax.Array) -> AdaptiveDriftState:
        def zeros(p: Any, *, real: bool) -> jax.Array:
            dtype = jnp.finfo(jnp.result_type(p)).dtype if real else jnp.result_type(p)
            return jnp.zeros_like(p, dtype=np.promote_types(dtype, np.float32))

        mu = jax.tree.map(lambda p: zeros(p, real=False), params)
        nu = jax.tree.map(lambda p: zeros(p, real=True), params)
        return AdaptiveDriftState(count, key, mu, nu, jnp.zeros(2, jnp.float32))

    def step(g: Any, xi: Any, state: AdaptiveDriftState) -> tuple[Any, AdaptiveDriftState]:
        eta, T = value_at(learning_rate, state.count), value_at(temperature, state.count)
        a, beta1, beta2, bound = value_at(drift, state.count), *map(as_float, (b1, b2, eps))
        scale = root(2 * T * eta)
        betas = jnp.stack([beta1, beta2])
        weights = betas * state.weights + (1 - betas)
        mu = jax.tree.map(lambda g, m: beta1 * m + (1 - beta1) * g, g, state.mu)
        square = lambda g: jnp.real(g * jnp.conj(g))
        nu = jax.tree.map(lambda g, v: beta2 * v + (1 - beta2) * square(g), g, state.nu)

        def move(g: jax.Array, m: jax.Array, v: jax.Array, xi: jax.Array) -> jax.Array:
            A = m / weights[0] / (root(v / weights[1]) + bound)
            return -eta * (g + a * A) + scale * xi

        return jax.tree.map(move, g, mu, nu, xi), state._replace(mu=mu, nu=nu, weights=weights)

    return sampler(step, init, key=key, noise=noise)
