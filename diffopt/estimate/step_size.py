"""Which step size? The longest at which a sampler is at the temperature it was given."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._types import Batch, Key, Loss, Params, Sampler, State, Stream
from ..inputs.callables import check_concrete, check_loss, check_sampler
from ..inputs.keys import check_key, derive_key
from ..inputs.scalars import check_int, check_number
from ..inputs.trees import check_inexact, count_degrees, mean_product, refuse_statistics
from ..run.batches import Epoch, count_examples, next_batch, shape_batch, start_epoch
from ..run.loop import kinetic_or_none, take_step
from ..run.program import compile_program
from ..run.progress import end_progress, hear_interrupts, show_progress
from ..run.streams import is_stream, pool_batches, refuse_batch_size
from .curvature import Curvatures, GradientNoise, find_curvatures, measure_noise, take_gradients
from .surrogate import SOFTEST, Law, make_surrogate, measure_law, probe_sampler

STIFFEST, MEAN = "stiffest", "mean"
TOLERANCES = {STIFFEST: 0.05, MEAN: 0.1}

PRODUCTS, PRODUCT_COST = 20, 2  # of the Hessian with a vector, and what one costs in gradients
HESSIAN_BATCHES, NOISE_BATCHES = 5, 32

SIZES = 12  # step sizes at once on the surrogate
LONGEST, SHORTEST = 1e2, 1e-10  # times the larger, or the smaller, of 1 and 1/k
LIMIT_STEPS, LIMIT_TURNS = 300, 3  # that find where steps diverge
DIVERGED = 100  # times T, in the stiffest direction without noise
LAW_STEPS = 8000
COLD = 0.5  # of T: the sampler doesn't hold it

CHAINS, ATTEMPTS, BLOCKS = 2, 3, 16  # of the runs on the loss; the later half is measured
SPREAD, RISE = 5, 100  # of the batches' losses, times the heat foretold: above them it diverged
SLACK, ERRORS = 1.25, 3  # a run is hot beyond so much of the tolerance, and so many errors
SHORTER = (0.25, 0.8)  # of a step that was hot: the next
NEAR = 1.5  # the ratio of two step sizes: nearer ones are not worth a run of their own


class Temperatures(NamedTuple):
    """Temperatures over T, or their standard errors, in rows by step size.

    Attributes:
      step_size: `[size]`.
      stiffest: in the stiffest direction, `[size]`; inf where a chain was not finite.
      mean: over all parameters that move, likewise.
      kinetic: of the velocities, likewise; `None` where there are none, or they were not measured.
    """

    step_size: np.ndarray
    stiffest: np.ndarray
    mean: np.ndarray
    kinetic: np.ndarray | None = None


class StepSizes(NamedTuple):
    """What `find_step_size` found.

    Where elements have masses or learning rates of their own, curvatures and noise are in the
    sampler's metric, that of the element that moves furthest for the same gradient. The first three
    are from where the step size was foretold last.

    Attributes:
      curvatures: of the loss, from the largest: 20 values that stand for the whole spectrum, or all
        where they are fewer.
      noise: the variances of the gradients, `GradientNoise`; `None` without minibatches.
      predicted: `Temperatures` of the sampler on a Gaussian loss with these curvatures and this
        noise, from the longest step size to the shortest.
      measured: `Temperatures` of chains on the loss itself, in the order of the runs.
      standard_error: of `measured`.
      gradients: how many gradients of a batch all this took.
    """

    curvatures: np.ndarray
    noise: GradientNoise | None
    predicted: Temperatures
    measured: Temperatures
    standard_error: Temperatures
    gradients: int


class Forecast(NamedTuple):
    """A step size foretold from curvatures and noise, and whether it is within the tolerance."""

    step_size: float
    predicted: Temperatures
    useful: bool
    curvatures: Curvatures
    noise: GradientNoise | None


class Chain(NamedTuple):
    """Of each chain, `[chain, ...]`."""

    params: Params
    origin: Params
    state: State
    epoch: Epoch | None


class Trace(NamedTuple):
    """Means over the steps of a block, `[chain]`; temperatures are over T."""

    loss: jax.Array
    stiffest: jax.Array
    mean: jax.Array
    kinetic: jax.Array | None


def find_step_size(
    sampler: Sampler,
    loss: Loss,
    params: Params,
    data: Batch | Stream = None,
    *,
    temperature: float,
    judge: str | None = None,
    tolerance: float | None = None,
    batch_size: int | None = None,
    max_gradients: int = 5000,
    key: Key = 0,
    progress: bool = False,
) -> tuple[float, StepSizes]:
    r"""The longest step size at which a sampler is at its temperature.

    Longer steps mix faster, in proportion; what limits them is the temperature, which rises with
    them: first in the stiffest direction, the eigenvector of the largest curvature, and with
    noisy gradients in the noisiest. The step is found in three parts:

    - The curvatures of the loss at `params`, which should be near a minimum, come from 20 products
      of its Hessian with a vector (Lanczos' iteration), over five batches where there are batches;
      the noise of the gradients from 32 batches: its mean over all directions, and its part along
      the stiffest.
    - The sampler itself, whatever its equation, runs at many step sizes on a Gaussian loss with
      these curvatures and this noise, which costs no gradients of yours. Its temperatures there
      tell the longest step within the tolerance.
    - Two chains on your loss, one after the other, confirm it, in at most three runs. Where they
      are too hot or diverge, a shorter step follows, and after one that is good the geometric mean
      of both. With minibatches, chains that have not settled at T confirm nothing: curvatures and
      noise are measured again where they arrived, and if a far shorter step is foretold there, the
      next run has it.

    **Who judges.** Without minibatches the stiffest direction has to be within 5 % of T: a mean
    hides it (99 soft directions at T and a stiff one at 5 T are at 1.04 T together). With
    minibatches the gradients are noisiest where the loss is stiffest, and hold a network's few
    stiff directions at many times T at every useful step, while predictions depend on all. So
    there the mean over all directions has to be within 10 %, at half the longest stable step or
    less; `predicted.stiffest` says what the stiffest direction is at.

    On kθ²/2 the longest step within 5 % is 0.095/k for `sgld`, (1 + m) times that for `sghmc`,
    and 2/√k, the limit of stability, for `baoab`. There its fourth-order error on other losses
    and rounding are all that is left: take a little less. With noise of variance c a direction of
    `sghmc` is at T + ηc/(2(1 - m)). The noise counts as independent from step to step; in an epoch
    without replacement it is less for directions that take an epoch to move.

    Leaves that do not move, as under `optax.set_to_zero`, count in none of this. The loss has to
    hold priors and weight decay: without them the flat directions of a network never reach T, and
    chains from a training loss near 0, where curvature and noise vanish, may stay there and
    accept a step that is far too long.

    `psgld` is hotter than T at every step, because its metric follows the chain: by 10 % at best
    with its `decay` of 0.99, which is refused, and by 3 % with 0.999. Give it `tolerance=0.15`, or
    that decay and `max_gradients=20_000`. Start from a draw: at a point where the gradient is 0 its
    first steps are huge.

    Args:
      sampler: `sampler(step_size, temperature, key=key)` gives a transformation, as `sgld`,
        `sghmc`, `baoab` and `sgnht` do, or `functools.partial(diffopt.sghmc, momentum=0.99)`.
      loss: as in `sample`.
      params: the start of all chains.
      data: as in `sample`. Of a loader or a function it takes 32 batches, shuffled ones, and
        makes its own of their examples.
      temperature: T > 0.
      judge: `"stiffest"` or `"mean"`; by default the mean with minibatches, else the stiffest.
      tolerance: the largest relative error of the judge's temperature, by default 0.05 for the
        stiffest direction and 0.1 for the mean.
      batch_size: as in `sample`: noisy gradients heat the chain, so it has to be that of the run.
      max_gradients: gradients of a batch to spend, at least 800; a product with the Hessian counts
        as two. The first two parts take 41 without batches and 232 with them, each time.
      key: an int or a PRNG key.
      progress: write the gradients spent, the step size and the temperatures to stderr.

    Returns:
      The step size and what was found, `StepSizes`. After Ctrl-C, those that were known by then.

    Warns:
      UserWarning: noise heats the chain beyond the tolerance at every useful step; chains on the
        loss were too hot at all sizes tried; or Ctrl-C came before any was confirmed.

    Raises:
      ValueError: a number is out of its range; the loss is not finite at `params`, or curved
        upwards in no direction there; the sampler doesn't hold T at any step; or all chains
        diverged.
      TypeError: as `sample`.

    Examples:
      >>> import diffopt, jax.numpy as jnp
      >>> curvature = jnp.array([10.0] * 99 + [100.0])
      >>> loss = lambda p: jnp.sum(curvature * p**2) / 2
      >>> step_size, found = diffopt.find_step_size(
      ...     diffopt.sgld, loss, jnp.zeros(100), temperature=0.1
      ... )
      >>> bool(0.0008 < step_size < 0.0011)  # 0.095 / 100
      True
      >>> print(f"{found.curvatures[0]:.0f}, {found.gradients <= 5000}")
      100, True
    """
    if is_stream(data):
        refuse_batch_size(batch_size)
        data, batch_size = pool_batches(data, NOISE_BATCHES)
    check_number("temperature", temperature, positive=True)
    if tolerance is not None:
        check_number("tolerance", tolerance, positive=True)
    check_int("max_gradients", max_gradients, least=800)
    check_concrete("find_step_size", params=params, data=data, temperature=temperature, key=key)
    check_key(key)
    check_inexact(params)
    refuse_statistics(params)
    temperature = float(temperature)
    if count_examples(data, batch_size) == batch_size:
        batch_size = None
    if judge not in (None, *TOLERANCES):
        raise ValueError(f'judge must be "stiffest" or "mean", got {judge!r}')
    judge = judge or (STIFFEST if batch_size is None else MEAN)
    tolerance = TOLERANCES[judge] if tolerance is None else float(tolerance)
    check_sampler(sampler)
    batch = () if data is None else (shape_batch(data, batch_size),)
    check_loss(loss, params, *batch)
    params, data = jax.tree.map(jnp.asarray, (params, data))
    batch_key, lanczos_key, law_key, run_key = jax.random.split(derive_key(key, "step size"), 4)
    show = show_progress(max_gradients) if progress else lambda done, text: None

    with hear_interrupts() as interrupted:
        response, _ = probe_sampler(sampler, params, temperature)
        scale = jax.tree.map(lambda P: jnp.asarray(np.sqrt(P), jnp.float32), response)
        moving = _count_moving(response, params)
        batches, few, cost = None, None, 1 + PRODUCTS * PRODUCT_COST
        if batch_size is not None:
            epoch = start_epoch(len(jax.tree.leaves(data)[0]), batch_key)
            batches = next_batch(epoch, jnp.arange(NOISE_BATCHES), batch_size)[1]
            few = batches[:HESSIAN_BATCHES]
            cost = NOISE_BATCHES + PRODUCTS * PRODUCT_COST * HESSIAN_BATCHES

        def foretell(place: Params) -> tuple[np.ndarray, Forecast]:
            """Losses of the batches at a place, and the step size for its curvatures and noise."""
            losses, grads = take_gradients(loss, place, data, batches)
            if not np.isfinite(losses.mean()):
                raise ValueError(f"loss must be finite at params, got {losses.mean()}")
            curvatures = find_curvatures(
                loss, place, scale, data, few, lanczos_key, PRODUCTS, moving
            )
            if not curvatures.values[0] > 0:
                raise ValueError(
                    "the Hessian of loss is 0 at params, or curved upwards in no direction: no step"
                    " size is too long there"
                )
            noise = None
            if batches is not None:
                noise = measure_noise(grads, scale, curvatures.axis, moving)
            return losses, _foretell(
                sampler, params, temperature, curvatures, noise, judge, tolerance, law_key
            )

        losses, forecast = foretell(params)
        spent, step_size = cost, forecast.step_size
        show(spent, f"step {step_size:.3g} foretold")

        # The loss itself.
        spare = max_gradients - ATTEMPTS * cost
        steps = spare // (CHAINS * ATTEMPTS * BLOCKS) * BLOCKS
        begin, advance = _prepare(
            sampler, loss, params, data, batch_size, temperature, forecast.curvatures.axis, scale,
            moving,
        )  # fmt: skip
        spread = SPREAD * float(np.std(losses))
        heat = max(1.0, forecast.predicted.mean[-1])
        highest = float(losses.mean()) + spread + RISE * moving * temperature * heat
        measured: list[Temperatures] = []
        errors: list[Temperatures] = []
        place, good, hot = params, 0.0, np.inf
        while len(measured) < ATTEMPTS and not interrupted:
            chains = begin(place, step_size, jax.random.fold_in(run_key, len(measured)))
            traces: list[Trace] = []
            while len(traces) < BLOCKS and not interrupted:
                if len(traces) == BLOCKS // 4:
                    chains = chains._replace(origin=chains.params)
                chains, trace = advance(
                    chains, forecast.curvatures.axis, step_size, steps // BLOCKS
                )
                traces.append(jax.tree.map(lambda x: np.asarray(x, float), trace))
                spent += CHAINS * (steps // BLOCKS)
                show(spent, _describe(step_size, traces[-1]))
                if not traces[-1].loss.max() < highest:
                    break  # diverged
            if interrupted:
                break
            mean, error = _summarize(step_size, traces)
            measured.append(mean)
            errors.append(error)
            allowed = tolerance
            if not forecast.useful:
                allowed = max(tolerance, getattr(forecast.predicted, judge)[-1] - 1)
            ratio = _shorten(mean, error, judge, allowed)
            if ratio < 1:
                hot = step_size
            elif (
                batches is not None
                and not good
                and len(measured) < ATTEMPTS
                and not _is_at(mean, SLACK * allowed)
            ):
                place = jax.tree.map(lambda x: x[0], chains.params)
                there = foretell(place)[1]
                spent += cost
                show(spent, f"step {there.step_size:.3g} foretold")
                if NEAR * there.step_size < step_size:
                    forecast, ratio = there, there.step_size / step_size
            if ratio == 1:
                good = max(good, step_size)
            if good and (hot < NEAR * good or hot == np.inf):
                break
            if len(measured) < ATTEMPTS:
                step_size = (good * hot) ** 0.5 if good else step_size * ratio
    step_size = good or step_size
    if progress:
        end_progress()
    found = StepSizes(
        forecast.curvatures.values, forecast.noise, forecast.predicted, _stack(measured),
        _stack(errors), spent,
    )  # fmt: skip
    if measured and not np.isfinite(found.measured.stiffest).any():
        tried = ", ".join(f"{size:.2g}" for size in found.measured.step_size)
        raise ValueError(
            f"all chains diverged, at step sizes {tried}: start nearer a minimum of loss"
        )
    for doubt in _doubt(found, step_size, judge, tolerance, forecast.useful, good > 0, batch_size):
        warnings.warn(doubt, stacklevel=2)
    return step_size, found


def _count_moving(response: Params, params: Params) -> int:
    """How many real numbers the sampler moves."""
    parts = zip(jax.tree.leaves(response), jax.tree.leaves(params), strict=True)
    return sum(int((P > 0).sum()) * (1 + jnp.iscomplexobj(p)) for P, p in parts)


def _foretell(
    sampler: Sampler,
    params: Params,
    temperature: float,
    curvatures: Curvatures,
    noise: GradientNoise | None,
    judge: str,
    tolerance: float,
    key: jax.Array,
) -> Forecast:
    """The longest step size within the tolerance on the surrogate."""
    k = float(curvatures.values[0])
    spectrum = curvatures.values, curvatures.weights
    variances = None if noise is None else (noise.stiffest, noise.mean)
    like, noisy = make_surrogate(sampler, params, temperature, spectrum, variances)
    quiet = noisy._replace(noise=None)

    def measure(surrogate: Any, sizes: np.ndarray, limit: float, steps: int) -> Law:
        softest = SOFTEST * np.clip(limit / sizes, 1, 1 / SOFTEST)
        return measure_law(sampler, like, surrogate, k, temperature, sizes, softest, key, steps)

    # Where do steps diverge?
    longest, shortest = LONGEST * max(1, 1 / k), SHORTEST * min(1, 1 / k)
    sizes: np.ndarray
    for _ in range(LIMIT_TURNS):
        sizes = np.geomspace(longest, shortest, SIZES)
        stable = measure(quiet, sizes, 0.0, LIMIT_STEPS).stiffest < DIVERGED
        first = SIZES - int(stable.sum())
        if first == SIZES:
            raise ValueError(f"the sampler diverges at every step size from {shortest:.1g}")
        longest, shortest = sizes[max(first - 1, 0)], sizes[first]
    limit = shortest

    # Where is the judge within the tolerance?
    are_good = lambda law: np.abs(getattr(law, judge) - 1) <= tolerance
    top = limit if judge == STIFFEST else limit / 2
    for _ in range(LIMIT_TURNS):
        sizes = np.ldexp(top, -np.arange(SIZES))
        law = measure(noisy, sizes, limit, LAW_STEPS)
        heat, good = getattr(law, judge), are_good(law)
        if good.any() or noise is not None or not 1 + tolerance < heat[-1] < heat[-2]:
            break
        limit = top = sizes[-1]  # too hot, and falling: a metric that adapts seldom diverges
    cold = heat[np.argmax(heat <= 1 + tolerance)] < COLD  # no shorter step mends that
    first = int(np.argmax(good)) if good.any() else SIZES - 1
    step_size = sizes[first]
    if first and good.any() and not cold:
        between = np.geomspace(sizes[first - 1], step_size, SIZES + 2)[1:-1]
        fine = measure(noisy, between, limit, LAW_STEPS)
        number = int(are_good(fine).sum())  # by chance, a longer one may be good and not this
        step_size = between[SIZES - number] if number else step_size
        sizes, law = np.r_[sizes, between], Law(*map(np.append, law, fine))
    order = np.argsort(-sizes)
    predicted = Temperatures(sizes[order], law.stiffest[order], law.mean[order])
    if cold or (noise is None and not good.any()):
        shown = ", ".join(
            f"{t:.2g} T at {s:.2g}"
            for s, t in zip(sizes[order], getattr(law, judge)[order], strict=True)
        )
        raise ValueError(
            f"no step size is good: the sampler doesn't hold the temperature. The {judge} is at"
            f" {shown}"
        )
    return Forecast(float(step_size), predicted, bool(good.any()), curvatures, noise)


def _prepare(
    sampler: Sampler,
    loss: Loss,
    params: Params,
    data: Batch,
    batch_size: int | None,
    temperature: float,
    axis: Params,
    scale: Params,
    moving: int,
) -> tuple[Callable[..., Chain], Callable[..., tuple[Chain, Trace]]]:
    """`begin(params, size, key)` makes chains, `advance(chains, axis, size, length)` goes on.

    Chains run one after another: a network's convolutions under `vmap` are far slower on a CPU.
    """
    degrees = float(count_degrees(params))

    def begin(params: Params, data: Batch, size: jax.Array, key: jax.Array) -> Chain:
        own_key, order_key = jax.random.split(key)

        def start(key: jax.Array) -> Chain:
            epoch = None
            if batch_size is not None:
                epoch = start_epoch(len(jax.tree.leaves(data)[0]), order_key)
            return Chain(params, params, sampler(size, temperature, key=key).init(params), epoch)

        return jax.lax.map(start, jax.random.split(own_key, CHAINS))

    def advance(
        chains: Chain,
        data: Batch,
        axis: Params,
        scale: Params,
        size: jax.Array,
        length: jax.Array,
    ) -> tuple[Chain, Trace]:
        tx = sampler(size, temperature, key=jax.random.key(0))
        inside = lambda x, s: x * jnp.where(s > 0, 1 / jnp.where(s > 0, s, 1), 0)
        axis_theta = jax.tree.map(inside, axis, scale)
        axis_grads = jax.tree.map(jnp.multiply, axis, scale)

        def run(index_and_chain: Any) -> tuple[Chain, Trace]:
            index, chain = index_and_chain

            def step(_: Any, carry: Any) -> Any:
                theta, state, epoch, sums = carry
                batch = () if data is None else (data,)
                if epoch is not None:
                    assert batch_size is not None
                    epoch, places = next_batch(epoch, index[None], batch_size)
                    batch = (jax.tree.map(lambda x: x[places[0]], data),)
                after, state_after, _, value, grads = take_step(tx, loss, theta, state, *batch)
                away = jax.tree.map(
                    lambda p, o, s: jnp.where(s > 0, p - o, 0), theta, chain.origin, scale
                )
                along = mean_product(axis_theta, away) * mean_product(axis_grads, grads)
                kinetic = kinetic_or_none(state)
                seen = Trace(
                    loss=jnp.asarray(value, jnp.float32),
                    stiffest=along * degrees**2 / temperature,
                    mean=mean_product(away, grads) * degrees / moving / temperature,
                    kinetic=None if kinetic is None else kinetic / temperature,
                )
                sums = jax.tree.map(lambda total, x: total + x.astype(jnp.float32), sums, seen)
                return after, state_after, epoch, sums

            zero = jnp.zeros([], jnp.float32)
            has_velocity = kinetic_or_none(chain.state) is not None
            sums = Trace(zero, zero, zero, zero if has_velocity else None)
            carry = chain.params, chain.state, chain.epoch, sums
            theta, state, epoch, sums = jax.lax.fori_loop(0, length, step, carry)
            mean = jax.tree.map(lambda total: total / length, sums)
            return Chain(theta, chain.origin, state, epoch), mean

        return jax.lax.map(run, (jnp.arange(CHAINS), chains))

    number = lambda size: jnp.asarray(size, jnp.float32)
    first = params, data, number(1), jax.random.key(0)
    make = compile_program(begin, *first)
    more = data, axis, scale, number(1), jnp.asarray(1, jnp.int32)
    go = compile_program(advance, make(*first), *more)
    return (
        lambda place, size, key: make(place, data, number(size), key),
        lambda chains, axis, size, length: go(
            chains, data, axis, scale, number(size), jnp.asarray(length, jnp.int32)
        ),
    )


def _summarize(step_size: float, traces: list[Trace]) -> tuple[Temperatures, Temperatures]:
    """The temperatures of a run and their standard errors; inf for one that diverged."""

    def summarize(name: str) -> tuple[float, float] | None:
        if getattr(traces[0], name) is None:
            return None
        if len(traces) < BLOCKS:
            return np.inf, np.inf
        values = np.stack([getattr(trace, name) for trace in traces[BLOCKS // 2 :]])
        if not np.isfinite(values).all():
            return np.inf, np.inf
        return values.mean(), values.std(ddof=1) / np.sqrt(values.size)

    pairs = [summarize(name) for name in ("stiffest", "mean", "kinetic")]
    mean, error = ([None if p is None else np.asarray(p[i]) for p in pairs] for i in (0, 1))
    size = np.asarray(step_size)
    return Temperatures(size, *mean), Temperatures(size, *error)  # type: ignore[arg-type]


def _stack(rows: list[Temperatures]) -> Temperatures:
    none = np.zeros(0)
    return jax.tree.map(lambda *x: np.stack(x), *rows) if rows else Temperatures(none, none, none)


def _shorten(mean: Temperatures, error: Temperatures, judge: str, tolerance: float) -> float:
    """1 where a run was at its temperature, else how much shorter the next step is to be."""
    excess = 0.0
    for name in {judge, MEAN, "kinetic"}:
        value, uncertain = getattr(mean, name), getattr(error, name)
        if value is not None and not value - 1 <= SLACK * tolerance + ERRORS * uncertain:
            excess = max(excess, float(value) - 1)
        if value is not None and not np.isfinite(value):
            excess = np.inf
    return float(np.clip(tolerance / excess, *SHORTER)) if excess else 1.0


def _is_at(mean: Temperatures, tolerance: float) -> bool:
    """Whether a run is at its temperature, chance aside: where it is not, it proves nothing."""
    values = (x for x in (mean.mean, mean.kinetic) if x is not None)
    return all(abs(float(value) - 1) <= tolerance for value in values)


def _describe(step_size: float, trace: Trace) -> str:
    kinetic = "" if trace.kinetic is None else f" / {trace.kinetic.mean():.3g}"
    return f"step {step_size:.3g} loss {trace.loss.mean():.4g} {trace.mean.mean():.3g}{kinetic} T"


def _doubt(
    found: StepSizes,
    step_size: float,
    judge: str,
    tolerance: float,
    useful: bool,
    confirmed: bool,
    batch_size: int | None,
) -> list[str]:
    """What the user should know of the step size."""
    doubts = []
    if not useful:
        mean, stiffest = (getattr(found.predicted, name)[-1] for name in (MEAN, STIFFEST))
        excess = getattr(found.predicted, judge)[-1] - 1
        doubts.append(
            f"the noise of batches of {batch_size} heats the chain at every useful step: at"
            f" {step_size:.2g}, {found.predicted.step_size[0] / step_size:.0f} times below the"
            f" longest stable one, the mean direction is at {mean:.3g} T and the stiffest at"
            f" {stiffest:.3g} T. Batches of {np.ceil(batch_size * excess / tolerance):.0f} would"
            f" hold the {judge} within {tolerance:.0%}; so may control_variate, and sgnht holds the"
            " mean"
        )
    elif not confirmed and len(found.measured.step_size) == ATTEMPTS:
        values = getattr(found.measured, judge)
        shown = ", ".join(
            f"{t:.3g} T at {size:.2g}"
            for size, t in zip(found.measured.step_size, values, strict=True)
        )
        doubts.append(
            "chains on the loss were hotter than the tolerance at each step size tried, the"
            f" {judge} at {shown}: start nearer a minimum of loss, or take shorter steps"
        )
    elif not confirmed:
        doubts.append(f"interrupted: the step size {step_size:.2g} is not confirmed on the loss")
    return doubts
