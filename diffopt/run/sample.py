"""From a loss to samples of exp(-L/T) in one call: the loop around any Optax transformation."""

import bisect
import itertools
import math
import operator
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.tree_util import Partial

from .._types import Batch, Key, Loss, Params, Schedule, Stream
from ..inputs.callables import check_concrete, check_estimator, check_loss, check_transformation
from ..inputs.keys import check_key, derive_key
from ..inputs.scalars import check_int, check_stage
from ..inputs.trees import (
    check_inexact,
    check_like,
    find_states_with_path,
    leading_length,
    place_beside,
    refuse_statistics,
)
from ..perturb.perturbed import find_perturbing
from .batches import count_examples, doubt_mean, shape_batch
from .chains import count_chains, derive_chain_keys, own_mesh, share_chains
from .collect import LAST
from .gradients import GradientEstimator
from .loop import (
    ALL,
    EACH,
    ROWS,
    Carry,
    Meter,
    Plan,
    RunState,
    advance,
    begin,
    exact_or_same,
    place_state,
)
from .program import compile_program
from .progress import end_progress, hear_interrupts, show_progress
from .results import Samples, average_over_moving, check_room, gather
from .streams import count_rows, is_stream, read_batches, refuse_batch_size, stack_batches

CHUNK_SECONDS = 0.25
CHUNK_BYTES = 2**26
GROWTH = 8  # of a chunk over the one before


def keep_all(params: Params) -> Params:
    """The whole of the parameters: what is kept of them by default."""
    return params


def sample(
    tx: optax.GradientTransformation,
    loss: Loss,
    params: Params,
    data: Batch | Stream = None,
    *,
    num_steps: int,
    num_chains: int | None = 1,
    batch_size: int | None = None,
    estimator: GradientEstimator | None = None,
    burn_in: int = 0,
    every: int = 1,
    where: Schedule | None = None,
    transform: Callable[[Params], Any] = keep_all,
    key: Key = 0,
    progress: bool = False,
    on_draw: Callable[[int, Any], Any] | None = None,
    state: RunState | None = None,
) -> Samples:
    r"""Run chains of a sampler on a loss, and keep their draws.

    With `tx` a sampler at temperature T the draws are distributed as exp(-L(θ)/T): with L the mean
    loss of N examples and T = 1/N, as the Bayesian posterior under a flat prior. A prior belongs
    into the loss: T |θ|²/(2 s²) is a Gaussian one of variance s². In the chain, as
    `gaussian_prior` or weight decay, it gives the same draws, but `losses` and the configurational
    temperature then know nothing of it: they are those of `loss` alone. A `tx` without noise, such
    as `optax.sgd`, is allowed: the draws are then iterates of an optimizer.

    Draw i is the chain after `burn_in + i * every` steps, with the loss and the temperatures of
    that very point; the gradient of its batch is the one that the next step takes. The parameters
    after the last step are in `params`. Chains differ in their noise and in the order of their
    examples. Each epoch has every example at most once, in a fresh order (those that are left over
    where `batch_size` does not divide their number wait for another).

    **Data from a loader.** In place of arrays `data` may give batches: an iterable, such as the
    loaders of PyTorch and Grain, or a function `data(i)` that gives the batch of number i. They
    are stacked on the host, up to 64 steps of them, while the device is at the steps before. Each
    chain takes batches of its own, so `num_chains` of them are a step, and the function is asked
    for number `step * num_chains + chain`. Chains that shared their batches would share the noise
    of them, and look more alike than they are. An iterable is begun anew at its end, and a last
    batch that is shorter than the others is dropped, so let the loader shuffle; an iterator, which
    has one pass, ends the run with a warning that says how many steps were done. N is nowhere
    counted: you give it as the temperature 1/N.

    Functions are traced at every call, so a call answers for what they see now. A program is
    compiled anew only where it differs: arrays that `loss` or `tx` close over are arguments of it,
    and a new closure over other arrays of the same shapes costs a trace (a loss that you wrapped in
    `jax.jit` hides its arrays, and compiles each time). The loop runs in chunks of a quarter of a
    second, with nothing read inside one. Chains are split evenly over the largest number of local
    devices that divides `num_chains`; devices do not communicate. Parameters that you have put on
    devices yourself stay there.

    Ctrl-C ends the loop after the present chunk: what was kept until then is returned, with a
    warning, and can be gone on from. A second Ctrl-C is a KeyboardInterrupt. Where `on_draw`
    raises, or warnings are errors, that error has the same result in its attribute `samples`.

    Args:
      tx: a sampler, or any other Optax transformation; `tx.update` gets `value=loss`.
      loss: `loss(params, batch)` is the mean loss of a batch, a real scalar; `loss(params)` where
        `data` is `None`.
      params: one start for all chains; with `num_chains=None`, or with `state`, a tree that leads
        with the chain axis.
      data: a tree of arrays with one leading axis of examples; or an iterable of batches, trees of
        arrays of one shape, or a function that gives one.
      num_steps: steps of each chain, ≥ 1.
      num_chains: how many chains, or `None` where `params` has them.
      batch_size: examples in a batch; by default all. A loader has its own.
      estimator: a `GradientEstimator`, such as `control_variate` or `svrg` give, that takes less
        noisy gradients from the batches; by default they are those of `loss`, which with an
        estimator gives the values alone. (That forward pass is often no extra cost, because it is
        in the estimator too.) With batches of all examples an estimator gives the exact gradient
        and saves nothing.
      burn_in: steps to pass over first.
      every: keep one draw in so many steps (thinning).
      where: a schedule of the steps taken, those before `state` included: draws at which it is 0
        are not kept. `sampling_stage` keeps the sampling part of each cycle.
      transform: what to keep of the parameters of one chain: a function to a tree of arrays, such
        as predictions, or a part of them. By default all. `draws` is then a tree of its results,
        and no parameters are kept but the last.
      key: an int or a PRNG key, folded into every key in the state of `tx` by its position there,
        so that other keys give other chains, and two samplers of one key in one chain differ.
      progress: write the steps, the loss, the temperatures (configurational / kinetic) and the time
        left to stderr, as means over chains and over the last chunk. A transformation does not say
        at which T it is, so the temperatures are in units of the loss: compare them with your T.
      on_draw: `on_draw(step, draw)` is called on the host with each draw, a tree of NumPy arrays
        `[chain, ...]`, for a disk, TensorBoard or W&B; `step` counts as in `where`. With it the
        draws leave the device after each chunk, and `draws` are NumPy arrays: they need not fit
        on the device. Where they do not fit into the host's memory either, call `sample` again
        and again with `state`, which continues bit for bit.
      state: that of the `Samples` to go on from, with their `params`. Nothing is split, and
        `num_chains` and `key` count no more. Bit for bit the chain of one call, on as many
        devices; with batches from a function too. An iterator goes on from where it
        stands, behind the last batch of the run before; any other iterable begins an epoch.
        Another temperature, step size, loss or size of batches may follow, by another
        `tx`; under `optax.inject_hyperparams` they are in the state, and a `tx` that has others
        is told in a warning.

    Returns:
      `Samples`. `draws` has all chains; those that were not finite (one that is far too hot may
      still be) are named in a warning, and `predictive` and `to_arviz` leave them out. Under one
      `low_precision` the draws are the `exact_params`, in float32, and the losses are those of
      what it made of them.

    Warns:
      UserWarning: a chain was not finite, or none was, which ends the run; a loss was not finite at
        finite parameters; two chains are equal to the bit, or a chain stood still; the loss of a
        batch is not a mean over its examples; an iterator of batches ended; the chains are more
        than ten times as hot as the posterior of a mean loss; `tx` has other injected
        hyperparameters than `state`.

    Raises:
      ValueError: a number is out of its range, `burn_in` or `where` leaves no draw, the leading
        axes of `data` differ or are shorter than `batch_size`, `params` have not the chains they
        should have, there is an `estimator` without `data` or with a loader, or a batch of a loader
        has another shape than the first.
      TypeError: a parameter is not floating-point, or is a running statistic of Flax, the loss is
        not a real scalar, `state` is of another `tx` or `estimator` or other `params`, an argument
        is of the wrong type, or the call is inside `jit` or `vmap`.

    Examples:
      A line through points, y = a + bx with noise of variance 1, and its exact posterior.

      >>> import diffopt, jax, jax.numpy as jnp
      >>> x = jnp.linspace(-1, 1, 100)
      >>> y = 1 + 2 * x + jax.random.normal(jax.random.key(1), (100,))
      >>> def loss(params, batch):
      ...     x, y = batch
      ...     return jnp.mean((params["a"] + params["b"] * x - y) ** 2) / 2
      >>> tx = diffopt.baoab(0.5, temperature=1 / 100)
      >>> params = {"a": jnp.zeros([]), "b": jnp.zeros([])}
      >>> samples = diffopt.sample(
      ...     tx, loss, params, (x, y), num_steps=11_000, burn_in=1000, every=10, num_chains=4
      ... )
      >>> samples.draws["b"].shape
      (4, 1000)
      >>> exact = jnp.sqrt(1 / jnp.sum(x**2))
      >>> bool(abs(samples.draws["b"].std() / exact - 1) < 0.05)
      True
    """
    _check_arguments(
        tx, loss, params, data, num_steps, batch_size, estimator, burn_in, every, where,
        transform, key, on_draw, state,
    )  # fmt: skip
    if state is not None:
        _check_chains(state, params, num_chains)
        num_chains = None
    num_chains, has_chain_axis = count_chains(params, num_chains)
    stream = data if is_stream(data) else None
    num_examples = None if stream is not None else count_examples(data, batch_size)
    num_steps, burn_in, every = (operator.index(n) for n in (num_steps, burn_in, every))
    batch_size = None if batch_size is None else operator.index(batch_size)
    one_chain = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(jnp.shape(p)[has_chain_axis:], jnp.result_type(p)), params
    )
    if batch_size == num_examples:
        batch_size = None
    base = 0 if state is None else int(state.step)
    rows = num_steps
    if stream is not None:
        batches = read_batches(stream, base * num_chains)
        data = next(batches)
        batches = itertools.chain([data], batches)
        rows = count_rows(data, num_chains, num_steps)
    batch = () if data is None else (shape_batch(data, batch_size),)
    check_loss(loss, one_chain, *batch)
    if estimator is not None:
        check_estimator(estimator, one_chain, *batch)
        estimator = jax.tree.map(lambda f: Partial(f) if callable(f) else f, estimator)
    if state is not None:
        _check_state(state, tx, estimator, params, num_examples, batch_size)

    if any(find_perturbing(jax.eval_shape(tx.init, one_chain))):
        raise ValueError(
            "tx must take its gradients at the parameters: ivon and weight_noise take them at"
            " perturbed(params, opt_state). Train in a loop of your own, and draw from ivon's"
            " posterior by perturbed(params, opt_state, key)"
        )
    draw_steps = plan_draws(num_steps, burn_in, every, where, base)
    draw = jax.eval_shape(lambda p: transform(exact_or_same(p, tx.init(p))), one_chain)
    check_room(len(draw_steps), draw, num_chains, on_host=on_draw is not None)
    plan = Plan(
        tx=tx,
        loss=loss,
        transform=transform,
        num_chains=num_chains,
        has_chain_axis=has_chain_axis,
        num_examples=num_examples,
        batch_size=batch_size,
        streams=stream is not None,
        capacity=_count_held(len(draw_steps), draw, num_chains, on_draw is not None),
        burn_in=burn_in,
        every=every,
        where=where,
        leaves_device=on_draw is not None,
        mesh=share_chains(num_chains, params),
    )
    params, data = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), (params, data))
    data, estimator = place_beside((data, estimator), params)
    own_key, examples_key = jax.random.split(derive_key(key, "sample"))
    chain_keys, early_doubt = None, None
    if state is None:
        first_chain = jax.tree.map(lambda p: p[0], params) if has_chain_axis else params
        chain_keys = derive_chain_keys(tx, first_chain, num_chains, own_key)
        if stream is not None or batch_size is not None:
            early_doubt = doubt_mean(loss, first_chain, data, batch_size)
    if plan.mesh is not None:
        everywhere, shared = NamedSharding(plan.mesh, ALL), NamedSharding(plan.mesh, EACH)
        data, estimator, examples_key = jax.device_put((data, estimator, examples_key), everywhere)
        params = jax.device_put(params, shared if has_chain_axis else everywhere)
        chain_keys, state = jax.device_put(chain_keys, shared), place_state(state, plan.mesh)
    if early_doubt is not None:
        warnings.warn(early_doubt, stacklevel=2)
    feed = lambda number: (data, number)
    if stream is not None:
        place = None if plan.mesh is None else NamedSharding(plan.mesh, ROWS)
        feed = lambda number: stack_batches(batches, min(number, rows), rows, num_chains, place)
    start = params, state, chain_keys, examples_key
    with own_mesh(params):
        samples, doubts, error = _run(
            plan, draw_steps, start, feed, estimator, num_steps, base, progress, on_draw
        )
    if error is not None:
        error.samples = samples  # type: ignore[attr-defined]
        error.add_note("The draws until then are in the attribute `samples` of this error.")
        raise error
    for doubt in doubts:
        try:
            warnings.warn(doubt, stacklevel=2)
        except Warning as raised:
            raised.samples = samples  # type: ignore[attr-defined]
            raise
    return samples


def _run(
    plan: Plan,
    draw_steps: Sequence[int],
    start: tuple[Any, ...],
    feed: Callable[[int], tuple[Batch, int]],
    estimator: GradientEstimator | None,
    num_steps: int,
    base: int,
    progress: bool,
    on_draw: Callable[[int, Any], Any] | None,
) -> tuple[Samples, list[str], Exception | None]:
    """Chunk after chunk until all is done: what came out, what to doubt, what a function raised.

    `feed(number)` gives the data of so many steps, or of fewer where there are no more. While the
    device is at a chunk, the data of the next are read.
    """
    halfway = plan.burn_in // 2

    def bound(length: int, done: int) -> int:
        """The length of the chunk from `done` on, if that may be `length`."""
        length = min(length, (halfway if done < halfway else num_steps) - done)
        first = bisect.bisect_left(draw_steps, done)
        if on_draw is not None and first + plan.capacity < len(draw_steps):
            length = min(length, draw_steps[first + plan.capacity] - done)
        return length

    data, length = feed(1)
    if not length:
        raise ValueError(f"data gave fewer batches than the {plan.num_chains} chains of one step")
    operands = *start, data, estimator
    carry: Carry = compile_program(partial(begin, plan), *operands)(*operands)
    numbers = lambda length: (jnp.asarray(base, jnp.int32), jnp.asarray(length, jnp.int32))
    step = compile_program(partial(advance, plan), carry, data, estimator, *numbers(1), donate=(0,))
    done, pace = 0, 1
    pieces: list[Any] = []
    error: Exception | None = None
    show = show_progress(num_steps) if progress else None
    with hear_interrupts() as interrupted:
        while length and error is None and (plan.streams or not interrupted):
            if 0 < done == halfway:  # near by now: from afar a temperature is all noise
                origin = jax.tree.map(jnp.copy, carry.params)
                carry = carry._replace(state=carry.state._replace(origin=origin))
            first = bisect.bisect_left(draw_steps, done)
            clock = time.perf_counter()
            carry, meter = step(carry, data, estimator, *numbers(length))
            done, before = done + length, length
            length = 0
            if not interrupted and done < num_steps:
                try:
                    data, length = feed(bound(pace, done))
                except Exception as raised:
                    error = raised
            jax.block_until_ready(meter)
            if on_draw is not None:
                number = bisect.bisect_left(draw_steps, done) - first
                pieces.append(_take_first(jax.tree.map(np.asarray, carry.kept.samples), number))
                try:
                    for i in range(number):
                        on_draw(base + draw_steps[first + i], _take_draw(pieces[-1].draw, i))
                except Exception as raised:
                    error = raised
            if show is not None:
                show(done, _describe(meter, carry))
            if (np.asarray(carry.kept.diverged) >= 0).all():
                break
            seconds = time.perf_counter() - clock
            pace = max(1, min(int(before * CHUNK_SECONDS / seconds), GROWTH * before))
    if show is not None:
        end_progress()

    if on_draw is not None:
        records = jax.tree.map(lambda *s: np.concatenate(s, axis=1), *pieces)
    else:
        records = _take_first(carry.kept.samples, bisect.bisect_left(draw_steps, done))
    stopped = "" if done == num_steps else "interrupted" if interrupted else "data ended"
    samples, doubts = gather(carry, records, base, done, num_steps, stopped, plan.num_examples)
    return samples, doubts, error


def _check_arguments(
    tx: Any,
    loss: Any,
    params: Any,
    data: Any,
    num_steps: Any,
    batch_size: Any,
    estimator: Any,
    burn_in: Any,
    every: Any,
    where: Any,
    transform: Any,
    key: Any,
    on_draw: Any,
    state: Any,
) -> None:
    """Raise where an argument is wrong by itself."""
    check_int("num_steps", num_steps, least=1)
    check_int("every", every, least=1)
    check_int("burn_in", burn_in, least=0)
    check_transformation(tx)
    functions = {"loss": loss, "transform": transform, "on_draw": on_draw}
    for name, function in functions.items():
        if not callable(function) and not (name == "on_draw" and function is None):
            raise TypeError(f"{name} must be a function, got {function!r}")
    if where is not None:
        check_stage("where", where)
    if estimator is not None and data is None:
        raise ValueError("estimator needs data, got data=None")
    if is_stream(data):
        refuse_batch_size(batch_size)
        if estimator is not None:
            raise ValueError(
                "estimator needs data as a tree of arrays, for its gradients of all examples, got"
                f" {type(data).__name__}"
            )
    if state is not None and not isinstance(state, RunState):
        raise TypeError(
            f"state must be that of the Samples to go on from, got {type(state).__name__}"
        )
    check_concrete("sample", params=params, data=None if is_stream(data) else data, key=key)
    check_key(key)
    check_inexact(params)
    refuse_statistics(params)
    if not jax.tree.leaves(params):
        raise ValueError("params has no leaves")
    if not any(np.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(params)):
        raise ValueError("params has no elements: all its leaves are of size 0")


def _check_chains(state: RunState, params: Params, num_chains: int | None) -> None:
    """Raise unless `params` are of the chains of `state`, and `num_chains` is their number."""
    held = leading_length("state.origin", state.origin, "chains")
    if num_chains not in (None, 1, held):
        raise ValueError(f"num_chains is {num_chains}, but state has {held} chains")
    try:
        check_like("params", params, state.origin)
    except TypeError as error:
        raise TypeError(
            f"{error}: state has {held} chain{'s' * (held > 1)}, num_chains is {num_chains}; go on"
            " with the params and the state of the same Samples"
        ) from None


def _check_state(
    state: RunState,
    tx: optax.GradientTransformation,
    estimator: GradientEstimator | None,
    params: Params,
    num_examples: int | None,
    batch_size: int | None,
) -> None:
    """Raise unless `state` can go on with the rest of the arguments.

    Warn where `optax.inject_hyperparams` keeps other numbers in `state` than `tx` has.
    """
    before = None if state.epoch is None else len(state.epoch.order)
    now = None if batch_size is None else num_examples
    if before != now:
        name = lambda n: "no batches" if n is None else f"batches out of {n} examples"
        raise ValueError(
            f"state is of a run with {name(before)}, got one with {name(now)}: go on with the same"
        )
    fresh = jax.eval_shape(jax.vmap(tx.init), params)
    try:
        check_like("state.opt_state", state.opt_state, fresh)
        estimate = None if estimator is None else jax.eval_shape(jax.vmap(estimator.init), params)
        check_like("state.estimator_state", state.estimator_state, estimate)
    except TypeError as error:
        raise TypeError(
            f"{error}; go on with the tx and the params it is of, and its estimator"
        ) from None
    injected = partial(find_states_with_path, fields=("hyperparams", "hyperparams_states"))
    if not injected(fresh):
        return
    own = lambda params: [s.hyperparams for _, s in injected(jax.vmap(tx.init)(params))]
    of_tx = compile_program(own, params)(params)
    for (path, held), given in zip(injected(state.opt_state), of_tx, strict=True):
        for name in sorted(held.hyperparams.keys() - held.hyperparams_states.keys()):
            old, new = np.asarray(held.hyperparams[name]), np.asarray(given[name])
            if not np.array_equal(old, new):
                told = [str(x[0] if (x == x[0]).all() else x) for x in (old, new)]
                warnings.warn(
                    f"{name} is {told[0]} in state and {told[1]} in tx: the state's counts. For"
                    f" that of tx set samples.state.opt_state{path}.hyperparams[{name!r}],"
                    " one for each chain",
                    stacklevel=3,
                )


def plan_draws(
    num_steps: int, burn_in: int, every: int, where: Schedule | None, base: int
) -> Sequence[int]:
    """The steps at which draws are kept, in order; a ValueError where there are none."""
    steps: Sequence[int] = range(burn_in, num_steps, every)
    if where is not None:
        parts = [np.arange(0)]
        for first in range(0, len(steps), 2**20):
            part = np.asarray(steps[first : first + 2**20])
            absolute = np.minimum(base + part, LAST).astype(np.int32)
            stage = compile_program(jax.vmap(where), absolute)
            parts.append(part[np.asarray(stage(absolute)) != 0])
        steps = np.concatenate(parts).tolist()
    if not steps:
        raise ValueError(
            f"no draw would be kept: burn_in={burn_in}, every={every}, num_steps={num_steps}"
            + ("" if where is None else ", and where is 0 at every one of them")
        )
    return steps


def _count_held(number: int, draw: Any, num_chains: int, leaves_device: bool) -> int:
    """How many of `number` draws the device holds at once."""
    if not leaves_device:
        return number
    size = sum(math.prod(p.shape) * p.dtype.itemsize for p in jax.tree.leaves(draw))
    return min(number, max(1, CHUNK_BYTES // (num_chains * max(size, 1))))


def _take_first(samples: Any, number: int) -> Any:
    return jax.tree.map(lambda s: s if s.shape[1] == number else s[:, :number], samples)


def _take_draw(samples: Any, i: int) -> Any:
    return jax.tree.map(lambda s: s[:, i], samples)


def _describe(meter: Meter, carry: Carry) -> str:
    """The loss and the temperatures of a chunk, means over its records and the finite chains."""
    number = np.asarray(meter.steps)[0]
    if not number:
        return ""
    temperatures = [average_over_moving(meter.configurational, carry.params, carry.state.origin)]
    if meter.kinetic is not None:
        temperatures.append(meter.kinetic)
    mean = lambda x: np.mean(x[np.isfinite(x)]) / number if np.isfinite(x).any() else np.nan
    shown = " / ".join(f"{mean(np.asarray(t)):.3g}" for t in temperatures)
    return f"loss {mean(np.asarray(meter.loss)):.4g} temperature {shown}"
