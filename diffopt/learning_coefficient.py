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

from .chains import split_keys
from .keys import check_key, make_key
from .overdamped import sgld
from .priors import gaussian_prior
from .scalars import check_number
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
    from w* estimate it::

        w ~ exp(-L(w)/T - localization |w - w*|²/2)
        λ̂ = (E[L(w)] - L(w*)) / T

    with T = log(n)/n by default (the inverse temperature is nβ with β = 1/log n). The localization
    keeps a chain in the basin; it is `gaussian_prior(1 / localization, T, center="init")`.

    What it measures: λ̂ → λ as T → 0, from below where m > 1: λ̂ ≈ λ - (m - 1)/log(1/T). On a
    quadratic of curvatures k it is Σ k / (k + T·localization) / 2, which is d/2 if the curvatures
    are above T·localization: a direction softer than that counts as flat. Errors that no number
    of steps takes away: the step's own (`sgld` is at T/(1 - ηk/2), too hot; `diffopt.baoab` has
    none on a quadratic), minibatch noise, which heats more the longer the step, and a chain that
    has not spread along the soft directions, for which λ̂ is too low. So look at `losses`: they
    have to be flat after `burn_in`; halve the step and compare. A λ̂ below 0 says that w* is not a
    minimum: there is lower loss nearby.

    With minibatches each step also takes the loss of its batch at w*, so that λ̂ is the mean of
    the difference: the same expectation, without the spread of the batches. Batches are drawn
    with replacement. The program is compiled once for each `loss` and `sampler`: pass the same
    functions every time, not new lambdas.

    Args:
      loss: `loss(params, batch)`, the mean loss over a batch, a real scalar; with `data=None`,
        `loss(params)`. Without weight decay or prior: `localization` is the prior.
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
      UserWarning: chains diverged: which, and at which steps. The mean leaves them out.

    Raises:
      ValueError: a number is out of its range; `data` have no common leading axis, or are None
        while there is no `temperature` or there is a `batch_size`; `loss` is no scalar; every chain
        diverged.
      TypeError: an argument is of the wrong type; a parameter is not floating-point; `loss` is not
        real.

    Example:
      w₁²w₂² has λ = 1/2 and m = 2, and at T = 0.01, by quadrature, λ̂ = 0.354.

      >>> import diffopt, jax.numpy as jnp
      >>> estimate = diffopt.local_learning_coefficient(
      ...     lambda w: jnp.prod(w**2), jnp.zeros(2), temperature=0.01,
      ...     sampler=diffopt.baoab, step_size=0.3, num_steps=5_000, burn_in=1_000, num_chains=64,
      ... )
      >>> bool(abs(estimate.mean - 0.3542) < 4.5 * estimate.standard_error)
      True

    References:
      Lau et al., `The Local Learning Coefficient: A Singularity-Aware Complexity Measure
      <https://arxiv.org/abs/2308.12108>`_, AISTATS 2025. Watanabe, `A Widely Applicable Bayesian
      Information Criterion <https://arxiv.org/abs/1208.6338>`_, JMLR 2013.
    """
    check_number("localization", localization)
    if temperature is None:
        if data is None:
            raise ValueError("temperature has to be given where data is None")
        n = _num_examples(data)
        temperature = math.log(n) / n
    check_number("temperature", temperature, positive=True)
    losses, start = _sampled_losses(
        loss, params, data, temperature, localization, None, sampler=sampler, step_size=step_size,
        num_steps=num_steps, burn_in=burn_in, num_chains=num_chains, batch_size=batch_size, key=key,
    )  # fmt: skip
    return _estimate(losses, (losses[:, burn_in:].mean(1) - start) / temperature)


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
    the smaller, the better. With L the mean negative log-likelihood of n examples::

        w ~ exp(-L(w)/T) p(w),    T = log(n)/n
        WBIC = n E[L(w)] = F + O(√log n)

    which holds for singular models too, such as networks and mixtures, where BIC does not. For n
    large it is n L(w*) + λ log n with the learning coefficient λ.

    The prior is part of the model and has to be given: on a singular model, where the likelihood
    is flat in places, a chain without one wanders off. Its constant factor does not matter to
    WBIC, which is therefore as uncertain as F is by a factor of order 1 in the prior.

    Args:
      loss: `loss(params, batch)`, the mean negative log-likelihood over a batch, with all its
        constants and without the prior.
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
      UserWarning: chains diverged: which, and at which steps. The mean leaves them out.

    Raises:
      ValueError: a number is out of its range; `data` have no common leading axis of at least 2;
        `loss` or `log_prior` is no scalar; every chain diverged.
      TypeError: an argument is of the wrong type; a parameter is not floating-point; `loss` or
        `log_prior` is not real.

    Example:
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
      Watanabe, `A Widely Applicable Bayesian Information Criterion
      <https://arxiv.org/abs/1208.6338>`_, JMLR 2013.
    """
    if data is None:
        raise ValueError("wbic needs data: its temperature is log(n)/n for n examples")
    n = _num_examples(data)
    _check_real_scalar("log_prior", log_prior, params)
    losses, _ = _sampled_losses(
        loss, params, data, math.log(n) / n, 0.0, log_prior, sampler=sampler, step_size=step_size,
        num_steps=num_steps, burn_in=burn_in, num_chains=num_chains, batch_size=batch_size, key=key,
    )  # fmt: skip
    return _estimate(losses, n * losses[:, burn_in:].mean(1))


def _num_examples(data: Any) -> int:
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if len(lengths) != 1 or lengths == {()}:
        raise ValueError(f"data need one leading axis of examples, got {sorted(lengths)}")
    ((n,),) = lengths
    if n < 2:
        raise ValueError(f"data need at least 2 examples, as T = log(n)/n, got {n}")
    return n


def _check_whole(name: str, value: Any, low: int, high: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if not low <= value <= high:
        bounds = f"at least {low}" if high == math.inf else f"from {low} to {high}"
        raise ValueError(f"{name} must be {bounds}, got {value}")


def _check_real_scalar(name: str, fn: Callable[..., Any], *args: Any) -> None:
    out: Any = jax.eval_shape(fn, *args)
    if getattr(out, "shape", None) != ():
        raise ValueError(f"{name} must return a scalar, got {out}")
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(f"{name} must return a real number, got {out}")


def _sampled_losses(
    loss: Callable[..., jax.Array],
    params: Any,
    data: Any,
    temperature: float,
    localization: float,
    log_prior: Callable[[Any], jax.Array] | None,
    *,
    sampler: Callable[..., optax.GradientTransformation],
    step_size: float,
    num_steps: int,
    burn_in: int,
    num_chains: int,
    batch_size: int | None,
    key: int | jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Losses `[chain, step]` of chains from `params`, and the loss there; arguments checked."""
    check_inexact(params)
    check_number("step_size", step_size, positive=True)
    check_key(key)
    _check_whole("num_steps", num_steps, 1)
    _check_whole("burn_in", burn_in, 0, num_steps - 1)
    _check_whole("num_chains", num_chains, 1)
    if data is None:
        if batch_size is not None:
            raise ValueError(f"batch_size={batch_size} needs data")
        _check_real_scalar("loss", loss, params)
    else:
        n = _num_examples(data)
        if batch_size is not None:
            _check_whole("batch_size", batch_size, 1, n)
        data = jax.tree.map(jnp.asarray, data)
        _check_real_scalar("loss", loss, params, data)
    return _run(
        params, data, temperature, localization, step_size, make_key(key), loss=loss,
        log_prior=log_prior, sampler=sampler, num_steps=num_steps, num_chains=num_chains,
        batch_size=batch_size,
    )  # fmt: skip


@partial(
    jax.jit,
    static_argnames=("loss", "log_prior", "sampler", "num_steps", "num_chains", "batch_size"),
)
def _run(
    params: Any,
    data: Any,
    temperature: jax.Array,
    localization: jax.Array,
    step_size: jax.Array,
    key: jax.Array,
    *,
    loss: Callable[..., jax.Array],
    log_prior: Callable[[Any], jax.Array] | None,
    sampler: Callable[..., optax.GradientTransformation],
    num_steps: int,
    num_chains: int,
    batch_size: int | None,
) -> tuple[jax.Array, jax.Array]:
    sampler_key, batch_key = jax.random.split(key)
    if log_prior is None:  # a localization of 0 is a variance of ∞
        prior = gaussian_prior(1 / localization, temperature, center="init")
    else:
        prior = _log_prior(log_prior, temperature)
    tx = optax.chain(prior, sampler(step_size, temperature, key=sampler_key))
    start = _loss_of_all(loss, params, data, batch_size)

    def step(carry: Any, key: jax.Array) -> Any:
        w, opt_state = carry
        if batch_size is None:
            batch, reference = (() if data is None else (data,)), start
        else:
            index = jax.random.randint(key, (batch_size,), 0, len(jax.tree.leaves(data)[0]))
            batch = (jax.tree.map(lambda x: x[index], data),)
            reference = loss(params, *batch)
        value, grads = jax.value_and_grad(loss)(w, *batch)
        updates, opt_state = tx.update(grads, opt_state, w)
        return (optax.apply_updates(w, updates), opt_state), value - reference + start

    def chain(opt_state: Any, key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, num_steps)
        return jax.lax.scan(step, (params, opt_state), keys)[1]

    states = split_keys(tx.init(params), num_chains)
    return jax.vmap(chain)(states, jax.random.split(batch_key, num_chains)), start


def _log_prior(
    log_prior: Callable[[Any], jax.Array], temperature: jax.Array
) -> optax.GradientTransformation:
    """Adds the gradient of -T log p(θ)."""

    def pull(updates: Any, params: Any) -> Any:
        slopes = jax.grad(log_prior)(params)
        return jax.tree.map(lambda g, s: (g - temperature * s).astype(g.dtype), updates, slopes)

    return optax.stateless(pull)


def _loss_of_all(
    loss: Callable[..., jax.Array], params: Any, data: Any, batch_size: int | None
) -> jax.Array:
    """The mean loss over all of `data`, `batch_size` examples at a time."""
    if data is None:
        return loss(params)
    if batch_size is None:
        return loss(params, data)
    n = len(jax.tree.leaves(data)[0])
    whole = n - n % batch_size
    batches = jax.tree.map(lambda x: x[:whole].reshape(-1, batch_size, *x.shape[1:]), data)
    total = batch_size * jax.lax.map(partial(loss, params), batches).sum()
    if whole < n:
        total += (n - whole) * loss(params, jax.tree.map(lambda x: x[whole:], data))
    return total / n


def _estimate(losses: jax.Array, per_chain: jax.Array) -> Estimate:
    """The mean over the chains that stayed finite, with a warning that names the others."""
    finite = np.isfinite(losses)
    good = per_chain[finite.all(1)]
    if not len(good):
        raise ValueError("every chain diverged: take a shorter step_size")
    if len(good) < len(per_chain):
        diverged = ", ".join(
            f"chain {chain} at step {finite[chain].argmin()}"
            for chain in np.flatnonzero(~finite.all(1))
        )
        warnings.warn(f"diverged and left out: {diverged}; take a shorter step_size", stacklevel=3)
    error = good.std(ddof=1) / math.sqrt(len(good)) if len(good) > 1 else jnp.full([], jnp.nan)
    return Estimate(good.mean(), error, per_chain, losses)
