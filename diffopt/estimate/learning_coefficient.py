"""What a diffusion tells of a minimum: the local learning coefficient, and the free energy."""

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._types import Batch, Key, Loss, Params, Sampler
from ..inputs.callables import check_concrete, check_loss, check_sampler
from ..inputs.keys import check_key
from ..inputs.scalars import check_int, check_number
from ..inputs.trees import check_inexact, count_degrees, place_beside, refuse_statistics
from ..run.batches import count_examples, doubt_mean, shape_batch
from ..run.chains import own_mesh
from ..run.program import compile_program
from ..run.results import TOO_HOT, average_over_chains, read_temperature
from ..run.sample import sample
from ..run.streams import is_stream
from ..samplers.gaussian_prior import gaussian_prior
from ..samplers.sgld import sgld

ALL_DIVERGED = "every chain diverged: take a shorter step_size"
COARSE = 0.1  # of the temperature: a spacing of the loss that an estimate shows


class Estimate(NamedTuple):
    """A mean over chains, as `local_learning_coefficient` and `wbic` return it.

    Attributes:
      mean: the estimate: the mean of `per_chain`.
      standard_error: of the mean, from the spread of `per_chain`; of one chain alone, from its
        eighths, which are too few where it remembers an eighth of its steps.
      per_chain: the estimate of each chain, `[chain]`; not finite where a chain diverged.
      losses: the trace of L, `[chain, step]`, burn-in included; over the same data at each step:
        a minibatch shows how the loss differs from that at the start, not how batches differ.
    """

    mean: jax.Array
    standard_error: jax.Array
    per_chain: jax.Array
    losses: jax.Array


def local_learning_coefficient(
    loss: Callable[..., jax.Array],
    params: Any,
    data: Any = None,
    *,
    temperature: float | None = None,
    localization: float = 1.0,
    sampler: Sampler = sgld,
    step_size: float,
    num_steps: int,
    burn_in: int,
    num_chains: int = 8,
    batch_size: int | None = None,
    key: int | jax.Array = 0,
) -> Estimate:
    r"""The local learning coefficient λ of trained parameters: how degenerate a minimum is.

    Around a minimum w* the volume of parameters with L(w) < L(w*) + ε shrinks like ε^λ as ε → 0
    (times log(1/ε)^(m-1), m the multiplicity). Where the minimum is regular, λ is half the number
    of parameters, d/2; the more directions are flat or degenerate, the smaller. It is the
    coefficient of log n in the Bayesian free energy, so a smaller λ is a simpler network. Chains
    from w* estimate it:

        w ~ exp(-L(w)/T - localization |w - w*|²/2)
        λ̂ = (E[L(w)] - L(w*)) / T

    with T = log(n)/n by default (the inverse temperature is nβ with β = 1/log n). The localization
    keeps a chain in the basin; it is `gaussian_prior(1 / localization, T, center="init")`.

    What it measures: λ̂ → λ as T → 0, from below where m > 1, and slowly: to leading order λ̂ is
    λ - (m - 1)/log(1/T) (0.28 in the example below, of which quadrature gives 0.35). On a
    quadratic of curvatures k it is Σ k / (k + T·localization) / 2, which is d/2 if the curvatures
    are above T·localization: a direction softer than that counts as flat. Errors that no number
    of steps takes away: the step's own (`sgld` is at T/(1 - ηk/2), too hot; `diffopt.baoab` has
    none on a quadratic), minibatch noise, which heats more the longer the step, and a chain that
    has not spread along the soft directions, for which λ̂ is too low. So look at `losses`: they
    have to be flat after `burn_in`; halve the step and compare. A λ̂ below 0 says that w* is not a
    minimum: there is lower loss nearby. That, one above d/2, and one that differs between the
    halves of the steps after `burn_in` are told in a warning.

    The loss has to be known far below T: float32 knows a loss of 100 to 1e-5. Where that is not far
    below T, a warning says so; compute the loss in float64, or give one that is the mean of
    differences, each the loss of an example less what it is at w*.

    With minibatches the loss of each batch is taken less what its examples had at w*, which has
    the same mean without the spread of the batches. So the loss of a batch has to be the mean of
    those of its examples; one that divides by the weights or tokens of the batch is not, and is
    told in a warning.

    Args:
      loss: `loss(params, batch)`, the mean over the examples of a batch, a real scalar; with
        `data=None`, `loss(params)`. Without weight decay or prior: `localization` is the prior.
      params: w*, the trained parameters; all chains start there.
      data: a tree of arrays with one leading axis of n examples, or None.
      temperature: T > 0, in units of the loss; by default log(n)/n. Needed with `data=None`.
      localization: the pull to w*, ≥ 0, in units of 1/w²; 0 for none.
      sampler: `sampler(step_size, temperature, key=key)` gives the transformation: `sgld`, `baoab`
        or any of diffopt's, or `functools.partial` of one.
      step_size: of the sampler, > 0.
      num_steps: of each chain, with those of `burn_in`.
      burn_in: steps at the beginning that the mean leaves out, from 0 to below `num_steps`.
      num_chains: chains, in one program.
      batch_size: examples of a step, by default all.
      key: an int or a PRNG key.

    Returns:
      An `Estimate`: λ̂, its standard error over chains, λ̂ of each chain, and the losses.

    Warns:
      UserWarning: a chain was not finite: which, and at which step; the mean leaves it out. The
        loss of a batch is not a mean over its examples, or the loss is too coarse for T; chains on
        data read more than ten times T. Or λ̂ is above d/2 or below 0, or the halves of the steps
        after `burn_in` differ, by more than a tenth and five standard errors of at least 8 chains.

    Raises:
      ValueError: a number is out of its range; `data` have no common leading axis, or are None
        while there is no `temperature` or there is a `batch_size`; every chain diverged.
      TypeError: an argument is of the wrong type; a parameter is not floating-point; `loss` is not
        a real scalar.

    Examples:
      w₁²w₂² has λ = 1/2 and m = 2, and at T = 0.01, by quadrature, λ̂ = 0.354.

      >>> import diffopt, jax.numpy as jnp
      >>> estimate = diffopt.local_learning_coefficient(
      ...     lambda w: jnp.prod(w**2), jnp.zeros(2), temperature=0.01,
      ...     sampler=diffopt.baoab, step_size=0.3, num_steps=5_000, burn_in=1_000, num_chains=64,
      ... )
      >>> bool(abs(estimate.mean - 0.3542) < 4.5 * estimate.standard_error)
      True

    References:
      Lau et al., [The Local Learning Coefficient: A Singularity-Aware Complexity
      Measure](https://arxiv.org/abs/2308.12108), AISTATS 2025. Watanabe, [A Widely Applicable
      Bayesian Information Criterion](https://arxiv.org/abs/1208.6338), JMLR 2013.
    """
    check_key(key)
    check_number("step_size", step_size, positive=True)
    check_number("localization", localization)
    if temperature is None:
        temperature = _watanabe_temperature(data)
    check_number("temperature", temperature, positive=True)
    check_sampler(sampler)
    tx = localize(sampler(step_size, temperature, key=key), temperature, localization)
    losses, spacing, reading = _run(
        loss, tx, params, data, num_steps=num_steps, burn_in=burn_in, num_chains=num_chains,
        batch_size=batch_size, key=key,
    )  # fmt: skip
    wide = np.asarray(losses, float)
    with np.errstate(invalid="ignore"):  # of chains that diverged
        excess = (wide[:, burn_in:] - wide[:, :1]) / temperature
    estimate = _estimate(excess, losses)
    if not _warn_if_coarse(spacing / max(1.0, abs(float(estimate.mean))), spacing, temperature):
        _warn_of_doubt(estimate, excess, params)
    _warn_if_hot(reading, temperature, data)
    return estimate


def _warn_if_hot(reading: float, temperature: float, data: Any) -> None:
    """Warn where chains on data read far more than the temperature that they were given."""
    if data is not None and reading > TOO_HOT * temperature:
        n = len(jax.tree.leaves(data)[0])
        by_default = f", log(n)/n of {n} examples" if temperature == math.log(n) / n else ""
        warnings.warn(
            f"the chains read the temperature {reading:.3g}, which is {reading / temperature:.3g}"
            f" times theirs, {temperature:.3g}{by_default}: they still descend, or the step_size"
            " is too long: try a longer burn_in, then a shorter step_size",
            stacklevel=3,
        )


def _warn_if_coarse(least: float, spacing: float, temperature: float) -> bool:
    """Warn where the loss is too coarse for the temperature, which `least` tells, and say so."""
    coarse = least > COARSE * temperature
    if coarse:
        warnings.warn(
            f"the loss at params is known to {spacing:.2g}, its spacing there, which is not far"
            f" below the temperature {temperature:.2g}: the estimate is of rounded losses. Compute"
            " the loss in float64 (jax_enable_x64), or give the mean of differences, each the loss"
            " of an example less its loss at params",
            stacklevel=3,
        )
    return bool(coarse)


def _warn_of_doubt(estimate: Estimate, excess: np.ndarray, params: Any) -> None:
    """Warn of a λ̂ that no minimum has, and of chains that are not at rest."""
    most = count_degrees(params)
    mean, error = float(estimate.mean), float(estimate.standard_error)
    halves = np.array_split(excess[np.isfinite(excess).all(1)], 2, axis=1)
    if excess.shape[1] < 2 or len(halves[0]) < 8:
        return  # too few to tell
    if mean - 5 * error > 1.1 * most / 2:
        warnings.warn(
            f"λ̂ = {mean:.3g} ± {error:.2g} is above d/2 = {most / 2:g}, which no λ is: the"
            " step_size is too long, the batches are too small, the temperature is too high, or"
            " params are no minimum",
            stacklevel=3,
        )
    if mean + 5 * error < -0.1:
        warnings.warn(
            f"λ̂ = {mean:.3g} ± {error:.2g} is below 0, which no λ is: params are no minimum, as"
            " there is lower loss nearby (an untrained network, a saddle, or a loss without the"
            " weight decay that it was trained with)",
            stacklevel=3,
        )
    one, two = (half.mean(1) for half in halves)
    drift, spread = float((two - one).mean()), float((two - one).std(ddof=1)) / math.sqrt(len(one))
    if abs(drift) > max(5 * spread, 0.1 * abs(mean)):
        warnings.warn(
            f"the chains are not at rest after burn_in: λ̂ is {one.mean():.3g} in the first"
            f" half of the steps after it and {two.mean():.3g} in the second; take more of both",
            stacklevel=3,
        )


def wbic(
    loss: Callable[..., jax.Array],
    params: Any,
    data: Any,
    *,
    log_prior: Callable[[Any], jax.Array],
    sampler: Sampler = sgld,
    step_size: float,
    num_steps: int,
    burn_in: int,
    num_chains: int = 8,
    batch_size: int | None = None,
    key: int | jax.Array = 0,
) -> Estimate:
    r"""The widely applicable Bayesian information criterion: the free energy, from one temperature.

    The free energy F = -log ∫ exp(-n L(w)) p(w) dw, minus the log evidence, compares models:
    the smaller, the better. With L the mean negative log-likelihood of n examples:

        w ~ exp(-L(w)/T) p(w),    T = log(n)/n
        WBIC = n E[L(w)] = F + O(√log n)

    which holds for singular models too, such as networks and mixtures, where BIC does not. For n
    large it is n L(w*) + λ log n with the learning coefficient λ.

    The prior is part of the model and has to be given: on a singular model, where the likelihood
    is flat in places, a chain without one wanders off. Its constant factor does not matter to
    WBIC, which is therefore as uncertain as F is by a factor of order 1 in the prior.

    Args:
      loss: `loss(params, batch)`, the mean negative log-likelihood of the examples of a batch, a
        real scalar, with all its constants and without the prior.
      params: where all chains start; the trained parameters save burn-in.
      data: a tree of arrays with one leading axis of n examples, n ≥ 2.
      log_prior: `log_prior(params)`, the log density of the prior up to a constant, a real scalar.
      sampler: `sampler(step_size, temperature, key=key)` gives the transformation.
      step_size: of the sampler, > 0.
      num_steps: of each chain, with those of `burn_in`.
      burn_in: steps at the beginning that the mean leaves out, from 0 to below `num_steps`.
      num_chains: chains, in one program.
      batch_size: examples of a step, by default all.
      key: an int or a PRNG key.

    Returns:
      An `Estimate`, in nats for all n examples; `losses` are those of one example, L.

    Warns:
      UserWarning: a chain was not finite: which, and at which step; the mean leaves it out. The
        loss of a batch is not a mean over its examples, or the loss is too coarse for T; the chains
        read more than ten times T.

    Raises:
      ValueError: a number is out of its range; `data` have no common leading axis of at least 2;
        every chain diverged.
      TypeError: an argument is of the wrong type; a parameter is not floating-point; `loss` or
        `log_prior` is not a real scalar.

    Examples:
      The mean of 100 numbers of unit variance under the prior N(0, 1), where F is known.

      >>> import diffopt, jax, jax.numpy as jnp
      >>> y = 1.0 + jax.random.normal(jax.random.key(1), (100,))
      >>> loss = lambda w, y: jnp.mean((y - w) ** 2) / 2 + jnp.log(2 * jnp.pi) / 2
      >>> estimate = diffopt.wbic(
      ...     loss, y.mean(), y, log_prior=lambda w: -(w**2) / 2,
      ...     sampler=diffopt.baoab, step_size=0.5, num_steps=2_000, burn_in=100,
      ... )
      >>> total = 100 * jnp.log(2 * jnp.pi) + jnp.log(101.0) + jnp.sum(y**2) - y.sum() ** 2 / 101
      >>> bool(abs(estimate.mean - total / 2) < 1)
      True

    References:
      Watanabe, [A Widely Applicable Bayesian Information
      Criterion](https://arxiv.org/abs/1208.6338), JMLR 2013.
    """
    check_key(key)
    check_number("step_size", step_size, positive=True)
    temperature = _watanabe_temperature(data)
    check_sampler(sampler)
    if not callable(log_prior):
        raise TypeError(f"log_prior must be a function, got {log_prior!r}")
    prior = jax.eval_shape(log_prior, params)
    if getattr(prior, "shape", None) != () or not jnp.issubdtype(prior.dtype, jnp.floating):
        raise TypeError(f"log_prior must give a real scalar, got {prior}")
    losses, spacing, reading = _run(
        loss, _add_prior(sampler(step_size, temperature, key=key), temperature, log_prior), params,
        data,
        num_steps=num_steps, burn_in=burn_in, num_chains=num_chains, batch_size=batch_size, key=key,
    )  # fmt: skip
    n = len(jax.tree.leaves(data)[0])
    _warn_if_coarse(spacing, spacing, temperature)
    _warn_if_hot(reading, temperature, data)
    return _estimate(n * np.asarray(losses, float)[:, burn_in:], losses)


def _watanabe_temperature(data: Any) -> float:
    """log(n)/n for n examples."""
    n = count_examples(data, None)
    if n is None or n < 2:
        raise ValueError(
            f"T = log(n)/n needs data of at least 2 examples, got {n}; without data,"
            " local_learning_coefficient needs a temperature"
        )
    return math.log(n) / n


def localize(
    tx: optax.GradientTransformation, temperature: float, localization: float
) -> optax.GradientTransformation:
    """`tx` with the pull to the parameters it starts from."""
    if localization == 0:
        return tx
    return optax.chain(gaussian_prior(1 / localization, temperature, center="init"), tx)


def _add_prior(
    tx: optax.GradientTransformation, temperature: float, log_prior: Callable[[Any], jax.Array]
) -> optax.GradientTransformation:
    """`tx` with the gradient of -T log p(θ) added to those of the loss."""

    def pull(updates: Any, params: Any) -> Any:
        slopes = jax.tree.map(jnp.conj, jax.grad(log_prior)(params))
        return jax.tree.map(lambda g, s: (g - temperature * s).astype(g.dtype), updates, slopes)

    return optax.chain(optax.stateless(pull), tx)


def _run(
    loss: Callable[..., jax.Array],
    tx: optax.GradientTransformation,
    params: Any,
    data: Any,
    *,
    num_steps: int,
    burn_in: int,
    num_chains: int,
    batch_size: int | None,
    key: int | jax.Array,
) -> tuple[jax.Array, float, float]:
    """L along chains of `tx`, `[chain, step]`, and how finely it is known at `params`.

    L is not finite at the end of a chain that diverged. And the temperature after `burn_in`.
    """
    num_steps, burn_in, batch_size = check_run(
        "sample", loss, params, data, num_steps, burn_in, batch_size, key
    )
    data = place_beside(data, params)
    run = partial(
        sample, tx, num_steps=num_steps, num_chains=num_chains, key=key, transform=keep_nothing
    )
    with warnings.catch_warnings():  # that of 1/N: the temperature here is another
        warnings.filterwarnings("ignore", "the chains read the temperature")
        if batch_size is None:
            samples, offset = run(loss, params, data), 0.0
        else:
            if (doubt := doubt_mean(loss, params, data, batch_size)) is not None:
                warnings.warn(doubt, stacklevel=3)
            references = _compute_losses(loss, params, data, batch_size)
            relative = lambda params, batch: loss(params, batch[0]) - jnp.mean(batch[1])
            warnings.filterwarnings("ignore", "loss is .* on average for their halves")  # as above
            samples = run(relative, params, (data, references), batch_size=batch_size)
            offset = np.asarray(_widen(references)).mean()
    if (samples.diverged >= 0).all():
        raise ValueError(ALL_DIVERGED)
    losses = samples.losses
    if losses.shape[1] <= burn_in:
        raise KeyboardInterrupt
    with own_mesh(losses):
        wide = _widen(losses) + offset
    starts = np.abs(np.asarray(wide)[:, 0].astype(float))
    spacing = float(jnp.finfo(losses.dtype).eps * starts[np.isfinite(starts)].max(initial=0))
    after = jax.tree.map(lambda t: np.asarray(t)[:, burn_in:], samples.temperatures)
    return wide, spacing, read_temperature(after)


def check_run(
    caller: str, loss: Loss, params: Params, data: Batch, num_steps: int, burn_in: int,
    batch_size: int | None, key: Key,
) -> tuple[int, int, int | None]:  # fmt: skip
    """The steps, those of the burn-in and the size of a batch, after the checks on a run."""
    num_steps = check_int("num_steps", num_steps, least=1)
    burn_in = check_int("burn_in", burn_in, least=0)
    if burn_in >= num_steps:
        raise ValueError(f"burn_in must be < num_steps = {num_steps}, got {burn_in}")
    check_inexact(params)
    if is_stream(data):
        raise TypeError(
            "data must be a tree of arrays, whose every example is known, got a loader"
            f" ({type(data).__name__}): stack its batches into arrays"
        )
    check_concrete(caller, params=params, data=data, key=key)
    refuse_statistics(params)
    count_examples(data, batch_size)
    batch_size = None if batch_size is None else check_int("batch_size", batch_size)
    check_loss(loss, params, *(() if data is None else (shape_batch(data, batch_size),)))
    return num_steps, burn_in, batch_size


def _widen(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def keep_nothing(params: Params) -> tuple[()]:
    """No part of the parameters: the losses alone are wanted."""
    del params
    return ()


def losses_of_examples(loss: Loss, batch_size: int, params: Params, data: Batch) -> jax.Array:
    """The loss of each example, `[example]`, as that of a batch of one; so many at once."""
    of_one = lambda example: loss(params, jax.tree.map(lambda x: x[None], example))
    return jax.lax.map(of_one, data, batch_size=batch_size)


def _compute_losses(loss: Loss, params: Params, data: Batch, batch_size: int) -> jax.Array:
    """The loss of each example, `[example]`; `batch_size` of them are in memory at once."""
    params, data = jax.tree.map(jnp.asarray, (params, data))
    losses = partial(losses_of_examples, loss, batch_size)
    return compile_program(losses, params, data)(params, data)


def _estimate(values: np.ndarray, losses: jax.Array) -> Estimate:
    """The mean of `[chain, step]` over the finite chains."""
    mean, error = average_over_chains(values)
    if not np.isfinite(mean):
        raise ValueError(ALL_DIVERGED)
    with np.errstate(invalid="ignore"):  # of chains that diverged
        per_chain = jnp.asarray(values.mean(1), float)
    return Estimate(mean, error, per_chain, losses)
