import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import diffopt
from benchmarks import posterior_against_nuts as program
from tests.benchmarks import helpers

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("noise", [0.1, None])
def test_the_loss_is_the_mean_negative_log_posterior(noise):
    problem = program.toy()._replace(noise=noise, hidden=3)
    params = program.init_params(problem, jax.random.key(0))
    prior = sum(
        norm.logpdf(params[name], scale=scale).sum()
        - norm.logpdf(0, scale=scale) * params[name].size
        for name, scale in program.prior_scales(problem).items()
    )
    outputs = program.network(params, problem.x)
    scale = noise or np.exp(params["log_noise"])
    likelihood = norm.logpdf(problem.y, outputs, scale).sum()
    loss = program.mean_loss(problem, params, ...)
    assert float(loss) * len(problem.y) == pytest.approx(-(likelihood + prior), rel=1e-4)
    batches = jnp.arange(40).reshape(4, 10)
    of_batches = [program.mean_loss(problem, params, batch) for batch in batches]
    assert float(np.mean(of_batches)) == pytest.approx(float(loss), rel=1e-5)


def test_a_run_keeps_the_second_half_and_counts_its_gradients():
    problem = program.toy()._replace(hidden=2)
    tx = diffopt.sgld(1e-4, 1 / 40)
    run = program.run_diffopt(
        problem, tx, jax.random.key(0), steps=40, draws=5, batch_size=10, chains=3
    )
    assert run.samples["w1"].shape == (3, 5, 1, 2)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(run.samples))
    assert run.passes == 40 * 3 * 10 / 40


def test_the_report_of_samples_of_the_prior(tmp_path, monkeypatch, capsys):
    def from_prior(problem, key, draws=20, **_):
        keys = jax.random.split(key, (2, draws))
        params = jax.vmap(jax.vmap(lambda k: program.init_params(problem, k)))(keys)
        return program.Sampled(params, 1.0, 7.0)

    monkeypatch.setattr(program, "run_nuts", from_prior)
    monkeypatch.setattr(program, "run_diffopt", lambda p, tx, key, **o: from_prior(p, key, **o))
    assert program.main(["--quick", "--splits", "1", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "posterior_against_nuts.json").read_text())
    rows = report["diabetes"]
    assert list(rows) == ["Adam", "sgld", "sghmc", "baoab", "NUTS"]
    assert rows["NUTS"]["minus_nuts"] == 0 and rows["sgld"]["passes"] == 7
    # the prior's mean is 0, so its prediction is close to the mean of the patients
    assert 60 < rows["sgld"]["rmse"] < 100
    # a network with one sample of log_noise near 0 spreads over about one deviation of the target
    assert -6.5 < rows["sgld"]["log_likelihood"] < -5.3
    assert np.shape(report["toy"]["standard_deviation"]["baoab"]) == (241,)
    assert (tmp_path / "posterior.png").read_bytes().startswith(b"\x89PNG")
    assert "held-out patients" in capsys.readouterr().out


def test_bad_arguments_are_refused(capsys):
    for arguments, sentence in (
        (["--splits", "0"], "'0' is not a whole number from 1"),
        (["--out", "/proc/x"], "--out /proc/x cannot be written"),
    ):
        assert helpers.status(program.main, *arguments) == 2
        assert sentence in capsys.readouterr().err
