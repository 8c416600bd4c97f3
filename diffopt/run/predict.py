"""Averages of predictions over samples, and the predictions one by one."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..inputs.scalars import check_int
from ..inputs.trees import SHOWN, chains_and_draws, check_arrays, leading_length, place_beside
from .chains import own_mesh
from .collect import CollectState, is_finite
from .program import compile_program
from .results import Samples


def predictive(
    fn: Callable[..., Any], samples: Any, *args: Any, batch_size: int | None = None
) -> Any:
    r"""The model average: the mean of `fn(sample, *args)` over samples.

    With `fn` the class probabilities of a network and samples of its posterior, the estimate
    `p(y | x) ≈ Σₛ p(y | x, θₛ) / S` of the posterior predictive distribution. `predictions` gives
    the terms of that sum.

    Samples that are not finite are left out, and so are chains that diverged and the slots that
    `collect` has not filled (which a tree of integers alone does not show: pass the state itself).
    Where none is left the mean is NaN. Only `batch_size` predictions are in memory at once, and
    the sum is compensated: a million samples cost no digits.

    Args:
      fn: `fn(sample, *args)` gives an array or a tree of arrays. It is traced at
        every call, and compiled anew where the program differs.
      samples: the `Samples` of `sample`, a `CollectState`, or a tree of arrays `[samples, ...]`.
        Draws `[chain, draw, ...]` become such a tree by `jax.tree.map(jnp.concatenate, draws)`.
      *args: further arguments of `fn`, arrays or trees of them. They are taken to where the samples
        are.
      batch_size: how many samples are evaluated at once; by default one, as in `jax.lax.map`.
        The number of samples need not be a multiple of it.

    Returns:
      The mean, shaped like one `fn(sample, *args)`, in float32 or the wider dtype of `fn`.

    Raises:
      ValueError: `samples` has no leaves, or leaves whose leading axes differ; `batch_size` is
        less than 1.
      TypeError: `batch_size` is no int, `samples` are no arrays, or `fn` gives none.

    Examples:
      >>> import diffopt, jax.numpy as jnp
      >>> slopes = jnp.array([1.0, 2.0, 6.0])
      >>> diffopt.predictive(jnp.multiply, slopes, jnp.array([1.0, 10.0])).tolist()
      [3.0, 30.0]
    """
    batch_size = _check_arguments(fn, batch_size)
    mean = partial(_average, fn, batch_size)
    with own_mesh(samples):
        operands = *_one_axis(samples), place_beside(args, samples)
        _check_values(fn, samples, operands[0], args)
        return compile_program(mean, *operands)(*operands)


def predictions(
    fn: Callable[..., Any], samples: Any, *args: Any, batch_size: int | None = None
) -> Any:
    """`fn(sample, *args)` for every sample, in batches: for quantiles and intervals.

    The samples are those of `predictive`, whose result is the mean of this one. Not for use inside
    `jit`: how many are left out depends on the samples.

    Args:
      fn: as in `predictive`.
      samples: as in `predictive`.
      *args: as in `predictive`.
      batch_size: as in `predictive`.

    Returns:
      A tree like one `fn(sample, *args)`, with a leading axis of samples, chain after chain.

    Raises:
      ValueError: as `predictive`; or no sample is left.
      TypeError: as `predictive`.

    Examples:
      >>> import diffopt, jax.numpy as jnp
      >>> slopes = jnp.array([1.0, 2.0, jnp.nan, 6.0])
      >>> each = diffopt.predictions(jnp.multiply, slopes, jnp.array([1.0, 10.0]))
      >>> each.shape, jnp.quantile(each, 0.5, axis=0).tolist()
      ((3, 2), [2.0, 20.0])
    """
    batch_size = _check_arguments(fn, batch_size)
    each = partial(_each, fn, batch_size)
    with own_mesh(samples):
        (flat, good), args = _one_axis(samples), place_beside(args, samples)
        _check_values(fn, samples, flat, args)
        chosen = np.asarray(good)
        if not chosen.any():
            raise ValueError("no sample is finite: every chain diverged, or no slot is filled")
        if not chosen.all():
            flat = jax.tree.map(lambda s: s[chosen], flat)
        return compile_program(each, flat, args)(flat, args)


def _one_axis(samples: Any) -> tuple[Any, jax.Array]:
    """All samples along one axis, and for each whether it is one: filled, finite, not diverged."""
    if isinstance(samples, Samples):
        chains, slots = chains_and_draws("samples.draws", samples.draws)
        if jnp.shape(samples.diverged) != (chains,):
            raise ValueError(
                f"samples.draws have {chains} chains and samples.diverged"
                f" {len(samples.diverged)}: give draws of some chains alone, with their chains as"
                " one axis by jax.tree.map(jnp.concatenate, draws)"
            )
        good = jnp.broadcast_to(jnp.asarray(samples.diverged)[:, None] < 0, (chains, slots))
        samples = samples.draws
    elif isinstance(samples, CollectState):
        (slots,) = {jnp.shape(s)[samples.count.ndim] for s in jax.tree.leaves(samples.samples)}
        good = (jnp.arange(slots) < samples.count[..., None]) & (samples.diverged[..., None] < 0)
        samples = samples.samples
    else:
        check_arrays("samples", samples)
        good = jnp.ones(leading_length("samples", samples, "samples"), bool)
    samples = jax.tree.map(lambda s: jnp.reshape(s, (-1, *jnp.shape(s)[good.ndim :])), samples)
    return samples, good.ravel() & jax.vmap(is_finite)(samples)


def _check_arguments(fn: Any, batch_size: int | None) -> int:
    """The number of samples at once."""
    if not callable(fn):
        raise TypeError(f"fn must be a function, got {fn!r}")
    return 1 if batch_size is None else check_int("batch_size", batch_size, least=1)


def _check_values(fn: Callable[..., Any], samples: Any, flat: Any, args: Any) -> None:
    """Raise unless `fn` gives arrays for one sample; where it fails on a tree, say what one is."""
    one = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape[1:], s.dtype), flat)
    try:
        values = jax.eval_shape(lambda *args: fn(*args), one, *args)
    except Exception as error:
        if not isinstance(samples, Samples | CollectState):
            shapes = ", ".join(str(s.shape) for s in jax.tree.leaves(one)[:SHOWN])
            error.add_note(
                f"fn was called with one sample, of shape {shapes}. Samples are a tree that leads"
                " with one axis of them: draws [chain, draw, ...] become one by"
                " jax.tree.map(jnp.concatenate, draws)."
            )
        raise
    if not any(v.size for v in jax.tree.leaves(values)):
        raise TypeError(f"fn must give an array or a tree of arrays, got {values}")


def _each(fn: Callable[..., Any], batch_size: int, samples: Any, args: Any) -> Any:
    return jax.lax.map(lambda sample: fn(sample, *args), samples, batch_size=batch_size)


def _mean_dtype(dtype: Any) -> Any:
    inexact = jnp.issubdtype(dtype, jnp.inexact)
    return np.promote_types(dtype, np.float32) if inexact else jnp.float32


def _pairwise_sum(x: jax.Array) -> jax.Array:
    """The sum over the first axis, whose rounding error grows with the logarithm of its length."""
    while len(x) > 1:
        half = len(x) // 2
        odd, x = x[2 * half :], x[:half] + x[half : 2 * half]
        x = x.at[: len(odd)].add(odd)
    return x[0]


def _average(
    fn: Callable[..., Any], batch_size: int, samples: Any, good: jax.Array, args: Any
) -> Any:
    """The mean of `fn` over the samples that are `good`."""
    (length,) = good.shape
    size = min(batch_size, length)
    # A sample that is left out is evaluated as another one: what is not finite has a gradient of
    # NaN even where it counts for nothing.
    instead = jax.tree.map(lambda s: s[jnp.argmax(good)], samples)

    def add(carry: Any, start: Any, size: int) -> Any:
        """Add a batch to the pairs (sum, what rounding has left out of it)."""
        part = lambda s: jax.lax.dynamic_slice_in_dim(s, start, size)
        mask = lambda x: part(good).reshape(-1, *[1] * (x.ndim - 1))
        batch = jax.tree.map(lambda s, other: jnp.where(mask(s), part(s), other), samples, instead)
        values = jax.vmap(lambda sample: fn(sample, *args))(batch)

        def add_leaf(total: jax.Array, lost: jax.Array, v: jax.Array) -> Any:
            v = jnp.where(mask(v), v.astype(total.dtype), 0)
            more = _pairwise_sum(v) + lost
            after = total + more
            return after, jnp.where(jnp.isfinite(after), more - (after - total), 0)

        pairs = jax.tree.map(add_leaf, *carry, values)
        return jax.tree.transpose(jax.tree.structure(values), None, pairs)

    shapes = jax.eval_shape(lambda sample: fn(sample, *args), instead)
    zeros = jax.tree.map(lambda v: jnp.zeros(v.shape, _mean_dtype(v.dtype)), shapes)
    batches, rest = divmod(length, size)
    carry = jax.lax.fori_loop(0, batches, lambda i, c: add(c, i * size, size), (zeros, zeros))
    if rest:
        carry = add(carry, length - rest, rest)
    count = jnp.sum(good)
    return jax.tree.map(lambda total, lost: (total + lost) / count.astype(total.dtype), *carry)
