"""Stochastic gradient Langevin dynamics."""

from typing import Any

import jax
import optax

from .._types import Noise
from ..inputs.scalars import check_scalar, root, value_at
from .base import SamplerState, sampler


def sgld(
    learning_rate: optax.ScalarOrSchedule,
    temperature: optax.ScalarOrSchedule,
    *,
    key: int | jax.Array = 0,
    noise: Noise = "gaussian",
) -> optax.GradientTransformationExtraArgs:
    r"""Stochastic gradient Langevin dynamics: SGD at a temperature.

    The Euler-Maruyama step `θ ← θ - η∇L + √(2Tη) ξ`, ξ ~ N(0, I), of the overdamped diffusion
    dθ = -∇L dt + √(2T) dW, with stationary density proportional to exp(-L(θ)/T). It is
    `optax.chain(langevin(T, learning_rate=η), optax.sgd(η))` in one piece, has weak order 1, and at
    T = 0 it is `optax.sgd(η)`. With L the mean negative log posterior over N examples, T = 1/N
    samples the posterior.

    Memory: none beside the key and the count. Choose it where memory is short or the steps are
    small anyway; `sghmc` and `baoab` get further along narrow valleys in as many steps.

    Args:
      learning_rate: the step size η > 0: a number, a 0-d array or a schedule of the step count.
      temperature: T ≥ 0, in units of the loss, likewise.
      key: as in `sampler`; each sampler and each chain needs its own.
      noise: as in `sampler`.

    Returns:
      An `optax.GradientTransformationExtraArgs` with a `SamplerState`. Its updates have the shapes
      and dtypes of the gradients.

    Examples:
      >>> import diffopt, jax.numpy as jnp, optax
      >>> tx = diffopt.sgld(0.1, temperature=1 / 50_000)
      >>> params = {"w": jnp.ones(3)}
      >>> updates, state = tx.update({"w": jnp.ones(3)}, tx.init(params))
      >>> params = optax.apply_updates(params, updates)
      >>> bool(jnp.allclose(params["w"], 0.9, atol=0.02))
      True

    References:
      Welling & Teh, [Bayesian Learning via Stochastic Gradient Langevin
      Dynamics](https://www.stats.ox.ac.uk/~teh/research/compstats/WelTeh2011a.pdf), ICML 2011.
    """
    check_scalar("learning_rate", learning_rate, positive=True)
    check_scalar("temperature", temperature)

    def step(g: Any, xi: Any, state: SamplerState) -> tuple[Any, SamplerState]:
        eta, T = value_at(learning_rate, state.count), value_at(temperature, state.count)
        scale = root(2 * T * eta)
        return jax.tree.map(lambda g, xi: -eta * g + scale * xi, g, xi), state

    return sampler(step, key=key, noise=noise)
