"""Samples kept inside a compiled loop, averages over them, and what ArviZ takes."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .cyclical import Schedule
from .scalars import check_int, check_stage

LAST = 2**31 - 1


class CollectState(NamedTuple):
    """State of `collect`.

    Attributes:
      samples: the parameters kept, `[capacity, ...]` in each leaf, oldest first; NaN where no
        sample has come yet (0 in integers, and under `jax_debug_nans`).
      count: how many have come, an int32 scalar.
      step: updates seen, an int32 scalar that stays within `every` of 2³¹ - 1 once it is there.
      diverged: the update, counted from 0, at which the parameters first were not finite, or -1.
    """

    samples: Any
    count: jax.Array  # type: ignore[assignment]
    step: jax.Array
    diverged: jax.Array


class Temperatures(NamedTuple):
    """The temperatures that a chain shows at each draw, over all parameters.

    Attributes:
      configurational: θ·∇L(θ)/d, `[chain, draw]`; see `configurational_temperature`.
      kinetic: the mean of M v², likewise, or `None` where the sampler has no velocity, or several;
        see `kinetic_temperature`.
    """

    configurational: Any
    kinetic: Any


class Samples(NamedTuple):
    """What `sample` returns.

    Attributes:
      draws: a tree like the parameters, `[chain, draw, ...]` in each leaf.
      losses: the loss at each draw, `[chain, draw]`, of its batch where there are batches.
      temperatures: `Temperatures` at each draw.
      params: the last parameters, `[chain, ...]`, to go on from.
      opt_state: a `SampleState`, to go on from.
      diverged: for each chain the steps that it had taken where it first was not finite, or -1.
        Its draws from there on are NaN.
    """

    draws: Any
    losses: jax.Array
    temperatures: Temperatures
    params: Any
    opt_state: Any
    diverged: np.ndarray


class Collect(NamedTuple):
    """What `collect` returns: a pair of pure functions."""

    init: Callable[[Any], CollectState]
    update: Callable[[Any, CollectState], CollectState]


def is_finite(tree: Any) -> jax.Array:
    """Whether all floating-point numbers of a tree are finite."""
    # 0 * x is NaN where x is not finite. On a CPU this takes half the time of isfinite(x).all().
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
    finite = [jnp.isfinite(jnp.sum(0 * x)) for x in leaves]
    return jnp.all(jnp.stack(finite)) if finite else jnp.array(True)


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


def collect(
    capacity: int, *, start: int = 0, every: int = 1, where: Schedule | None = None
) -> Collect:
    """Keep thinned samples of a chain on the device, inside `jit` and `scan`.

    Sample i is the parameters of update `start + i * every`, counted from 0, in their own dtype
    (under `low_precision` give `exact_params(params, opt_state)` to `init` and to `update`).
    It stops at `capacity`: the samples stay in the order in which they came, as ArviZ wants them,
    and the first ones after burn-in are never overwritten. Plan `start + capacity * every` steps.
    With `where`, those of them stay at which that schedule is not 0: `sampling_stage` keeps the
    sampling part of each cycle.

    The buffer is written in place where it is donated or carried by a scan, and not at all at the
    steps in between. Parameters that are not finite are never kept, and nothing is kept after
    them: `diverged` holds the step at which they came. Under `jax.vmap` all this holds for each
    chain, and the others go on.

    Args:
      capacity: how many samples to keep, at least 1.
      start: updates to pass over first (burn-in).
      every: keep one sample in so many updates (thinning).
      where: a schedule of the update's number, 0 where nothing is to be kept.

    Returns:
      A pair of functions: `init(params)` gives an empty `CollectState`, and
      `update(params, state)`, called after every step, the next. `None` leaves stay `None`, and
      sharded parameters get samples sharded likewise.

    Raises:
      ValueError: `capacity` or `every` is less than 1, or `start` is negative; `start + every` is
        2³¹ or more.
      TypeError: one of them is no int, or `where` no schedule of scalars; at `update`, a parameter
        has another dtype than at `init`.

    Examples:
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
    for name, value in {"capacity": capacity, "start": start, "every": every}.items():
        check_int(name, value)
    if capacity < 1 or every < 1 or start < 0 or start + every > LAST:
        raise ValueError(
            "collect needs capacity ≥ 1, start ≥ 0 and every ≥ 1, and start + every below 2³¹, got"
            f" capacity={capacity}, start={start}, every={every}"
        )
    if where is not None:
        check_stage("where", where)

    def init_fn(params: Any) -> CollectState:
        debug_nans = jax.config.jax_debug_nans  # type: ignore[attr-defined]

        def empty(p: Any) -> jax.Array:
            nan = jnp.issubdtype(jnp.result_type(p), jnp.inexact) and not debug_nans
            full = jnp.full_like(p, jnp.nan if nan else 0)
            return jnp.broadcast_to(full, (capacity, *jnp.shape(p)))

        count, step = jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32)  # donated: two buffers
        return CollectState(jax.tree.map(empty, params), count, step, jnp.full([], -1, jnp.int32))

    def update_fn(params: Any, state: CollectState) -> CollectState:
        samples, count, step, diverged = state
        _check_dtypes(params, samples)
        diverged = jnp.where((diverged < 0) & ~is_finite(params), step, diverged)
        due = (step >= start) & ((step - start) % every == 0) & (count < capacity) & (diverged < 0)
        if where is not None:
            due &= jnp.asarray(where(step)) != 0
        slot = jnp.where(due, count, capacity)  # a write to `capacity`, out of bounds, is dropped
        samples = jax.lax.cond(
            _in_any_chain(due),
            lambda s: jax.tree.map(lambda s, p: s.at[slot].set(p, mode="drop"), s, params),
            lambda s: s,
            samples,
        )
        after = jnp.where(step == LAST, LAST - every, step) + 1  # at the end, a period again
        return CollectState(samples, count + due.astype(count.dtype), after, diverged)

    return Collect(init_fn, update_fn)


def _check_dtypes(params: Any, samples: Any) -> None:
    for (path, p), s in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(samples), strict=False
    ):
        if jnp.result_type(p) != s.dtype:
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} has dtype {jnp.result_type(p)}, and the state"
                f" was made by init for {s.dtype}: give both the same, as exact_params to both"
            )


def draws(state: CollectState) -> Any:
    """The samples of all chains that stayed finite, as `[chain, draw, ...]` in each leaf.

    These are the axes ArviZ wants. `jax.tree.map(jnp.concatenate, draws(state))` puts all samples
    along one axis, as `predictive` wants them. Slots not yet filled are left out. Not for use
    inside `jit`: the shape of the result depends on the state.

    Args:
      state: the state of one `collect`, or that of many chains under `jax.vmap`, nested or not.

    Returns:
      A tree like the parameters, with one chain axis: of length 1 where there is one chain, and
      all chains in a row where `jax.vmap` is nested.

    Warns:
      UserWarning: a chain diverged: which, and at which step. All its samples are left out, the
        finite ones too, because a step size that ends in infinity sampled nothing before. Or a
        chain has no sample yet, and is left out, or more of them than others, and gives only as
        many as those.

    Raises:
      ValueError: no sample is left.

    Examples:
      >>> import diffopt, jax, jax.numpy as jnp
      >>> keep = diffopt.collect(3)
      >>> state = keep.update(jnp.ones(2), keep.init(jnp.ones(2)))
      >>> diffopt.draws(state).shape
      (1, 1, 2)
    """
    count, diverged = np.asarray(state.count), np.asarray(state.diverged)
    for chain in np.argwhere(diverged >= 0):
        _warn_left_out(chain, f"was not finite at step {diverged[tuple(chain)]}")
    for chain in np.argwhere((diverged < 0) & (count == 0)) if count.any() else ():
        _warn_left_out(chain, "has no sample yet")
    good = (diverged < 0) & (count > 0)
    if not good.any():
        raise ValueError("no samples: none was due yet, or every chain diverged")
    length = count[good].min()
    if length < count[good].max():
        warnings.warn(
            f"chains have {length} to {count[good].max()} samples; the first {length} of each stay",
            stacklevel=2,
        )

    def part(s: jax.Array) -> jax.Array:
        s = s.reshape(good.size, *s.shape[good.ndim :])
        s = s if good.all() else s[good.ravel()]
        return s if length == s.shape[1] else s[:, :length]

    return jax.tree.map(part, state.samples)


def _warn_left_out(chain: np.ndarray, why: str) -> None:
    name = ", ".join(map(str, chain)) or "0"
    name = f"({name})" if len(chain) > 1 else name
    warnings.warn(f"chain {name} {why} and is left out", stacklevel=3)


def _one_axis(samples: Any) -> tuple[Any, jax.Array]:
    """All samples along one axis, and for each whether it is one: filled, finite, not diverged."""
    if isinstance(samples, Samples):
        chains, slots = jnp.shape(samples.losses)
        good = jnp.broadcast_to(jnp.asarray(samples.diverged)[:, None] < 0, (chains, slots))
        samples = samples.draws
    elif isinstance(samples, CollectState):
        (slots,) = {jnp.shape(s)[samples.count.ndim] for s in jax.tree.leaves(samples.samples)}
        good = (jnp.arange(slots) < samples.count[..., None]) & (samples.diverged[..., None] < 0)
        samples = samples.samples
    else:
        lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(samples)}
        if len(lengths) != 1 or lengths == {()}:
            raise ValueError(f"samples need one leading axis in common, got {sorted(lengths)}")
        good = jnp.ones(lengths.pop(), bool)
    samples = jax.tree.map(lambda s: jnp.reshape(s, (-1, *jnp.shape(s)[good.ndim :])), samples)
    if not good.size or not jax.tree.leaves(samples):
        raise ValueError("samples hold no sample")
    return samples, good.ravel() & jax.vmap(is_finite)(samples)


def _check_batch_size(batch_size: int | None) -> None:
    if batch_size is not None:
        check_int("batch_size", batch_size, least=1)


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
      fn: `fn(sample, *args)` gives an array or a tree of arrays; it is compiled once for each
        function, so pass the same one every time, not a new lambda.
      samples: the `Samples` of `sample`, a `CollectState`, or a tree of arrays `[samples, ...]`
        (`samples.draws` is `[chain, draw, ...]`: give `samples`).
      *args: further arguments of `fn`, arrays or trees of them.
      batch_size: how many samples are evaluated at once; by default one, as in `jax.lax.map`.
        The number of samples need not be a multiple of it.

    Returns:
      The mean, shaped like one `fn(sample, *args)`, in float32 or the wider dtype of `fn`.

    Raises:
      ValueError: `samples` has no leaves, or leaves whose leading axes differ; `batch_size` is
        less than 1.
      TypeError: `batch_size` is no int.

    Examples:
      >>> import diffopt, jax.numpy as jnp
      >>> slopes = jnp.array([1.0, 2.0, 6.0])
      >>> diffopt.predictive(jnp.multiply, slopes, jnp.array([1.0, 10.0])).tolist()
      [3.0, 30.0]
    """
    _check_batch_size(batch_size)
    return _mean(fn, *_one_axis(samples), args, batch_size or 1)


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
      TypeError: `batch_size` is no int.

    Examples:
      >>> import diffopt, jax.numpy as jnp
      >>> slopes = jnp.array([1.0, 2.0, jnp.nan, 6.0])
      >>> each = diffopt.predictions(jnp.multiply, slopes, jnp.array([1.0, 10.0]))
      >>> each.shape, jnp.quantile(each, 0.5, axis=0).tolist()
      ((3, 2), [2.0, 20.0])
    """
    _check_batch_size(batch_size)
    samples, good = _one_axis(samples)
    chosen = np.asarray(good)
    if not chosen.any():
        raise ValueError("no sample is finite: every chain diverged, or no slot is filled")
    if not chosen.all():
        samples = jax.tree.map(lambda s: s[chosen], samples)
    return _each(fn, samples, args, batch_size or 1)


@partial(jax.jit, static_argnames=("fn", "batch_size"))
def _each(fn: Callable[..., Any], samples: Any, args: Any, batch_size: int) -> Any:
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


@partial(jax.jit, static_argnames=("fn", "batch_size"))
def _mean(fn: Callable[..., Any], samples: Any, good: jax.Array, args: Any, batch_size: int) -> Any:
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


def to_arviz(samples: Samples) -> Any:
    """`samples` as ArviZ takes them: an `InferenceData`, or from ArviZ 1 on a `DataTree`.

    The group `posterior` has a variable for each leaf, named by its path (`dense1.kernel`; one
    array alone is called `params`), and `sample_stats` has `loss`, `configurational_temperature`
    and, where the sampler has a velocity, `kinetic_temperature`. Chains that diverged are left
    out, with a warning. Needs ArviZ.

    Args:
      samples: what `sample` returned.

    Returns:
      What `arviz.summary`, `arviz.plot_trace` and the others take.

    Raises:
      ImportError: ArviZ is not installed.
      TypeError: `samples` are not `Samples`.
      ValueError: every chain diverged, two leaves have one name, or one is called `chain` or
        `draw`.

    Examples:
      >>> import diffopt, jax.numpy as jnp
      >>> loss = lambda p: jnp.sum(p["x"] ** 2) / 2
      >>> tx = diffopt.baoab(0.5, temperature=1.0)
      >>> samples = diffopt.sample(tx, loss, {"x": jnp.zeros(2)}, num_steps=100, num_chains=4)
      >>> data = diffopt.to_arviz(samples)  # arviz.summary(data)
      >>> data["posterior"]["x"].shape
      (4, 100, 2)
    """
    if not isinstance(samples, Samples):
        raise TypeError(f"to_arviz takes the Samples of sample, got {type(samples).__name__}")
    try:
        import arviz
    except ImportError as error:
        raise ImportError("to_arviz needs ArviZ: pip install arviz") from error
    diverged = np.asarray(samples.diverged)
    for chain in np.argwhere(diverged >= 0):
        _warn_left_out(chain, f"was not finite at step {diverged[tuple(chain)]}")
    if (diverged >= 0).all():
        raise ValueError("no samples: every chain diverged")
    host = lambda x: np.asarray(x)[diverged < 0]
    leaves = jax.tree_util.tree_leaves_with_path(samples.draws)
    posterior = {
        jax.tree_util.keystr(path, simple=True, separator=".") or "params": host(leaf)
        for path, leaf in leaves
    }
    if {"chain", "draw"} & set(posterior):
        raise ValueError(f"ArviZ has axes called chain and draw: rename these of {list(posterior)}")
    if len(posterior) < len(leaves):
        raise ValueError(f"several leaves of draws have one name, of {sorted(posterior)}")
    stats = {"loss": host(samples.losses)}
    for name, values in samples.temperatures._asdict().items():
        if values is not None:
            stats[f"{name}_temperature"] = host(values)
    groups = {"posterior": posterior, "sample_stats": stats}
    make: Any = arviz.from_dict
    return make(groups) if arviz.__version__ >= "1" else make(**groups)
