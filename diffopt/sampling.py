"""From a loss to samples of exp(-L/T) in one call: the loop around any Optax transformation."""

import bisect
import math
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from .chains import split_keys
from .cyclical import Schedule
from .diagnostics import kinetic_temperature
from .keys import check_key, derive_key
from .posterior import LAST, Samples, Temperatures, collect, is_finite
from .rounding import exact_params
from .scalars import check_int, check_stage
from .trees import check_inexact, check_like, mean_product

CHUNK_SECONDS = 0.25
CHUNK_BYTES = 2**26


class SampleState(NamedTuple):
    """What `sample` needs to go on, beside the parameters.

    Attributes:
      opt_state: the state of the transformation, `[chain, ...]`.
      step: steps taken, an int32 scalar that stays at 2³¹ - 1 once it is there.
      position: examples taken of the present epoch, an int32 scalar.
      key: of the present epoch.
      order: the examples in the order of the present epoch, in which each chain begins somewhere
        else; `None` without batches.
      grad_state: the state of the gradient estimator, `[chain, ...]`; `None` without one.
    """

    opt_state: Any
    step: jax.Array
    position: jax.Array
    key: jax.Array
    order: jax.Array | None
    grad_state: Any = None


# How (params, SampleState, CollectState) lie on the devices that share the chains.
EACH, ALL = PartitionSpec("chain"), PartitionSpec()
CHAIN_AXES: Any = (EACH, SampleState(EACH, ALL, ALL, ALL, ALL, EACH), EACH)  # type: ignore[arg-type]


class _Plan(NamedTuple):
    """What a program is compiled for."""

    tx: optax.GradientTransformation
    loss: Callable[..., jax.Array]
    transform: Callable[[Any], Any]
    num_chains: int
    led: bool  # by the chain axis: the parameters
    num_examples: int | None
    batch_size: int | None
    capacity: int
    start: int
    every: int
    where: Schedule | None
    renew: bool
    mesh: Mesh | None


def sample(
    tx: optax.GradientTransformation,
    loss: Callable[..., jax.Array],
    params: Any,
    data: Any = None,
    *,
    num_steps: int,
    num_chains: int | None = 1,
    batch_size: int | None = None,
    grad: Any = None,
    start: int = 0,
    every: int = 1,
    where: Schedule | None = None,
    key: int | jax.Array = 0,
    progress: bool = False,
    on_draw: Callable[[int, Any], Any] | None = None,
    opt_state: SampleState | None = None,
) -> Samples:
    r"""Run chains of a sampler on a loss, and keep their draws.

    With `tx` a sampler at temperature T the draws are distributed as exp(-L(θ)/T): with L the mean
    loss of N examples and T = 1/N, as the Bayesian posterior under a flat prior. A prior belongs
    into the loss: T |θ|²/(2 s²) is a Gaussian one of variance s². In the chain, as
    `gaussian_prior` or weight decay, it gives the same draws, but `losses` and the configurational
    temperature then know nothing of it: they are those of `loss` alone. A `tx` without noise, such
    as `optax.sgd`, is allowed: the draws are then iterates of an optimizer.

    Draw i is the chain after `start + i * every` steps, with the loss and the temperatures of that
    very point; the gradient of its batch is the one that the next step takes. The parameters after
    the last step are in `params`. Chains differ in their noise and in the order of their examples.
    Each epoch has every example at most once, in a fresh order (those that are left over where
    `batch_size` does not divide their number wait for another).

    All is compiled once, for all calls with the same `tx`, `loss` and plan: pass the same
    functions, not new lambdas. The loop runs in chunks of a quarter of a second, with nothing read
    inside one. Where there are several devices and their number, or a smaller one, divides that
    of the chains, each runs its part of them, without a word between them; parameters that you
    have put on devices yourself stay there.

    Ctrl-C ends the loop after the present chunk: what was kept until then is returned, with a
    warning, and can be gone on from. A second Ctrl-C is a KeyboardInterrupt.

    Args:
      tx: a sampler, or any other Optax transformation; `tx.update` gets `value=loss`.
      loss: `loss(params, batch)` is the mean loss of a batch, a real scalar; `loss(params)` where
        `data` is `None`.
      params: one start for all chains; with `num_chains=None`, or with `opt_state`, a tree that
        leads with the chain axis.
      data: a tree of arrays with one leading axis of examples. Here it is on the device once, and
        no constant of the program, as it is where `loss` closes over it.
      num_steps: steps of each chain, ≥ 1.
      num_chains: how many chains, or `None` where `params` has them.
      batch_size: examples in a batch; by default all.
      grad: a `GradientEstimator`, such as `control_variate` or `svrg` give, that takes less noisy
        gradients from the batches; by default they are those of `loss`, which with `grad` gives the
        values alone. (That forward pass is often no extra cost, because it is in `grad` too.)
        With batches of all examples an estimator gives the exact gradient and saves nothing.
      start: steps to pass over first (burn-in).
      every: keep one draw in so many steps (thinning).
      where: a schedule of the steps taken, those before `opt_state` included: draws at which it is
        0 are not kept. `sampling_stage` keeps the sampling part of each cycle.
      key: an int or a PRNG key, folded into every key in the state of `tx` by its position there,
        so that other keys give other chains, and two samplers of one key in one chain differ.
      progress: write the steps, the loss, the temperatures (configurational / kinetic) and the time
        left to stderr, as means over chains and over the last chunk. A transformation does not say
        at which T it is, so the temperatures are in units of the loss: compare them with your T.
      on_draw: `on_draw(step, draw)` is called on the host with each draw, a tree of NumPy arrays
        `[chain, ...]`, for a disk, TensorBoard or W&B; `step` counts as in `where`. With it the
        draws leave the device after each chunk, and `draws` are NumPy arrays: they need not fit
        on the device. Where they do not fit into the host's memory either, call `sample` again
        and again with `opt_state`, which continues bit for bit. What it raises ends the run.
      opt_state: that of the `Samples` to go on from, with their `params`. Nothing is split, and
        `num_chains` and `key` count no more. Bit for bit the chain of one call, on as many
        devices. Another temperature, step size, batch size or loss may follow.

    Returns:
      `Samples`. `draws` has all chains; those that were not finite (one that is far too hot may
      still be) are named in a warning, and `predictive` and `to_arviz` leave them out. Under one
      `low_precision` the draws are the `exact_params`, in float32, and the losses are those of
      what it made of them.

    Raises:
      ValueError: a number is out of its range, `start` or `where` leaves no draw, the leading axes
        of `data` differ or are shorter than `batch_size`, `params` have not the chains they
        should have, or there is a `grad` without `data`.
      TypeError: a parameter is not floating-point, the loss is not a real scalar, `opt_state` is
        of another `tx` or `grad` or other `params`, or an argument is of the wrong type.

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
      ...     tx, loss, params, (x, y), num_steps=11_000, start=1000, every=10, num_chains=4
      ... )
      >>> samples.draws["b"].shape
      (4, 1000)
      >>> exact = jnp.sqrt(1 / jnp.sum(x**2))
      >>> bool(abs(samples.draws["b"].std() / exact - 1) < 0.05)
      True
    """
    return run_chains(
        tx,
        loss,
        params,
        data,
        num_steps=num_steps,
        num_chains=num_chains,
        batch_size=batch_size,
        grad=grad,
        start=start,
        every=every,
        where=where,
        key=key,
        progress=progress,
        on_draw=on_draw,
        opt_state=opt_state,
    )


def _itself(params: Any) -> Any:
    return params


def run_chains(
    tx: optax.GradientTransformation,
    loss: Callable[..., jax.Array],
    params: Any,
    data: Any = None,
    *,
    num_steps: int,
    num_chains: int | None = 1,
    batch_size: int | None = None,
    grad: Any = None,
    start: int = 0,
    every: int = 1,
    where: Schedule | None = None,
    key: int | jax.Array = 0,
    progress: bool = False,
    on_draw: Callable[[int, Any], Any] | None = None,
    opt_state: SampleState | None = None,
    transform: Callable[[Any], Any] = _itself,
) -> Samples:
    """`sample`, whose draws are `transform(params)`: `lambda params: ()` keeps the losses alone."""
    check_int("num_steps", num_steps, least=1)
    check_int("every", every, least=1)
    check_int("start", start, least=0)
    if not callable(loss):
        raise TypeError(f"loss must be a function, got {loss!r}")
    if where is not None:
        check_stage("where", where)
    if on_draw is not None and not callable(on_draw):
        raise TypeError(f"on_draw must be a function, got {on_draw!r}")
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise TypeError(f"tx must be an Optax transformation, got {tx!r}")
    check_hashable(tx=tx, loss=loss, where=where)
    if grad is not None:
        if not (hasattr(grad, "init") and hasattr(grad, "update")):
            raise TypeError(f"grad must be a GradientEstimator, as svrg gives, got {grad!r}")
        if data is None:
            raise ValueError("grad needs data, got data=None")
        grad = jax.tree.map(lambda f: Partial(f) if callable(f) else f, grad)
    if opt_state is not None and not isinstance(opt_state, SampleState):
        raise TypeError(
            f"opt_state must be that of the Samples to go on from, got {type(opt_state).__name__}"
        )
    check_key(key)
    check_inexact(params)
    if not jax.tree.leaves(params):
        raise ValueError("params has no leaves")
    num_examples = count_examples(data, batch_size)
    if batch_size == num_examples:
        batch_size = None
    num_chains, led = _num_chains(params, num_chains, opt_state)
    if opt_state is not None:
        before = None if opt_state.order is None else len(opt_state.order)
        if before != (None if batch_size is None else num_examples):
            raise ValueError(
                f"opt_state is of batches of {before} examples, got data of {num_examples} and"
                f" batch_size={batch_size}: go on with the same"
            )
    one = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(jnp.shape(p)[led:], jnp.result_type(p)), params
    )
    check_loss(loss, one, data, batch_size)
    if opt_state is not None:
        try:
            check_like("opt_state", opt_state.opt_state, jax.eval_shape(jax.vmap(tx.init), params))
            estimate = None if grad is None else jax.eval_shape(jax.vmap(grad.init), params)
            check_like("opt_state.grad_state", opt_state.grad_state, estimate)
        except TypeError as error:
            raise TypeError(
                f"{error}; go on with the tx and the params it is of, and its grad"
            ) from None

    base = 0 if opt_state is None else int(opt_state.step)
    due = _due(num_steps, start, every, where, base)
    capacity = len(due)
    if on_draw is not None:
        draw = jax.eval_shape(lambda p: transform(_exact(p, tx.init(p))), one)
        size = sum(math.prod(p.shape) * p.dtype.itemsize for p in jax.tree.leaves(draw))
        capacity = min(capacity, max(1, CHUNK_BYTES // (num_chains * max(size, 1))))
    plan = _Plan(
        tx=tx,
        loss=loss,
        transform=transform,
        num_chains=num_chains,
        led=led,
        num_examples=num_examples,
        batch_size=batch_size,
        capacity=capacity,
        start=start,
        every=every,
        where=where,
        renew=on_draw is not None,
        mesh=_mesh(num_chains, params),
    )
    begin, advance = _programs(plan)
    params, data = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), (params, data))
    keys = None
    if opt_state is None:
        own, examples = jax.random.split(derive_key(key, "sample"))
        first_chain = jax.tree.map(lambda p: p[0], params) if led else params
        keys = _chain_keys(tx, first_chain, num_chains, own), examples
    if plan.mesh is not None:
        data, grad = jax.device_put((data, grad), NamedSharding(plan.mesh, ALL))
        params = jax.device_put(params, NamedSharding(plan.mesh, EACH if led else ALL))
    carry = begin(params, opt_state, keys, data, grad)

    done, length = 0, 1
    pieces: list[Any] = []
    bar = _bar(num_steps) if progress else None
    with _interrupts() as interrupted:
        while done < num_steps and not interrupted:
            length = min(length, num_steps - done)
            first = bisect.bisect_left(due, done)
            if on_draw is not None and first + capacity < len(due):
                length = min(length, due[first + capacity] - done)
            clock = time.perf_counter()
            carry, meter = advance(carry, data, grad, base, length)
            jax.block_until_ready(meter)
            seconds = time.perf_counter() - clock
            done += length
            if on_draw is not None:
                number = bisect.bisect_left(due, done) - first
                pieces.append(_first_draws(jax.tree.map(np.asarray, carry[2].samples), number))
                for i in range(number):
                    on_draw(base + due[first + i], _draw(pieces[-1][0], i))
            if bar is not None:
                bar(done, length, meter)
            length = max(1, min(int(length * CHUNK_SECONDS / seconds), 8 * length))
    if bar is not None:
        bar(done, length, None)
    if done < num_steps:
        warnings.warn(
            f"interrupted after {done} of {num_steps} steps: these are the draws until then",
            stacklevel=3,
        )

    params, state, kept = carry
    if on_draw is not None:
        kept_samples = jax.tree.map(lambda *s: np.concatenate(s, axis=1), *pieces)
    else:
        kept_samples = _first_draws(kept.samples, bisect.bisect_left(due, done))
    diverged = np.asarray(kept.diverged)
    last = np.asarray(_finite_chains(params))
    diverged = np.where((diverged < 0) & ~last, done, diverged)
    diverged = np.where(diverged < 0, -1, base + diverged)
    for chain in np.flatnonzero(diverged >= 0):
        warnings.warn(
            f"chain {chain} was not finite at step {diverged[chain]}: its steps are too long, or"
            " the loss has no lower bound",
            stacklevel=3,
        )
    draws, losses, temperatures = kept_samples
    return Samples(draws, losses, temperatures, params, state, diverged)


_finite_chains = jax.jit(jax.vmap(is_finite))


def _first_draws(samples: Any, number: int) -> Any:
    return jax.tree.map(lambda s: s if s.shape[1] == number else s[:, :number], samples)


def _draw(samples: Any, i: int) -> Any:
    return jax.tree.map(lambda s: s[:, i], samples)


def count_examples(data: Any, batch_size: int | None) -> int | None:
    """The length of the leading axis of `data`, after the checks on it and on `batch_size`."""
    if batch_size is not None:
        check_int("batch_size", batch_size, least=1)
    if data is None:
        if batch_size is not None:
            raise ValueError(f"batch_size needs data, got batch_size={batch_size} and data=None")
        return None
    shapes = {
        jax.tree_util.keystr(path): jnp.shape(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(data)
    }
    lengths = {shape[:1] for shape in shapes.values()}
    if len(lengths) != 1 or lengths == {()}:
        named = ", ".join(f"data{path} {shape}" for path, shape in shapes.items())
        raise ValueError(f"data needs one leading axis of examples in common, got {named}")
    ((length,),) = lengths
    if length < 1:
        raise ValueError("data has no examples")
    if batch_size is not None and batch_size > length:
        raise ValueError(f"batch_size must be ≤ the {length} examples of data, got {batch_size}")
    return length


def _num_chains(
    params: Any, num_chains: int | None, opt_state: SampleState | None
) -> tuple[int, bool]:
    """How many chains there are, and whether `params` leads with them."""
    if num_chains is not None:
        check_int("num_chains", num_chains, least=1)
        if opt_state is None:
            return num_chains, False
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(params)}
    if len(lengths) != 1 or lengths == {()}:
        raise ValueError(
            f"params need a leading axis of chains in common, got leading axes {sorted(lengths)}"
        )
    ((length,),) = lengths
    if length < 1:
        raise ValueError("params have no chain")
    if num_chains not in (None, 1, length):
        raise ValueError(f"num_chains is {num_chains}, but params have {length} chains")
    if opt_state is not None:
        for leaf in jax.tree.leaves(opt_state.opt_state):
            if jnp.shape(leaf)[:1] != (length,):
                raise ValueError(
                    f"params have {length} chains and opt_state has {jnp.shape(leaf)[0]}: go on"
                    " with both of the same Samples"
                )
    return length, True


def check_hashable(**functions: Any) -> None:
    """Raise a TypeError that names what a program cannot be kept for."""
    for name, function in functions.items():
        try:
            hash(function)
        except TypeError:
            raise TypeError(
                f"{name} must be hashable, as programs are compiled once for each, got"
                f" {function!r}: give a function, and arrays as params or data"
            ) from None


def check_sampler(sampler: Any, step_size: float, temperature: float, **key: int) -> None:
    """Raise a TypeError unless `sampler` makes a transformation."""
    call = f"sampler(step_size, temperature{', key=key' if key else ''})"
    if not callable(sampler):
        raise TypeError(f"sampler must be a function, called as {call}, got {sampler!r}")
    try:
        tx = sampler(step_size, temperature, **key)
    except TypeError as error:
        raise TypeError(f"sampler must be called as {call}, as diffopt.sgld is: {error}") from error
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise TypeError(f"{call} must give an Optax transformation, got {tx!r}")


def check_loss(loss: Callable[..., Any], params: Any, data: Any, batch_size: int | None) -> None:
    """Raise unless `loss` gives a real scalar, without running it."""
    batch = () if data is None else (_like_batch(data, batch_size),)
    value = jax.eval_shape(loss, params, *batch)
    if not (
        isinstance(value, jax.ShapeDtypeStruct)
        and value.shape == ()
        and jnp.issubdtype(value.dtype, jnp.floating)
    ):
        raise TypeError(f"loss must give a real scalar, got {value}")


def _like_batch(data: Any, batch_size: int | None) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            (batch_size or jnp.shape(x)[0], *jnp.shape(x)[1:]), jnp.result_type(x)
        ),
        data,
    )


def _due(
    num_steps: int, start: int, every: int, where: Schedule | None, base: int
) -> Sequence[int]:
    """The steps at which draws are kept, in order."""
    due: Sequence[int] = range(start, num_steps, every)
    if where is not None:
        stage = jax.jit(jax.vmap(where))
        parts = [np.arange(0)]
        for first in range(0, len(due), 2**20):
            steps = np.asarray(due[first : first + 2**20])
            absolute = np.minimum(base + steps, LAST).astype(np.int32)
            parts.append(steps[np.asarray(stage(absolute)) != 0])
        due = np.concatenate(parts).tolist()
    if not due:
        raise ValueError(
            f"no draw would be kept: start={start}, every={every}, num_steps={num_steps}"
            + ("" if where is None else ", and where is 0 at every one of them")
        )
    return due


def _mesh(num_chains: int, params: Any) -> Mesh | None:
    """The devices that share the chains, or `None` where one has them all."""
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf, jax.Array) and leaf.committed:
            mesh = getattr(leaf.sharding, "mesh", None)
            return mesh if mesh is not None and mesh.axis_names == ("chain",) else None
    if jax.config.jax_default_device is not None:  # type: ignore[attr-defined]
        return None
    devices = jax.local_devices()
    number = max(n for n in range(1, len(devices) + 1) if num_chains % n == 0)
    return None if number == 1 else Mesh(np.array(devices[:number]), ("chain",))


@lru_cache(maxsize=16)
def _programs(plan: _Plan) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Two compiled functions: the carry to start from, and the carry some steps later."""
    tx = optax.with_extra_args_support(plan.tx)
    num_chains, batch_size, mesh = plan.num_chains, plan.batch_size, plan.mesh
    value_and_grad = jax.value_and_grad(plan.loss)

    def keep(base: jax.Array | int) -> Any:
        def where(step: jax.Array) -> jax.Array:
            assert plan.where is not None
            return plan.where(jnp.where(step > LAST - base, LAST, base + step))

        return collect(
            plan.capacity,
            start=plan.start,
            every=plan.every,
            where=None if plan.where is None else where,
        )

    def drawn(params: Any, state: SampleState) -> Any:
        return jax.vmap(lambda p, s: plan.transform(_exact(p, s)))(params, state.opt_state)

    def step(
        grad: Any, params: Any, opt_state: Any, grad_state: Any, batch: tuple[Any, ...]
    ) -> tuple[Any, Any, Any, Any]:
        """One step of one chain, and what it saw before it."""
        if grad is None:
            value, grads = value_and_grad(params, *batch)
        else:
            value = plan.loss(params, *batch)
            grads, grad_state = grad.update(params, *batch, grad_state)
        grads = jax.tree.map(jnp.conj, grads)  # JAX's gradient is that of the conjugate
        try:
            kinetic = kinetic_temperature(opt_state).overall
        except ValueError:  # no velocity, or several
            kinetic = None
        seen = value, Temperatures(mean_product(params, grads), kinetic)
        updates, opt_state = tx.update(grads, opt_state, params, value=value)
        return optax.apply_updates(params, updates), opt_state, grad_state, seen

    def run(
        carry: Any, data: Any, grad: Any, base: jax.Array, length: jax.Array
    ) -> tuple[Any, Any]:
        kept_of = keep(base)

        def one_step(_: Any, carry: Any) -> Any:
            (params, state, kept), meter = carry
            if batch_size is None:
                batch, axis = () if data is None else (data,), None
            else:
                state, index = next_batch(state, chains, batch_size)
                batch, axis = (jax.tree.map(lambda x: x[index], data),), 0
            after, opt_state, grad_state, seen = jax.vmap(step, (None, 0, 0, 0, axis))(
                grad, params, state.opt_state, state.grad_state, batch
            )
            record = (drawn(params, state), *seen)
            kept = jax.vmap(kept_of.update)(record, kept)
            state = state._replace(
                opt_state=opt_state, step=optax.safe_increment(state.step), grad_state=grad_state
            )
            meter = jax.tree.map(lambda m, s: m + s.astype(m.dtype), meter, seen)
            return (after, state, kept), meter

        params, state, kept = carry
        chains = jnp.arange(len(kept.count))
        if mesh is not None:
            chains += jax.lax.axis_index("chain") * len(kept.count)
        if plan.renew:
            empty = jax.vmap(kept_of.init)(jax.tree.map(lambda s: s[:, 0], kept.samples))
            kept = kept._replace(samples=empty.samples, count=empty.count)
        meter = jax.tree.map(lambda s: jnp.zeros(s.shape[:1], jnp.float32), kept.samples[1:])
        return jax.lax.fori_loop(0, length, one_step, ((params, state, kept), meter))

    def begin(params: Any, state: SampleState | None, keys: Any, data: Any, grad: Any) -> Any:
        if state is None:
            chain_keys, examples = keys
            params = jax.tree.map(
                lambda p: p if plan.led else jnp.broadcast_to(p, (num_chains, *p.shape)), params
            )
            zero, order = jnp.zeros([], jnp.int32), None
            if batch_size is not None:
                order = jnp.arange(plan.num_examples, dtype=jnp.int32)
            opt_state = jax.tree.map(
                lambda k, s: k if _is_key(k) else s, chain_keys, jax.vmap(tx.init)(params)
            )
            grad_state = None if grad is None else jax.vmap(grad.init)(params)
            state = SampleState(opt_state, zero, zero, examples, order, grad_state)
        if batch_size is None:
            batch, axis = () if data is None else (data,), None
        else:
            take = lambda x: jnp.zeros((num_chains, batch_size, *x.shape[1:]), x.dtype)
            batch, axis = (jax.tree.map(take, data),), 0
        seen = jax.eval_shape(
            jax.vmap(step, (None, 0, 0, 0, axis)),
            grad, params, state.opt_state, state.grad_state, batch,
        )[-1]  # fmt: skip
        seen = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), seen)
        kept = jax.vmap(keep(0).init)((drawn(params, state), *seen))
        carry = jax.tree.map(jnp.copy, (params, state, kept))
        if mesh is None:
            return carry
        shardings = jax.tree.map(lambda axes: NamedSharding(mesh, axes), CHAIN_AXES)
        return jax.lax.with_sharding_constraint(carry, shardings)

    if mesh is not None:
        run = jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(CHAIN_AXES, ALL, ALL, ALL, ALL),
            out_specs=(CHAIN_AXES, EACH),
            check_vma=False,
        )
    return jax.jit(begin), jax.jit(run, donate_argnums=0)


def next_batch(
    state: SampleState, chains: jax.Array, batch_size: int
) -> tuple[SampleState, jax.Array]:
    """The examples of the next batch of each of `chains`, `[chain, example]`.

    One order serves all chains, as a sort for each would cost more than the step of a small model.
    Each begins at a random place, so that two batches overlap as two independent ones on average.
    """
    assert state.order is not None
    (number,) = state.order.shape

    def shuffle(key: jax.Array, order: jax.Array) -> tuple[jax.Array, jax.Array]:
        key, subkey = jax.random.split(key)
        return key, jax.random.permutation(subkey, order)

    key, order = jax.lax.cond(
        state.position == 0, shuffle, lambda *same: same, state.key, state.order
    )
    place_key = jax.random.fold_in(key, 2)  # 0 and 1 are the two that `shuffle` splits off
    first = jax.vmap(
        lambda chain: jax.random.randint(jax.random.fold_in(place_key, chain), (), 0, number)
    )
    places = first(chains)[:, None] + state.position + jnp.arange(batch_size)
    position = state.position + batch_size
    position = jnp.where(position > number - batch_size, 0, position)
    return state._replace(key=key, order=order, position=position), order[places % number]


def _exact(params: Any, opt_state: Any) -> Any:
    """The parameters that `low_precision` rounds, or else `params`."""
    with suppress(ValueError):  # no `low_precision`, or several
        return exact_params(params, opt_state)
    return params


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def _chain_keys(tx: Any, params: Any, num_chains: int, key: jax.Array) -> Any:
    """For each key in the state of `tx`, those of the chains, into which `key` is folded."""
    first, second = jax.random.bits(key, (2,))

    def fold(leaf: Any) -> Any:
        if not _is_key(leaf):
            return jnp.zeros([])  # holds the place, by which `split_keys` tells keys apart
        both = lambda k: jax.random.fold_in(jax.random.fold_in(k, first), second)
        return jax.vmap(both)(leaf.reshape(-1)).reshape(leaf.shape)

    return split_keys(jax.tree.map(fold, tx.init(params)), num_chains)


@contextmanager
def _interrupts() -> Iterator[list[bool]]:
    """A list that is empty until the first Ctrl-C; the second is a KeyboardInterrupt."""
    heard: list[bool] = []
    ours = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if ours else None
    if before is not signal.default_int_handler:
        yield heard
        return

    def hear(*_: Any) -> None:
        heard.append(True)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, hear)
    try:
        yield heard
    finally:
        signal.signal(signal.SIGINT, before)


def _bar(num_steps: int) -> Callable[[int, int, Any], None]:
    """A function that writes how far the chains are over the line that it wrote before."""
    began = time.perf_counter()
    compiled: list[tuple[float, int]] = []  # when the first chunk was over, and its steps

    def write(done: int, length: int, seen: Any) -> None:
        seconds = time.perf_counter() - began
        if seen is None:
            sys.stderr.write("\n")
        else:
            loss, temperatures = seen
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # of a mean over no chain
                means = [f"{np.nanmean(t) / length:.3g}" for t in temperatures if t is not None]
                loss = f"{np.nanmean(loss) / length:.4g}"
            left = ""
            if compiled:
                after, steps = seconds - compiled[0][0], done - compiled[0][1]
                left = f" + {_clock(after / steps * (num_steps - done))} left"
            else:
                compiled.append((seconds, done))
            filled = 20 * done // num_steps
            sys.stderr.write(
                f"\r{'━' * filled}{'─' * (20 - filled)} {done}/{num_steps}"
                f" loss {loss} temperature {' / '.join(means)}"
                f" {_clock(seconds)}{left}  "
            )
        sys.stderr.flush()

    return write


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
