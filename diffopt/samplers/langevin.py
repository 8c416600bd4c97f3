"""The noise of a Langevin diffusion, for a chain of Optax transformations."""

from typing import Any

import jax
import optax

from .._types import Noise
from ..inputs.scalars import check_scalar, ratio, root, value_at
from .base import SamplerState, sampler


def langevin(
    diffusion: optax.ScalarOrSchedule,
    *,
    learning_rate: optax.ScalarOrSchedule | None = None,
    key: int | jax.Array = 0,
    noise: Noise = "gaussian",
) -> optax.GradientTransformationExtraArgs:
    r"""Add the noise of a Langevin diffusion to the gradients.

    With a learning rate η, `g ← g + √(2D/η) ξ`, ξ ~ N(0, I). `optax.sgd(η)` multiplies what
    reaches it by -η, so that

        tx = optax.chain(diffopt.langevin(D, learning_rate=lr), optax.sgd(lr))

    takes the Euler-Maruyama step `θ ← θ - η∇L + √(2Dη) ξ` of dθ = -∇L dt + √(2D) dW, whose
    stationary density is proportional to exp(-L(θ)/D): the diffusion coefficient *is* the
    temperature of the loss. With L the mean negative log posterior over N examples, D = 1/N
    samples the Bayesian posterior. The scheme has weak order 1: on L = kθ²/2 its stationary
    variance is D / (k (1 - ηk/2)).

    Without a learning rate, `g ← g + √(2D) ξ`: gradient noise of covariance 2D, as from a
    minibatch. After `optax.sgd(η)` the chain is then at temperature D·η, which is smaller than D
    by the factor η: with a constant η, `langevin(D)` is `langevin(D * lr, learning_rate=lr)`.

    Where it goes: directly before the learning rate, after clipping, weight decay and
    preconditioning. Weight decay λ before it is a Gaussian prior of variance D/λ on each weight.
    Momentum m after it changes the temperature to D/(1 - m); use `diffopt.sghmc`, which has the
    factor. Adam after it digests the noise into its moments and is no diffusion at all: put
    `langevin` after `optax.scale_by_adam()` and before `optax.scale_by_learning_rate(lr)`.

    Memory: none beside the key and the count. Choose it to put noise into an Optax chain that you
    have; for plain SGD at a temperature, `sgld` is the same in one piece.

    Args:
      diffusion: the diffusion coefficient D ≥ 0, in units of the loss: a number, a 0-d array or
        a schedule of the step count. At D = 0 gradients pass unchanged.
      learning_rate: the step size η > 0 of the optimizer that follows, likewise, or None. Where
        a schedule reaches η = 0 the noise is 0.
      key: as in `sampler`; each sampler and each chain needs its own.
      noise: as in `sampler`.

    Returns:
      An `optax.GradientTransformationExtraArgs` with a `SamplerState`. Shapes and dtypes of the
      gradients are kept; a complex leaf is treated as two real ones.

    Examples:
      >>> import diffopt, jax, jax.numpy as jnp, optax
      >>> tx = optax.chain(diffopt.langevin(0.5, learning_rate=0.1), optax.sgd(0.1))
      >>> @jax.jit
      ... def step(carry, _):
      ...     params, state = carry
      ...     grads = jax.grad(lambda p: jnp.sum(p**2) / 2)(params)
      ...     updates, state = tx.update(grads, state)
      ...     return (optax.apply_updates(params, updates), state), None
      >>> params = jnp.zeros(10_000)  # 10,000 chains in a quadratic well
      >>> (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=100)
      >>> bool(abs(params.var() - 0.5 / (1 - 0.1 / 2)) < 0.03)
      True

    References:
      Welling & Teh, [Bayesian Learning via Stochastic Gradient Langevin
      Dynamics](https://www.stats.ox.ac.uk/~teh/research/compstats/WelTeh2011a.pdf), ICML 2011.
    """
    check_scalar("diffusion", diffusion)
    if learning_rate is not None:
        check_scalar("learning_rate", learning_rate, positive=True)

    def step(g: Any, xi: Any, state: SamplerState) -> tuple[Any, SamplerState]:
        variance = 2 * value_at(diffusion, state.count)
        if learning_rate is not None:
            eta = value_at(learning_rate, state.count)
            variance = ratio(variance, eta)
        scale = root(variance)
        return jax.tree.map(lambda g, xi: g + scale * xi, g, xi), state

    return sampler(step, key=key, noise=noise)
