"""Stochastic gradient Hamiltonian Monte Carlo."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from .._types import Noise
from ..inputs.scalars import as_float, check_number, check_scalar, ratio, root, value_at
from .base import sampler
from .underdamped import UnderdampedState, change_units, start


def sghmc(
    learning_rate: optax.ScalarOrSchedule,
    temperature: optax.ScalarOrSchedule,
    *,
    momentum: float | jax.Array = 0.9,
    key: int | jax.Array = 0,
    noise: Noise = "gaussian",
) -> optax.GradientTransformationExtraArgs:
    r"""Stochastic gradient Hamiltonian Monte Carlo: SGD with momentum, at a temperature.

    The diffusion is dθ = u dt, du = -∇L dt - γu dt + √(2γT) dW. In steps of length h, with
    v = hu, η = h² and m = 1 - γh, Euler's method gives (eq. 15 of the paper, which writes α for
    1 - m and has T = 1):

        v ← m v - η ∇L(θ) + √(2(1 - m)ηT) ξ        ξ ~ N(0, I)
        θ ← θ + v

    The stationary density of θ is proportional to exp(-L(θ)/T), and v has variance ηT, both as
    η → 0 and m → 1. What a finite step makes of that is known on L = kθ²/2, where it is stable
    for ηk < 2(1 + m):

        Var θ = T / (k (1 - ηk / (2(1 + m))))
        Var v = 2ηT / ((1 + m) (1 - ηk / (2(1 + m))))

    so that the error is of weak order 1 in η, and smaller than the error of `sgld` at the same η by
    the factor 1 + m; `baoab` has none at all on a quadratic. (With h² = 2η/(1 + m) the step is
    the leapfrog method of Brünger, Brooks & Karplus, of order 2 in h.) A minibatch whose gradients
    have variance σ² adds η²σ² to the variance of each step's noise and raises the temperature to
    T + ησ² / (2(1 - m)): lower η, or use `sgnht`.

    Where a schedule changes η, v is first taken into the units of the new step, √(η'/η) times what
    it was (to be exact, v ← c'∇L + √(η'/η) (v - c∇L) with c = η/(1 + m), as v stands half a kick
    behind θ). So the chain stays at T, and Var θ approaches its value at the present η, however
    far η jumps. Where η is 0 nothing moves, and v waits.

    With a constant η it is `optax.sgd(η, momentum=m)` at T = 0, and also
    `chain(langevin((1 - m) T, learning_rate=η), optax.sgd(η, momentum=m))`: the same step with the
    factor 1 - m left to the user. Under a schedule it is neither: `optax.sgd` takes η'/η in place
    of √(η'/η), so that velocities lose heat while η falls and gain it while η rises. `sghmc(η, T,
    momentum=0)` is `sgld(η, T)` under any.

    Memory: one velocity for each parameter, as `optax.sgd` with momentum. Choose it to sample
    from where SGD with momentum already trains well: what you tuned there holds here.

    Args:
      learning_rate: the step size η > 0: a number, a 0-d array or a schedule of the step count.
      temperature: T ≥ 0, in units of the loss, likewise.
      momentum: m in [0, 1), a number or a 0-d array.
      key: as in `sampler`; each sampler and each chain needs its own.
      noise: as in `sampler`.

    Returns:
      An `optax.GradientTransformationExtraArgs` with an `UnderdampedState`. Its updates have the
      shapes and dtypes of the gradients.

    Examples:
      >>> import diffopt, jax, jax.numpy as jnp, optax
      >>> tx = diffopt.sghmc(0.1, temperature=0.5, momentum=0.9)
      >>> @jax.jit
      ... def step(carry, _):
      ...     params, state = carry
      ...     grads = params  # of the loss θ²/2
      ...     updates, state = tx.update(grads, state)
      ...     return (optax.apply_updates(params, updates), state), None
      >>> params = jnp.zeros(10_000)  # 10,000 chains
      >>> (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=200)
      >>> bool(abs(params.var() - 0.5 / (1 - 0.1 / 3.8)) < 0.03)
      True

    References:
      Chen, Fox & Guestrin, [Stochastic Gradient Hamiltonian Monte
      Carlo](https://arxiv.org/abs/1402.4102), ICML 2014.
    """
    check_scalar("learning_rate", learning_rate, positive=True)
    check_scalar("temperature", temperature)
    check_number("momentum", momentum, below=1)

    def step(g: Any, xi: Any, state: UnderdampedState) -> tuple[Any, UnderdampedState]:
        eta, T = value_at(learning_rate, state.count), value_at(temperature, state.count)
        m = as_float(momentum)
        scale = root(2 * (1 - m) * eta * T)
        state = change_units(state, g, ratio(1 + m, 2 * eta), eta / (1 + m))
        velocity = jax.tree.map(
            lambda g, xi, v: m * v - eta * g + scale * xi, g, xi, state.velocity
        )
        updates = jax.tree.map(lambda v: jnp.where(eta == 0, 0, v), velocity)
        velocity = jax.tree.map(lambda v, w: jnp.where(eta == 0, w, v), velocity, state.velocity)
        return updates, state._replace(velocity=velocity)

    return sampler(step, start, key=key, noise=noise)
