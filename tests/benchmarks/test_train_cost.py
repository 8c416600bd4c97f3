import importlib.util
import json

import numpy as np
import pytest

from benchmarks import train_cost
from benchmarks.lib import models
from tests.benchmarks import helpers

pytestmark = pytest.mark.slow

NOISES = ("no diffusion", "gaussian", "gaussian16", "rademacher")

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
    assert set(ms) == {line[:24].strip() for line in capsys.readouterr().out.splitlines()[1:7]}
    assert result["machine"]["torch_threads"] >= 1


def test_our_programs_train_one_epoch_a_run(monkeypatch):
    monkeypatch.setattr(models, "CNN", helpers.Small)
    labels = np.arange(200, dtype=np.int32) % 2
    images = np.full((200, 32, 32, 3), 255, np.uint8) * labels[:, None, None, None].astype(np.uint8)
    assert list(train_cost.optimizers()) == [f"diffopt, {noise}" for noise in NOISES]
    for tx in train_cost.optimizers().values():
        run = train_cost.diffopt_run(tx, images, labels)
        assert run() > 0 and run() > 0


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
