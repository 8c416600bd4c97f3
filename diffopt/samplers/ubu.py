"""Langevin dynamics split as UBU."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from .._types import Noise
from ..inputs.scalars import as_float, check_number, check_scalar, ratio, root, value_at
from .base import sampler
from .underdamped import UnderdampedState, change_units, start


def ubu(
    step_size: optax.ScalarOrSchedule,
    temperature: optax.ScalarOrSchedule,
    *,
    friction: float | jax.Array = 1.0,
    key: int | jax.Array = 0,
    noise: Noise = "gaussian",
) -> optax.GradientTransformationExtraArgs:
    r"""Langevin dynamics split as UBU: its paths are of strong order 2, at one gradient a step.

    The diffusion dθ = v dt, dv = -∇L dt - γv dt + √(2γT) dW is split into two parts: a kick by
    the gradient (B), and all the rest (U), a free particle in a heat bath. U has an exact solution
    too: θ and v move together, driven by one Brownian path. In steps of length h, with
    c = exp(-γh), x = γh/2 and two independent ξ, ζ ~ N(0, I):

        v ← v - h ∇L(θ)                                                 B
        u ← c v + √((1 - c²) T) ξ                                       U and U
        θ ← θ + (tanh x)/x h (v + u)/2 + √(T (x - tanh x))/x h ζ
        v ← u

    The half step U at the end of one step and that at the start of the next are taken as one, so
    that the parameters are where UBU takes its gradients, in the middle of its steps. It is
    `baoab` but for a shorter drift and the second increment. v stands behind θ by the kick c∇L with
    c = h/2 (1 - coth x + 1/x), near half of one; where a schedule changes h, v ← v + (c' - c)∇L.

    Its paths follow the diffusion with an error of strong order 2: √E|θ - θ(t)|² = O(h²) for
    the same Brownian path, with an error of O(h) in v, which stands half a kick behind. The
    stationary density of θ is proportional to exp(-L/T) with an error of order 2. On L = kθ²/2,
    where it is stable for h²k < 2γh / tanh(γh/2), a little beyond `baoab`'s 4,

        Var θ = T/k (1 + h²k/12 + O(h⁴))

    here, and T/k (1 - h²k/6 + O(h⁴)) at the ends of UBU's steps, which are half a step U after the
    kick and which the papers' bounds are about: the parameters are the better samples of the two.
    `baoab` has no such error at all; its paths are of strong order 1.

    At T = 0 it is momentum with an exact exponential, and at T = 0 and γ = 0 it is leapfrog.
    Noise of variance σ² in the gradients, as of independent minibatches, adds h²σ² to the
    velocity's variance at each step, as in `baoab`. Those of one epoch make up for one another, and
    `sample` goes by epochs: on a linear regression with batches of 20 out of 200 and h = 0.05 the
    hottest direction is 7 % above T, and at twice T with independent batches.

    Memory: one velocity for each parameter. It draws two increments for each where the others draw
    one. Choose it where paths count: to couple chains of different step sizes (multilevel Monte
    Carlo), or with bounds that are proved for it; for samples alone take `baoab`.

    Args:
      step_size: h > 0, in units of time (√ of `sghmc`'s learning rate): a number, a 0-d array or
        a schedule of the step count.
      temperature: T ≥ 0, in units of the loss, likewise.
      friction: γ ≥ 0, per unit of time, a number or a 0-d array.
      key: as in `sampler`; each sampler and each chain needs its own.
      noise: as in `sampler`. A strong order is one of Gaussian increments.

    Returns:
      An `optax.GradientTransformationExtraArgs` with an `UnderdampedState`. Its updates have the
      shapes and dtypes of the gradients.

    Examples:
      >>> import diffopt, jax, jax.numpy as jnp, optax
      >>> tx = diffopt.ubu(0.5, temperature=0.5)
      >>> @jax.jit
      ... def step(carry, _):
      ...     params, state = carry
      ...     grads = params  # of the loss θ²/2
      ...     updates, state = tx.update(grads, state)
      ...     return (optax.apply_updates(params, updates), state), None
      >>> params = jnp.zeros(10_000)  # 10,000 chains
      >>> (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=100)
      >>> bool(abs(params.var() - 0.5 * (1 + 0.5**2 / 12)) < 0.03)
      True

    References:
      Sanz-Serna & Zygalakis, [Wasserstein distance estimates for the distributions of numerical
      approximations to ergodic stochastic differential
      equations](https://arxiv.org/abs/2104.12384), JMLR 2021.
    """
    check_scalar("step_size", step_size, positive=True)
    check_scalar("temperature", temperature)
    check_number("friction", friction)

    def step(
        g: Any, increments: tuple[Any, Any], state: UnderdampedState
    ) -> tuple[Any, UnderdampedState]:
        xi, zeta = increments
        h, T = value_at(step_size, state.count), value_at(temperature, state.count)
        x = as_float(friction) * h / 2
        c = jnp.exp(-2 * x)
        half = h / 2 * jnp.where(x == 0, 1, ratio(jnp.tanh(x), x))
        transverse = _transverse_variance(x)
        along, across = root(-jnp.expm1(-4 * x) * T), h * root(T * transverse)
        half_kick = h / 2 * (1 - transverse * ratio(h / 2, half))
        state = change_units(state, g, jnp.ones([]), half_kick)
        kicked = jax.tree.map(lambda g, v: v - h * g, g, state.velocity)
        velocity = jax.tree.map(lambda v, xi: c * v + along * xi, kicked, xi)
        moves = jax.tree.map(
            lambda v, u, zeta: half * (v + u) + across * zeta, kicked, velocity, zeta
        )
        return moves, state._replace(velocity=velocity)

    return sampler(step, start, increments=2, key=key, noise=noise)


def _transverse_variance(x: jax.Array) -> jax.Array:
    """(x - tanh x)/x², by its series where the difference would be of two like numbers."""
    small = x < 0.4
    coefficients = (1 / 3, -2 / 15, 17 / 315, -62 / 2835, 1382 / 155925)
    series = x * jnp.polyval(jnp.array(coefficients[::-1], x.dtype), x**2)
    large = jnp.where(small, 1, x)
    return jnp.where(small, series, (large - jnp.tanh(large)) / large**2)
