"""The stochastic gradient Nosé-Hoover thermostat."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._types import Noise
from ..inputs.scalars import as_float, check_number, check_scalar, ratio, root, value_at
from ..inputs.trees import mean_product
from .base import sampler
from .underdamped import scale_between, start_velocity


class ThermostatState(NamedTuple):
    """State of `sgnht`.

    Attributes:
      count: steps taken, an int32 scalar that stays at 2³¹ - 1 once it is there.
      key: a typed PRNG key, split at every step.
      velocity: v, with the structure, shapes and dtypes of the parameters.
      mass: the mass M of the last step, a scalar: M v² is on average the temperature.
      friction: the thermostat α, a scalar; the next step keeps 1 - α of the velocity.
      learning_rate: η of the last step, a scalar.
    """

    count: jax.Array  # type: ignore[assignment]
    key: jax.Array
    velocity: Any
    mass: jax.Array
    friction: jax.Array
    learning_rate: jax.Array

    @property
    def half_kick(self) -> jax.Array:
        """c of the last step, 1/(2M): v - c ∇L(θ) is the velocity at θ, whose mean given θ is 0."""
        return ratio(1, 2 * self.mass)


def sgnht(
    learning_rate: optax.ScalarOrSchedule,
    temperature: optax.ScalarOrSchedule,
    *,
    momentum: float | jax.Array = 0.9,
    key: int | jax.Array = 0,
    noise: Noise = "gaussian",
) -> optax.GradientTransformationExtraArgs:
    r"""Stochastic gradient Nosé-Hoover thermostat: SGHMC that controls its mean temperature.

    The friction is a variable: it grows while the velocities are too hot and shrinks while they
    are too cold. So it takes out gradient noise of unknown size, as from a minibatch. The diffusion
    is dθ = u dt, du = -∇L dt - γu dt + √(2AT) dW, dγ ∝ (u·u/d - T) dt, with d the number of
    parameters. In steps of length h, with v = hu, η = h², α = γh and m = 1 - Ah, ξ ~ N(0, I):

        v ← (1 - α) v - η ∇L(θ) + √(2(1 - m)ηT) ξ
        θ ← θ + v
        K = (2 - α) v·v / (2ηd)                          the kinetic temperature
        1/α ← max(1/α - (K/T - 1)/2, 1)                  α starts at 1 - m

    This is algorithm 2 of the paper but for two things. K is v·v/(ηd) corrected for friction in a
    finite step. And the thermostat follows dα/dt = α²/2 (K/T - 1), solved over the step: critical
    damping, so it settles within some 1/α steps at every temperature and winds up no further than
    it unwinds, where the paper's v·v/d - η (its T is 1) takes 1/(ηT) steps.

    The joint stationary density of the diffusion is proportional to exp(-L/T - u·u/(2T)) times
    an inverse gamma density of α, of shape 2d + 1 and mean 1 - m, for any d
    (`docs/theory/derivations.md`); the step has weak order 1 in η. On L = k|θ|²/2 with many
    parameters, where α becomes a constant α*, Var θ = T/k exactly at every stable step for
    gradients with noise of the same variance σ² in every direction:

        2(1 - m)ηT + η²σ² = α* ηT (2 - ηk / (2 - α*)),    α* ≈ 1 - m + ησ²/(2T).

    Since α ≤ 1, the step can take out noise of up to ησ² ≈ 2mT, and few parameters need a momentum
    of 1/2 or more: where 1 - m is near the bound, α can only fluctuate below it (at m = 0, ten
    parameters are 10 % too hot). There is one thermostat for
    all parameters: it holds their mean temperature. The noise of real minibatches differs by
    direction: noisier directions than the mean stay warmer than T and pay by the others' being
    colder, while the mean reads T. So a kinetic and a configurational temperature of T are
    necessary for equilibrium, not sufficient; a direction of noise σ² is near T (T + a)/(T + ā),
    a = ησ²/(2(1 - m)), ā its mean: `gradient_noise_temperature` measures both before you trust an
    interval. That is for many parameters, whose friction hardly fluctuates; with 4 it is 8 to 11 %
    off. `optax.partition` gives each group of parameters its own thermostat, and each then needs
    its own `key`.

    Where a schedule changes η, v is first taken into the units of the new step, by √(η'/η), as in
    `sghmc`. The friction that noise σ² asks for is another at another η, and is found within some
    1/α steps. Where η is 0 nothing moves, and v waits.

    At T = 0 and a constant η the friction is 1 - m and the step is `optax.sgd(η, momentum=m)`;
    under a schedule `optax.sgd` takes η'/η in place of √(η'/η).

    Memory: one velocity for each parameter and one scalar. It costs one sum over the velocities
    more than `sghmc`. Choose it when gradients come from minibatches small enough to heat `sghmc`.

    Args:
      learning_rate: the step size η > 0: a number, a 0-d array or a schedule of the step count.
      temperature: T ≥ 0, in units of the loss, likewise.
      momentum: m in [0, 1), a number or a 0-d array: 1 - m is the friction that the injected
        noise asks for.
      key: as in `sampler`; each sampler and each chain needs its own.
      noise: as in `sampler`.

    Returns:
      An `optax.GradientTransformationExtraArgs` with a `ThermostatState`. Its updates have the
      shapes and dtypes of the gradients.

    Examples:
      >>> import diffopt, jax, jax.numpy as jnp, optax
      >>> tx = diffopt.sgnht(0.1, temperature=0.5)
      >>> @jax.jit
      ... def step(carry, key):
      ...     params, state = carry
      ...     grads = params + jax.random.normal(key, params.shape)  # as of a minibatch
      ...     updates, state = tx.update(grads, state)
      ...     return (optax.apply_updates(params, updates), state), None
      >>> params = jnp.zeros(10_000)
      >>> keys = jax.random.split(jax.random.key(1), 300)
      >>> (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), keys)
      >>> bool(abs(params.var() - 0.5) < 0.03)  # sghmc is at 1.03
      True
      >>> print(f"{state.friction:.1f}")  # 1 - m + ησ²/(2T)
      0.2

    References:
      Ding et al., [Bayesian Sampling Using Stochastic Gradient Thermostats](
      https://papers.nips.cc/paper/5592-bayesian-sampling-using-stochastic-gradient-thermostats),
      NeurIPS 2014.
    """
    check_scalar("learning_rate", learning_rate, positive=True)
    check_scalar("temperature", temperature)
    check_number("momentum", momentum, below=1)

    def init(params: Any, count: jax.Array, key: jax.Array) -> ThermostatState:
        friction = as_float(1 - momentum).astype(jnp.float32)
        zero = lambda: jnp.zeros([], jnp.float32)  # donated: two buffers
        return ThermostatState(count, key, start_velocity(params), zero(), friction, zero())

    def step(g: Any, xi: Any, state: ThermostatState) -> tuple[Any, ThermostatState]:
        eta, T = value_at(learning_rate, state.count), value_at(temperature, state.count)
        m = as_float(momentum)
        alpha = jnp.where(T > 0, state.friction, 1 - m)
        scale = root(2 * (1 - m) * eta * T)
        before = state.learning_rate
        now = jnp.where(eta == 0, before, eta).astype(jnp.float32)
        a = scale_between(before, now)
        b = jnp.where(before == 0, 0, (now - a * before) / (2 - alpha))
        old = jax.tree.map(lambda v, g: a * v + b * g, state.velocity, g)
        velocity = jax.tree.map(lambda g, xi, v: (1 - alpha) * v - eta * g + scale * xi, g, xi, old)
        updates = jax.tree.map(lambda v: jnp.where(eta == 0, 0, v), velocity)
        velocity = jax.tree.map(lambda v, w: jnp.where(eta == 0, w, v), velocity, old)
        mass = jnp.where(eta == 0, state.mass, ratio(2 - alpha, 2 * eta))
        K = mass * mean_product(velocity, velocity)
        drive = jnp.where(eta * T > 0, ratio(K, T) - 1, 0)
        alpha = 1 / jnp.maximum(1 / alpha - drive / 2, 1)
        state = state._replace(velocity=velocity, mass=mass, friction=alpha, learning_rate=now)
        return updates, state

    return sampler(step, init, key=key, noise=noise)
