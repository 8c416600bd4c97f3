"""Do chains agree in what they predict? R-hat and effective sample sizes."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..inputs.trees import chains_and_draws, check_arrays
from .collect import warn_left_out
from .predict import predictions
from .results import Samples

LEAST = 4  # draws of a chain: two in each half
LARGE = 1.05  # an R-hat above it says that chains differ
SHARE = 0.05  # of the values: so many may be above by chance


class Agreement(NamedTuple):
    """What `agreement` found, each a tree like one value of `fn`.

    Attributes:
      rhat: R-hat, 1 where all chains are of one law, inf where chains stand still apart.
      ess: the effective sample size of the mean, of all chains together.
    """

    rhat: Any
    ess: Any


def agreement(
    fn: Callable[..., Any], samples: Any, *args: Any, batch_size: int | None = None
) -> Agreement:
    r"""Whether chains agree in `fn(draw, *args)`: R-hat and effective sample sizes.

    Look at what a network says, not at its weights: hidden units swap places, so chains that agree
    in every prediction disagree in the weights. `fn` is the loss of test data, or the log
    probabilities of given inputs. Each of its numbers is looked at by itself.

    Chains are cut into halves, and values replaced by normal scores of their ranks among all draws,
    z = Φ⁻¹((rank - 3/8)/(S + 1/4)). With W the mean variance within the halves, of n draws each,
    and B/n the variance of their means,

        R-hat² = (n - 1)/n + (B/n)/W

    taken of the values and of their distances from the median, whose larger one it is: chains that
    differ in their spread alone do not agree. The effective sample size is S/τ with
    τ = 1 + 2 Σ ρₜ the autocorrelation time of z, summed over pairs of lags as long as they are
    positive, each at most the pair before (Geyer's initial monotone sequence).

    One chain is compared with itself, half with half. That all chains agree tells nothing of a
    mode that none has seen: start them apart.

    Args:
      fn: as in `predictive`.
      samples: the `Samples` of `sample`, or a tree of arrays `[chain, draw, ...]`. Where
        `transform` has kept predictions, `fn` is the identity.
      *args: as in `predictive`.
      batch_size: as in `predictive`.

    Returns:
      `Agreement`, of NumPy arrays.

    Warns:
      UserWarning: R-hat is above 1.05 at more than one number in twenty; a chain diverged, and is
        left out.

    Raises:
      ValueError: there are fewer than 4 draws of a chain, no chain is left, a draw is not finite,
        or `fn` gives a number that is complex or NaN.
      TypeError: as `predictive`.

    Examples:
      >>> import diffopt, jax.numpy as jnp
      >>> loss = lambda p: jnp.sum(p**2) / 2
      >>> samples = diffopt.sample(
      ...     diffopt.baoab(1.0, temperature=1.0), loss, jnp.zeros(3), num_steps=4000, num_chains=4
      ... )
      >>> found = diffopt.agreement(lambda p, x: p @ x, samples, jnp.ones(3))
      >>> bool(found.rhat < 1.01), bool(found.ess > 1000)
      (True, True)

    References:
      Vehtari, Gelman, Simpson, Carpenter & Bürkner, [Rank-Normalization, Folding, and Localization:
      An Improved R-hat](https://arxiv.org/abs/1903.08008), Bayesian Analysis 2021.
    """
    tree = samples.draws if isinstance(samples, Samples) else samples
    check_arrays("samples", tree)
    chains, draws = chains_and_draws("samples", tree)
    if draws < LEAST:
        raise ValueError(f"agreement needs {LEAST} draws of each chain or more, got {draws}")
    if isinstance(samples, Samples):
        diverged = np.asarray(samples.diverged)
        warn_left_out(diverged)
        tree = jax.tree.map(lambda x: x[diverged < 0], tree)
        chains = int((diverged < 0).sum())
        if not chains:
            raise ValueError("no samples: every chain diverged")
    flat = jax.tree.map(lambda x: jnp.reshape(x, (chains * draws, *x.shape[2:])), tree)
    values = predictions(fn, flat, *args, batch_size=batch_size)
    if len(jax.tree.leaves(values)[0]) < chains * draws:
        raise ValueError("samples must be finite: leave out the chains that are not")

    def measure(x: Any) -> tuple[np.ndarray, np.ndarray]:
        if np.iscomplexobj(x):
            raise ValueError(f"fn must give real numbers, got {x.dtype}")
        x = np.asarray(x, np.float64)
        columns = x.reshape(chains, draws, -1)
        wrong = np.argwhere(np.isnan(columns).any(-1))
        if len(wrong):
            first = "chain {}, draw {}".format(*wrong[0])
            raise ValueError(f"fn is NaN at {len(wrong)} of {chains * draws} draws, first {first}")
        rhat, ess = _agree(columns)
        return rhat.reshape(x.shape[1:]), ess.reshape(x.shape[1:])

    found = jax.tree.map(measure, values)
    rhat, ess = jax.tree.transpose(jax.tree.structure(values), jax.tree.structure((0, 0)), found)
    every = np.concatenate([np.ravel(x) for x in jax.tree.leaves(rhat)])
    if (every > LARGE).mean() > SHARE:
        who = "chains" if chains > 1 else "the halves of the chain"
        warnings.warn(
            f"{who} do not agree: R-hat is above {LARGE} at {(every > LARGE).sum()} of"
            f" {every.size} numbers, and {every.max():.3g} at most. Run longer, or with a longer"
            " burn_in",
            stacklevel=2,
        )
    return Agreement(rhat, ess)


def _agree(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R-hat and effective sample sizes of `[chain, draw, value]`, by value."""
    draws = values.shape[1]
    half = draws // 2
    halves = np.concatenate([values[:, :half], values[:, draws - half :]])
    from_median = np.abs(halves - np.median(halves, axis=(0, 1)))
    scores, folded = _normalize_ranks(halves), _normalize_ranks(from_median)
    rhat = np.maximum(_compare_variances(scores), _compare_variances(folded))
    return rhat, _count_effective(scores)


def _normalize_ranks(values: np.ndarray) -> np.ndarray:
    """Normal scores of the ranks over chains and draws; equal values share their mean rank."""
    flat = values.reshape(-1, values.shape[-1])
    ranks = np.empty(flat.shape)
    for column, ordered in enumerate(np.sort(flat, axis=0).T):
        ends = [np.searchsorted(ordered, flat[:, column], side) for side in ("left", "right")]
        ranks[:, column] = (ends[0] + ends[1] + 1) / 2
    quantiles = (ranks - 3 / 8) / (len(flat) + 1 / 4)
    return np.asarray(jax.scipy.special.ndtri(quantiles), np.float64).reshape(values.shape)


def _compare_variances(z: np.ndarray) -> np.ndarray:
    """R-hat of `[chain, draw, value]`."""
    n = z.shape[1]
    within, between = z.var(1, ddof=1).mean(0), z.mean(1).var(0, ddof=1)
    ratio = np.divide(between, within, out=np.where(between > 0, np.inf, 1 / n), where=within > 0)
    return np.sqrt((n - 1) / n + ratio)


def _count_effective(z: np.ndarray) -> np.ndarray:
    """The effective sample size of the mean of `[chain, draw, value]`."""
    chains, n, number = z.shape
    spectrum = np.fft.rfft(z - z.mean(1, keepdims=True), 2 * n, axis=1)
    covariance = np.fft.irfft(np.abs(spectrum) ** 2, axis=1)[:, :n].mean(0) / n  # [lag, value]
    within = covariance[0] * n / (n - 1)
    total = covariance[0] + z.mean(1).var(0, ddof=1)
    safe = np.where(total > 0, total, 1)
    rho = np.where(total > 0, 1 - (within - covariance) / safe, 0)
    rho[0] = 1
    pairs = rho[: n - n % 2].reshape(-1, 2, number).sum(1)
    positive = np.cumprod(pairs > 0, axis=0)
    time = 2 * (np.minimum.accumulate(pairs, axis=0) * positive).sum(0) - 1
    size = chains * n
    return size / np.maximum(time, 1 / np.log10(size))
