import math

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from benchmarks.lib.scores import (
    bin_confidence,
    brier,
    evaluate,
    mean_and_deviation,
    ood_auroc,
    plus_minus,
    selective_accuracy,
)  # fmt: skip

PROBS = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.4, 0.3, 0.3], [0.3, 0.7, 0.0]])
LABELS = np.array([0, 1, 2, 0])


def test_brier_by_hand():
    squares = [0.1**2 + 0.1**2, 0.2**2 + 0.2**2, 0.4**2 + 0.3**2 + 0.7**2, 0.7**2 + 0.7**2]
    assert brier(PROBS, LABELS) == pytest.approx(np.mean(squares))
    assert brier(np.eye(3), [0, 1, 2]) == 0
    assert brier(np.eye(3), [1, 2, 0]) == 2


def test_brier_is_that_of_scikit_learn():
    score = brier_score_loss(LABELS, PROBS, labels=[0, 1, 2], scale_by_half=False)
    assert brier(PROBS, LABELS) == pytest.approx(score)


def test_scores_of_known_predictions():
    probs = np.array([[0.8, 0.2], [0.8, 0.2], [0.8, 0.2], [0.3, 0.7]])
    got = evaluate(probs, np.array([0, 0, 1, 1]))
    assert got.accuracy == 0.75
    assert np.isclose(got.nll, -(2 * np.log(0.8) + np.log(0.2) + np.log(0.7)) / 4)
    assert np.isclose(got.brier, 2 * (2 * 0.2**2 + 0.8**2 + 0.3**2) / 4)
    assert np.isclose(got.ece, abs(3 * 0.8 - 2) / 4 + 0.3 / 4)


def test_a_diverged_network_has_an_accuracy_and_no_other_score():
    bad = np.full((4, 3), np.nan)
    got = evaluate(bad, LABELS)
    assert got.accuracy == 0.5  # all are of the first class
    assert all(math.isnan(score) for score in got[1:])
    assert math.isnan(ood_auroc(PROBS, bad)) and math.isnan(ood_auroc(bad, PROBS))


def test_mean_and_standard_deviation():
    assert mean_and_deviation([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    mean, deviation = mean_and_deviation([1.0])
    assert mean == 1 and math.isnan(deviation)
    assert plus_minus([1.0, 3.0], 2) == "2.00 ± 1.41" and plus_minus([1.0], 1) == "1.0"


def test_ood_auroc_is_one_where_all_inputs_of_no_class_are_less_certain():
    sure, unsure = np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([[0.6, 0.4], [0.5, 0.5]])
    assert ood_auroc(sure, unsure) == 1
    assert ood_auroc(unsure, sure) == 0
    assert ood_auroc(sure, sure) == 0.5


def test_bins_of_confidence_add_up_to_the_calibration_error():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(10, 0.3), 500)
    labels = rng.integers(0, 10, 500)
    confidence, accuracy, number = bin_confidence(probs, labels).T
    assert number.sum() == 500
    ece = (number * np.abs(confidence - accuracy)).sum() / 500
    assert ece == pytest.approx(evaluate(probs, labels).ece, abs=1e-6)


def test_selective_accuracy_by_hand():
    assert selective_accuracy(PROBS, LABELS) == pytest.approx([1, 1, 2 / 3, 1 / 2])
