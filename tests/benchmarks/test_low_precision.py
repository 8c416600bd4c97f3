"""bfloat16 trains the CNN as float32 does under low_precision; the program that shows it runs."""

import json
import sys

import numpy as np
import pytest

from benchmarks import data, low_precision


def test_the_cnn_in_bfloat16_matches_float32_within_the_spread_over_seeds():
    digits = data.digits()
    few = digits._replace(
        train_images=digits.train_images[:320], train_labels=digits.train_labels[:320]
    )
    scores = {}
    for precision in low_precision.PRECISIONS:
        run = low_precision.trainer("sghmc", precision, 0.1, few, 40, 32)
        runs = [run(seed) for seed in range(3)]
        scores[precision] = {name: np.array([r[name] for r in runs]) for name in runs[0]}
    for name, exact in scores["float32"].items():
        kept = scores["low_precision"][name]
        assert abs(kept.mean() - exact.mean()) < exact.std(ddof=1), name
    for name in ("nll", "average_nll"):
        assert (scores["bfloat16"][name] > 1.1 * scores["float32"][name]).all()


def run(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["low_precision", *map(str, arguments)])
        try:
            return low_precision.main()
        except SystemExit as stop:
            return stop.code


def test_the_laws_as_the_program_shows_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(low_precision, "FREE", (1 / 8,))
    monkeypatch.setattr(low_precision, "WELLS", (1e-3,))
    file = tmp_path / "laws.json"
    assert run("laws", "--chains", 5_000, "--json", file) == 0
    free, well = json.loads(file.read_text())["laws"]
    bound = 4.5 * np.sqrt(2 / 5_000)
    for row in (free, well):
        assert abs(row["float32"] - 1) < bound
        assert abs(row["low_precision"] - row["float32"]) < 1e-3
        assert row["stochastic"] > 1 + bound
    assert free["nearest"] < 1 - bound < 1 + bound < well["nearest"]
    assert "variance over the exact one" in capsys.readouterr().out


def test_training_and_cost_have_a_row_for_each(tmp_path, monkeypatch, capsys):
    columns = ("accuracy", "nll", "average_accuracy", "average_nll")
    trainer = lambda *_: lambda seed: dict.fromkeys(columns, 0.5 + seed)
    monkeypatch.setattr(low_precision, "trainer", trainer)
    monkeypatch.setattr(low_precision, "resnet18", lambda: {"w": (50, 2), "b": (2,)})
    monkeypatch.setenv("COLUMNS", "160")
    file = tmp_path / "rest.json"
    assert run("training", "cost", "--seeds", 3, "--repeats", 2, "--json", file) == 0
    found = json.loads(file.read_text())
    rows = [(row["optimizer"], row["precision"]) for row in found["training"]]
    assert rows == [(o, p) for o in low_precision.OPTIMIZERS for p in low_precision.PRECISIONS]
    assert all(row["ns_per_parameter"] > 0 for row in found["cost"])
    shown = capsys.readouterr().out
    assert "150.0 ± 100.0" in shown and "1.500 ± 1.000" in shown and "low_precision(sgld)" in shown


@pytest.mark.parametrize(
    "arguments,sentence",
    [
        (["law"], "no part 'law': choose from laws, training, cost"),
        (["--scale", "0"], "--scale must be above 0 and finite"),
        (["--chains", "0"], "--chains must be at least 1"),
        (["training", "--dataset", "mnist"], "unknown dataset 'mnist'"),
        (["--json", "/proc/x/y"], "--json: /proc/x/y cannot be written"),
    ],
)
def test_bad_arguments_give_one_sentence_and_status_2(arguments, sentence, monkeypatch, capsys):
    monkeypatch.setattr(low_precision, "resnet18", lambda: {"w": (2,)})
    assert run(*arguments) == 2
    assert sentence in capsys.readouterr().err
