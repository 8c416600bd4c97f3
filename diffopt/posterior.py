"""Samples kept inside a compiled loop, and averages over them."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class CollectState(NamedTuple):
    """State of `collect`.

    Attributes:
      samples: the parameters kept, `[capacity, ...]` in each leaf, oldest first; NaN where no
        sample has come yet.
      count: how many have come, an int32 scalar.
      step: updates seen, an int32 scalar.
      diverged: the update, counted from 0, at which the parameters first were not finite, or -1.
    """

    samples: Any
    count: jax.Array  # type: ignore[assignment]
    step: jax.Array
    diverged: jax.Array


class Collect(NamedTuple):
    """What `collect` returns: a pair of pure functions."""

    init: Callable[[Any], CollectState]
    update: Callable[[Any, CollectState], CollectState]


def _is_finite(tree: Any) -> jax.Array:
    # 0 * x is NaN where x is not finite. On a CPU this takes half the time of isfinite(x).all().
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
    return jnp.isfinite(sum((jnp.sum(0 * x) for x in leaves), jnp.zeros([])))


@jax.custom_batching.custom_vmap
def _in_any_chain(condition: jax.Array) -> jax.Array:
    """`condition`, and under `jax.vmap` whether it holds in any chain: one answer for all.

    A `lax.cond` on one answer stays a branch, where on an answer per chain it would compute both
    sides and copy the whole buffer at every step.
    """
    return condition


@_in_any_chain.def_vmap
def _(axis_size: int, in_batched: list[bool], condition: jax.Array) -> tuple[jax.Array, bool]:
    del axis_size, in_batched
    return _in_any_chain(condition.any()), False


def collect(capacity: int, *, start: int = 0, every: int = 1) -> Collect:
    """Keep thinned samples of a chain on the device, inside `jit` and `scan`.

    Sample i is the parameters of update `start + i * every`, counted from 0, in their own dtype.
    It stops at `capacity`: the samples stay in the order in which they came, as ArviZ wants them,
    and the first ones after burn-in are never overwritten. Plan `start + capacity * every` steps.

    The buffer is written in place where it is donated or carried by a scan, and not at all at the
    steps in between. Parameters that are not finite are never kept, and nothing is kept after
    them: `diverged` holds the step at which they came. Under `jax.vmap` all this holds for each
    chain, and the others go on.

    Args:
      capacity: how many samples to keep, at least 1.
      start: updates to pass over first (burn-in).
      every: keep one sample in so many updates (thinning).

    Returns:
      A pair of functions: `init(params)` gives an empty `CollectState`, and
      `update(params, state)`, called after every step, the next. `None` leaves stay `None`, and
      sharded parameters get samples sharded likewise.

    Raises:
      ValueError: `capacity` or `every` is less than 1, or `start` is negative.

    Example:
      >>> import diffopt, jax, jax.numpy as jnp, optax
      >>> tx = diffopt.sgld(0.1, temperature=1.0)
      >>> keep = diffopt.collect(50, start=100, every=10)
      >>> def step(carry, _):
      ...     params, opt_state, kept = carry
      ...     updates, opt_state = tx.update(params, opt_state)  # the gradient of |params|²/2
      ...     params = optax.apply_updates(params, updates)
      ...     return (params, opt_state, keep.update(params, kept)), None
      >>> params = jnp.zeros(3)
      >>> carry = params, tx.init(params), keep.init(params)
      >>> (_, _, kept), _ = jax.lax.scan(step, carry, length=600)
      >>> kept.samples.shape, int(kept.count), int(kept.diverged)
      ((50, 3), 50, -1)
    """
    if capacity < 1 or every < 1 or start < 0:
        raise ValueError(
            "collect needs capacity ≥ 1, start ≥ 0 and every ≥ 1, got"
            f" capacity={capacity}, start={start}, every={every}"
        )

    def init_fn(params: Any) -> CollectState:
        def empty(p: Any) -> jax.Array:
            value = jnp.nan if jnp.issubdtype(jnp.result_type(p), jnp.inexact) else 0
            return jnp.broadcast_to(jnp.full_like(p, value), (capacity, *jnp.shape(p)))

        count, step = jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32)  # donated: two buffers
        return CollectState(jax.tree.map(empty, params), count, step, jnp.full([], -1, jnp.int32))

    def update_fn(params: Any, state: CollectState) -> CollectState:
        samples, count, step, diverged = state
        diverged = jnp.where((diverged < 0) & ~_is_finite(params), step, diverged)
        due = (step >= start) & ((step - start) % every == 0) & (count < capacity) & (diverged < 0)
        slot = jnp.where(due, count, capacity)  # a write to `capacity`, out of bounds, is dropped
        samples = jax.lax.cond(
            _in_any_chain(due),
            lambda s: jax.tree.map(lambda s, p: s.at[slot].set(p, mode="drop"), s, params),
            lambda s: s,
            samples,
        )
        return CollectState(samples, count + due, optax.safe_increment(step), diverged)

    return Collect(init_fn, update_fn)


def draws(state: CollectState) -> Any:
    """The samples of all chains that stayed finite, as `[chain, draw, ...]` in each leaf.

    These are the axes ArviZ wants. `jax.tree.map(jnp.concatenate, draws(state))` puts all samples
    along one axis, as `predictive` wants them. Slots not yet filled are left out. Not for use
    inside `jit`: the shape of the result depends on the state.

    Args:
      state: the state of one `collect`, or that of many chains under `jax.vmap`.

    Returns:
      A tree like the parameters, with a chain axis of length 1 where there is one chain.

    Warns:
      UserWarning: a chain diverged: which, and at which step. All its samples are left out, the
        finite ones too, because a step size that ends in infinity sampled nothing before.

    Raises:
      ValueError: no sample is left.

    Example:
      >>> import diffopt, jax, jax.numpy as jnp
      >>> keep = diffopt.collect(3)
      >>> state = keep.update(jnp.ones(2), keep.init(jnp.ones(2)))
      >>> diffopt.draws(state).shape
      (1, 1, 2)
    """
    if jnp.ndim(state.count) == 0:
        state = jax.tree.map(lambda x: x[None], state)
    count, diverged = np.asarray(state.count), np.asarray(state.diverged)
    for chain in np.flatnonzero(diverged >= 0):
        warnings.warn(
            f"chain {chain} was not finite at step {diverged[chain]} and is left out", stacklevel=2
        )
    good = diverged < 0
    if count[good].sum() == 0:
        raise ValueError("no samples: none was due yet, or every chain diverged")
    return jax.tree.map(lambda s: s[good, : count[good].min()], state.samples)


@partial(jax.jit, static_argnames=("fn", "batch_size"))
def predictive(
    fn: Callable[..., Any], samples: Any, *args: Any, batch_size: int | None = None
) -> Any:
    r"""The model average: the mean of `fn(sample, *args)` over samples.

    With `fn` the class probabilities of a network and samples of its posterior, the estimate
    `p(y | x) ≈ Σₛ p(y | x, θₛ) / S` of the posterior predictive distribution.

    Samples that are not finite are left out, and so are the slots that `collect` has not filled.
    Where none is left the mean is NaN. Only `batch_size` predictions are in memory at once.

    Args:
      fn: `fn(sample, *args)` gives an array or a tree of arrays; it is compiled once for each
        function, so pass the same one every time, not a new lambda.
      samples: a tree of arrays `[samples, ...]`.
      *args: further arguments of `fn`, arrays or trees of them.
      batch_size: how many samples are evaluated at once; by default one, as in `jax.lax.map`.
        The number of samples need not be a multiple of it.

    Returns:
      The mean, shaped like one `fn(sample, *args)`, in float32 or the wider dtype of `fn`.

    Raises:
      ValueError: `samples` has no leaves, or leaves whose leading axes differ; `batch_size` is
        less than 1.

    Example:
      >>> import diffopt, jax.numpy as jnp
      >>> slopes = jnp.array([1.0, 2.0, 6.0])
      >>> diffopt.predictive(jnp.multiply, slopes, jnp.array([1.0, 10.0])).tolist()
      [3.0, 30.0]
    """
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(samples)}
    if len(lengths) != 1 or lengths == {()}:
        raise ValueError(f"samples need one leading axis in common, got {sorted(lengths)}")
    ((length,),) = lengths
    size = 1 if batch_size is None else min(batch_size, length)
    if length < 1 or size < 1:
        raise ValueError(f"predictive needs samples and batch_size ≥ 1, got {length}, {batch_size}")

    def add(total: Any, batch: Any) -> Any:
        """Add `(Σ fn(sample), number of samples)` of a batch, over the samples that are finite."""
        finite = jax.vmap(_is_finite)(batch)
        values = jax.vmap(lambda sample: fn(sample, *args))(batch), jnp.ones(len(finite))

        def add_leaf(t: jax.Array, v: jax.Array) -> jax.Array:
            mask = finite.reshape(-1, *[1] * (v.ndim - 1))
            return t + jnp.where(mask, v, 0).sum(0, dtype=t.dtype)

        return jax.tree.map(add_leaf, total, values)

    def batch_at(start: Any, size: int) -> Any:
        return jax.tree.map(lambda s: jax.lax.dynamic_slice_in_dim(s, start, size), samples)

    shapes = jax.eval_shape(lambda: fn(jax.tree.map(lambda s: s[0], samples), *args))
    total = jax.tree.map(
        lambda v: jnp.zeros(v.shape, jnp.promote_types(v.dtype, jnp.float32)),
        (shapes, jax.ShapeDtypeStruct((), jnp.float32)),
    )
    batches, rest = divmod(length, size)
    total = jax.lax.fori_loop(0, batches, lambda i, t: add(t, batch_at(i * size, size)), total)
    if rest:
        total = add(total, batch_at(length - rest, rest))
    sums, count = total
    return jax.tree.map(lambda s: s / count, sums)
