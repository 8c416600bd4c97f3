"""How far class probabilities `[examples, classes]` can be trusted."""

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import roc_auc_score


def brier(probs: ArrayLike, labels: ArrayLike) -> float:
    """Mean squared distance of the probabilities from the truth, summed over classes: 0 to 2."""
    probs, labels = np.asarray(probs), np.asarray(labels)
    return float(((probs - np.eye(probs.shape[1])[labels]) ** 2).sum(1).mean())


def entropy(probs: ArrayLike) -> np.ndarray:
    """Entropy of each prediction, in nats: how unsure it is."""
    probs = np.asarray(probs)
    return -(probs * np.log(np.maximum(probs, 1e-30))).sum(1)


def ood_auroc(probs: ArrayLike, ood_probs: ArrayLike) -> float:
    """The chance that an out-of-distribution input has more entropy than one of the test set.

    NaN if a prediction is, as those of a diverged network are.
    """
    known, strange = entropy(probs), entropy(ood_probs)
    if np.isnan(known).any() or np.isnan(strange).any():
        return float("nan")
    is_strange = np.repeat([0, 1], [len(known), len(strange)])
    return float(roc_auc_score(is_strange, np.concatenate([known, strange])))


def reliability(probs: ArrayLike, labels: ArrayLike, bins: int = 15) -> np.ndarray:
    """Rows of (mean confidence, accuracy, examples), one for each bin that has examples.

    The bins are those of the calibration error: equal widths of confidence.
    """
    probs, labels = np.asarray(probs), np.asarray(labels)
    confidence, correct = probs.max(1), probs.argmax(1) == labels
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    return np.array(
        [
            (confidence[which == b].mean(), correct[which == b].mean(), (which == b).sum())
            for b in np.unique(which)
        ]
    )


def selective_accuracy(probs: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Accuracy on the surest 1, 2, ..., all examples: entry i keeps the fraction (i + 1) / n."""
    probs, labels = np.asarray(probs), np.asarray(labels)
    surest_first = np.argsort(-probs.max(1), kind="stable")
    correct = (probs.argmax(1) == labels)[surest_first]
    return np.cumsum(correct) / np.arange(1, len(labels) + 1)
