import importlib.util
import json
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import train_cost

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")


@needs_torch
def test_report_has_the_ratios_of_its_own_medians(tmp_path, capsys):
    path = tmp_path / "cost.json"
    few = ["--steps", "2", "--rounds", "2", "--pairs", "2"]
    assert train_cost.main([*few, "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    ms = {name: row["median_ms"] for name, row in result["step"].items()}
    with_noise = ms["diffopt, gaussian"]
    assert result["ratio_to_torch_in_memory"] == with_noise / ms["torch, in memory"]
    assert result["ratio_to_torch_dataloader"] == with_noise / ms["torch, DataLoader"]
    assert result["diffusion_overhead"] == result["overhead"]["diffopt, gaussian"]["median"]
    assert result["config"]["batch"] == 100
    assert set(ms) == {line[:24].strip() for line in capsys.readouterr().out.splitlines()[1:6]}


def test_the_overhead_is_the_median_ratio_of_neighbours(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(train_cost, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    calls: list[str] = []
    slowness = iter([1, 1, 3, 3, 9, 9, 1, 1])  # a drift that both runs of a pair feel

    def program(name, cost):
        def run():
            calls.append(name)
            clock[0] += cost * next(slowness)

        return run

    result = train_cost.compare(program("without", 2.0), program("with", 3.0), 4)
    assert calls == ["without", "with", "with", "without"] * 2
    assert result["median"] == 1.5 and result["quartiles"] == [1.5, 1.5]
    assert result["standard_error"] == 0 and result["pairs"] == 4


@pytest.mark.parametrize("name", train_cost.optimizers())
def test_our_programs_train(name):
    labels = np.arange(200, dtype=np.int32) % 2
    images = np.full((200, 32, 32, 3), 255, np.uint8) * labels[:, None, None, None].astype(np.uint8)
    run, first_call = train_cost.ours(train_cost.optimizers()[name], images, labels)
    run()
    assert first_call > 0


@pytest.mark.parametrize(
    "bad", [["--steps", "0"], ["--rounds", "1"], ["--pairs", "1"], ["--json", "/proc/x/y"]]
)
def test_bad_arguments_end_with_status_2(bad, capsys):
    with pytest.raises(SystemExit, match="2"):
        train_cost.main(bad)
    assert bad[0] in capsys.readouterr().err.split("error: ")[1]


def test_without_torch_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert train_cost.main([]) == 2
    assert "pip install torch==2.13.0" in capsys.readouterr().err
