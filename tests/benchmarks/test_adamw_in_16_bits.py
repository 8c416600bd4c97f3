"""AdamW in 16 bits: the rows of the program, and the bytes of a parameter."""

import json

import jax
import numpy as np
import pytest

from benchmarks import adamw_in_16_bits as program
from tests.benchmarks import helpers

pytestmark = pytest.mark.slow


def test_a_row_for_each_method_and_its_bytes(tmp_path, monkeypatch, capsys):
    problem = program.student()._replace(learning_rates=(1e-3, 1e-2))
    monkeypatch.setattr(program, "PROBLEMS", {"student": lambda: problem})
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ["--steps", 100, "--seeds", 2, "--out", tmp_path]
    assert helpers.status(program.main, *arguments) == 0
    rows = json.loads((tmp_path / "adamw_in_16_bits.json").read_text())["rows"]
    assert [row["method"] for row in rows] == list(program.METHODS)
    assert [row["bytes"] for row in rows] == [12, 6, 8, 6, 12, 8]
    float32 = np.array(rows[0]["losses"])
    for row in rows[1:]:
        error = np.abs(np.array(row["losses"]) / float32 - 1)
        assert (error < 0.01).all() == ("nearest" not in row["method"]), row
    assert "`low_precision`, `state_dtype`" in capsys.readouterr().out


def test_the_transformer_begins_at_chance_with_100_000_parameters():
    problem = program.transformer()
    params, batch = problem.init(jax.random.key(0)), problem.batch(jax.random.key(1))
    assert abs(problem.loss(params, batch) - np.log(256)) < 1
    assert 100_000 < sum(p.size for p in jax.tree.leaves(params)) < 150_000


def test_bytes_as_the_docstring_has_them():
    cells = [line.strip("| ").split(" | ") for line in program.bytes_table().splitlines()[2:]]
    assert {name: tuple(map(int, rest)) for name, *rest in cells} == {
        "SGD": (4, 6, 4, 4, 2),
        "momentum": (8, 10, 8, 6, 4),
        "AdamW": (12, 14, 12, 8, 6),
        "SGHMC": (8, 10, 8, 6, 4),
    }
