"""Gradients at randomly perturbed weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._types import Key, Params
from ..inputs.keys import check_key, derive_key
from ..inputs.scalars import check_scalar, value_at
from ..inputs.trees import check_inexact, check_structure
from .perturbed import check_noise, is_masked, next_keys


class WeightNoiseState(NamedTuple):
    """State of `weight_noise`.

    Attributes:
      count: steps taken, an int32 scalar that stays at 2³¹ - 1 once it is there.
      noise: a typed PRNG key under the name of the noise, new at every step.
      std: the standard deviation of the next step's noise, a scalar for each parameter.
      relative: whether it is in units of the filters' norms, a 0-d bool.
    """

    count: jax.Array  # type: ignore[assignment]
    noise: dict[str, jax.Array]
    std: Any
    relative: jax.Array

    def deviations(self, params: Params) -> Any:
        """The standard deviation of ε in every element, as arrays that broadcast."""
        check_structure("params", params, self.std, is_masked)

        def deviation(std: Any, p: Any) -> Any:
            if is_masked(std):
                return std
            return std * jnp.where(self.relative, _filter_norms(p), 1.0)

        return jax.tree.map(deviation, self.std, params, is_leaf=is_masked)


def weight_noise(
    std: optax.ScalarOrSchedule,
    *,
    relative: bool = False,
    key: Key = 0,
    noise: str = "gaussian",
) -> optax.GradientTransformationExtraArgs:
    r"""Let the gradient be taken at randomly perturbed weights, which are not kept.

    With ε = std ξ, ξ ~ N(0, I), drawn anew at every step:

        g = ∇L(θ + ε)                        the point that `perturbed` gives
        θ ← θ - ηg                           or any other step of the optimizer that follows

    Gradients pass as they are; the state says where to take them. Their mean is the gradient of
    the loss convolved with the Gaussian, E[L(θ + ε)]: the loss diffuses for a time std²/2, and the
    parameters do not. Minima narrower than std vanish; to second order the loss gains
    std²/2 tr ∇²L. A schedule that falls to 0 gives perturbed gradient descent, which begins on a
    smooth loss and ends on the loss itself. At std = 0 this is the optimizer without the noise.

    In the coordinates φ = θ + ε the same iteration is φ' = φ - η∇L(φ) + ε' - ε, whose noise has
    anti-correlated increments. So anti-correlated noise is this method, read off at another
    point, and has no name of its own here.

    With `relative` the standard deviation is in units of the norm of each filter: of all axes but
    the last for arrays of two axes or more (one filter for each output of Flax's and Haiku's
    kernels), of the whole for a vector. A filter of n weights then has noise of √n std of its
    norm, and what makes a network forget a filter's scale (normalization after it) does not
    change the noise's effect. std is then 0.01 to 0.03.

    Memory: a scalar for each leaf. Cost: one ε a step, as dear as the noise of `sgld`; gradients
    are as many as in plain training. Choose it where a network overfits: few examples or wrong
    labels (see the page on training noise), or to smooth a loss with spurious minima. For a
    posterior take `ivon`, which learns the scale of ε by itself.

    Args:
      std: the standard deviation ≥ 0: a number, a 0-d array or a schedule of the step count. One
        that `optax.inject_hyperparams` sets counts from the step after.
      relative: whether it is in units of the norm of each filter.
      key: an int or a PRNG key; each method in a program needs its own (see `sampler`).
      noise: `"gaussian"`, `"gaussian16"` or `"rademacher"` (see `sampler`).

    Returns:
      An `optax.GradientTransformationExtraArgs` with a `WeightNoiseState`. Put it anywhere in the
      chain. A complex leaf is two real ones.

    Raises:
      ValueError: `std` is negative, NaN or infinite; `noise` is no known name.
      TypeError: an argument is of the wrong type; at `init`, a parameter is not floating-point.

    Examples:
      θ² - cos(20θ)/10 has a minimum every 0.3; smoothed over 0.2 it has one.

      >>> import diffopt, jax, jax.numpy as jnp, optax
      >>> loss = lambda x: jnp.sum(x**2 - jnp.cos(20 * x) / 10)
      >>> def descend(std):
      ...     tx = optax.chain(diffopt.weight_noise(std), optax.sgd(0.01))
      ...     def step(carry, _):
      ...         x, state = carry
      ...         updates, state = tx.update(jax.grad(loss)(diffopt.perturbed(x, state)), state)
      ...         return (optax.apply_updates(x, updates), state), None
      ...     x = jnp.full(100, 0.9)
      ...     return jax.lax.scan(step, (x, tx.init(x)), length=500)[0][0]
      >>> falling = optax.linear_schedule(0.2, 0.0, 500)
      >>> [bool(jnp.all(abs(descend(std)) < 0.1)) for std in (0.0, falling)]
      [False, True]

    References:
      The annealed one: Zhou et al., [Toward Understanding the Importance of Noise in Training
      Neural Networks](https://arxiv.org/abs/1909.03172), ICML 2019. Anti-correlated noise:
      Orvieto et al., [Anticorrelated Noise Injection for Improved
      Generalization](https://arxiv.org/abs/2202.02831), ICML 2022. Noise by filters: Li et al.,
      [Revisiting Random Weight Perturbation for Efficiently Improving
      Generalization](https://arxiv.org/abs/2404.00357), TMLR 2024.
    """
    check_scalar("std", std)
    if not isinstance(relative, bool):
        raise TypeError(f"relative must be True or False, got {relative!r}")
    check_key(key)
    check_noise(noise)

    def init_fn(params: optax.Params) -> WeightNoiseState:
        check_inexact(params)
        count = jnp.zeros([], jnp.int32)
        stds = jax.tree.map(lambda _: value_at(std, count), params)
        own = {noise: derive_key(key, "weight noise")}
        return WeightNoiseState(count, own, stds, jnp.asarray(relative))

    def update_fn(
        updates: optax.Updates,
        state: WeightNoiseState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, WeightNoiseState]:
        del params, extra_args
        count = optax.safe_increment(state.count)
        stds = jax.tree.map(lambda _: value_at(std, count), state.std)
        own = {noise: next_keys(state.noise[noise])}
        return updates, WeightNoiseState(count, own, stds, state.relative)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _filter_norms(p: Any) -> jax.Array:
    """The norm of each filter; a complex one's is that of each of its parts, on average."""
    wide = jnp.asarray(p, jnp.promote_types(jnp.result_type(p), jnp.float32))
    axes = tuple(range(wide.ndim - 1)) if wide.ndim > 1 else None
    square = jnp.sum(jnp.real(wide * jnp.conj(wide)), axes, keepdims=True)
    return jnp.sqrt(square / (1 + jnp.iscomplexobj(wide)))
