"""ResNet-18 trains by every method, and the launcher for a GPU keeps what each program found."""

import json
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from benchmarks import gpu, resnet
from benchmarks.lib import data, models
from tests.benchmarks import helpers


def test_the_network_has_the_parameters_of_its_shapes():
    model = nnx.eval_shape(lambda: models.ResNet18(3, rngs=nnx.Rngs(0)))
    sizes = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert sizes == 11_173_962 == models.size(models.resnet18())
    graphdef, params = nnx.split(model)
    images = jnp.zeros((2, 32, 32, 3))
    logits = jax.eval_shape(lambda params: nnx.merge(graphdef, params)(images), params)
    assert logits.shape == (2, 10) and logits.dtype == jnp.float32


@pytest.mark.slow
def test_every_method_is_scored(tmp_path, monkeypatch, capsys):
    digits = data.digits()
    few = data.Data(
        digits.train_images[:256], digits.train_labels[:256], digits.test_images[:50],
        digits.test_labels[:50],
    )  # fmt: skip
    monkeypatch.setattr(data, "load", lambda *_: few)
    small = lambda channels, *, width, rngs: helpers.Small(channels, rngs=rngs)
    monkeypatch.setattr(models, "ResNet18", small)  # whose own compilation takes minutes
    args = ["--dataset", "digits", "--epochs", "2", "--width", "8", "--out", str(tmp_path)]
    assert resnet.main(args) == 0
    rows = json.loads((tmp_path / "resnet.json").read_text())["rows"]
    assert [row["method"] for row in rows] == list(resnet.METHODS)
    for row in rows:
        assert len(row["losses"]) == 2 and row["epoch_s"] > 0
        assert all(0 <= row[which]["accuracy"] <= 1 for which in ("last", "average"))
    assert "cyclical SGHMC, average" in capsys.readouterr().out


def test_averages_of_a_cyclical_chain_are_at_the_ends_of_cycles():
    averaged = resnet.METHODS["cyclical SGHMC"].averaged
    assert list(averaged(20)) == [5, 10, 15, 20] and list(averaged(3)) == [3]


def test_without_a_gpu_it_says_so(tmp_path, capsys):
    assert gpu.main(["--json", str(tmp_path / "gpu.json")]) == 2
    assert capsys.readouterr().err.startswith("gpu: JAX has no GPU here, only ")


def test_a_program_that_fails_leaves_the_others(tmp_path, monkeypatch, capsys):
    python = tmp_path / "python"  # in place of the interpreter: `python -m benchmarks.NAME FILE`
    python.write_text(
        "#!/bin/sh\ncase $2 in\n*step_cost) echo '{\"rows\": 1}' > $3;;\n"
        "*) echo no such thing >&2; exit 2;;\nesac\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    names = {name: ([str(tmp_path / name)], tmp_path / name) for name in ("step_cost", "resnet")}
    monkeypatch.setattr(gpu, "programs", lambda folder, data_dir: names)
    assert gpu.main(["--json", str(tmp_path / "gpu.json")]) == 1
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["step_cost"] == {"rows": 1}
    assert result["resnet"] == {"status": 2, "stderr": "no such thing\n"}
    assert "resnet has failed: ['no such thing']" in capsys.readouterr().err
