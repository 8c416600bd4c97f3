import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from benchmarks import effective_samples as program
from tests.benchmarks import helpers

pytestmark = pytest.mark.slow


@pytest.fixture
def gaussian(monkeypatch):
    """Two independent standard deviations, 1 and 2, in place of the posteriors."""
    scale = jnp.array([1.0, 2.0])
    model = program.Model(
        "Gaussian",
        lambda theta: jnp.sum((theta / scale) ** 2) / 2,
        1.0,
        lambda key: scale * jax.random.normal(key, (2,)),
        lambda theta: theta * jnp.array([1.0, -1.0]),
    )
    monkeypatch.setattr(program, "MODELS", {"gaussian": lambda: model})
    return model


@pytest.mark.parametrize("method", [method for method, _ in program.methods()])
def test_every_method_draws_from_the_posterior(gaussian, method):
    run = dict(program.methods())[method](gaussian, 4000)
    chains, number, size = run.draws.shape
    assert (chains, size) == (program.CHAINS, 2) and run.gradients >= chains * number
    row = program.measure(gaussian, run, np.array([1.0, 2.0]))
    assert row["effective"] > 100
    assert row["effective_predictions"] == pytest.approx(row["effective"], rel=1e-3)
    # BAOAB is exact on a Gaussian, microcanonical dynamics errs by what its tuner allows
    error = 4.5 / (2 * row["effective"]) ** 0.5
    assert abs(row["spread"] - 1) < error + (0.05 if "mclmc" in method.lower() else 0)


def test_the_regression_is_the_posterior_of_its_rows():
    model = program.MODELS["regression"]()
    x, y, others = program.diabetes()
    theta, zero = model.start(jax.random.key(0)), jnp.zeros(12)
    expected = [
        norm.logpdf(y, program.line(t[:-1], x), np.exp(t[-1])).sum() + norm.logpdf(t).sum()
        for t in (theta, zero)
    ]
    ours = model.log_density(theta) - model.log_density(zero)
    assert float(ours) == pytest.approx(expected[0] - expected[1], rel=1e-3)
    assert model.predict(theta).shape == (len(others),) == (program.HELD_OUT,)


def test_a_run_writes_a_row_for_each_method(gaussian, tmp_path, capsys):
    assert program.main(["--quick", "--models", "gaussian", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "effective_samples.json").read_text())
    assert [row["method"] for row in result["rows"]] == [name for name, _ in program.methods()]
    assert result["rows"][0]["spread"] is None and result["rows"][1]["spread"] > 0
    assert "Wrote" in capsys.readouterr().out


def test_bad_arguments_are_refused(capsys):
    assert helpers.status(program.main, "--out", "/proc/x") == 2
    assert "--out /proc/x cannot be written" in capsys.readouterr().err
