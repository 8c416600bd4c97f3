"""The program that says what a chain costs."""

import json

import pytest

from benchmarks import chain_cost
from tests.benchmarks import helpers

pytestmark = pytest.mark.slow


def test_it_writes_what_it_measured(tmp_path):
    arguments = ["--chains", 1, 2, "--steps", 3, "--rounds", 1, "--out", tmp_path]
    assert helpers.status(chain_cost.main, *arguments) == 0
    rows = json.loads((tmp_path / "chain_cost.json").read_text())["microseconds_per_step_and_chain"]
    assert [row["chains"] for row in rows] == [1, 2]
    assert all(row[way] > 0 for row in rows for way in chain_cost.WAYS)
    assert (tmp_path / "chains.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("arguments", [["--chains", 0], ["--steps", "x"], ["--out", "/proc/x"]])
def test_bad_arguments_are_refused(arguments, capsys):
    assert helpers.status(chain_cost.main, *arguments) == 2
    assert str(arguments[1]) in capsys.readouterr().err
