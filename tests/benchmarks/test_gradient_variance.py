"""The program of the gradient estimators; their laws are held in tests/diffopt."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gradient_variance
from tests.benchmarks import helpers

pytestmark = pytest.mark.slow


def test_it_writes_a_row_for_each_way(tmp_path, capsys):
    arguments = ["--steps", 60, 40, "--chains", 2, "--batches", 200, "--out", tmp_path]
    assert helpers.status(gradient_variance.main, *arguments) == 0
    found = json.loads((tmp_path / "gradient_variance.json").read_text())
    assert found["config"] == {"steps": [60, 40], "chains": 2, "batches": 200}
    for row in found["posterior"]:
        assert row["lowest"] <= row["highest"]
        gradients = {"logistic": 60 * 100, "diabetes": 40 * 32}[row["problem"]]
        assert row["gradients_per_step"] * row["steps"] == pytest.approx(gradients, rel=0.02)
    names = "problem", "sampler", "gradient", "batches"
    ways = {tuple(row[name] for name in names) for row in found["posterior"]}
    assert len(ways) == len(found["posterior"]) == 6 + 11
    for value in found["gradient_variance"].values():
        assert value["measured"] == pytest.approx(value["theory"], rel=0.2)
    assert "lower by a factor of" in capsys.readouterr().out


def test_bad_arguments_give_one_sentence_and_status_2(capsys):
    assert helpers.status(gradient_variance.main, "--chains", 1) == 2
    assert "'1' is not a whole number from 2" in capsys.readouterr().err


def test_friction_that_covers_anisotropic_noise_holds_each_direction_to_first_order():
    eta, T, chains = 0.01, 0.5, 5000
    curvature, noise = jnp.array([0.2, 1.0, 4.0]), jnp.array([0.0, 1.0, 3.0])

    def run(key):
        start_key, noise_key, key = jax.random.split(key, 3)
        tx = gradient_variance.covered_sghmc(eta, T, momentum=0.9, diagonal=False, key=noise_key)

        def step(carry, key):
            theta, state = carry
            grads = curvature * theta + noise * jax.random.normal(key, (3,))
            updates, state = tx.update(grads, state)
            return (theta + updates, state), None

        theta = jnp.sqrt(T / curvature) * jax.random.normal(start_key, (3,))
        return jax.lax.scan(step, (theta, tx.init(theta)), jax.random.split(key, 1500))[0][0]

    theta = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), chains))
    ratios = np.asarray(curvature * jnp.mean(theta**2, axis=0) / T)
    assert (abs(ratios - 1) < 4.5 * np.sqrt(2 / chains) + eta * 4.0).all()
    uncovered = eta * 9.0 / (2 * 0.1) / T  # by which `sghmc` is too hot in the last
    assert uncovered > 0.8
