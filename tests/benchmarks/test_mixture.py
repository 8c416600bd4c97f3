"""The program of the 25 Gaussians; what it finds is held by the law of the mixture."""

import json

import pytest

from benchmarks import mixture
from tests.benchmarks import helpers


@pytest.mark.slow
def test_it_writes_the_modes_of_each_chain(tmp_path, capsys):
    arguments = ["--steps", 600, "--cycles", 2, "--seeds", 2, "--out", tmp_path]
    assert helpers.status(mixture.main, *arguments) == 0
    found = json.loads((tmp_path / "mixture.json").read_text())
    assert {name: len(modes) for name, modes in found["modes"].items()} == {
        "SGLD": 2, "cyclical SGLD": 2, "replica exchange": 2
    }  # fmt: skip
    assert set(found["distances"]) == set(found["modes"])
    assert found["config"]["steps"] == 600
    assert (tmp_path / "mixture.png").read_bytes().startswith(b"\x89PNG")
    assert "modes found by each chain" in capsys.readouterr().out


def test_the_distance_of_the_weights_from_the_mixture():
    assert mixture.distance(mixture.CENTRES) == pytest.approx(0)
    assert mixture.distance(mixture.CENTRES[:5] + 0.4) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", "0"], "'0' is not a whole number from 1"),
        (["--steps", "2", "--cycles", "3"], "--cycles must be at most --steps"),
        (["--peak", "inf"], "'inf' is not above 0 and finite"),
        (["--explore", "1"], "--explore must be from 0 to below 1"),
        (["--explore", "nan"], "--explore must be from 0 to below 1"),
        (
            ["--explore", "0.9", "--cycles", "50000"],
            "explore must leave at least one step of the cycle",
        ),
        (["--out", "/proc/x"], "mixture: --out /proc/x cannot be written"),
    ],
)
def test_bad_arguments_are_refused(arguments, sentence, capsys):
    assert helpers.status(mixture.main, *arguments) == 2
    assert sentence in capsys.readouterr().err
