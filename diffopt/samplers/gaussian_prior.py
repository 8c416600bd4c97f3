"""Priors as gradients: what pulls a chain towards where the parameters were believed to be."""

import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..inputs.scalars import check_number, check_scalar, value_at
from ..inputs.trees import cast_like, check_finite, check_inexact, check_structure
from .fan_in_variance import fan_in_variance


class GaussianPriorState(NamedTuple):
    """State of `gaussian_prior`.

    Attributes:
      count: steps taken, an int32 scalar that stays at 2³¹ - 1 once it is there.
      center: a copy of the parameters at `init` where `center="init"`, else None.
    """

    count: jax.Array  # type: ignore[assignment]
    center: Any


def gaussian_prior(
    variance: Any,
    temperature: optax.ScalarOrSchedule,
    *,
    center: Any = 0.0,
) -> optax.GradientTransformation:
    r"""Add the gradient of a Gaussian prior on each parameter.

    A sampler at temperature T draws from exp(-L(θ)/T). To multiply this by the prior density
    N(θ; c, variance) in each element, the sampler needs the gradient of

        L(θ) + T |θ - c|² / (2 variance),    so    g ← g + T (θ - c) / variance

    with the temperature T of the sampler that follows. With L the mean loss of N examples and
    T = 1/N this is the posterior under that prior. It is weight decay λ = T/variance towards c.

    Where it goes: first in the chain, before the sampler (and before preconditioning, which has to
    see the whole gradient):

        tx = optax.chain(diffopt.gaussian_prior(1.0, T), diffopt.baoab(h, T))

    After the sampler it would act on the update, without the step size and with the wrong sign.
    `find_step_size` and the configurational temperature of `sample` see the loss alone, not this
    prior. If you use them, add T |θ - c|²/(2 variance) to the loss instead. `optax.masked` gives
    the prior to some parameters.

    A network wants a variance for each layer: `"fan_in"` is `fan_in_variance(params)`, 2/fan-in for
    weights and 1 for biases and scales, by the shapes of the parameters. That function has the
    rule, and what to do with leaves that it cannot know.

    With `center="init"` it pulls towards the parameters at `init` (L2 towards the start), which
    keeps a chain near the weights that it began with: `local_learning_coefficient` does so.

    Memory: none beside the count; a copy of the parameters where `center="init"`.

    Args:
      variance: of the prior of each parameter, > 0, in units of θ²: a number, a 0-d array, a tree
        like the parameters of numbers or of arrays of their shapes, or `"fan_in"`.
      temperature: T ≥ 0 of the sampler, in units of the loss: a number, a 0-d array or a schedule
        of the step count.
      center: the mean c: a number, a tree like the parameters, or `"init"` for the parameters that
        `init` is given.

    Returns:
      An `optax.GradientTransformation` with a `GaussianPriorState`; its `update` needs `params`.
      Shapes and dtypes of the gradients are kept.

    Raises:
      ValueError: `variance` is not positive and finite; `temperature` is negative, NaN or infinite;
        `variance` is another word than "fan_in" or `center` than "init"; one of them has another
        shape than the parameters; `update` gets no `params`.
      TypeError: an argument is of the wrong type; at `init`, a parameter is not floating-point,
        or `variance` or `center` is a tree of another structure, or `center` is complex where a
        parameter is real.

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
      The variance by fan-in: He et al., [Delving Deep into
      Rectifiers](https://arxiv.org/abs/1502.01852), ICCV 2015. The localized posterior: Lau et
      al., [The Local Learning Coefficient](https://arxiv.org/abs/2308.12108), AISTATS 2025.
    """
    check_scalar("temperature", temperature)
    by_fan_in, from_init = isinstance(variance, str), isinstance(center, str)
    if by_fan_in and variance != "fan_in":
        raise ValueError(f'variance must be "fan_in", a number or a tree of them, got {variance!r}')
    if from_init and center != "init":
        raise ValueError(f'center must be "init", a number or a tree of them, got {center!r}')
    if not by_fan_in:
        _check_variance(variance)
    if not from_init:
        _check_center(center)

    def variances_of(params: Any) -> Any:
        return fan_in_variance(params) if by_fan_in else _spread(variance, params)

    def init_fn(params: optax.Params) -> GaussianPriorState:
        check_inexact(params)
        if not by_fan_in:
            _check_fits("variance", variances_of(params), params)
        if not from_init:
            _check_fits("center", _spread(center, params), params)
        start = jax.tree.map(jnp.copy, params) if from_init else None
        return GaussianPriorState(jnp.zeros([], jnp.int32), start)

    def update_fn(
        updates: optax.Updates, state: GaussianPriorState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, GaussianPriorState]:
        if params is None:
            raise ValueError("gaussian_prior needs params: tx.update(grads, opt_state, params)")
        means = state.center if from_init else _spread(center, params)
        T = value_at(temperature, state.count)

        def pull(g: Any, p: Any, s: Any, c: Any) -> Any:
            with jax.numpy_dtype_promotion("standard"):  # `cast_like` below is meant
                return g + T / jnp.asarray(s, T.dtype) * (p - c)

        moves = jax.tree.map(
            lambda g, *of_leaf: None if g is None else pull(g, *of_leaf),
            updates, params, variances_of(params), means, is_leaf=lambda x: x is None,
        )  # fmt: skip
        return cast_like(moves, updates), state._replace(count=optax.safe_increment(state.count))

    return optax.GradientTransformation(init_fn, update_fn)


def _spread(value: Any, params: Any) -> Any:
    """A number for every leaf, or the tree that it is."""
    is_number = jax.tree_util.all_leaves([value]) and np.ndim(value) == 0
    return jax.tree.map(lambda _: value, params) if is_number else value


def _check_variance(variance: Any) -> None:
    """Raise unless `variance` is a positive number or a tree of such numbers and arrays."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(variance):
        name = f"variance{jax.tree_util.keystr(path)}"
        if np.ndim(leaf) == 0:
            check_number(name, leaf, positive=True)
        elif jnp.iscomplexobj(leaf):
            raise TypeError(f"{name} must be real, got {leaf!r}")
        elif not isinstance(leaf, jax.core.Tracer) and not np.all(np.asarray(leaf) > 0):
            raise ValueError(f"{name} must be finite and > 0, got {leaf!r}")
    check_finite("variance", variance)


def _check_center(center: Any) -> None:
    """Raise unless `center` is made of finite numbers."""
    for leaf in jax.tree.leaves(center):
        if not isinstance(leaf, numbers.Number | np.ndarray | jax.Array):
            raise TypeError(f"center must be made of numbers, got {leaf!r}")
    check_finite("center", center)


def _check_fits(name: str, values: Any, params: Any) -> None:
    """Raise unless `values` has the structure of `params`, and in each leaf what fits there."""
    check_structure(name, values, params)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, p), c in zip(leaves, jax.tree.leaves(values), strict=True):
        of_leaf = f"{name}{jax.tree_util.keystr(path)}"
        if jnp.shape(c) not in ((), jnp.shape(p)):
            raise ValueError(f"{of_leaf} must have the shape {jnp.shape(p)}, got {jnp.shape(c)}")
        if jnp.iscomplexobj(c) and not jnp.iscomplexobj(p):
            raise TypeError(f"{of_leaf} must be real, as the parameters are, got {c!r}")
