"""Which step size? The longest at which a sampler is at the temperature it was given."""

import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .diagnostics import kinetic_temperature, stiffest
from .keys import check_key, derive_key
from .sampling import (
    SampleState,
    check_hashable,
    check_loss,
    check_sampler,
    count_examples,
    next_batch,
)
from .scalars import check_int, check_number
from .trees import check_inexact, mean_product

SIZES = 12  # step sizes at once
BLOCKS = 8  # of the steps that are measured, for standard errors
LARGEST_ERROR = 0.25  # of a temperature over T that counts as measured
PROBE = 100  # steps that tell which sizes diverge at once


class StepSizes(NamedTuple):
    """What `find_step_size` measured, in rows by step size; temperatures are over T.

    Attributes:
      step_size: `[size]`, from the longest to the shortest; two searches are in it, so that a size
        may be there twice.
      good: whether the size is a candidate, `[size]`.
      stiffest: temperature in the stiffest direction, `[size]`; NaN where a chain was not finite.
      overall: over all parameters, likewise.
      kinetic: of the velocities, likewise; `None` where the sampler has none.
      per_leaf: a tree like the parameters, likewise in each leaf.
      standard_error: of all of these, a dictionary by their names.
    """

    step_size: np.ndarray
    good: np.ndarray
    stiffest: np.ndarray
    overall: np.ndarray
    kinetic: np.ndarray | None
    per_leaf: Any
    standard_error: dict[str, Any]


def find_step_size(
    sampler: Callable[..., optax.GradientTransformation],
    loss: Callable[..., jax.Array],
    params: Any,
    data: Any = None,
    *,
    temperature: float,
    tolerance: float = 0.05,
    num_steps: int = 4000,
    num_chains: int = 32,
    batch_size: int | None = None,
    key: int | jax.Array = 0,
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

    A leaf that is colder has not settled, which is no fault of the step size: there is a warning.
    Flat directions of a network may never reach T.

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
    temperature = float(temperature)
    check_number("tolerance", tolerance, positive=True)
    check_int("num_steps", num_steps, least=100)
    check_int("num_chains", num_chains, least=1)
    check_key(key)
    check_inexact(params)
    num_examples = count_examples(data, batch_size)
    if batch_size == num_examples:
        batch_size = None
    check_hashable(sampler=sampler, loss=loss)
    check_sampler(sampler, 1e-3, temperature, key=0)
    check_loss(loss, params, data, batch_size)
    params, data = jax.tree.map(jnp.asarray, (params, data))
    key, axis_key = jax.random.split(derive_key(key, "step size"))
    axis = _stiffest(loss, params, data, axis_key, batch_size)
    if not optax.tree.norm(axis) > 0:
        raise ValueError("the Hessian of loss is 0 at params: no step size is too long there")

    def measure(sizes: np.ndarray, turn: int, steps: int) -> tuple[StepSizes, Any, Any]:
        turn_key = jax.random.fold_in(key, turn)
        with jax.debug_nans(False):  # the longest sizes are to diverge
            blocks, loss_before, loss_after = _measure(
                sampler, loss, batch_size, num_chains, temperature,
                params, data, axis, jnp.asarray(sizes, jnp.float32), turn_key, steps,
            )  # fmt: skip
        return _table(sizes, blocks, params, tolerance), loss_before, loss_after

    probe = np.geomspace(1e2, 1e-8, SIZES)
    _, before, after = measure(probe, 0, PROBE)
    size = sum(p.size for p in jax.tree.leaves(params))
    stable = np.flatnonzero(after < before + 100 * size * temperature)
    if not len(stable):
        raise ValueError(f"no step size from 1e-8 to 100 keeps the loss near {before}, its start")

    sizes = probe[max(stable[0] - 1, 0)] * 0.5 ** np.arange(SIZES)
    table = measure(sizes, 1, num_steps)[0]
    for turn in (2, 3):
        if not table.good.any() and _hot(table, tolerance)[-1]:
            sizes = sizes * 0.5**SIZES
            table = _merge(table, measure(sizes, turn, num_steps)[0], tolerance)
    if table.good.any():
        around = 4.0 ** ((6 - np.arange(SIZES)) / SIZES)  # from 2 to 0.56
        sizes = table.step_size[table.good].max() * around
        table = _merge(table, measure(sizes, 4, num_steps)[0], tolerance)
    if not table.good.any():
        measured = zip(table.stiffest, table.standard_error["stiffest"], strict=True)
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
    errors = jax.tree.leaves(table.standard_error["per_leaf"])
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


def _table(sizes: np.ndarray, blocks: np.ndarray, params: Any, tolerance: float) -> StepSizes:
    """The table of `blocks`, `[block, size, chain, measure]`, over T."""
    blocks = np.asarray(blocks, float)
    with np.errstate(invalid="ignore", over="ignore"):  # of chains that diverged
        mean = blocks.mean((0, 2))
        error = blocks.std((0, 2), ddof=1) / np.sqrt(blocks.shape[0] * blocks.shape[2])
    leaves, treedef = jax.tree.flatten(params)

    def named(x: np.ndarray) -> dict[str, Any]:
        stiffest, overall, *rest = x.T
        kinetic = rest.pop() if len(rest) > len(leaves) else None
        per_leaf = jax.tree.unflatten(treedef, rest)
        return dict(stiffest=stiffest, overall=overall, kinetic=kinetic, per_leaf=per_leaf)

    table = StepSizes(sizes, sizes > 0, **named(mean), standard_error=named(error))
    return table._replace(good=_good(table, tolerance))


def _merge(one: StepSizes, other: StepSizes, tolerance: float) -> StepSizes:
    """One table, from the longest step size to the shortest."""
    order = np.argsort(-np.concatenate([one.step_size, other.step_size]))
    table = jax.tree.map(lambda *x: np.concatenate(x)[order], one, other)
    return table._replace(good=_good(table, tolerance))


def _good(table: StepSizes, tolerance: float) -> np.ndarray:
    """Which sizes are at the temperature."""
    errors = table.standard_error
    good = _excess(table, tolerance) <= tolerance / (1 + tolerance)
    good &= np.abs(table.stiffest - 1) <= tolerance + 2 * errors["stiffest"]
    good &= ~_hot(table, tolerance)
    for error in jax.tree.leaves(errors):
        good &= error <= LARGEST_ERROR
    return good


def _hot(table: StepSizes, tolerance: float) -> np.ndarray:
    """At which sizes anything is hotter than it may be, or not finite: shorter ones may help."""
    hot = np.zeros(len(table.step_size), bool)
    for name, error in table.standard_error.items():
        values, errors = jax.tree.leaves(getattr(table, name)), jax.tree.leaves(error)
        for value, e in zip(values, errors, strict=True):
            hot |= ~(value <= 1 + tolerance + 2 * e)
    return hot


def _excess(table: StepSizes, tolerance: float) -> np.ndarray:
    """1 - T/T̂ in the stiffest direction, by the power law of the step size that fits best.

    It is ηk/2 for `sgld` on a quadratic. Sizes far too hot or not yet settled are left out.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        y = 1 - 1 / table.stiffest
        error = table.standard_error["stiffest"] / table.stiffest**2
        used = (
            (table.stiffest > 0)
            & (table.stiffest < 1.5)
            & (y > -tolerance - 2 * error)
            & (error > 0)
        )
    if not used.any():
        return np.full(len(y), np.inf)
    y, weight = y[used], 1 / error[used] ** 2
    relative = table.step_size / table.step_size[used].max()
    fits = []
    for power in np.linspace(0.5, 4, 36):
        x = relative[used] ** power
        slope = max(np.sum(weight * x * y) / np.sum(weight * x**2), 0.0)
        fits.append((np.sum(weight * (y - slope * x) ** 2), slope, power))
    _, slope, power = min(fits)
    return slope * relative**power


@partial(jax.jit, static_argnames=("loss", "batch_size"))
def _stiffest(
    loss: Callable[..., jax.Array], params: Any, data: Any, key: jax.Array, batch_size: int | None
) -> Any:
    """The eigenvector of the largest curvature, by 30 products, on at most 10 batches."""

    def along(v: Any, *batch: Any) -> Any:
        gradient = lambda p: jax.tree.map(jnp.conj, jax.grad(loss)(p, *batch))
        return jax.jvp(gradient, (params,), (v,))[1]

    if data is not None and batch_size is not None:
        number = len(jax.tree.leaves(data)[0])
        count = min(10, number // batch_size)
        order = jax.random.permutation(key, number)[: count * batch_size]
        batches = order.reshape(count, batch_size)

    def product(v: Any) -> Any:
        if data is None:
            return along(v)
        if batch_size is None:
            return along(v, data)
        parts = jax.lax.map(lambda index: along(v, jax.tree.map(lambda x: x[index], data)), batches)
        return jax.tree.map(lambda x: x.sum(0), parts)

    return stiffest(product, params, key, products=30)[0]


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _measure(
    sampler: Callable[..., optax.GradientTransformation],
    loss: Callable[..., jax.Array],
    batch_size: int | None,
    num_chains: int,
    temperature: float,
    params: Any,
    data: Any,
    axis: Any,
    sizes: jax.Array,
    key: jax.Array,
    num_steps: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Temperatures over T, `[block, size, chain, measure]`, and the loss before and after."""
    number = len(sizes) * num_chains
    etas = jnp.repeat(sizes, num_chains)
    make = lambda eta, key: optax.with_extra_args_support(sampler(eta, temperature, key=key))
    key, order_key = jax.random.split(key)
    state = jax.vmap(lambda eta, key: make(eta, key).init(params))(
        etas, jax.random.split(key, number)
    )
    order = None
    if batch_size is not None:
        order = jnp.arange(len(jax.tree.leaves(data)[0]), dtype=jnp.int32)
    zero = jnp.zeros([], jnp.int32)
    place = SampleState((), zero, zero, order_key, order)

    def see(theta: Any, origin: Any, grads: Any, state: Any) -> jax.Array:
        away = jax.tree.map(jnp.subtract, theta, origin)
        size = sum(p.size * (1 + jnp.iscomplexobj(p)) for p in jax.tree.leaves(params))
        stiffest = mean_product(axis, away) * mean_product(axis, grads) * float(size) ** 2
        leaves = jax.tree.leaves(jax.tree.map(mean_product, away, grads))
        with suppress(ValueError):  # no velocity, or several
            leaves.append(kinetic_temperature(state).overall)
        return jnp.stack([stiffest, mean_product(away, grads), *leaves]) / temperature

    def step(eta: Any, theta: Any, origin: Any, state: Any, batch: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(theta, *batch)
        grads = jax.tree.map(jnp.conj, grads)
        seen = see(theta, origin, grads, state)
        updates, state = make(eta, 0).update(grads, state, theta, value=value)
        value = jnp.asarray(value, jnp.float32)
        return optax.apply_updates(theta, updates), state, seen, value

    def step_all(t: jax.Array, carry: Any) -> Any:
        theta, origin, state, place, sums, counts, first, last = carry
        batch, batch_axis = () if data is None else (data,), None
        if batch_size is not None:
            place, index = next_batch(place, jnp.arange(number), batch_size)
            batch, batch_axis = (jax.tree.map(lambda x: x[index], data),), 0
        origin = jax.tree.map(lambda o, p: jnp.where(t == num_steps // 4, p, o), origin, theta)
        theta, state, seen, value = jax.vmap(step, (0, 0, 0, 0, batch_axis))(
            etas, theta, origin, state, batch
        )
        late = t >= num_steps // 2
        block = (t - num_steps // 2) * BLOCKS // (num_steps - num_steps // 2)
        block = jnp.where(late, block, BLOCKS)  # dropped
        sums = sums.at[block].add(seen, mode="drop")
        counts = counts.at[block].add(1, mode="drop")
        first = jnp.where(t == 0, value, first)
        last = last + jnp.where(late, value, 0)
        return theta, origin, state, place, sums, counts, first, last

    theta = jax.tree.map(lambda p: jnp.broadcast_to(p, (number, *p.shape)), params)
    seen = jax.eval_shape(jax.vmap(see), theta, theta, theta, state)
    carry = (
        theta, theta, state, place,
        jnp.zeros((BLOCKS, *seen.shape)), jnp.zeros(BLOCKS), jnp.zeros(number), jnp.zeros(number),
    )  # fmt: skip
    *_, sums, counts, first, last = jax.lax.fori_loop(0, num_steps, step_all, carry)
    blocks = (sums / counts[:, None, None]).reshape(BLOCKS, len(sizes), num_chains, -1)
    after = (last / counts.sum()).reshape(-1, num_chains).max(1)
    return blocks, first.mean(), after
