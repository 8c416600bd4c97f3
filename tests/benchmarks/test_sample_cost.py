"""The program that times `sample`: its three ways do the same work, and it writes what it found."""

import json

import jax
import numpy as np
import pytest

from benchmarks import sample_cost
from tests.benchmarks import helpers

pytestmark = pytest.mark.slow


def test_the_three_ways_take_the_same_steps():
    ways = sample_cost.programs(num_chains=2, steps=40)
    assert list(ways) == ["bare loop", "sample", "sample with progress"]
    (bare, _), quiet, shown = (way() for way in ways.values())
    for a, b in zip(jax.tree.leaves(quiet), jax.tree.leaves(shown), strict=True):
        np.testing.assert_array_equal(a, b)
    assert jax.tree.map(np.shape, bare) == jax.tree.map(np.shape, quiet)
    start = np.asarray(sample_cost.initial()["w1"])
    for params in (bare, quiet):
        moved = np.asarray(params["w1"]) - start
        assert np.isfinite(moved).all()
        # The random walk of 40 steps, which the gradients hardly change.
        assert moved[0].std() == pytest.approx(moved[1].std(), rel=0.2)
        assert (moved[0] != moved[1]).any()
    spread = [(np.asarray(p["w1"]) - start).std() for p in (bare, quiet)]
    assert spread[0] == pytest.approx(spread[1], rel=0.1)


def test_it_writes_a_row_for_each_number_of_chains(tmp_path, capsys):
    arguments = [
        "--steps",
        "20",
        "30",
        "--rounds",
        "1",
        "--chains",
        "1",
        "3",
        "--out",
        str(tmp_path),
    ]
    assert sample_cost.main(arguments) == 0
    assert "3 chains, µs a step: bare loop" in capsys.readouterr().out
    found = json.loads((tmp_path / "sample_cost.json").read_text())
    assert found["config"] == {"steps": [20, 30], "rounds": 1, "batch_size": 32, "every": 10}
    rows = found["microseconds_per_step"]
    assert [row["chains"] for row in rows] == [1, 3]
    for row in rows:
        assert row["over_bare"] == pytest.approx(row["sample"] / row["bare loop"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", "0"], "'0' is not a whole number from 1"),
        (["--chains", "2", "2"], "--chains: 2 is given twice"),
        (["--chains", "2"], "--steps: 2 numbers for 1 of chains"),
    ],
)
def test_bad_arguments_give_one_sentence_and_status_2(arguments, sentence, capsys):
    assert helpers.status(sample_cost.main, *arguments) == 2
    assert sentence in capsys.readouterr().err
