"""The loop: one step of all chains, many times, and what is kept of them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .._types import Batch, Loss, Params, Schedule, State, Updates
from ..inputs.trees import find_states, mean_product
from ..samplers.low_precision import add_residual
from ..temperature import kinetic_temperature
from .batches import Epoch, count_left, find_starts, renew_epoch, start_epoch, take_places
from .chains import is_key
from .collect import LAST, CollectState, advance_step, collect, is_finite, keep
from .gradients import GradientEstimator


class RunState(NamedTuple):
    """What `sample` needs to go on, beside the parameters.

    Attributes:
      opt_state: the state of the transformation, `[chain, ...]`.
      step: steps taken, an int32 scalar that stays at 2³¹ - 1 once it is there.
      origin: the parameters from which the configurational temperature is measured, `[chain, ...]`.
      epoch: the `Epoch` of the batches; `None` without batches.
      estimator_state: the state of the gradient estimator, `[chain, ...]`; `None` without one.
    """

    opt_state: State
    step: jax.Array
    origin: Params
    epoch: Epoch | None
    estimator_state: State = None


class Record(NamedTuple):
    """What is kept of a draw, `[chain, draw, ...]`.

    Attributes:
      draw: what `transform` made of the parameters.
      loss: at the parameters, of the batch of the next step.
      configurational: (θ - origin)·∇L(θ)/d in each leaf, `[..., leaf]`.
      kinetic: the mean of M v², or `None` where the sampler has no velocity, or several.
    """

    draw: Any
    loss: jax.Array
    configurational: jax.Array
    kinetic: jax.Array | None


class Losses(NamedTuple):
    """Losses that were not finite, `[chain]`: how many, and the step of the first."""

    count: jax.Array  # type: ignore[assignment]
    first: jax.Array


class Carry(NamedTuple):
    """What goes from step to step: of all chains, but for the step and the epoch."""

    params: Params
    state: RunState
    kept: CollectState
    nonfinite: Losses


class Meter(NamedTuple):
    """Sums over the records of a chunk, and their number, `[chain]`, for the line of progress."""

    steps: jax.Array
    loss: jax.Array
    configurational: jax.Array
    kinetic: jax.Array | None


class Plan(NamedTuple):
    """What a run is to do.

    Attributes:
      tx: the transformation.
      loss: `loss(params, batch)`, or `loss(params)` where there are no data.
      transform: what is kept of the parameters.
      num_chains: how many chains.
      has_chain_axis: whether the parameters lead with the chain axis.
      num_examples: how many examples, or `None` without data.
      batch_size: of a batch, or `None` where each step takes all examples.
      streams: whether the data are batches, `[step, chain, ...]`, and not examples.
      capacity: draws that the device holds.
      burn_in: steps passed over first.
      every: one draw in so many steps.
      where: a schedule that is 0 where no draw is kept, or `None`.
      leaves_device: whether the draws leave the device after each chunk.
      mesh: the devices that share the chains, or `None`.
    """

    tx: optax.GradientTransformation
    loss: Loss
    transform: Callable[[Params], Any]
    num_chains: int
    has_chain_axis: bool
    num_examples: int | None
    batch_size: int | None
    streams: bool
    capacity: int
    burn_in: int
    every: int
    where: Schedule | None
    leaves_device: bool
    mesh: Mesh | None


# How a Carry lies on the devices that share the chains.
EACH, ALL, ROWS = PartitionSpec("chain"), PartitionSpec(), PartitionSpec(None, "chain")
CARRY_AXES: Any = Carry(EACH, RunState(EACH, ALL, EACH, ALL, EACH), EACH, EACH)  # type: ignore[arg-type]


def place_state(state: RunState | None, mesh: Mesh) -> RunState | None:
    """`state` on the devices of `mesh`, which may be others than those of the run before."""
    if state is None:
        return None
    axes = CARRY_AXES.state
    return state._replace(**{
        name: jax.device_put(getattr(state, name), NamedSharding(mesh, getattr(axes, name)))
        for name in state._fields
    })  # fmt: skip


def take_step(
    tx: optax.GradientTransformation,
    loss: Loss,
    params: Params,
    opt_state: State,
    *batch: Batch,
    estimator: GradientEstimator | None = None,
    estimator_state: State = None,
) -> tuple[Params, State, State, jax.Array, Updates]:
    """One step of one chain: parameters and states after it, the loss and gradients before it.

    JAX's gradient is that of the conjugate parameters: a diffusion goes down the conjugate.
    """
    if estimator is None:
        value, grads = jax.value_and_grad(loss)(params, *batch)
    else:
        value = loss(params, *batch)
        grads, estimator_state = estimator.update(params, batch[0], estimator_state)
    grads = jax.tree.map(jnp.conj, grads)
    updates, opt_state = optax.with_extra_args_support(tx).update(
        grads, opt_state, params, value=value
    )
    return optax.apply_updates(params, updates), opt_state, estimator_state, value, grads


def exact_or_same(params: Params, opt_state: State) -> Params:
    """The parameters that one `low_precision` rounds; without one, or with several, `params`."""
    states = find_states(opt_state, "residual", "inner_state")
    return add_residual(params, states[0].residual) if len(states) == 1 else params


def kinetic_or_none(opt_state: State) -> jax.Array | None:
    """The temperature of the velocities; `None` where the sampler has none, or several."""
    states = find_states(opt_state, "velocity", "mass")
    return kinetic_temperature(states[0]).overall if len(states) == 1 else None


def configurational_by_leaf(params: Params, origin: Params, grads: Updates) -> jax.Array:
    """(θ - origin)·∇L(θ) over the size of each leaf, `[leaf]`."""

    def product(p: jax.Array, o: jax.Array, g: jax.Array) -> jax.Array:
        wide = np.promote_types(jnp.result_type(p), np.float32)
        return mean_product(p.astype(wide) - o.astype(wide), g)

    return jnp.stack(jax.tree.leaves(jax.tree.map(product, params, origin, grads)))


def take_batch(
    plan: Plan, epoch: Epoch | None, starts: jax.Array | None, data: Batch
) -> tuple[Epoch | None, tuple[Batch, ...], int | None]:
    """The next batch of all chains as an argument list, and the axis of the chains in it.

    Of a stream, `data` are the batches of this step. `starts` is where chains begin in the epoch.
    """
    if data is None:
        return epoch, (), None
    if plan.streams:
        return epoch, (data,), 0
    if plan.batch_size is None:
        return epoch, (data,), None
    assert epoch is not None and starts is not None
    epoch, index = take_places(epoch, starts, plan.batch_size)
    return epoch, (jax.tree.map(lambda x: x[index], data),), 0


def step_chains(
    plan: Plan,
    params: Params,
    state: RunState,
    data: Batch,
    estimator: GradientEstimator | None,
    starts: jax.Array | None,
) -> tuple[Params, RunState, jax.Array, Updates]:
    """One step of all chains: parameters and state after it, losses and gradients before."""
    epoch, batch, axis = take_batch(plan, state.epoch, starts, data)

    def step(params: Params, opt_state: State, estimator_state: State, batch: Any) -> Any:
        return take_step(
            plan.tx, plan.loss, params, opt_state, *batch,
            estimator=estimator, estimator_state=estimator_state,
        )  # fmt: skip

    after, opt_state, estimator_state, losses, grads = jax.vmap(step, (0, 0, 0, axis))(
        params, state.opt_state, state.estimator_state, batch
    )
    state = state._replace(
        opt_state=opt_state,
        step=optax.safe_increment(state.step),
        epoch=epoch,
        estimator_state=estimator_state,
    )
    return after, state, losses, grads


def measure(
    plan: Plan, params: Params, state: RunState, losses: jax.Array, grads: Updates
) -> Record:
    """The record of all chains at `params`, before the step that took these gradients."""

    def record(params: Params, opt_state: State, origin: Params, loss: Any, grads: Updates) -> Any:
        return Record(
            draw=plan.transform(exact_or_same(params, opt_state)),
            loss=loss,
            configurational=configurational_by_leaf(params, origin, grads),
            kinetic=kinetic_or_none(opt_state),
        )

    return jax.vmap(record)(params, state.opt_state, state.origin, losses, grads)


def begin(
    plan: Plan,
    params: Params,
    state: RunState | None,
    chain_keys: State,
    examples_key: jax.Array,
    data: Batch,
    estimator: GradientEstimator | None,
) -> Carry:
    """The carry before the first step."""
    if state is None:
        spread = lambda p: jnp.broadcast_to(p, (plan.num_chains, *p.shape))
        params = params if plan.has_chain_axis else jax.tree.map(spread, params)
        opt_state = jax.tree.map(
            lambda k, s: k if is_key(k) else s, chain_keys, jax.vmap(plan.tx.init)(params)
        )
        epoch = None
        if plan.batch_size is not None:
            assert plan.num_examples is not None
            epoch = start_epoch(plan.num_examples, examples_key)
        estimator_state = None if estimator is None else jax.vmap(estimator.init)(params)
        zero = jnp.zeros([], jnp.int32)
        state = RunState(opt_state, zero, params, epoch, estimator_state)

    def one_record() -> Record:
        starts = jnp.zeros(plan.num_chains, jnp.int32)
        batches = jax.tree.map(lambda x: x[0], data) if plan.streams else data
        _, _, losses, grads = step_chains(plan, params, state, batches, estimator, starts)
        return measure(plan, params, state, losses, grads)

    record = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(one_record))
    kept = jax.vmap(_keeper(plan).init)(record)
    none = jnp.zeros(plan.num_chains, jnp.int32)
    carry = jax.tree.map(jnp.copy, Carry(params, state, kept, Losses(none, none - 1)))
    if plan.mesh is None:
        return carry
    mesh = plan.mesh
    shardings = jax.tree.map(lambda axes: NamedSharding(mesh, axes), CARRY_AXES)
    return jax.lax.with_sharding_constraint(carry, shardings)


def advance(
    plan: Plan,
    carry: Carry,
    data: Batch,
    estimator: GradientEstimator | None,
    base: jax.Array,
    length: jax.Array,
) -> tuple[Carry, Meter]:
    """`length` steps further; `base` steps were taken before this run.

    A record is made at every step of `every`, of those before the first draw too, and no other.
    """

    def run(
        carry: Carry, data: Batch, estimator: Any, base: jax.Array, length: jax.Array
    ) -> tuple[Carry, Meter]:
        chains = jnp.arange(len(carry.kept.count))
        if plan.mesh is not None:
            chains += jax.lax.axis_index("chain") * len(carry.kept.count)
        where = None
        if plan.where is not None:
            schedule = plan.where
            where = lambda step: schedule(jnp.where(step > LAST - base, LAST, base + step))
        keep_record = lambda record, finite, kept: keep(
            record, finite, kept, plan.capacity, plan.burn_in, plan.every, where
        )

        def step(starts: Any, i: jax.Array, carry_and_meter: Any) -> tuple[Carry, Meter]:
            (params, state, kept, nonfinite), meter = carry_and_meter
            batches = jax.tree.map(lambda x: x[i], data) if plan.streams else data
            after, state_after, losses, grads = step_chains(
                plan, params, state, batches, estimator, starts
            )

            def record_all(kept: CollectState, meter: Meter) -> tuple[CollectState, Meter]:
                record = measure(plan, params, state, losses, grads)
                kept = jax.vmap(keep_record)(record, jax.vmap(is_finite)(params), kept)
                seen = Meter(jnp.ones([], jnp.int32), *record[1:])
                return kept, jax.tree.map(lambda m, s: m + s.astype(m.dtype), meter, seen)

            def pass_over(kept: CollectState, meter: Meter) -> tuple[CollectState, Meter]:
                return kept._replace(step=advance_step(kept.step, plan.every)), meter

            at = kept.step[0]
            due = (at - plan.burn_in) % plan.every == 0
            bad = ~jnp.isfinite(losses)
            nonfinite = Losses(
                nonfinite.count + bad.astype(jnp.int32),
                jnp.where(bad & (nonfinite.first < 0), at, nonfinite.first),
            )
            kept, meter = jax.lax.cond(due, record_all, pass_over, kept, meter)
            return Carry(after, state_after, kept, nonfinite), meter

        def run_epoch(done_carry_and_meter: Any) -> tuple[jax.Array, Carry, Meter]:
            """The steps to the end of the epoch, or of the chunk: one order serves them all."""
            done, carry, meter = done_carry_and_meter
            assert plan.batch_size is not None
            epoch = renew_epoch(carry.state.epoch, plan.batch_size)
            carry = carry._replace(state=carry.state._replace(epoch=epoch))
            end = jnp.minimum(done + count_left(epoch, plan.batch_size), length)
            of_epoch = partial(step, find_starts(epoch, chains))
            return end, *jax.lax.fori_loop(done, end, of_epoch, (carry, meter))

        if plan.leaves_device:
            empty = jax.vmap(_keeper(plan).init)(
                jax.tree.map(lambda s: s[:, 0], carry.kept.samples)
            )
            kept = carry.kept._replace(samples=empty.samples, count=empty.count)
            carry = carry._replace(kept=kept)
        zero = lambda s: jnp.zeros((s.shape[0], *s.shape[2:]), jnp.float32)
        sums = jax.tree.map(zero, carry.kept.samples[1:])
        first = carry, Meter(jnp.zeros([], jnp.int32), *sums)
        if plan.batch_size is None:
            carry, meter = jax.lax.fori_loop(0, length, partial(step, None), first)
        else:
            none = jnp.zeros_like(length)
            _, carry, meter = jax.lax.while_loop(lambda x: x[0] < length, run_epoch, (none, *first))
        return carry, meter._replace(steps=jnp.broadcast_to(meter.steps, carry.kept.count.shape))

    if plan.mesh is not None:
        run = jax.shard_map(
            run,
            mesh=plan.mesh,
            in_specs=(CARRY_AXES, ROWS if plan.streams else ALL, ALL, ALL, ALL),
            out_specs=(CARRY_AXES, EACH),
            check_vma=False,
        )
    return run(carry, data, estimator, base, length)


def _keeper(plan: Plan) -> Any:
    return collect(plan.capacity, burn_in=plan.burn_in, every=plan.every)
