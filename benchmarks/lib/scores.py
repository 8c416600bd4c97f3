"""How good class probabilities `[examples, classes]` are, and how far they can be trusted."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr
from sklearn.metrics import roc_auc_score


class Scores(NamedTuple):
    """Scores of predictions; NLL in nats, the others as fractions."""

    accuracy: float
    nll: float
    brier: float
    ece: float


def evaluate(probs: ArrayLike, labels: ArrayLike) -> Scores:
    """Accuracy, negative log-likelihood, Brier score and calibration error.

    The calibration error is the mean gap between confidence and accuracy over 15 bins of
    confidence, weighted by the examples in each (Guo et al. 2017, https://arxiv.org/abs/1706.04599).
    All but the accuracy are NaN if a prediction is NaN, as after a divergence.
    """
    probs, labels = np.asarray(probs), np.asarray(labels)
    likelihood = np.take_along_axis(probs, labels[:, None], axis=1)
    return Scores(
        accuracy=float((probs.argmax(1) == labels).mean()),
        nll=float(-np.log(likelihood.clip(1e-30)).mean()),
        brier=brier(probs, labels),
        ece=calibration_error(probs, labels),
    )


def brier(probs: ArrayLike, labels: ArrayLike) -> float:
    """Mean squared distance of the probabilities from the truth, summed over classes: 0 to 2.

    scikit-learn's version refuses NaN, and halves the score of two classes.
    """
    probs, labels = np.asarray(probs), np.asarray(labels)
    return float(((probs - np.eye(probs.shape[1])[labels]) ** 2).sum(1).mean())


def bin_confidence(probs: ArrayLike, labels: ArrayLike, bins: int = 15) -> np.ndarray:
    """Rows of (mean confidence, accuracy, examples), one for each bin that has examples.

    The bins have equal widths of confidence.
    """
    probs, labels = np.asarray(probs), np.asarray(labels)
    confidence, correct = probs.max(1), probs.argmax(1) == labels
    number = np.minimum((confidence * bins).astype(int), bins - 1)
    return np.array(
        [
            (confidence[number == b].mean(), correct[number == b].mean(), (number == b).sum())
            for b in np.unique(number)
        ]
    )


def calibration_error(probs: ArrayLike, labels: ArrayLike) -> float:
    """The mean gap between confidence and accuracy over 15 bins; NaN if a probability is."""
    if np.isnan(probs).any():
        return math.nan
    confidence, accuracy, examples = bin_confidence(probs, labels).T
    return float(np.average(np.abs(confidence - accuracy), weights=examples))


def ood_auroc(probs: ArrayLike, ood_probs: ArrayLike) -> float:
    """The chance that an out-of-distribution input has more entropy than one of the test set.

    NaN if a prediction is NaN, as after a divergence.
    """
    entropy = np.concatenate([entr(probs).sum(1), entr(ood_probs).sum(1)])
    if np.isnan(entropy).any():
        return math.nan
    is_ood = np.repeat([0, 1], [len(np.asarray(probs)), len(np.asarray(ood_probs))])
    return float(roc_auc_score(is_ood, entropy))


def selective_accuracy(probs: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Accuracy on the surest 1, 2, ..., all examples: entry i keeps the fraction (i + 1) / n."""
    probs, labels = np.asarray(probs), np.asarray(labels)
    surest_first = np.argsort(-probs.max(1), kind="stable")
    correct = (probs.argmax(1) == labels)[surest_first]
    return np.cumsum(correct) / np.arange(1, len(labels) + 1)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and standard deviation: NaN where one value tells nothing of it."""
    with np.errstate(invalid="ignore"):  # of losses that are infinite
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        return float(np.mean(values)), deviation


def plus_minus(values: Sequence[float], decimals: int) -> str:
    """`mean ± standard deviation`, or the one value that there is."""
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.{decimals}f}" + (f" ± {deviation:.{decimals}f}" if len(values) > 1 else "")
