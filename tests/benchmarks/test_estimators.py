"""The program of the gradient estimators; their laws are held in tests/diffopt."""

import json

import pytest

from benchmarks import estimators
from tests.benchmarks import helpers

pytestmark = pytest.mark.slow


def test_it_writes_a_row_for_each_way(tmp_path, capsys):
    arguments = ["--steps", 60, 40, "--chains", 2, "--batches", 200, "--out", tmp_path]
    assert helpers.status(estimators.main, *arguments) == 0
    found = json.loads((tmp_path / "estimators.json").read_text())
    assert found["config"] == {"steps": [60, 40], "chains": 2, "batches": 200}
    for row in found["posterior"]:
        assert row["lowest"] <= row["highest"]
        gradients = {"logistic": 60 * 100, "diabetes": 40 * 32}[row["problem"]]
        assert row["gradients_per_step"] * row["steps"] == pytest.approx(gradients, rel=0.02)
    names = "problem", "sampler", "gradient", "batches"
    ways = {tuple(row[name] for name in names) for row in found["posterior"]}
    assert len(ways) == len(found["posterior"]) == 6 + 11
    for value in found["gradient_variance"].values():
        assert value["measured"] == pytest.approx(value["theory"], rel=0.2)
    assert "lower by a factor of" in capsys.readouterr().out


def test_bad_arguments_give_one_sentence_and_status_2(capsys):
    assert helpers.status(estimators.main, "--chains", 1) == 2
    assert "'1' is not a whole number from 2" in capsys.readouterr().err
