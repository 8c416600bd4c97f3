"""Samples kept inside a compiled loop."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._types import Schedule
from ..inputs.scalars import check_int, check_stage
from ..inputs.trees import check_structure

LAST = 2**31 - 1
LISTED = 8  # chains that a warning names
LOOKED_AT = 16  # draws of a chain, to tell if another is the same


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
    capacity: int, *, burn_in: int = 0, every: int = 1, where: Schedule | None = None
) -> Collect:
    """Keep thinned samples of a chain on the device, inside `jit` and `scan`.

    Sample i is the parameters of update `burn_in + i * every`, counted from 0, in their own dtype
    (under `low_precision` give `exact_params(params, opt_state)` to `init` and to `update`).
    It stops at `capacity`: samples stay in order, as ArviZ wants them, and none is overwritten.
    Plan `burn_in + capacity * every` steps. With `where`, a sample is kept only if that schedule is
    not 0: `sampling_stage` keeps the sampling part of each cycle.

    The buffer is written in place where it is donated or carried by a scan, and not at all at the
    steps in between. Parameters that are not finite are never kept, and nothing is kept after
    them: `diverged` holds the step at which they came. Under `jax.vmap` all this holds for each
    chain, and the others go on.

    Args:
      capacity: how many samples to keep, at least 1.
      burn_in: updates to pass over first.
      every: keep one sample in so many updates (thinning).
      where: a schedule of the update's number, 0 where nothing is to be kept.

    Returns:
      A pair of functions: `init(params)` gives an empty `CollectState`, and
      `update(params, state)`, called after every step, the next. `None` leaves stay `None`, and
      sharded parameters get samples sharded likewise.

    Raises:
      ValueError: `capacity` or `every` is less than 1, or `burn_in` is negative; `burn_in + every`
        is 2³¹ or more.
      TypeError: one of them is no int, or `where` no schedule of scalars; at `update`, a parameter
        has another dtype than at `init`.

    Examples:
      >>> import diffopt, jax, jax.numpy as jnp, optax
      >>> tx = diffopt.sgld(0.1, temperature=1.0)
      >>> keep = diffopt.collect(50, burn_in=100, every=10)
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
    for name, value in {"capacity": capacity, "burn_in": burn_in, "every": every}.items():
        check_int(name, value)
    if capacity < 1 or every < 1 or burn_in < 0 or burn_in + every > LAST:
        raise ValueError(
            "collect needs capacity ≥ 1, burn_in ≥ 0, every ≥ 1 and burn_in + every < 2³¹,"
            f" got capacity={capacity}, burn_in={burn_in}, every={every}"
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
        _check_like_samples(params, state.samples)
        plan = capacity, burn_in, every, where
        return keep(params, is_finite(params), state, *plan)

    return Collect(init_fn, update_fn)


def keep(
    sample: Any,
    finite: jax.Array,
    state: CollectState,
    capacity: int,
    burn_in: int,
    every: int,
    where: Schedule | None,
) -> CollectState:
    """The state after one update: with `sample` if it is due, and if all until now was `finite`."""
    samples, count, step, diverged = state
    diverged = jnp.where((diverged < 0) & ~finite, step, diverged)
    due = (step >= burn_in) & ((step - burn_in) % every == 0) & (count < capacity) & (diverged < 0)
    if where is not None:
        due &= jnp.asarray(where(step)) != 0
    slot = jnp.where(due, count, capacity)  # a write to `capacity`, out of bounds, is dropped
    samples = jax.lax.cond(
        _in_any_chain(due),
        lambda s: jax.tree.map(lambda s, p: s.at[slot].set(p, mode="drop"), s, sample),
        lambda s: s,
        samples,
    )
    count = count + due.astype(count.dtype)
    return CollectState(samples, count, advance_step(step, every), diverged)


def advance_step(step: jax.Array, every: int) -> jax.Array:
    """The number of the next update; at the end of the int32, a period again."""
    return jnp.where(step == LAST, LAST - every, step) + 1


def _check_like_samples(params: Any, samples: Any) -> None:
    check_structure("params", params, samples)
    for (path, p), s in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(samples), strict=False
    ):
        if jnp.shape(p) != s.shape[1:]:
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} has shape {jnp.shape(p)}, and the state was"
                f" made by init for {s.shape[1:]}"
            )
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
      state: the state of one `collect`, or of many chains under `jax.vmap`, nested or not.

    Returns:
      A tree like the parameters, with one chain axis: of length 1 where there is one chain, and
      all chains in a row where `jax.vmap` is nested.

    Warns:
      UserWarning: a chain diverged: which, and at which step. All its samples are left out, the
        finite ones too, because a step size that ends in infinity sampled nothing before. Or a
        chain has no sample yet, and is left out, or more of them than others, and gives only as
        many as those. Or two chains are equal to the bit.

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
    warn_left_out(diverged)
    good = (diverged < 0) & (count > 0)
    if not good.any():
        raise ValueError("no samples: every chain diverged or has no sample yet")
    if (empty := np.argwhere((diverged < 0) & (count == 0))).size:
        _warn(f"{list_chains(empty)} {_verb(empty, 'has', 'have')} no sample yet", empty)
    length = count[good].min()
    if length < count[good].max():
        warnings.warn(
            f"chains have {length} to {count[good].max()} samples; the first {length} of each are"
            " kept",
            stacklevel=2,
        )

    def part(s: jax.Array) -> jax.Array:
        s = s.reshape(good.size, *s.shape[good.ndim :])
        s = s if good.all() else s[good.ravel()]
        return s if length == s.shape[1] else s[:, :length]

    samples = jax.tree.map(part, state.samples)
    warn_equal_chains(samples)
    return samples


def warn_equal_chains(draws: Any) -> None:
    """Warn where another chain has the draws of the first; some, all along, tell it."""
    some = jax.tree.map(lambda s: s[:, :: max(1, s.shape[1] // LOOKED_AT)], draws)
    leaves = jax.tree.leaves(some)
    moving = any(bool((s[:1, 1:] != s[:1, :1]).any()) for s in leaves)
    if len(leaves[0]) > 1 and moving and are_equal(some):
        warnings.warn(
            "two chains are equal to the bit: jax.vmap(tx.init) copies one key, use"
            " diffopt.split_keys(tx.init(params), num_chains)",
            stacklevel=3,
        )


def are_equal(chains: Any) -> bool:
    """Whether another chain is equal to the first to the last bit, `[chain, ...]` in each leaf."""
    leaves = jax.tree.leaves(chains)
    equal = [(x[1:] == x[:1]).all(tuple(range(1, x.ndim))) for x in leaves]
    return bool(np.stack(equal).all(0).any())


def warn_left_out(diverged: np.ndarray) -> None:
    """Warn of the chains that diverged, in one sentence."""
    chains = np.argwhere(diverged >= 0)
    if len(chains):
        what = f"{list_chains(chains)} {_verb(chains, 'was', 'were')} not finite"
        _warn(f"{what} at step {name_range(diverged[diverged >= 0])}", chains)


def name_range(steps: np.ndarray) -> str:
    """The least and the largest of some steps, as text."""
    low, high = steps.min(), steps.max()
    return str(low) if low == high else f"{low} to {high}"


def _warn(what: str, chains: np.ndarray) -> None:
    warnings.warn(f"{what} and {_verb(chains, 'is', 'are')} left out", stacklevel=4)


def _verb(chains: np.ndarray, one: str, many: str) -> str:
    return one if len(chains) == 1 else many


def list_chains(chains: np.ndarray) -> str:
    """Numbers of chains, one a row, as the subject of a sentence."""
    rows = np.reshape(chains, (len(chains), -1))
    names = [", ".join(map(str, row)) or "0" for row in rows]
    names = [f"({name})" if rows.shape[1] > 1 else name for name in names]
    if len(names) == 1:
        return f"chain {names[0]}"
    shown = ", ".join(names[:LISTED])
    return f"{len(names)} chains ({shown}{', …' if len(names) > LISTED else ''})"
