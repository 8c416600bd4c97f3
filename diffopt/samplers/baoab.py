"""Langevin dynamics split as BAOAB."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from .._types import Noise
from ..inputs.scalars import as_float, check_number, check_scalar, root, value_at
from .base import sampler
from .underdamped import UnderdampedState, change_units, start


def baoab(
    step_size: optax.ScalarOrSchedule,
    temperature: optax.ScalarOrSchedule,
    *,
    friction: float | jax.Array = 1.0,
    key: int | jax.Array = 0,
    noise: Noise = "gaussian",
) -> optax.GradientTransformationExtraArgs:
    r"""Langevin dynamics split as BAOAB: second order, and exact on a quadratic at every step.

    The diffusion dθ = v dt, dv = -∇L dt - γv dt + √(2γT) dW is split into three parts that can
    each be solved exactly: a kick by the gradient (B), a drift (A), and the Ornstein-Uhlenbeck
    process of the velocity (O). In steps of length h, ξ ~ N(0, I):

        v ← v - h ∇L(θ)                              B and B
        θ ← θ + h v / 2                              A
        v ← c v + √((1 - c²) T) ξ,  c = exp(-γh)     O
        θ ← θ + h v / 2                              A

    The half kicks at the end of one step and at the start of the next are at the same θ. They are
    taken as one, with one gradient a step, and the positions agree with BAOAB. Where a schedule
    changes h, each half has the size of its own step.

    The stationary density of θ is proportional to exp(-L(θ)/T), and v is N(0, T), with an
    error of weak order 2 (of order 4 in θ when the friction is large). On L = kθ²/2 there is
    none: Var θ = T/k and Var v = T at every stable step, that is h < 2/√k.

    At T = 0 it is the leapfrog method damped by c; at T = 0 and γ = 0 it is leapfrog, which
    conserves energy. It is also a form of SGD with momentum: h² is the learning rate and c the
    momentum, so `baoab(√η, T, friction=-log(m)/√η)` takes the place of `sghmc(η, T, momentum=m)`.
    Minibatch noise of variance σ² in the gradients adds h²σ² to the velocity's variance at each
    step, as in `sghmc`.

    Memory: one velocity for each parameter. Choose it when the samples have to be right (the
    gradients exact or nearly so): it allows the longest steps for a given error of all samplers
    here.

    Args:
      step_size: h > 0, in units of time (√ of `sghmc`'s learning rate): a number, a 0-d array or
        a schedule of the step count.
      temperature: T ≥ 0, in units of the loss, likewise.
      friction: γ ≥ 0, per unit of time, a number or a 0-d array.
      key: as in `sampler`; each sampler and each chain needs its own.
      noise: as in `sampler`.

    Returns:
      An `optax.GradientTransformationExtraArgs` with an `UnderdampedState`. Its updates have the
      shapes and dtypes of the gradients.

    Examples:
      >>> import diffopt, jax, jax.numpy as jnp, optax
      >>> tx = diffopt.baoab(1.5, temperature=0.5)  # the limit of stability is 2
      >>> @jax.jit
      ... def step(carry, _):
      ...     params, state = carry
      ...     grads = params  # of the loss θ²/2
      ...     updates, state = tx.update(grads, state)
      ...     return (optax.apply_updates(params, updates), state), None
      >>> params = jnp.zeros(10_000)  # 10,000 chains
      >>> (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=50)
      >>> bool(abs(params.var() - 0.5) < 0.03)
      True

    References:
      Leimkuhler & Matthews, [Rational Construction of Stochastic Numerical Methods for Molecular
      Sampling](https://arxiv.org/abs/1203.5428), Applied Mathematics Research eXpress 2013.
    """
    check_scalar("step_size", step_size, positive=True)
    check_scalar("temperature", temperature)
    check_number("friction", friction)

    def step(g: Any, xi: Any, state: UnderdampedState) -> tuple[Any, UnderdampedState]:
        h, T = value_at(step_size, state.count), value_at(temperature, state.count)
        gamma = as_float(friction)
        c = jnp.exp(-gamma * h)
        scale = root(-jnp.expm1(-2 * gamma * h) * T)
        state = change_units(state, g, jnp.ones([]), h / 2)
        kicked = jax.tree.map(lambda g, v: v - h * g, g, state.velocity)
        velocity = jax.tree.map(lambda v, xi: c * v + scale * xi, kicked, xi)
        moves = jax.tree.map(lambda v, w: h / 2 * (v + w), kicked, velocity)
        return moves, state._replace(velocity=velocity)

    return sampler(step, start, key=key, noise=noise)
