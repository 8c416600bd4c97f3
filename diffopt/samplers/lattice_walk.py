"""A random walk on a lattice whose coin the gradient weighs."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..inputs.scalars import check_scalar, root, value_at
from ..noise.uniform16 import uniform16
from .base import SamplerState, sampler


def lattice_walk(
    learning_rate: optax.ScalarOrSchedule,
    temperature: optax.ScalarOrSchedule,
    *,
    key: int | jax.Array = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""A lattice random walk: every element goes up or down by √(2Tη), as the gradient weighs.

    One step, element by element, for the diffusion dθ = -∇L dt + √(2T) dW:

        θ ← θ + δ with probability clip((1 - ηg/δ)/2, 0, 1), else θ - δ      δ = √(2Tη), g = ∇L(θ)

    Where the clip does nothing, |ηg| ≤ δ, a step has the mean -ηg and the second moment 2Tη, those
    of SGLD's drift and noise: weak order 1. But there the second moment holds the noise and the
    squared drift both, so that on kθ²/2 the variance is T/k exactly, at every such step size: with
    1/(ηk) = n an integer and θ on the lattice of multiples of δ, it is Ehrenfest's urn of 2n balls,
    which never clips, and θ/δ + n has the binomial law of 2n tosses (of fourth moment (3 - ηk)
    (T/k)²). Otherwise the clip cuts beyond √(2/(ηk)) standard deviations: the variance is T/k at
    ηk = 0.1, up to 0.5 % more at 0.3 and up to 8 % at 0.6, where SGLD's is 5, 18 and 43 % more.

    Noise in the gradient, independent from step to step, changes nothing in the law of one element
    as long as it does not clip: the chance of a move is linear in g, and its mean is that of the
    mean gradient. What is left of minibatch noise is its correlations between elements, which add
    η² Cᵢⱼ beside the diagonal of a step's covariance, and the clip. Batches that are drawn without
    replacement make up for one another within an epoch, and then the walk is too cold.

    No step is longer than δ, whatever the gradient: the walk cannot blow up. A gradient beyond
    √(2T/η) counts as that much, so a wall or an outlier is left at the speed √(2T/η) at most, and
    from far away the way in is long. Where T ≪ ηg² every move clips, and the walk is descent by
    signs with steps of δ: so it is not continuous at T = 0, where it is `optax.sgd(η)`. Let a
    temperature that falls end a little above 0.

    Memory: none beside the key and the count. 16 random bits for each element, and no Gaussian to
    make of them. Choose it in place of `sgld` where steps may be too long for the steepest
    places or gradients have heavy tails, and no chain may diverge; with a velocity, as in `baoab`,
    a chain gets further along narrow valleys.

    Args:
      learning_rate: the step size η > 0: a number, a 0-d array or a schedule of the step count.
      temperature: T ≥ 0, in units of the loss, likewise.
      key: as in `sampler`; each sampler and each chain needs its own.

    Returns:
      An `optax.GradientTransformationExtraArgs` with a `SamplerState`. Its updates have the shapes
      and dtypes of the gradients; a complex element is two real ones.

    Examples:
      >>> import diffopt, jax, jax.numpy as jnp, optax
      >>> tx = diffopt.lattice_walk(0.25, temperature=0.5)
      >>> @jax.jit
      ... def step(carry, _):
      ...     params, state = carry
      ...     updates, state = tx.update(params, state)
      ...     return (optax.apply_updates(params, updates), state), None
      >>> params = jnp.zeros(10_000)  # 10,000 chains in a quadratic well
      >>> (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=100)
      >>> bool(abs(params.var() - 0.5) < 0.03)  # sgld is at 0.57
      True

    References:
      Mensch et al., [Robust Stochastic Gradient Posterior Sampling with Lattice Based
      Discretisation](https://arxiv.org/abs/2602.15925), 2026; without minibatches Duffield et al.,
      [arXiv 2508.20883](https://arxiv.org/abs/2508.20883), 2025.
    """
    check_scalar("learning_rate", learning_rate, positive=True)
    check_scalar("temperature", temperature)

    def step(g: Any, xi: Any, state: SamplerState) -> tuple[Any, SamplerState]:
        eta, T = value_at(learning_rate, state.count), value_at(temperature, state.count)
        delta = root(2 * T * eta)

        def toss(g: jax.Array, u: jax.Array) -> jax.Array:
            return jnp.where(delta > 0, delta * jnp.sign(delta * u - eta * g), -eta * g)

        def move(g: jax.Array, u: jax.Array) -> jax.Array:
            if jnp.iscomplexobj(g):
                return jax.lax.complex(toss(g.real, u.real), toss(g.imag, u.imag))
            return toss(g, u)

        return jax.tree.map(move, g, xi), state

    return sampler(step, key=key, noise=uniform16)
