"""Preconditioned stochastic gradient Langevin dynamics."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._types import Noise
from ..inputs.scalars import as_float, check_number, check_scalar, root, value_at
from .base import sampler


class PreconditionedState(NamedTuple):
    """State of `psgld`.

    Attributes:
      count: steps taken, an int32 scalar that stays at 2³¹ - 1 once it is there.
      key: a typed PRNG key, split at every step.
      nu: the decayed mean of the squared gradients, of the shapes of the parameters; real where
        they are complex, and float32 where they have 16 bits.
    """

    count: jax.Array  # type: ignore[assignment]
    key: jax.Array
    nu: Any


def psgld(
    learning_rate: optax.ScalarOrSchedule,
    temperature: optax.ScalarOrSchedule,
    *,
    decay: float | jax.Array = 0.99,
    eps: float | jax.Array = 1e-5,
    key: int | jax.Array = 0,
    noise: Noise = "gaussian",
) -> optax.GradientTransformationExtraArgs:
    r"""Preconditioned SGLD: RMSProp at a temperature.

    The diffusion is dθ = -G∇L dt + √(2TG) dW with a diagonal G. One step, element by element
    (algorithm 1 of the paper, whose α is `decay`, λ `eps`, and ε twice our η):

        ν ← decay ν + (1 - decay) g²         g = ∇L(θ), ν starts at 0
        G = 1 / (√ν + eps)
        θ ← θ - η G g + √(2TηG) ξ            ξ ~ N(0, I)

    What it samples: exp(-L/T) if G were constant. But G follows θ, and an exact sampler would
    add the drift TΓ, Γᵢ = ∂Gᵢ/∂θᵢ, which the paper drops and so does this step. The stationary law
    is therefore biased, and no step size takes the bias away by itself. It is small as long as ν
    averages over many independent states of the chain, that is if the chain forgets its state
    well within 1/(1 - decay) steps. In the other limit, where ν keeps up with the chain,

        p(θ) ∝ exp(-L(θ)/T) / G(θ)

    in one dimension: the density falls to nearly nothing where the gradient is 0, at the mode.
    On kθ²/2 the variance then is 2T/k instead of T/k. With `decay` 0.99 it is too large by 5 %,
    14 % and 30 % where the chain forgets its state in 10, 33 and 100 steps. So take `decay` close
    to 1, and trust the samples less than `sgld` or `baoab`. Beside the bias, the scheme
    has weak order 1: with constant G the variance is T / (k (1 - ηGk/2)).

    The first 1/(1 - decay) steps, in which ν fills up from 0, are hotter than T. A parameter whose
    gradient stays 0, as behind a dead ReLU, has G = 1/eps and diffuses fast: give it weight decay,
    or raise `eps`.

    At T = 0 it is `optax.rmsprop(η, decay, eps, eps_in_sqrt=False)`.

    Memory: one number for each parameter, in float32 for 16-bit parameters too, as g² would
    underflow and ν lose its small increments. Choose it to explore where curvatures differ by
    orders of magnitude and one step size for all is too short or too long, as in a deep network.

    Args:
      learning_rate: the step size η > 0: a number, a 0-d array or a schedule of the step count.
      temperature: T ≥ 0, in units of the loss, likewise.
      decay: of the mean of squared gradients, in [0, 1), a number or a 0-d array.
      eps: bounds G by 1/eps, > 0, a number or a 0-d array.
      key: as in `sampler`; each sampler and each chain needs its own.
      noise: as in `sampler`.

    Returns:
      An `optax.GradientTransformationExtraArgs` with a `PreconditionedState`. Its updates have the
      shapes and dtypes of the gradients. A complex element has one G, for its squared modulus.

    Examples:
      >>> import diffopt, jax, jax.numpy as jnp, optax
      >>> tx = diffopt.psgld(0.01, temperature=1.0, decay=0.999)
      >>> curvature = jnp.repeat(jnp.array([1.0, 10.0, 100.0]), 5_000)
      >>> @jax.jit
      ... def step(carry, _):
      ...     params, state = carry
      ...     updates, state = tx.update(curvature * params, state)
      ...     return (optax.apply_updates(params, updates), state), None
      >>> params = 1 / jnp.sqrt(curvature)
      >>> (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=2_000)
      >>> variances = jnp.var(params.reshape(3, -1), axis=1) * jnp.array([1.0, 10.0, 100.0])
      >>> bool(jnp.all(abs(variances - 1) < 0.15))
      True

    References:
      Li et al., [Preconditioned Stochastic Gradient Langevin Dynamics for Deep Neural
      Networks](https://arxiv.org/abs/1512.07666), AAAI 2016.
    """
    check_scalar("learning_rate", learning_rate, positive=True)
    check_scalar("temperature", temperature)
    check_number("decay", decay, below=1)
    check_number("eps", eps, positive=True)

    def init(params: Any, count: jax.Array, key: jax.Array) -> PreconditionedState:
        def zeros(p: Any) -> jax.Array:
            real = jnp.finfo(jnp.result_type(p)).dtype
            return jnp.zeros_like(p, dtype=np.promote_types(real, np.float32))

        return PreconditionedState(count, key, jax.tree.map(zeros, params))

    def step(g: Any, xi: Any, state: PreconditionedState) -> tuple[Any, PreconditionedState]:
        eta, T = value_at(learning_rate, state.count), value_at(temperature, state.count)
        rho, bound, scale = as_float(decay), as_float(eps), root(2 * T * eta)
        nu = jax.tree.map(lambda g, v: rho * v + jnp.real((1 - rho) * g * jnp.conj(g)), g, state.nu)

        def move(g: jax.Array, v: jax.Array, xi: jax.Array) -> jax.Array:
            G = 1 / (root(v) + bound)
            return -eta * G * g + scale * jnp.sqrt(G) * xi

        return jax.tree.map(move, g, nu, xi), state._replace(nu=nu)

    return sampler(step, init, key=key, noise=noise)
