import numpy as np
import pytest

from benchmarks.calibration import brier, entropy, ood_auroc, reliability, selective_accuracy
from benchmarks.training import scores

PROBS = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.4, 0.3, 0.3], [0.3, 0.7, 0.0]])
LABELS = np.array([0, 1, 2, 0])


def test_brier_by_hand():
    squares = [0.1**2 + 0.1**2, 0.2**2 + 0.2**2, 0.4**2 + 0.3**2 + 0.7**2, 0.7**2 + 0.7**2]
    assert brier(PROBS, LABELS) == pytest.approx(np.mean(squares))
    assert brier(np.eye(3), [0, 1, 2]) == 0
    assert brier(np.eye(3), [1, 2, 0]) == 2


def test_entropy_from_none_to_uniform():
    assert entropy([[1.0, 0.0], [0.5, 0.5]]) == pytest.approx([0, np.log(2)])


def test_ood_auroc_is_one_where_all_strange_inputs_are_less_certain():
    sure, unsure = np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([[0.6, 0.4], [0.5, 0.5]])
    assert ood_auroc(sure, unsure) == 1
    assert ood_auroc(unsure, sure) == 0
    assert ood_auroc(sure, sure) == 0.5


def test_reliability_adds_up_to_the_calibration_error():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(10, 0.3), 500)
    labels = rng.integers(0, 10, 500)
    confidence, accuracy, number = reliability(probs, labels).T
    assert number.sum() == 500
    ece = (number * np.abs(confidence - accuracy)).sum() / 500
    assert ece == pytest.approx(scores(probs, labels)["ece"], abs=1e-5)


def test_selective_accuracy_by_hand():
    assert selective_accuracy(PROBS, LABELS) == pytest.approx([1, 1, 2 / 3, 1 / 2])
