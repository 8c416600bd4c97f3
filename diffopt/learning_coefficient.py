"""What a diffusion tells of a minimum: the local learning coefficient, and the free energy."""

import math
import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .keys import check_key
from .overdamped import sgld
from .priors import gaussian_prior
from .sampling import check_hashable, check_loss, check_sampler, count_examples, run_chains
from .scalars import check_int, check_number
from .trees import check_inexact


class Estimate(NamedTuple):
    """A mean over chains, as `local_learning_coefficient` and `wbic` return it.

    Attributes:
      mean: the estimate: the mean of `per_chain`.
      standard_error: of the mean, from the spread of `per_chain`; NaN for one chain.
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
    sampler: Callable[..., optax.GradientTransformation] = sgld,
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
    minimum: there is lower loss nearby. One above d/2, or that differs between the halves of the
    steps after `burn_in`, is told in a warning.

    With minibatches the loss of each batch is taken less what its examples had at w*, which has
    the same mean without the spread of the batches. The program is compiled once for the same
    functions, numbers and shapes: pass the same `loss` and `sampler` every time, not new lambdas.

    Args:
      loss: `loss(params, batch)`, the mean over the examples of a batch, a real scalar; with
        `data=None`, `loss(params)`. Without weight decay or prior: `localization` is the prior.
      params: w*, the trained parameters; all chains start there.
      data: a tree of arrays with one leading axis of n examples, or None.
      temperature: T > 0, in units of the loss; by default log(n)/n. Needed with `data=None`.
      localization: the pull to w*, ≥ 0, in units of 1/w²; 0 for none.
      sampler: `sampler(step_size, temperature)` gives the transformation: `sgld`, `baoab`
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
      UserWarning: a chain was not finite: which, and at which step; the mean leaves it out. Or λ̂ is
        above d/2 by more than a tenth and four standard errors, or the halves of the steps after
        `burn_in` differ by more than a tenth of it and five.

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
    check_hashable(loss=loss, sampler=sampler)
    check_number("step_size", step_size, positive=True)
    check_sampler(sampler, step_size, 1.0)
    check_number("localization", localization)
    if temperature is None:
        temperature = _watanabe_temperature(data)
    check_number("temperature", temperature, positive=True)
    tx = _localized(sampler, float(step_size), float(temperature), float(localization))
    losses = _run(
        loss, tx, params, data, num_steps=num_steps, burn_in=burn_in, num_chains=num_chains,
        batch_size=batch_size, key=key,
    )  # fmt: skip
    excess = (losses[:, burn_in:] - losses[:, :1]) / temperature
    estimate = _estimate(excess.mean(1), losses)
    _warn_of_doubt(estimate, np.asarray(excess), params)
    return estimate


def _warn_of_doubt(estimate: Estimate, excess: np.ndarray, params: Any) -> None:
    """Warn of a λ̂ that no minimum has, and of chains that are not at rest."""
    most = sum(
        p.size * (1 + jnp.iscomplexobj(p)) for p in map(jnp.asarray, jax.tree.leaves(params))
    )
    mean, error = float(estimate.mean), float(estimate.standard_error)
    if mean - 4 * error > 1.1 * most / 2:
        warnings.warn(
            f"λ̂ = {mean:.3g} ± {error:.2g} is above d/2 = {most / 2:g}, which no minimum has: the"
            " step_size is too long, the batches too small, or params are no minimum",
            stacklevel=3,
        )
    halves = np.array_split(excess[np.isfinite(excess).all(1)], 2, axis=1)
    if excess.shape[1] < 2 or len(halves[0]) < 4:
        return
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
    sampler: Callable[..., optax.GradientTransformation] = sgld,
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
      sampler: `sampler(step_size, temperature)` gives the transformation.
      step_size: of the sampler, > 0.
      num_steps: of each chain, with those of `burn_in`.
      burn_in: steps at the beginning that the mean leaves out, from 0 to below `num_steps`.
      num_chains: chains, in one program.
      batch_size: examples of a step, by default all.
      key: an int or a PRNG key.

    Returns:
      An `Estimate`, in nats for all n examples; `losses` are those of one example, L.

    Warns:
      UserWarning: a chain diverged: which, and at which step. The mean leaves it out.

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
    check_hashable(loss=loss, sampler=sampler, log_prior=log_prior)
    check_number("step_size", step_size, positive=True)
    check_sampler(sampler, step_size, 1.0)
    temperature = _watanabe_temperature(data)
    prior = jax.eval_shape(log_prior, params)
    if getattr(prior, "shape", None) != () or not jnp.issubdtype(prior.dtype, jnp.floating):
        raise TypeError(f"log_prior must give a real scalar, got {prior}")
    losses = _run(
        loss, _with_prior(sampler, float(step_size), temperature, log_prior), params, data,
        num_steps=num_steps, burn_in=burn_in, num_chains=num_chains, batch_size=batch_size, key=key,
    )  # fmt: skip
    n = len(jax.tree.leaves(data)[0])
    return _estimate(n * losses[:, burn_in:].mean(1), losses)


def _watanabe_temperature(data: Any) -> float:
    """log(n)/n for n examples."""
    n = count_examples(data, None)
    if n is None or n < 2:
        raise ValueError(
            f"T = log(n)/n needs data of at least 2 examples, got {n}; without data,"
            " local_learning_coefficient needs a temperature"
        )
    return math.log(n) / n


@lru_cache(maxsize=16)
def _localized(
    sampler: Callable[..., optax.GradientTransformation],
    step_size: float,
    temperature: float,
    localization: float,
) -> optax.GradientTransformation:
    """The chain's transformation; the same object for the same arguments, as programs are kept."""
    tx = sampler(step_size, temperature)
    if localization == 0:
        return tx
    return optax.chain(gaussian_prior(1 / localization, temperature, center="init"), tx)


@lru_cache(maxsize=16)
def _with_prior(
    sampler: Callable[..., optax.GradientTransformation],
    step_size: float,
    temperature: float,
    log_prior: Callable[[Any], jax.Array],
) -> optax.GradientTransformation:
    """Likewise, with the gradient of -T log p(θ) added."""

    def pull(updates: Any, params: Any) -> Any:
        slopes = jax.tree.map(jnp.conj, jax.grad(log_prior)(params))
        return jax.tree.map(lambda g, s: (g - temperature * s).astype(g.dtype), updates, slopes)

    return optax.chain(optax.stateless(pull), sampler(step_size, temperature))


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
) -> jax.Array:
    """L along chains of `tx`, `[chain, step]`; not finite at the end of one that diverged."""
    check_int("num_steps", num_steps, least=1)
    check_int("burn_in", burn_in, least=0)
    if burn_in >= num_steps:
        raise ValueError(f"burn_in must be < num_steps = {num_steps}, got {burn_in}")
    check_inexact(params)
    count_examples(data, batch_size)
    check_loss(loss, params, data, batch_size)
    run = partial(
        run_chains, tx, num_steps=num_steps, num_chains=num_chains, key=key, transform=_nothing
    )
    if batch_size is None:
        losses = run(loss, params, data).losses.astype(jnp.float32)
    else:
        references = _loss_of_each(params, data, loss=loss, batch_size=batch_size)
        relative = run(_less_reference(loss), params, (data, references), batch_size=batch_size)
        losses = relative.losses.astype(jnp.float32) + references.mean(dtype=jnp.float32)
    if losses.shape[1] <= burn_in:
        raise KeyboardInterrupt
    return losses


def _nothing(params: Any) -> tuple[()]:
    del params
    return ()


@partial(jax.jit, static_argnames=("loss", "batch_size"))
def _loss_of_each(
    params: Any, data: Any, *, loss: Callable[..., jax.Array], batch_size: int
) -> jax.Array:
    """The loss of each example, `[example]`; `batch_size` of them are in memory at once."""
    of_one = lambda example: loss(params, jax.tree.map(lambda x: x[None], example))
    return jax.lax.map(of_one, data, batch_size=batch_size)


@lru_cache(maxsize=16)
def _less_reference(loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`loss` less the losses that its examples had at the start: the same function every time."""
    return lambda params, batch: loss(params, batch[0]) - jnp.mean(batch[1])


def _estimate(per_chain: jax.Array, losses: jax.Array) -> Estimate:
    good = per_chain[np.isfinite(per_chain)]
    if not len(good):
        raise ValueError("every chain diverged: take a shorter step_size")
    with jax.debug_nans(False):  # that of one chain is meant
        error = good.std(ddof=1) / math.sqrt(len(good)) if len(good) > 1 else jnp.full([], jnp.nan)
    return Estimate(good.mean(), error, per_chain, losses)
