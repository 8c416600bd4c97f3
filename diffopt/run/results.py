"""What `sample` returns, and how ArviZ takes it."""

import math
import os
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._types import Params
from ..inputs.trees import chains_and_draws, check_arrays, count_degrees
from .chains import is_key
from .collect import (
    CollectState,
    are_equal,
    draws,
    list_chains,
    name_range,
    warn_equal_chains,
    warn_left_out,
)
from .loop import Carry, Record, RunState

BLOCKS = 8  # of one chain, for a standard error
STANDING = 10  # draws, or one in so many of them, that are all equal where a chain stands still
TOO_HOT = 10.0  # times the temperature of a posterior


class Average(NamedTuple):
    """A mean over draws and chains.

    Attributes:
      mean: over all finite chains, a scalar.
      standard_error: from the spread of the chains; of one chain alone, from its eighths.
    """

    mean: jax.Array
    standard_error: jax.Array


class Temperatures(NamedTuple):
    """The temperatures that a chain shows at each draw, over all parameters that move.

    Attributes:
      configurational: (θ - c)·∇L(θ)/d, `[chain, draw]`, with c the parameters half-way through the
        burn-in, or the start where there is none; see `configurational_temperature`.
      kinetic: the mean of M v², likewise, or `None` where the sampler has no velocity, or several;
        see `kinetic_temperature`.
    """

    configurational: Any
    kinetic: Any

    def average(self) -> "Temperatures":
        """The same two, each as an `Average` over draws and chains: compare them with your T."""
        return Temperatures(*(None if t is None else average_over_chains(t) for t in self))


def average_over_chains(values: Any) -> Average:
    """The mean of `[chain, draw]` over the finite chains, with its standard error."""
    values = np.asarray(values, np.float64)
    chains = values[np.isfinite(values).all(1)]
    if not chains.size:
        return Average(jnp.asarray(np.nan), jnp.asarray(np.nan))
    parts = chains.mean(1)
    if len(chains) == 1:
        parts = np.array(
            [block.mean() for block in np.array_split(chains[0], BLOCKS) if len(block)]
        )
    error = parts.std(ddof=1) / np.sqrt(len(parts)) if len(parts) > 1 else np.nan
    return Average(jnp.asarray(chains.mean(), float), jnp.asarray(error, float))


class Samples(NamedTuple):
    """What `sample` returns.

    Attributes:
      draws: a tree like the parameters, or like what `transform` makes of them,
        `[chain, draw, ...]` in each leaf.
      losses: the loss at each draw, `[chain, draw]`, of its batch where there are batches.
      temperatures: `Temperatures` at each draw; `temperatures.average()` is to be compared with T.
      params: the last parameters, `[chain, ...]`, to go on from.
      state: a `RunState`, to go on from.
      diverged: for each chain the steps that it had taken where its parameters were first seen not
        to be finite, at a step of `every` or at the end, or -1. Its draws from there on are NaN.
      nonfinite_losses: for each chain at how many steps the loss was not finite; where the chain
        has not diverged, at finite parameters.
    """

    draws: Any
    losses: jax.Array
    temperatures: Temperatures
    params: Params
    state: RunState
    diverged: np.ndarray
    nonfinite_losses: np.ndarray


def average_over_moving(by_leaf: Any, params: Params, origin: Params) -> jax.Array:
    """The mean over parameters of what is known for each leaf, `[..., leaf]`.

    A leaf that is where it was in all chains is frozen, and does not count.
    """
    pairs = list(zip(jax.tree.leaves(params), jax.tree.leaves(origin), strict=True))
    sizes = np.array([count_degrees(p) for p, _ in pairs], float)
    moved = np.array([bool(jnp.any(p != o)) for p, o in pairs])
    weights = sizes * moved if (sizes * moved).any() else sizes
    share = jnp.asarray(weights / weights.sum(), jnp.float32)
    return jnp.sum(by_leaf * jnp.broadcast_to(share, jnp.shape(by_leaf)), -1)


def gather(
    carry: Carry,
    records: Record,
    base: int,
    done: int,
    num_steps: int,
    stopped: str,
    num_examples: int | None,
) -> tuple[Samples, list[str]]:
    """The `Samples` of a run, and what is to be doubted of them; `stopped` says why it ended."""
    params, state, kept, nonfinite = carry
    diverged = _find_diverged(params, kept, base, done)
    configurational = average_over_moving(records.configurational, params, state.origin)
    temperatures = Temperatures(configurational, records.kinetic)
    counts = np.asarray(nonfinite.count)
    samples = Samples(records.draw, records.loss, temperatures, params, state, diverged, counts)
    doubts = []
    if (diverged >= 0).any():
        chains = np.flatnonzero(diverged >= 0)
        were = "was" if len(chains) == 1 else "were"
        end = ", where the run ended" if len(chains) == len(diverged) > 1 else ""
        doubts.append(
            f"{list_chains(chains)} {were} not finite at step {name_range(diverged[chains])}{end}:"
            " the steps are too long, the loss has no lower bound, or the data or a schedule are"
            " not finite"
        )
    if done < num_steps and not (diverged >= 0).all():
        told = (
            "these are the draws until then" if records.loss.size else "no draw was kept until then"
        )
        doubts.append(f"{stopped} after {done} of {num_steps} steps: {told}")
    if (blamed := np.flatnonzero((counts > 0) & (diverged < 0))).size:
        first = base + np.asarray(nonfinite.first)[blamed].min()
        doubts.append(
            f"the loss was not finite at {counts[blamed].sum()} steps of {list_chains(blamed)},"
            f" first at step {first}, where the parameters were: look for it in the data (0/0, a"
            " log of 0), then in the support of the loss, then in the step size"
        )
    if len(diverged) > 1 and are_equal((params, records.loss)):
        doubts.append(
            "two chains are equal to the bit: tx adds no noise, or its key is no typed PRNG key"
            " (jax.random.key), which alone is split for the chains"
        )
    standing, number = _find_standing(records.draw, params, state)
    if standing.size:
        doubts.append(
            f"{list_chains(standing)} stood still: the last {number} draws are equal to the bit, as"
            " where a schedule of the step size or the temperature is 0 or below, or where steps"
            " are below the spacing of the parameters"
        )
    return samples, doubts + _doubt_temperature(temperatures, num_examples)


def _find_diverged(params: Params, kept: CollectState, base: int, done: int) -> np.ndarray:
    """For each chain the step at which its parameters first were not finite, or -1."""
    diverged = np.asarray(kept.diverged)
    last = np.ones(len(diverged), bool)
    for leaf in jax.tree.leaves(params):
        last &= np.asarray(jnp.isfinite(leaf).reshape(len(diverged), -1).all(1))
    diverged = np.where((diverged < 0) & ~last, done, diverged)
    return np.where(diverged < 0, -1, base + diverged)


def _find_standing(kept: Any, params: Params, state: RunState) -> tuple[np.ndarray, int]:
    """The chains of a sampler whose last draws are all equal, and how many draws were looked at.

    Draws that are no parameters may well be equal, and so may iterates of an optimizer.
    """
    leaves, like = jax.tree.leaves(kept), jax.tree.leaves(params)
    are_params = [np.shape(x)[2:] for x in leaves] == [np.shape(p)[1:] for p in like]
    if not are_params or not any(is_key(leaf) for leaf in jax.tree.leaves(state.opt_state)):
        return np.arange(0), 0
    number = max(STANDING, leaves[0].shape[1] // STANDING)
    if leaves[0].shape[1] < number:
        return np.arange(0), 0
    last = [x[:, -number:] for x in leaves]
    equal = [(x == x[:, -1:]).all(tuple(range(1, x.ndim))) for x in last]
    return np.flatnonzero(np.stack(equal).all(0)), number


def check_room(number: int, draw: Any, num_chains: int, on_host: bool) -> None:
    """Raise a MemoryError where so many draws, each a tree like `draw`, cannot fit into memory."""
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(draw))
    room = 0
    if not on_host:
        stats = [device.memory_stats() or {} for device in jax.local_devices()]
        room = sum(s.get("bytes_limit", 0) for s in stats)
    if not room:  # the processor's devices have no limit of their own
        room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if number * num_chains * size > room:
        raise MemoryError(
            f"{number} draws of {num_chains} chains, {size} bytes each, are"
            f" {number * num_chains * size / 1e9:.3g} GB, and the memory has {room / 1e9:.3g} GB:"
            " keep fewer by `every`, less of each by `transform`, or take the draws to a disk by"
            " `on_draw` and call `sample` again and again with `state`"
        )


def read_temperature(temperatures: Temperatures) -> float:
    """What the finite chains read on average: of the velocities where they have some."""
    average = temperatures.average()
    return float((average.configurational if average.kinetic is None else average.kinetic).mean)


def _doubt_temperature(temperatures: Temperatures, num_examples: int | None) -> list[str]:
    """Where the chains are far hotter than the posterior of a mean loss, what they read.

    A temperature of log(N)/N, that of the learning coefficient, is none to doubt.
    """
    if num_examples is None:
        return []
    reading = read_temperature(temperatures)
    ratio = reading * num_examples
    if not ratio > TOO_HOT * max(1.0, np.log(num_examples)):
        return []
    return [
        f"the chains read the temperature {reading:.3g}, which with {num_examples} examples is"
        f" {ratio:.3g} times that of the posterior of a mean loss, 1/{num_examples}: a sampler of a"
        " mean loss needs temperature=1/N. If you gave that, the chains still descend, or the step"
        " is too long: try a longer burn_in, then a shorter step. Of a loss that sums over all"
        " examples T = 1 is right"
    ]


def to_arviz(samples: Any) -> Any:
    """Draws as ArviZ takes them: an `InferenceData`, or from ArviZ 1 on a `DataTree`.

    The group `posterior` has a variable for each leaf, named by its path (`dense1.kernel`; one
    array alone is called `params`). What files and ArviZ do not take in a name becomes a dot:
    Haiku's `mlp/~/linear_0` is `mlp.linear_0`. A complex leaf is two variables, `.real` and
    `.imag`. Of `Samples` the group `sample_stats` has `loss`, `configurational_temperature` and,
    where the sampler has a velocity, `kinetic_temperature`. Chains that diverged are left out, with
    a warning. Needs ArviZ.

    Args:
      samples: what `sample` returned, or any tree of arrays that lead with `[chain, draw, ...]`,
        such as `draws` gives, or the `CollectState` of `collect`.

    Returns:
      What `arviz.summary`, `arviz.plot_trace` and the others take.

    Warns:
      UserWarning: a chain diverged, or two are equal to the bit.

    Raises:
      ImportError: ArviZ is not installed.
      TypeError: `samples` are no arrays.
      ValueError: leaves have no `[chain, draw, ...]` in common, or `Samples` are thinned in part;
        every chain diverged; two leaves have one name, or one that an axis has, as `chain` and
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
    try:
        import arviz
    except ImportError as error:
        raise ImportError("to_arviz needs ArviZ: pip install arviz") from error
    samples = draws(samples) if isinstance(samples, CollectState) else samples
    tree = samples.draws if isinstance(samples, Samples) else samples
    check_arrays("draws", tree)
    shape = chains_and_draws("draws", tree)
    good, stats = np.ones(shape[0], bool), {}
    if isinstance(samples, Samples):
        if np.shape(samples.losses) != shape:
            raise ValueError(
                f"draws are of [chain, draw] = {list(shape)} and losses of"
                f" {list(np.shape(samples.losses))}: give to_arviz the draws alone, or thin losses"
                " and temperatures alike"
            )
        warn_left_out(np.asarray(samples.diverged))
        good = np.asarray(samples.diverged) < 0
        if not good.any():
            raise ValueError("no samples: every chain diverged")
        temperatures = samples.temperatures._asdict().items()
        stats = {"loss": samples.losses} | {
            f"{name}_temperature": values for name, values in temperatures if values is not None
        }
    variables = _name_variables(jax.tree.map(lambda x: _to_host(x)[good], tree))
    warn_equal_chains(variables)
    groups = {"posterior": variables}
    if stats:
        groups["sample_stats"] = {name: _to_host(x)[good] for name, x in stats.items()}
    make: Any = arviz.from_dict
    return make(groups) if arviz.__version__ >= "1" else make(**groups)


def _to_host(x: Any) -> np.ndarray:
    """An array of a type that ArviZ and files know."""
    x = np.asarray(x)
    if x.dtype == bool:
        return x.astype(np.int8)
    return x.astype(np.float32) if x.dtype.itemsize == 2 and x.dtype.kind not in "iu" else x


def _name_variables(tree: Any) -> dict[str, np.ndarray]:
    """The leaves by names that xarray, netCDF and ArviZ take: letters, digits and `_ . -`."""
    named: list[tuple[str, np.ndarray]] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        name = re.sub(r"[^\w-]+", ".", name).strip(".-") or "params"
        if np.iscomplexobj(leaf):
            named += [(f"{name}.real", leaf.real), (f"{name}.imag", leaf.imag)]
        else:
            named.append((name, leaf))
    variables = dict(named)
    axes = {f"{name}_dim_{i}" for name, leaf in named for i in range(leaf.ndim - 2)}
    if taken := ({"chain", "draw"} | axes) & set(variables):
        raise ValueError(f"ArviZ has axes called {sorted(taken)}: rename these leaves of draws")
    if len(variables) < len(named):
        raise ValueError(f"several leaves of draws have one name, of {sorted(variables)}")
    return variables
