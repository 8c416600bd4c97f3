"""What `sample` returns, and how ArviZ takes it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._types import Params
from ..inputs.trees import count_degrees
from .collect import CollectState, list_chains, name_range, warn_left_out
from .loop import Carry, Record, RunState

BLOCKS = 8  # of one chain, for a standard error
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
        return Temperatures(*(None if t is None else _average(t) for t in self))


def _average(values: Any) -> Average:
    values = np.asarray(values, np.float64)
    chains = values[np.isfinite(values).all(1)]
    if not len(chains):
        return Average(jnp.full([], jnp.nan), jnp.full([], jnp.nan))
    parts = chains.mean(1)
    if len(chains) == 1:
        parts = np.array(
            [block.mean() for block in np.array_split(chains[0], BLOCKS) if len(block)]
        )
    error = parts.std(ddof=1) / np.sqrt(len(parts)) if len(parts) > 1 else np.nan
    return Average(jnp.asarray(chains.mean(), jnp.float32), jnp.asarray(error, jnp.float32))


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
    return jnp.sum(jnp.asarray(by_leaf) * (weights / weights.sum()).astype(np.float32), -1)


def gather(
    carry: Carry, records: Record, base: int, done: int, num_steps: int, num_examples: int | None
) -> tuple[Samples, list[str]]:
    """The `Samples` of a run, and what is to be doubted of them."""
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
            " the steps are too long, or the loss has no lower bound"
        )
    if done < num_steps and not (diverged >= 0).all():
        doubts.append(
            f"interrupted after {done} of {num_steps} steps: these are the draws until then"
        )
    if (blamed := np.flatnonzero((counts > 0) & (diverged < 0))).size:
        first = base + np.asarray(nonfinite.first)[blamed].min()
        doubts.append(
            f"the loss was not finite at {counts[blamed].sum()} steps of {list_chains(blamed)},"
            f" first at step {first}, where the parameters were: look for it in the data (0/0, a"
            " log of 0), then in the support of the loss, then in the step size"
        )
    if len(diverged) > 1 and _are_equal((params, records.loss)):
        doubts.append(
            "two chains are equal to the bit: tx adds no noise, or its key is no typed PRNG key"
            " (jax.random.key), which alone is split for the chains"
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


def _are_equal(chains: Any) -> bool:
    """Whether another chain is equal to the first to the last bit."""
    leaves = [jnp.reshape(x, (len(x), -1)) for x in jax.tree.leaves(chains)]
    equal = [(x[1:] == x[:1]).all(1) for x in leaves]
    return bool(jnp.stack(equal).all(0).any())


def _doubt_temperature(temperatures: Temperatures, num_examples: int | None) -> list[str]:
    """Where the chains are far hotter than the posterior of a mean loss, what they read.

    A temperature of log(N)/N, that of the learning coefficient, is none to doubt.
    """
    if num_examples is None:
        return []
    average = temperatures.average()
    reading = average.configurational if average.kinetic is None else average.kinetic
    ratio = float(reading.mean) * num_examples
    if not ratio > TOO_HOT * max(1.0, np.log(num_examples)):
        return []
    return [
        f"the chains read the temperature {reading.mean:.3g}, which with {num_examples} examples is"
        f" {ratio:.3g} times that of the posterior of a mean loss, 1/{num_examples}: a sampler of a"
        " mean loss needs temperature=1/N. Of a loss that sums over all examples T = 1 is right"
    ]


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
      ValueError: every chain diverged, two leaves have one name, or one that an axis has,
        as `chain` and `draw`.

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
    warn_left_out(diverged)
    if (diverged >= 0).all():
        raise ValueError("no samples: every chain diverged")

    def host(x: Any) -> np.ndarray:
        x = np.asarray(x)[diverged < 0]
        return x.astype(np.float32) if x.dtype.itemsize == 2 and x.dtype.kind not in "iu" else x

    leaves = jax.tree_util.tree_leaves_with_path(samples.draws)
    posterior = {
        jax.tree_util.keystr(path, simple=True, separator=".") or "params": host(leaf)
        for path, leaf in leaves
    }
    axes = {f"{name}_dim_{i}" for name, leaf in posterior.items() for i in range(leaf.ndim - 2)}
    if taken := ({"chain", "draw"} | axes) & set(posterior):
        raise ValueError(f"ArviZ has axes called {sorted(taken)}: rename these leaves of draws")
    if len(posterior) < len(leaves):
        raise ValueError(f"several leaves of draws have one name, of {sorted(posterior)}")
    stats = {"loss": host(samples.losses)}
    for name, values in samples.temperatures._asdict().items():
        if values is not None:
            stats[f"{name}_temperature"] = host(values)
    groups = {"posterior": posterior, "sample_stats": stats}
    make: Any = arviz.from_dict
    return make(groups) if arviz.__version__ >= "1" else make(**groups)
