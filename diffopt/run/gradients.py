"""Gradients of a minibatch with less noise: full gradients at a center, corrected by the batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.tree_util import Partial

from ..inputs.scalars import check_int
from ..inputs.trees import cast_like, check_finite, check_like
from .batches import count_examples

Gradient = Callable[[Any, Any], Any]


class GradientEstimator(NamedTuple):
    """What `sample` takes as `estimator`: how a gradient comes from a minibatch, with a state.

    Bind arrays that the functions need by `jax.tree_util.Partial`: so they are arguments of a
    compiled program, and no constants in it.

    Attributes:
      init: `init(params)` gives the state.
      update: `update(params, batch, state)` gives the gradient at `params` and the state.
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Any, Any], tuple[Any, Any]]


class ControlVariateState(NamedTuple):
    """State of `control_variate`.

    Attributes:
      center: a tree like the parameters.
      gradient: the mean gradient of all examples there.
    """

    center: Any
    gradient: Any


class SVRGState(NamedTuple):
    """State of `svrg`.

    Attributes:
      age: steps since the center was taken, an int32 scalar.
      center: the parameters of that step.
      gradient: the mean gradient of all examples there.
    """

    age: jax.Array
    center: Any
    gradient: Any


def control_variate(
    grad: Gradient, center: Any, data: Any, *, batch_size: int | None = None
) -> GradientEstimator:
    r"""Control variates: batch gradients, corrected by the batch's error at a fixed center.

    Let ∇L_B be the mean gradient of a batch B and ∇L the mean gradient of all N examples. The
    estimate at θ is

        ∇L_B(θ) - ∇L_B(c) + ∇L(c)

    It is unbiased for any center c, as the mean of ∇L_B(c) over batches is ∇L(c). Its noise comes
    from θ - c alone: for a batch of n examples, each in it once, its covariance is, to first order
    in θ - c with H_i the Hessian of example i,

        (N - n) / (n (N - 1)) Cov_i[H_i (θ - c)]

    where a plain batch has ∇l_i(θ) in place of H_i (θ - c). Use it where the chain stays near c.
    With c the mode of a posterior of d parameters, T = 1/N and a model that fits, the variance is
    lower by a factor near N/d (`docs/theory/derivations.md`). Far from c, as in a network that
    moves from mode to mode, the variance is higher than with plain batches: use `svrg` or none.

    Cost: two gradients of the batch per step instead of one, and one gradient of all N examples at
    the start. Memory: two trees like the parameters, for each chain.

    Args:
      grad: `grad(params, batch)`, the mean gradient of a batch, such as `jax.grad(loss)`.
      center: c, a tree like the parameters of one chain: the best that an optimizer finds.
      data: all examples, a tree of arrays with one leading axis, as given to `sample`.
      batch_size: how many examples at once for ∇L(c), which is the same up to rounding; by default
        all.

    Returns:
      A `GradientEstimator` with a `ControlVariateState`. ∇L(c) is computed in this call.

    Raises:
      ValueError: `data` is `None` or empty, its leading axes differ, `batch_size` is out of its
        range, or `center` or ∇L(c) is not finite.
      TypeError: `grad` is no function, or gives another tree than `center`; at `init`, `center` is
        no tree like the parameters.

    Examples:
      With `sample`:

      >>> import diffopt, jax, jax.numpy as jnp, optax
      >>> x = jax.random.normal(jax.random.key(0), (1000, 3))
      >>> y = x @ jnp.array([1.0, 2.0, 3.0]) + jax.random.normal(jax.random.key(1), (1000,))
      >>> loss = lambda w, batch: jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2
      >>> mode = jnp.linalg.solve(x.T @ x, x.T @ y)
      >>> estimator = diffopt.control_variate(jax.grad(loss), mode, (x, y))
      >>> tx = diffopt.baoab(0.3, temperature=1 / 1000)
      >>> samples = diffopt.sample(
      ...     tx, loss, mode, (x, y), estimator=estimator, batch_size=10, num_steps=20_000,
      ...     burn_in=1000,
      ... )
      >>> exact = jnp.sqrt(jnp.diag(jnp.linalg.inv(x.T @ x)))
      >>> bool((abs(samples.draws.std((0, 1)) / exact - 1) < 0.1).all())
      True

      In your own loop:

      >>> @jax.jit
      ... def step(params, state, opt_state, batch):
      ...     grads, state = estimator.update(params, batch, state)
      ...     updates, opt_state = tx.update(grads, opt_state, params)
      ...     return optax.apply_updates(params, updates), state, opt_state
      >>> run = mode, estimator.init(mode), tx.init(mode)
      >>> for i in range(0, 30, 10):
      ...     run = step(*run, (x[i : i + 10], y[i : i + 10]))

    References:
      Baker, Fearnhead, Fox & Nemeth, [Control Variates for Stochastic Gradient
      MCMC](https://arxiv.org/abs/1706.05439), Statistics and Computing 2019.
    """
    _check_arguments("control_variate", grad, data, batch_size)
    data, center = jax.tree.map(jnp.asarray, (data, center))
    check_finite("center", center)
    gradient = jax.jit(_full_gradient(grad, batch_size))(center, data)
    check_like("the result of grad", gradient, center)
    check_finite("the result of grad at center", gradient)

    def init(center: Any, gradient: Any, params: Any) -> ControlVariateState:
        check_like("center", center, params)
        state = ControlVariateState(cast_like(center, params), gradient)
        return jax.tree.map(jnp.copy, state)  # a loop may donate it

    def update(params: Any, batch: Any, state: ControlVariateState) -> tuple[Any, Any]:
        return _corrected(grad, params, batch, state.center, state.gradient), state

    return GradientEstimator(Partial(init, center, gradient), Partial(update))


def svrg(
    grad: Gradient, data: Any, every: int, *, batch_size: int | None = None
) -> GradientEstimator:
    r"""SVRG: batch gradients, corrected by the batch's error at a center that follows the chain.

    The estimate is the one of `control_variate`,

        ∇L_B(θ) - ∇L_B(c) + ∇L(c)

    where c is the chain itself, taken anew every `every` steps: you need no mode, and the chain can
    move. The estimate is unbiased at every step. Its variance grows with the squared distance from
    c. Two draws of a posterior are √2 times as far apart as one is from the mode. So if `every` is
    more steps than the chain remembers, the variance is twice the one of `control_variate` at the
    mode; with fewer steps it is less.

    Cost: two gradients of the batch per step, and a gradient of all N examples in one step of
    `every`, under `jax.vmap` too where the chains step together. With `every` = N/n this is three
    times the cost of plain batches of n. Memory: two trees like the parameters, for each chain.

    Args:
      grad: `grad(params, batch)`, the mean gradient of a batch, such as `jax.grad(loss)`.
      data: all examples, a tree of arrays with one leading axis, as given to `sample`.
      every: how many steps a center serves, from 1 (every gradient is of all examples) to 2³¹ - 1.
      batch_size: how many examples at once for ∇L(c), which is the same up to rounding; by default
        all, of all chains at once.

    Returns:
      A `GradientEstimator` with an `SVRGState`, whose first center is the `params` of `init`.

    Raises:
      ValueError: `every` is less than 1 or above 2³¹ - 1, `data` is `None` or empty, its leading
        axes differ, or `batch_size` is out of its range.
      TypeError: `grad` is no function, or, at `init`, gives another tree than the parameters;
        `every` is no int.

    Examples:
      >>> import diffopt, jax, jax.numpy as jnp
      >>> x = jax.random.normal(jax.random.key(0), (1000, 3))
      >>> y = x @ jnp.array([1.0, 2.0, 3.0]) + jax.random.normal(jax.random.key(1), (1000,))
      >>> loss = lambda w, batch: jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2
      >>> samples = diffopt.sample(
      ...     diffopt.baoab(0.3, temperature=1 / 1000), loss, jnp.zeros(3), (x, y),
      ...     estimator=diffopt.svrg(jax.grad(loss), (x, y), every=100),
      ...     batch_size=10, num_steps=20_000, burn_in=1000,
      ... )
      >>> exact = jnp.sqrt(jnp.diag(jnp.linalg.inv(x.T @ x)))
      >>> bool((abs(samples.draws.std((0, 1)) / exact - 1) < 0.1).all())
      True

    References:
      Dubey, Reddi, Póczos, Smola, Xing & Williamson, [Variance Reduction in Stochastic Gradient
      Langevin Dynamics](https://papers.nips.cc/paper/6293), NeurIPS 2016, algorithm 2.
    """
    check_int("every", every, least=1, below=2**31)  # an int32 counts
    _check_arguments("svrg", grad, data, batch_size)
    full = _full_gradient(grad, batch_size)

    def init(data: Any, params: Any) -> SVRGState:
        gradient = full(params, data)
        check_like("the result of grad", gradient, params)
        state = SVRGState(jnp.zeros([], jnp.int32), params, gradient)
        return jax.tree.map(jnp.copy, cast_like(state, state))  # a loop may donate it

    def renewed(due: Any, data: Any, params: Any, center: Any, gradient: Any) -> Any:
        old = center, gradient
        return jax.lax.cond(due, lambda: cast_like((params, full(params, data)), old), lambda: old)

    def kept(due: Any, data: Any, params: Any, center: Any, gradient: Any) -> Any:
        return center, gradient

    renew_center = custom_vmap(renewed)

    @renew_center.def_vmap
    def renew_centers(size: int, batched: Any, due: Any, *args: Any) -> Any:
        """A plain `vmap` would compute both branches of `renewed` at every step."""
        axes = jax.tree.map(lambda b: 0 if b else None, tuple(batched))
        chains = lambda f: lambda: jax.vmap(f, axes, axis_size=size)(due, *args)
        new = jax.lax.cond(jnp.any(due), chains(renewed), chains(kept))
        return new, jax.tree.map(lambda _: True, new)

    def update(data: Any, params: Any, batch: Any, state: SVRGState) -> tuple[Any, Any]:
        due = state.age == every
        center, gradient = renew_center(due, data, params, state.center, state.gradient)
        grads = _corrected(grad, params, batch, center, gradient)
        return grads, SVRGState(jnp.where(due, 1, state.age + 1), center, gradient)

    data = jax.tree.map(jnp.asarray, data)
    return GradientEstimator(Partial(init, data), Partial(update, data))


def _check_arguments(name: str, grad: Any, data: Any, batch_size: int | None) -> None:
    if not callable(grad):
        raise TypeError(f"grad must be a function, such as jax.grad(loss), got {grad!r}")
    if data is None:
        raise ValueError(f"{name} needs data, got None")
    count_examples(data, batch_size)


def _corrected(grad: Gradient, params: Any, batch: Any, center: Any, gradient: Any) -> Any:
    """∇L_B(θ) - ∇L_B(c) + ∇L(c)."""
    return jax.tree.map(
        lambda g, at_center, full: g - at_center + full,
        grad(params, batch), grad(center, batch), gradient,
    )  # fmt: skip


def _full_gradient(grad: Gradient, batch_size: int | None) -> Gradient:
    """The mean gradient of all examples, so many at once."""

    def full(params: Any, data: Any) -> Any:
        number = len(jax.tree.leaves(data)[0])
        if batch_size is None:
            return grad(params, data)

        def add(i: jax.Array | int, total: Any, size: int = batch_size) -> Any:
            piece = jax.tree.map(
                lambda x: jax.lax.dynamic_slice_in_dim(x, i * batch_size, size), data
            )
            grads = cast_like(grad(params, piece), total)
            return jax.tree.map(lambda t, g: t + size / number * g, total, grads)

        pieces, rest = divmod(number, batch_size)
        wide = lambda p: jnp.zeros(jnp.shape(p), np.promote_types(jnp.result_type(p), "float32"))
        total = jax.lax.fori_loop(0, pieces, add, jax.tree.map(wide, params))
        return cast_like(add(pieces, total, rest) if rest else total, params)

    return full
