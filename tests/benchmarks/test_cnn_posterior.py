"""The program that sets a posterior of a small convolutional network beside its rivals."""

import json

import numpy as np
import pytest

from benchmarks import cnn_posterior
from tests.benchmarks import helpers


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(cnn_posterior, "STEPS", 6200)
    monkeypatch.setattr(cnn_posterior, "POSTERIORS", {"cold": (0.1, 2.0, 1000)})
    monkeypatch.setattr(cnn_posterior, "TUNED", {"momentum": {"lr": (0.03,), "decay": (1e-3,)}})
    for seeds in (1, 2):
        arguments = ["--seeds", seeds, "--out", tmp_path]
        assert helpers.status(cnn_posterior.main, *arguments) == 0
        found = json.loads((tmp_path / "cnn_posterior.json").read_text())
        assert all(len(each) == seeds for each in found["rows"].values())
    assert found["rows"]["momentum, averaged"][1]["accuracy"] > 0.9
    assert found["runs"]["cold"][0]["gradients"] <= 6200


def test_bad_arguments_are_refused(capsys):
    assert helpers.status(cnn_posterior.main, "--seeds", 0) == 2
    assert "0" in capsys.readouterr().err


def test_the_splits_have_each_digit_once():
    parts = cnn_posterior.split(0)
    sizes = [len(parts[name][1]) for name in ("train", "valid", "test")]
    assert sizes == [1000, 300, 497] and parts["photographs"].shape == (520, 8, 8, 1)
    np.testing.assert_array_equal(
        parts["turned"][3, :, :, 0], np.rot90(parts["test"][0][3, :, :, 0])
    )
    assert parts["photographs"].min() >= 0 and parts["photographs"].max() <= 1
