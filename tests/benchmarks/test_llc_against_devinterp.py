import json

import jax
import numpy as np
import pytest

from benchmarks import llc_against_devinterp, llc_training
from benchmarks.lib import models
from tests.benchmarks import helpers

pytestmark = pytest.mark.slow

TINY = ["--epochs", "1", "--steps", "4", "--burn-in", "2", "--chains", "2", "--batch", "96"]


def test_without_its_peer_the_program_runs_alone(tmp_path, monkeypatch, capsys):
    helpers.make_small(monkeypatch)
    monkeypatch.setattr(llc_against_devinterp, "PEER", "a_package_that_nobody_has")
    assert llc_against_devinterp.main([*TINY, "--out", str(tmp_path)]) == 0
    assert "compared with nothing" in capsys.readouterr().out
    result = json.loads((tmp_path / "llc_against_devinterp.json").read_text())
    assert result["comparison"] is None
    ours = result["results"]["diffopt"]
    assert ours["mean"] == pytest.approx(np.mean(ours["per_chain"]))
    assert len(ours["losses"]) == 4


@pytest.mark.parametrize("wrong", [["--burn-in", "4"], ["--chains", "1"], ["--step-size", "0"]])
def test_bad_arguments_are_refused(wrong):
    with pytest.raises(SystemExit):
        llc_against_devinterp.parse_args([*TINY, *wrong])


def test_the_peer_is_given_the_same_network():
    torch = pytest.importorskip("torch")
    graphdef, params = models.init_cnn(1, 0)
    images = np.random.default_rng(0).normal(size=(5, 32, 32, 1)).astype(np.float32)
    ours = models.nnx.merge(graphdef, params)(images)
    theirs = llc_against_devinterp.torch_network(params, 1)(torch.tensor(images)).detach().numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_every_pair_is_learnt_or_held_out():
    (pairs, sums), (others, _) = llc_training.additions()
    assert len(pairs) == 576
    assert len({tuple(p) for p in np.concatenate([pairs, others]).tolist()}) == 31**2
    np.testing.assert_array_equal(sums, (pairs[:, 0] + pairs[:, 1]) % 31)
    weights = llc_training.init_transformer(jax.random.key(0))
    assert llc_training.add(weights, pairs).shape == (576, 31)


@pytest.mark.slow
def test_the_coefficient_along_training_is_drawn(tmp_path, monkeypatch):
    helpers.make_small(monkeypatch)
    options = ["--quick", "--chains", "2", "--steps", "8", "--out", str(tmp_path)]
    assert llc_training.main(options) == 0
    result = json.loads((tmp_path / "llc_training.json").read_text())
    assert [row["at"] for row in result["addition"]] == [50, 100]
    assert result["addition"][1]["train_loss"] < result["addition"][0]["train_loss"]
    assert {p.name for p in tmp_path.glob("*.png")} == {"llc_grokking.png", "llc_digits.png"}
