"""Microcanonical Langevin dynamics."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._types import Noise
from ..inputs.scalars import as_float, check_number, check_scalar, ratio, root, value_at
from ..inputs.trees import count_degrees, mean_product
from .base import sampler
from .underdamped import start_velocity


class MicrocanonicalState(NamedTuple):
    """State of `mclmc`.

    Attributes:
      count: steps taken, an int32 scalar that stays at 2³¹ - 1 once it is there.
      key: a typed PRNG key, split at every step.
      direction: u, with the structure, shapes and dtypes of the parameters. u² is 1 on average
        over all of them; 0 before the first step.
      half_kick: of the last step, a scalar: u stands so much of a kick behind the parameters.
    """

    count: jax.Array  # type: ignore[assignment]
    key: jax.Array
    direction: Any
    half_kick: jax.Array


def mclmc(
    step_size: optax.ScalarOrSchedule,
    temperature: optax.ScalarOrSchedule,
    *,
    friction: float | jax.Array = 0.1,
    key: int | jax.Array = 0,
    noise: Noise = "gaussian",
) -> optax.GradientTransformationExtraArgs:
    r"""Microcanonical Langevin dynamics: its velocity turns and keeps its size.

    The velocity is √T u, and u·u = d at all times, with d the number of parameters. The gradient
    turns u towards -∇L, and noise turns it anywhere. With P = I - uuᵀ/d, which projects onto the
    sphere, the diffusion is, by Stratonovich,

        dθ = √T u dt,    du = P (-d/(d - 1) ∇L/√T dt + √(2γ) dW)

    In steps of length h, split as `baoab`, ξ ~ N(0, I), where |x|² is the mean of x² over the
    parameters and a hat divides by |x|:

        δ = h/√T d/(d - 1) |∇L(θ)|,    e = -∇L(θ)/|∇L(θ)|
        u ← hat(u + (sinh δ + (cosh δ - 1) ⟨e, u⟩) e)        B and B: the exact turn
        θ ← θ + h √T u / 2                                    A
        u ← hat(c u + √(1 - c²) ξ),  c = exp(-γh)             O
        θ ← θ + h √T u / 2                                    A

    with ⟨e, u⟩ the mean of eu. There is one gradient a step, as in `baoab`: where a schedule
    changes h or T, each half kick has the size of its own step. It starts from rest, so that the
    first move is down the gradient.

    The units are those of `baoab`: time for h, one over time for γ, whatever d and T are. In the
    papers' terms, for the density exp(-L/T), a step has the length ε = h√(dT), and the momentum
    loses its direction over L = √(dT)/γ.

    The stationary density of θ is proportional to exp(-L/T) for every d ≥ 2 in the limit of small
    steps, with an error of order h². On a quadratic loss of many dimensions and mean curvature k̄
    every direction is at the same temperature,

        T y / tanh y,    4 y tanh y = h²k̄

    which is T (1 + h²k̄/12) for small steps: a few stiff directions hardly count, where the mean is
    small. The steps are stable for h²k < 4y/tanh y, a little beyond `baoab`'s 4. A longer one does
    not blow up: no step is longer than h√(dT), and the chain is too warm.

    At the same h and γ a chain of `baoab` mixes as fast where the curvature is even, and has no
    error on a quadratic. The gains are two. `find_step_size` finds longer steps: this gave 1.7 to
    2.6 times the effective samples of `baoab` per gradient, both at a friction of 0.1, on eight
    schools, a regression and a small network (`docs/results/posterior.md`). And where the
    curvature varies, it takes long steps at a low friction, at which `baoab` gets stuck.

    Noise in the gradients turns u too and does not heat it: in many dimensions noise of the same
    variance in every direction is more friction and leaves the law as it is. Real minibatches are
    noisier along stiff directions. Those become too warm, the others too cold, as in `sgnht`: with
    curvatures 1 and 1/4, variances in proportion and 9 on average, T = 1, h = 0.1 and γ = 0.3 they
    are at 1.37 T and 0.65 T, and nothing that reads a mean temperature tells.

    There is no optimizer at T = 0: nothing moves there, so T = 0 is refused, and a schedule that
    comes to it stops the chain. A `kinetic_temperature` of it would be T whatever the chain does;
    look at `configurational_temperature`.

    Memory: one direction for each parameter, and within a step one number more, as each sum needs
    the whole of what comes before. It costs four sums over the parameters more than `baoab`. Choose
    it for effective samples of a small model, with exact gradients.

    Args:
      step_size: h > 0, in units of time, as in `baoab`: a number, a 0-d array or a schedule of the
        step count.
      temperature: T > 0, in units of the loss, likewise.
      friction: γ ≥ 0, per unit of time, a number or a 0-d array.
      key: as in `sampler`; each sampler and each chain needs its own.
      noise: as in `sampler`.

    Returns:
      An `optax.GradientTransformationExtraArgs` with a `MicrocanonicalState`. Its updates have the
      shapes and dtypes of the gradients.

    Raises:
      ValueError: at `init`, there is one parameter alone, with no direction to turn to.

    Examples:
      >>> import diffopt, jax, jax.numpy as jnp, optax
      >>> tx = diffopt.mclmc(0.5, temperature=0.5, friction=1.0)
      >>> @jax.jit
      ... def step(carry, _):
      ...     params, state = carry
      ...     grads = params  # of the loss θ²/2
      ...     updates, state = tx.update(grads, state)
      ...     return (optax.apply_updates(params, updates), state), None
      >>> params = jnp.zeros(10_000)  # one chain
      >>> (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), length=100)
      >>> bool(abs(params.var() - 0.5 * (1 + 0.5**2 / 12)) < 0.03)
      True
      >>> print(f"{jnp.mean(state.direction**2):.3f}")
      1.000

    References:
      Robnik, De Luca, Silverstein & Seljak, [Microcanonical Hamiltonian Monte
      Carlo](https://arxiv.org/abs/2212.08549), JMLR 2023; Robnik & Seljak, [Fluctuation without
      dissipation: Microcanonical Langevin Monte Carlo](https://arxiv.org/abs/2303.18221), 2023.
    """
    check_scalar("step_size", step_size, positive=True)
    check_scalar("temperature", temperature, positive=True)
    check_number("friction", friction)

    def init(params: Any, count: jax.Array, key: jax.Array) -> MicrocanonicalState:
        if count_degrees(params) == 1:
            raise ValueError("mclmc turns a velocity, but params have one number alone: take baoab")
        return MicrocanonicalState(count, key, start_velocity(params), jnp.zeros([], jnp.float32))

    def step(g: Any, xi: Any, state: MicrocanonicalState) -> tuple[Any, MicrocanonicalState]:
        h, T = value_at(step_size, state.count), value_at(temperature, state.count)
        gamma = as_float(friction)
        d = jnp.asarray(count_degrees(g), float).astype(jnp.float32)  # an int32 ends at 2³¹
        c, scale = jnp.exp(-gamma * h), root(-jnp.expm1(-2 * gamma * h))
        half_kick = ratio(h, 2 * root(T)) * d / jnp.maximum(d - 1, 1)
        size = _size(g)
        delta = (state.half_kick + half_kick) * size
        e = jax.tree.map(lambda g: -ratio(1, size) * g, g)
        keep = 1 / jnp.cosh(delta)  # all over cosh δ, which may overflow
        along = jnp.tanh(delta) + (1 - keep) * mean_product(e, state.direction)
        kicked = _hat(jax.tree.map(lambda u, e: keep * u + along * e, state.direction, e))
        turned = _hat(jax.tree.map(lambda u, xi: c * u + scale * xi, kicked, xi))
        moves = jax.tree.map(lambda u, w: h / 2 * root(T) * (u + w), kicked, turned)
        return moves, state._replace(direction=turned, half_kick=half_kick)

    return sampler(step, init, key=key, noise=noise)


def _size(x: Any) -> jax.Array:
    """The root of the mean square."""
    return root(mean_product(x, x))


def _hat(x: Any) -> Any:
    """x over its size, and 0 where x is."""
    size = _size(x)
    return jax.tree.map(lambda x: ratio(1, size) * x, x)
