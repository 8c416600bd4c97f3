"""The program that tries noise that trains beside momentum and AdamW."""

import json

import numpy as np
import pytest

from benchmarks import training_noise
from tests.benchmarks import helpers


@pytest.mark.slow
def test_it_writes_a_row_for_each_setting(tmp_path):
    arguments = ["--steps", 2, "--seeds", 2, "--out", tmp_path]
    assert helpers.status(training_noise.main, *arguments) == 0
    read = lambda task: json.loads((tmp_path / f"training_noise_{task}.json").read_text())
    command = "python -m benchmarks.training_noise --tasks pairs --steps 2 --seeds 2"
    assert read("pairs")["command"] == command
    methods = [row["method"] for row in read("pairs")["rows"]]
    single = ["momentum", "adamw", "label noise", "weight noise", "ivon"]
    assert methods == [*(x + part for x in single for part in ("", " averaged")), "ivon draws"]
    rows = read("pairs")["rows"] + read("labels")["rows"]
    assert all(len(row["error"]) == len(row["nll"]) == 2 for row in rows)


@pytest.mark.parametrize(
    "arguments", [["--seeds", 0], ["--tasks", "x"], ["--steps", "x"], ["--out", "/proc/x"]]
)
def test_bad_arguments_are_refused(arguments, capsys):
    assert helpers.status(training_noise.main, *arguments) == 2
    assert str(arguments[1]) in capsys.readouterr().err


def test_the_splits_are_those_of_the_tasks():
    wrong, pairs = (training_noise.split(task, 0) for task in ("labels", "pairs"))
    assert wrong["train"][0].shape == (1000, 64) and wrong["test"][0].shape == (397, 64)
    again = training_noise.split("clean", 0)  # the same digits; the flips are the only difference
    assert pairs["train"][0].shape == (2000, 128) and pairs["train"][1].max() == 99
    np.testing.assert_array_equal(again["train"][0], wrong["train"][0])
