"""The benchmark of updates measures each peer and itself, and writes what it measured."""

import json

import pytest

from benchmarks import step_cost
from benchmarks.lib import models

pytestmark = pytest.mark.slow


def test_a_row_for_each_update(monkeypatch, tmp_path, capsys):
    every, some = step_cost.contestants, ("optax.sgd", "optax.noisy_sgd", "diffopt.sgld gaussian")
    few = lambda shapes: {name: every(shapes)[name] for name in some}
    monkeypatch.setattr(step_cost, "contestants", few)
    monkeypatch.setitem(models.TREES, "lenet", lambda: {"w": (50, 2), "b": (2,)})
    file = tmp_path / "cost.json"
    assert step_cost.main(["--trees", "lenet", "--repeats", "2", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    rows = {row["optimizer"]: row for row in found["rows"]}
    assert tuple(rows) == some
    assert all(row["parameters"] == 102 and row["leaves"] == 2 for row in rows.values())
    assert all(row["ns_per_parameter"] > 0 < row["first_call_ms"] for row in rows.values())
    sgd = rows["optax.sgd"]["ns_per_parameter"]
    for row in rows.values():
        assert row["ratio_to_sgd"] == pytest.approx(row["ns_per_parameter"] / sgd)
    assert "diffopt.sgld gaussian" in capsys.readouterr().out


def test_a_row_for_each_method(monkeypatch, tmp_path):
    monkeypatch.setitem(models.TREES, "lenet", lambda: {"w": (50, 2), "b": (2,)})
    file = tmp_path / "cost.json"
    arguments = ["--methods", "--trees", "lenet", "--repeats", "2", "--json", str(file)]
    assert step_cost.main(arguments) == 0
    rows = {row["optimizer"]: row for row in json.loads(file.read_text())["rows"]}
    assert tuple(rows) == tuple(step_cost.methods({"w": (50, 2), "b": (2,)}))
    assert {"optax.adam", "lattice_walk", "ivon"} < set(rows)
    assert all(row["ns_per_parameter"] > 0 for row in rows.values())


@pytest.mark.parametrize(
    "arguments,sentence",
    [
        (["--trees", "oak"], "invalid choice: 'oak'"),
        (["--repeats", "1"], "'1' is not a whole number from 2"),
        (["--json", "/proc/x/y"], "--json: /proc/x/y cannot be written"),
    ],
)
def test_bad_arguments_are_refused(arguments, sentence, capsys):
    with pytest.raises(SystemExit, match="2"):
        step_cost.main(arguments)
    assert sentence in capsys.readouterr().err
