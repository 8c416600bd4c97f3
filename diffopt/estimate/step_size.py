"""Which step size? The longest at which a sampler is at the temperature it was given."""

import warnings
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._types import Batch, Key, Loss, Params, Sampler, Updates
from ..inputs.callables import check_concrete, check_loss, check_sampler
from ..inputs.keys import check_key, derive_key
from ..inputs.scalars import check_int, check_number
from ..inputs.trees import check_inexact, count_degrees, mean_product, refuse_statistics
from ..run.batches import Epoch, count_examples, next_batch, shape_batch, start_epoch
from ..run.loop import configurational_by_leaf, kinetic_or_none, take_step
from ..run.program import compile_program
from ..temperature import find_stiffest

SIZES = 12  # step sizes at once
BLOCKS = 8  # of the steps that are measured, for standard errors
LARGEST_ERROR = 0.25  # of a temperature over T that counts as known

LONGEST, SHORTEST = 1e2, 1e-8  # the probe's step sizes
PROBE_STEPS = 100  # they tell which sizes diverge at once
PROBE_RISE = 100  # times T for each parameter: a loss that rises further has diverged
COARSE, FINE = 2.0, 4.0 ** (1 / SIZES)  # from one size to the next
ABOVE = 2.0  # times the longest good size: where the fine search begins
DEEPER = 2  # further coarse searches while all sizes are too hot

WELL_BELOW = 1.5  # temperatures over T beyond which the power law is not fitted
POWERS = np.linspace(0.5, 4, 36)  # of the step size, for the excess of the temperature

AXIS_PRODUCTS = 30  # of the Hessian with a vector, for the stiffest direction
AXIS_BATCHES = 10  # of the data that it is taken on


class Measures(NamedTuple):
    """Temperatures over T, or their standard errors, in rows by step size.

    Attributes:
      stiffest: in the stiffest direction, `[size]`; NaN where a chain was not finite.
      overall: over all parameters that move, likewise.
      kinetic: of the velocities, likewise; `None` where the sampler has none.
      per_leaf: a tree like the parameters, likewise in each leaf; `None` for one that is frozen.
    """

    stiffest: np.ndarray
    overall: np.ndarray
    kinetic: np.ndarray | None
    per_leaf: Any


class StepSizes(NamedTuple):
    """What `find_step_size` measured, in rows by step size; temperatures are over T.

    Attributes:
      step_size: `[size]`, from the longest to the shortest; two searches are in it, so that a size
        may be there twice.
      good: whether the size is a candidate, `[size]`.
      stiffest: temperature in the stiffest direction, `[size]`; NaN where a chain was not finite.
      overall: over all parameters that move, likewise.
      kinetic: of the velocities, likewise; `None` where the sampler has none.
      per_leaf: a tree like the parameters, likewise in each leaf; `None` for one that is frozen.
      standard_error: `Measures` of the last four.
    """

    step_size: np.ndarray
    good: np.ndarray
    stiffest: np.ndarray
    overall: np.ndarray
    kinetic: np.ndarray | None
    per_leaf: Any
    standard_error: Measures


class Run(NamedTuple):
    """What chains at some step sizes showed.

    Attributes:
      blocks: temperatures over T as `Trace` has them, `[block, size, chain, ...]`.
      loss_before: the mean loss at the start.
      loss_after: the loss in the later half of the steps, of the worst chain, `[size]`.
      moved: whether any chain moved a leaf, `[leaf]`.
    """

    blocks: "Trace"
    loss_before: jax.Array
    loss_after: jax.Array
    moved: jax.Array


class Trace(NamedTuple):
    """Temperatures over T of one chain at one step: the last `[leaf]`."""

    stiffest: jax.Array
    kinetic: jax.Array | None
    by_leaf: jax.Array


def find_step_size(
    sampler: Sampler,
    loss: Loss,
    params: Params,
    data: Batch = None,
    *,
    temperature: float,
    tolerance: float = 0.05,
    num_steps: int = 4000,
    num_chains: int = 32,
    batch_size: int | None = None,
    key: Key = 0,
) -> tuple[float, StepSizes]:
    r"""The longest step size at which a sampler is at its temperature.

    Longer steps mix faster, in proportion; what limits them is the temperature, which rises with
    them: first in the stiffest direction, the eigenvector of the largest curvature, and with
    noisy gradients in the noisiest. A mean over all parameters hides that: 99 soft directions at
    T and a stiff one at 5 T are at 1.04 T together.

    From `params` on, which should be near a minimum, `num_chains` chains run at each of 12 step
    sizes at once: first over ten decades and 100 steps, to see where they diverge; then for
    `num_steps` from there downwards by factors of 2, and once more around the longest good one by
    factors of 1.12. The later half of the steps is measured. The configurational temperature of a
    direction e is the mean of e·(θ - θ₁) e·∇L, θ₁ where a quarter of the steps is over: the origin
    changes nothing but the variance, and what has not settled by then reads cold.
    A size is good where no chain diverges; where the stiffest direction is within `tolerance` of
    T by the power law of the step size that fits the excess best (it is linear for `sgld`), and
    by its own measurement up to two standard errors; where no leaf, nor the velocities, are hotter
    than that; and where all this is known, with standard errors of 0.25 or less.

    Leaves that do not move, as under `optax.set_to_zero`, count in none of this. A leaf that is
    colder has not settled, which is no fault of the step
    size: there is a warning. Flat directions of a network may never reach T.

    On kθ²/2 the longest step within 5 % is 0.095/k for `sgld`, (1 + m) times that for `sghmc`,
    and 2/√k, the limit of stability, for `baoab`. There its fourth-order error on other losses
    and rounding are all that is left: take a little less.

    Args:
      sampler: `sampler(step_size, temperature, key=key)` gives a transformation, as `sgld`,
        `sghmc`, `baoab` and `sgnht` do, or `functools.partial(diffopt.sghmc, momentum=0.99)`. The
        loss has to hold priors and weight decay.
      loss: as in `sample`.
      params: the start of all chains.
      data: as in `sample`.
      temperature: T > 0.
      tolerance: the largest relative error of a temperature.
      num_steps: steps at each size, at least 100. The standard errors in the table tell whether
        they are enough: by default that of the stiffest direction is 1 to 2 %, which tells a step
        size to about a fifth.
      num_chains: chains at each size; 12 times as many are in memory, so take 2 for a network.
      batch_size: as in `sample`: noisy gradients heat the chain, so it has to be that of the run.
      key: an int or a PRNG key.

    Returns:
      The step size and a table, `StepSizes`.

    Raises:
      ValueError: a number is out of its range, or no size is good: the stiffest direction does
        not settle in so many steps, or gradients are too noisy at any size.
      TypeError: as `sample`.

    Examples:
      >>> import diffopt, jax.numpy as jnp
      >>> curvature = jnp.array([10.0] * 99 + [100.0])
      >>> loss = lambda p: jnp.sum(curvature * p**2) / 2
      >>> step_size, table = diffopt.find_step_size(
      ...     diffopt.sgld, loss, jnp.zeros(100), temperature=0.1
      ... )
      >>> bool(0.0007 < step_size < 0.0012)  # 0.095 / 100
      True
    """
    check_number("temperature", temperature, positive=True)
    check_number("tolerance", tolerance, positive=True)
    check_int("num_steps", num_steps, least=100)
    check_int("num_chains", num_chains, least=1)
    check_concrete("find_step_size", params=params, data=data, temperature=temperature, key=key)
    check_key(key)
    check_inexact(params)
    refuse_statistics(params)
    temperature = float(temperature)
    if count_examples(data, batch_size) == batch_size:
        batch_size = None
    check_sampler(sampler)
    batch = () if data is None else (shape_batch(data, batch_size),)
    check_loss(loss, params, *batch)
    params, data = jax.tree.map(jnp.asarray, (params, data))
    key, axis_key = jax.random.split(derive_key(key, "step size"))

    def run(sizes: np.ndarray, axis: Params, turn: int, steps: int) -> Run:
        turn_key = jax.random.fold_in(key, turn)
        chains = partial(_run, sampler, loss, batch_size, num_chains, temperature)
        operands = (
            params, data, axis, jnp.asarray(sizes, jnp.float32), turn_key,
            jnp.asarray(steps, jnp.int32),
        )  # fmt: skip
        with jax.debug_nans(False):  # the longest sizes are to diverge
            return compile_program(chains, *operands)(*operands)

    # Probe: which sizes diverge at once, and which leaves move?
    probed = np.geomspace(LONGEST, SHORTEST, SIZES)
    probe = run(probed, jax.tree.map(jnp.zeros_like, params), 0, PROBE_STEPS)
    before = float(probe.loss_before)
    if not np.isfinite(before):
        raise ValueError(f"loss must be finite at params, got {before}")
    moved = np.asarray(probe.moved)
    rise = PROBE_RISE * count_degrees(params) * temperature
    stable = np.flatnonzero(np.asarray(probe.loss_after) < before + rise)
    if not len(stable):
        raise ValueError(
            f"no step size from {SHORTEST:g} to {LONGEST:g} keeps the loss near {before:g}, its"
            " start"
        )
    axis = _find_axis(loss, params, data, axis_key, batch_size, moved)
    if not optax.tree.norm(axis) > 0:
        raise ValueError("the Hessian of loss is 0 at params: no step size is too long there")

    def measure(sizes: np.ndarray, turn: int) -> StepSizes:
        return _make_table(sizes, run(sizes, axis, turn, num_steps), params, moved, tolerance)

    # Coarse: downwards from the longest size that did not diverge.
    sizes = probed[max(stable[0] - 1, 0)] / COARSE ** np.arange(SIZES)
    table = measure(sizes, 1)
    for turn in range(2, 2 + DEEPER):
        if not table.good.any() and _are_hot(table, tolerance)[-1]:
            sizes = sizes / COARSE**SIZES
            table = _merge(table, measure(sizes, turn), tolerance)
    # Fine: around the longest good one.
    if table.good.any():
        sizes = table.step_size[table.good].max() * ABOVE / FINE ** np.arange(SIZES)
        table = _merge(table, measure(sizes, 2 + DEEPER), tolerance)
    if not table.good.any():
        measured = zip(table.stiffest, table.standard_error.stiffest, strict=True)
        raise ValueError(
            "no step size is good: the stiffest direction is at"
            f" {', '.join(f'{t:.2g} ± {error:.2g}' for t, error in measured)}"
            f" of the temperature at step sizes {', '.join(f'{s:.2g}' for s in table.step_size)};"
            " more steps let it settle and measure it, and larger batches heat it less"
        )
    step_size = float(table.step_size[table.good].max())
    _warn_of_cold(table, step_size, tolerance, num_steps)
    return step_size, table


def _warn_of_cold(table: StepSizes, step_size: float, tolerance: float, num_steps: int) -> None:
    row = int(np.argmin(np.abs(table.step_size - step_size)))
    errors = jax.tree.leaves(table.standard_error.per_leaf)
    cold = [
        f"params{jax.tree_util.keystr(path)} at {t[row]:.2g}"
        for (path, t), e in zip(
            jax.tree_util.tree_leaves_with_path(table.per_leaf), errors, strict=True
        )
        if t[row] + 2 * e[row] < 1 - tolerance
    ]
    if cold:
        warnings.warn(
            f"the chains have not settled in {num_steps} steps of {step_size:.3g}:"
            f" {', '.join(cold)} of the temperature. Run longer before you trust them; flat"
            " directions may never get there. A prior is seen in the loss, not in the chain",
            stacklevel=3,
        )


def _make_table(
    sizes: np.ndarray, run: Run, params: Params, moved: np.ndarray, tolerance: float
) -> StepSizes:
    """The table of a run: means over blocks and chains, and their standard errors."""
    leaves, treedef = jax.tree.flatten(params)
    weights = moved * np.array([count_degrees(leaf) for leaf in leaves], float)
    blocks = jax.tree.map(lambda x: np.asarray(x, float), run.blocks)

    def summarize(statistic: Any) -> Measures:
        with np.errstate(invalid="ignore", over="ignore"):  # of chains that diverged
            by_leaf = statistic(blocks.by_leaf)
            overall = statistic(blocks.by_leaf[..., moved] @ weights[moved] / weights.sum())
            return Measures(
                stiffest=statistic(blocks.stiffest),
                overall=overall,
                kinetic=None if blocks.kinetic is None else statistic(blocks.kinetic),
                per_leaf=jax.tree.unflatten(
                    treedef, [x if m else None for x, m in zip(by_leaf.T, moved, strict=True)]
                ),
            )

    number = blocks.stiffest.shape[0] * blocks.stiffest.shape[2]
    mean = summarize(lambda x: x.mean((0, 2)))
    error = summarize(lambda x: x.std((0, 2), ddof=1) / np.sqrt(number))
    table = StepSizes(sizes, sizes > 0, *mean, standard_error=error)
    return table._replace(good=_are_good(table, tolerance))


def _merge(one: StepSizes, other: StepSizes, tolerance: float) -> StepSizes:
    """One table, from the longest step size to the shortest."""
    order = np.argsort(-np.concatenate([one.step_size, other.step_size]))
    table = jax.tree.map(lambda *x: np.concatenate(x)[order], one, other)
    return table._replace(good=_are_good(table, tolerance))


def _are_good(table: StepSizes, tolerance: float) -> np.ndarray:
    """Which sizes are at the temperature."""
    errors = table.standard_error
    good = _fit_excess(table, tolerance) <= tolerance / (1 + tolerance)
    good &= np.abs(table.stiffest - 1) <= tolerance + 2 * errors.stiffest
    good &= ~_are_hot(table, tolerance)
    for error in jax.tree.leaves(errors):
        good &= error <= LARGEST_ERROR
    return good


def _are_hot(table: StepSizes, tolerance: float) -> np.ndarray:
    """At which sizes anything is hotter than it may be, or not finite: shorter ones may help."""
    hot = np.zeros(len(table.step_size), bool)
    for name, error in table.standard_error._asdict().items():
        values, errors = jax.tree.leaves(getattr(table, name)), jax.tree.leaves(error)
        for value, e in zip(values, errors, strict=True):
            hot |= ~(value <= 1 + tolerance + 2 * e)
    return hot


def _fit_excess(table: StepSizes, tolerance: float) -> np.ndarray:
    """1 - T/T̂ in the stiffest direction, by the power law of the step size that fits best.

    It is ηk/2 for `sgld` on a quadratic. Sizes far too hot or not yet settled are left out.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        y = 1 - 1 / table.stiffest
        error = table.standard_error.stiffest / table.stiffest**2
        used = (
            (table.stiffest > 0)
            & (table.stiffest < WELL_BELOW)
            & (y > -tolerance - 2 * error)
            & (error > 0)
        )
    if not used.any():
        return np.full(len(y), np.inf)
    y, weight = y[used], 1 / error[used] ** 2
    relative = table.step_size / table.step_size[used].max()
    fits = []
    for power in POWERS:
        x = relative[used] ** power
        slope = max(np.sum(weight * x * y) / np.sum(weight * x**2), 0.0)
        fits.append((np.sum(weight * (y - slope * x) ** 2), slope, power))
    _, slope, power = min(fits)
    return slope * relative**power


def _find_axis(
    loss: Loss,
    params: Params,
    data: Batch,
    key: jax.Array,
    batch_size: int | None,
    moved: np.ndarray,
) -> Params:
    """The eigenvector of the largest curvature among the leaves that move."""
    treedef = jax.tree.structure(params)
    masks = jax.tree.unflatten(treedef, [float(m) for m in moved])
    mask = lambda tree: jax.tree.map(lambda x, m: x * m, tree, masks)

    def product(params: Params, v: Params, *batch: Batch) -> Params:
        gradient = lambda p: jax.tree.map(jnp.conj, jax.grad(loss)(p, *batch))
        return mask(jax.jvp(gradient, (params,), (mask(v),))[1])

    def find(params: Params, data: Batch, key: jax.Array) -> Params:
        if data is not None and batch_size is not None:
            number = len(jax.tree.leaves(data)[0])
            count = min(AXIS_BATCHES, number // batch_size)
            order = jax.random.permutation(key, number)[: count * batch_size]
            batches = order.reshape(count, batch_size)

        def apply_hessian(v: Params) -> Params:
            if data is None:
                return product(params, v)
            if batch_size is None:
                return product(params, v, data)
            parts = jax.lax.map(
                lambda index: product(params, v, jax.tree.map(lambda x: x[index], data)), batches
            )
            return jax.tree.map(lambda x: x.sum(0), parts)

        return find_stiffest(apply_hessian, params, key, products=AXIS_PRODUCTS)[0]

    return compile_program(find, params, data, key)(params, data, key)


def _run(
    sampler: Sampler,
    loss: Loss,
    batch_size: int | None,
    num_chains: int,
    temperature: float,
    params: Params,
    data: Batch,
    axis: Params,
    sizes: jax.Array,
    key: jax.Array,
    num_steps: jax.Array,
) -> Run:
    """Chains of all sizes at once, of which the later half of the steps is measured, in blocks."""
    number = len(sizes) * num_chains
    etas = jnp.repeat(sizes, num_chains)
    make = lambda eta, key: sampler(eta, temperature, key=key)
    key, order_key = jax.random.split(key)
    state = jax.vmap(lambda eta, key: make(eta, key).init(params))(
        etas, jax.random.split(key, number)
    )
    epoch: Epoch | None = None
    if batch_size is not None:
        epoch = start_epoch(len(jax.tree.leaves(data)[0]), order_key)

    def trace(theta: Params, origin: Params, grads: Updates, state: Any) -> Trace:
        away = jax.tree.map(jnp.subtract, theta, origin)
        along = mean_product(axis, away) * mean_product(axis, grads)
        kinetic = kinetic_or_none(state)
        return Trace(
            stiffest=along * float(count_degrees(params)) ** 2 / temperature,
            kinetic=None if kinetic is None else kinetic / temperature,
            by_leaf=configurational_by_leaf(theta, origin, grads) / temperature,
        )

    def step(eta: Any, theta: Params, origin: Params, state: Any, batch: Any) -> Any:
        after, state_after, _, value, grads = take_step(
            make(eta, jax.random.key(0)), loss, theta, state, *batch
        )
        seen = trace(theta, origin, grads, state)
        return after, state_after, seen, jnp.asarray(value, jnp.float32)

    def step_all(t: jax.Array, carry: Any) -> Any:
        theta, origin, state, epoch, sums, counts, first, last = carry
        batch, batch_axis = () if data is None else (data,), None
        if batch_size is not None:
            epoch, index = next_batch(epoch, jnp.arange(number), batch_size)
            batch, batch_axis = (jax.tree.map(lambda x: x[index], data),), 0
        origin = jax.tree.map(lambda o, p: jnp.where(t == num_steps // 4, p, o), origin, theta)
        theta, state, seen, value = jax.vmap(step, (0, 0, 0, 0, batch_axis))(
            etas, theta, origin, state, batch
        )
        late = t >= num_steps // 2
        block = (t - num_steps // 2) * BLOCKS // (num_steps - num_steps // 2)
        block = jnp.where(late, block, BLOCKS)  # dropped
        sums = jax.tree.map(lambda s, x: s.at[block].add(x, mode="drop"), sums, seen)
        counts = counts.at[block].add(1, mode="drop")
        first = jnp.where(t == 0, value, first)
        last = last + jnp.where(late, value, 0)
        return theta, origin, state, epoch, sums, counts, first, last

    theta = jax.tree.map(lambda p: jnp.broadcast_to(p, (number, *p.shape)), params)
    shapes = jax.eval_shape(jax.vmap(trace), theta, theta, theta, state)
    sums = jax.tree.map(lambda s: jnp.zeros((BLOCKS, *s.shape)), shapes)
    zeros = jnp.zeros(number)
    carry = theta, theta, state, epoch, sums, jnp.zeros(BLOCKS), zeros, zeros
    theta, *_, sums, counts, first, last = jax.lax.fori_loop(0, num_steps, step_all, carry)

    def average(x: jax.Array) -> jax.Array:
        mean = x / counts.reshape(-1, *[1] * (x.ndim - 1))
        return mean.reshape(BLOCKS, len(sizes), num_chains, *x.shape[2:])

    pairs = zip(jax.tree.leaves(theta), jax.tree.leaves(params), strict=True)
    return Run(
        blocks=jax.tree.map(average, sums),
        loss_before=first.mean(),
        loss_after=(last / counts.sum()).reshape(-1, num_chains).max(1),
        moved=jnp.stack([jnp.any(p != start[None]) for p, start in pairs]),
    )
