"""Priors as gradients: what pulls a chain towards where the parameters were believed to be."""

import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..inputs.scalars import as_float, check_number, check_scalar, value_at
from ..inputs.trees import cast_like, check_finite, check_inexact, check_structure


class GaussianPriorState(NamedTuple):
    """State of `gaussian_prior`.

    Attributes:
      count: steps taken, an int32 scalar that stays at 2³¹ - 1 once it is there.
      center: a copy of the parameters at `init` where `center="init"`, else None.
    """

    count: jax.Array  # type: ignore[assignment]
    center: Any


def gaussian_prior(
    variance: float | jax.Array,
    temperature: optax.ScalarOrSchedule,
    *,
    center: Any = 0.0,
) -> optax.GradientTransformation:
    r"""Add a Gaussian prior on each parameter to the gradients that pass.

    A sampler at temperature T draws from exp(-L(θ)/T). To draw from that times the density
    N(θ; c, variance) in each element, its gradient has to be that of

        L(θ) + T |θ - c|² / (2 variance),    so    g ← g + T (θ - c) / variance

    with the temperature T of the sampler that follows. With L the mean loss of N examples and
    T = 1/N this is the posterior under that prior. It is weight decay λ = T/variance towards c.

    Where it goes: first in the chain, before the sampler (and before preconditioning, which has to
    see the whole gradient):

        tx = optax.chain(diffopt.gaussian_prior(1.0, T), diffopt.baoab(h, T))

    After the sampler it would act on the update, without the step size and with the wrong sign.
    What sees the loss alone, as `find_step_size` and the configurational temperature of `sample`
    do, does not see this prior: for those add T |θ - c|²/(2 variance) to the loss instead.
    `optax.masked` gives it to some parameters, and two masked ones give two variances.

    With `center="init"` it pulls towards the parameters at `init` (L2 towards the start), which
    keeps a chain near the weights that it began with: `local_learning_coefficient` does so.

    Memory: none beside the count; a copy of the parameters where `center="init"`.

    Args:
      variance: of the prior of each parameter, > 0, in units of θ²: a number or a 0-d array.
      temperature: T ≥ 0 of the sampler, in units of the loss: a number, a 0-d array or a schedule
        of the step count.
      center: the mean c: a number, a tree like the parameters, or `"init"` for the parameters that
        `init` is given.

    Returns:
      An `optax.GradientTransformation` with a `GaussianPriorState`; its `update` needs `params`.
      Shapes and dtypes of the gradients are kept.

    Raises:
      ValueError: `variance` is not positive and finite; `temperature` is negative, NaN or infinite;
        `center` is another word than "init", or has another shape than the parameters; `update`
        gets no `params`.
      TypeError: an argument is of the wrong type; at `init`, a parameter is not floating-point,
        or `center` is a tree of another structure, or complex where a parameter is real.

    Examples:
      Two observations, 1 and 3, of a mean, with unit noise and the prior N(0, 1/2): the posterior
      is N(1, 1/4).

      >>> import diffopt, jax, jax.numpy as jnp, optax
      >>> T = 1 / 2
      >>> tx = optax.chain(diffopt.gaussian_prior(0.5, T), diffopt.baoab(0.3, T))
      >>> def step(carry, _):
      ...     params, state = carry
      ...     updates, state = tx.update(params - 2.0, state, params)  # of ((θ-1)² + (θ-3)²) / 4
      ...     return (optax.apply_updates(params, updates), state), None
      >>> params = jnp.zeros(10_000)  # 10,000 chains
      >>> (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=200)
      >>> bool(abs(params.mean() - 1) < 0.02), bool(abs(params.var() - 0.25) < 0.02)
      (True, True)

    References:
      The localized posterior: Lau et al., [The Local Learning
      Coefficient](https://arxiv.org/abs/2308.12108), AISTATS 2025.
    """
    check_number("variance", variance, positive=True)
    check_scalar("temperature", temperature)
    from_init = isinstance(center, str)
    if from_init and center != "init":
        raise ValueError(f'center must be "init", a number or a tree of them, got {center!r}')
    for leaf in [] if from_init else jax.tree.leaves(center):
        if not isinstance(leaf, numbers.Number | np.ndarray | jax.Array):
            raise TypeError(f"center must be made of numbers, got {leaf!r}")
    if not from_init:
        check_finite("center", center)
    is_number = jax.tree_util.all_leaves([center]) and np.ndim(center) == 0

    def means_of(params: Any) -> Any:
        return jax.tree.map(lambda _: center, params) if is_number else center

    def init_fn(params: optax.Params) -> GaussianPriorState:
        check_inexact(params)
        if not from_init:
            _check_center(means_of(params), params)
        start = jax.tree.map(jnp.copy, params) if from_init else None
        return GaussianPriorState(jnp.zeros([], jnp.int32), start)

    def update_fn(
        updates: optax.Updates, state: GaussianPriorState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, GaussianPriorState]:
        if params is None:
            raise ValueError("gaussian_prior needs params: tx.update(grads, opt_state, params)")
        means = state.center if from_init else means_of(params)
        decay = value_at(temperature, state.count) / as_float(variance)

        def pull(g: Any, p: Any, c: Any) -> Any:
            with jax.numpy_dtype_promotion("standard"):  # `cast_like` below is meant
                return g + decay * (p - c)

        moves = jax.tree.map(
            lambda g, p, c: None if g is None else pull(g, p, c),
            updates, params, means, is_leaf=lambda x: x is None,
        )  # fmt: skip
        return cast_like(moves, updates), state._replace(count=optax.safe_increment(state.count))

    return optax.GradientTransformation(init_fn, update_fn)


def _check_center(center: Any, params: Any) -> None:
    """Raise unless `center` has the structure of `params`, and in each leaf what fits there."""
    check_structure("center", center, params)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, p), c in zip(leaves, jax.tree.leaves(center), strict=True):
        name = f"center{jax.tree_util.keystr(path)}"
        if jnp.shape(c) not in ((), jnp.shape(p)):
            raise ValueError(f"{name} must have the shape {jnp.shape(p)}, got {jnp.shape(c)}")
        if jnp.iscomplexobj(c) and not jnp.iscomplexobj(p):
            raise TypeError(f"{name} must be real, as the parameters are, got {c!r}")
