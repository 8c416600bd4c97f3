"""bfloat16 trains the CNN as float32 does under low_precision; the program that shows it runs."""

import json

import numpy as np
import pytest

from benchmarks import bfloat16
from benchmarks.lib import models
from tests.benchmarks import helpers

pytestmark = pytest.mark.slow


@pytest.mark.slow
def test_the_cnn_in_bfloat16_matches_float32_within_the_spread_over_seeds():
    digits = helpers.digits()
    few = digits._replace(
        train_images=digits.train_images[:320], train_labels=digits.train_labels[:320]
    )
    scores = {}
    for precision in bfloat16.PRECISIONS:
        runs = list(bfloat16.train("sghmc", precision, 0.1, few, 40, 32, 3))
        scores[precision] = {name: np.array([r[name] for r in runs]) for name in runs[0]}
    for name, exact in scores["float32"].items():
        kept = scores["low_precision"][name]
        assert abs(kept.mean() - exact.mean()) < exact.std(ddof=1), name
    for name in ("nll", "average_nll"):
        assert (scores["bfloat16"][name] > 1.1 * scores["float32"][name]).all()


def test_the_laws_as_the_program_shows_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bfloat16, "FREE", (1 / 8,))
    monkeypatch.setattr(bfloat16, "WELLS", (1e-3,))
    assert helpers.status(bfloat16.main, "laws", "--chains", 5_000, "--out", tmp_path) == 0
    free, well = json.loads((tmp_path / "bfloat16.json").read_text())["laws"]
    bound = 4.5 * np.sqrt(2 / 5_000)
    for row in (free, well):
        assert abs(row["float32"] - 1) < bound
        assert abs(row["low_precision"] - row["float32"]) < 1e-3
        assert row["stochastic"] > 1 + bound
    assert free["nearest"] < 1 - bound < 1 + bound < well["nearest"]
    assert "variance over the exact one" in capsys.readouterr().out


def test_training_and_cost_have_a_row_for_each(tmp_path, monkeypatch, capsys):
    columns = ("accuracy", "nll", "average_accuracy", "average_nll")
    train = lambda *_: (dict.fromkeys(columns, 0.5 + seed) for seed in range(3))
    monkeypatch.setattr(bfloat16, "train", train)
    monkeypatch.setattr(models, "resnet18", lambda: {"w": (50, 2), "b": (2,)})
    monkeypatch.setenv("COLUMNS", "160")
    arguments = ["training", "cost", "--seeds", 3, "--repeats", 2, "--out", tmp_path]
    assert helpers.status(bfloat16.main, *arguments) == 0
    found = json.loads((tmp_path / "bfloat16.json").read_text())
    rows = [(row["optimizer"], row["precision"]) for row in found["training"]]
    assert rows == [(o, p) for o in bfloat16.OPTIMIZERS for p in bfloat16.PRECISIONS]
    assert all(row["ns_per_parameter"] > 0 for row in found["cost"])
    shown = capsys.readouterr().out
    assert "150.0 ± 100.0" in shown and "1.500 ± 1.000" in shown and "low_precision(sgld)" in shown


def test_what_was_finished_is_kept_at_an_interrupt(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bfloat16, "laws", lambda *_: [])
    monkeypatch.setattr(bfloat16, "cost", interrupted)
    assert helpers.status(bfloat16.main, "laws", "cost", "--out", tmp_path) == 130
    assert capsys.readouterr().err.endswith("bfloat16: interrupted\n")
    found = json.loads((tmp_path / "bfloat16.json").read_text())
    assert "laws" in found and "cost" not in found


@pytest.mark.parametrize(
    "arguments,sentence",
    [
        (["law"], "no part 'law': choose from laws, training, cost"),
        (["--scale", "0"], "'0' is not above 0 and finite"),
        (["--chains", "0"], "'0' is not a whole number from 1"),
        (["--repeats", "1"], "'1' is not a whole number from 2"),
        (["training", "--dataset", "mnist"], "unknown dataset 'mnist'"),
        (["training", "--batch-size", "99999"], "--batch-size 99999: must be from 1 to 1437"),
        (["laws", "laws"], "parts: laws is given twice"),
        (["--out", "/proc/x/y"], "--out /proc/x/y cannot be written"),
    ],
)
def test_bad_arguments_give_one_sentence_and_status_2(arguments, sentence, tmp_path, capsys):
    assert helpers.status(bfloat16.main, "--out", tmp_path, *arguments) == 2
    assert sentence in capsys.readouterr().err
