"""The program that compares samplers: its references, its errors, its peers, what it writes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffopt
from benchmarks import which_sampler
from benchmarks.lib import problems
from tests.benchmarks import helpers


def test_the_quadrature_of_eight_schools_agrees_with_weighted_draws_of_the_prior():
    problem = problems.eight_schools()
    y = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
    sigma = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])
    rng = np.random.default_rng(0)
    mu, tau = 5 * rng.normal(size=100_000), 5 * np.abs(rng.standard_cauchy(100_000))
    spread = sigma**2 + tau[:, None] ** 2
    residual = y - mu[:, None]
    weight = np.exp(-np.sum(residual**2 / spread + np.log(spread), axis=1) / 2)
    weight /= weight.sum()
    for drawn, mean, deviation in zip(
        (mu, np.log(tau)), problem.mean[:2], problem.deviation[:2], strict=True
    ):
        for value, exact in ((drawn, mean), ((drawn - mean) ** 2, deviation**2)):
            error = np.sqrt(np.sum(weight**2 * (value - exact) ** 2))
            assert abs(np.sum(weight * value) - exact) < 4.5 * error
    eta = tau * residual[:, 0] / spread[:, 0]  # the mean of η₁ given μ and τ
    error = np.sqrt(np.sum(weight**2 * (eta - problem.mean[2]) ** 2))
    assert abs(np.sum(weight * eta) - problem.mean[2]) < 4.5 * error


def independent(cost):
    """A way that draws from the law itself."""
    draw = lambda key, state, batch: 2 + 3 * jax.random.normal(key, (1,))
    return which_sampler.Way("exact", lambda key, theta: theta, draw, lambda state: state, cost)


def test_the_errors_of_independent_draws(cost=4):
    problem = problems.Problem("N(2, 9)", lambda p: p, [0.0], np.array([2.0]), np.array([3.0]))
    chains = 500
    found = which_sampler.curve(problem, independent(cost), 1024, chains)
    assert found["gradients"] == [256, 512, 1024]
    draws = np.array([128, 256, 512]) / cost
    relative = 4.5 / np.sqrt(2 * chains)  # of a root of a mean of squares, nearly normal
    np.testing.assert_allclose(found["mean"], 1 / np.sqrt(draws), rtol=relative)
    variance = np.sqrt(2 / draws - 1 / draws**2)  # of the variance, about a mean that is not known
    np.testing.assert_allclose(found["variance"], variance, rtol=1.3 * relative)


def test_every_chain_sees_every_example_once_in_an_epoch():
    problem = problems.Problem(
        "its batch", lambda p: p, [0.0], np.array([3.5]), np.ones(1),
        data=jnp.arange(8.0), batch_size=2,
    )  # fmt: skip
    way = which_sampler.Way(
        "mean of the batch", lambda key, theta: theta,
        lambda key, state, batch: batch.mean()[None], lambda state: state, 1, 2,
    )  # fmt: skip
    found = which_sampler.curve(problem, way, 512, chains=3)
    np.testing.assert_allclose(found["mean"], 0, atol=1e-5)
    assert found["gradients"] == [256, 512]


@pytest.mark.parametrize("library", which_sampler.peers())
def test_sgld_of_the_peers_takes_our_step(library):
    problem = problems.gaussian()._replace(temperature=1e-12)
    theta = jnp.linspace(1.0, 2.0, 10)
    way = which_sampler.peers()[library]("sgld", problem, 1e-4)
    moved = way.position(way.step(jax.random.key(0), way.init(jax.random.key(1), theta), None))
    np.testing.assert_allclose(moved, theta - 1e-4 * jax.grad(problem.loss)(theta), rtol=1e-4)


@pytest.mark.slow
def test_a_velocity_of_blackjax_has_our_momentum_and_noise():
    problem = problems.gaussian()
    way = which_sampler.blackjax_way("sgnht", problem, 0.01)
    state = way.init(jax.random.key(0), jnp.zeros(10))._replace(momentum=jnp.ones(10))
    keys = jax.random.split(jax.random.key(1), 20_000)
    after = np.asarray(jax.vmap(lambda key: way.step(key, state, None).momentum)(keys), float)
    variance = 2 * (1 - 0.9)  # 2(1 - m)T for u = v/√η, at T = 1
    assert abs(after.mean() - 0.9) < 4.5 * np.sqrt(variance / after.size)
    assert abs(after.var() / variance - 1) < 4.5 * np.sqrt(2 / after.size)


def test_a_refused_step_size_and_a_diverged_chain_are_told():
    row = {"problem": "P", "sampler": "S", "step_size": 0.125, "refusal": "no", "gradients": [256]}
    assert which_sampler.cell(row | {"mean": [0.1], "variance": [None]}) == "0.1, diverged (0.12*)"
    assert which_sampler.cell(row | {"gradients": [], "mean": [], "variance": []}) == "refused"
    head, body = which_sampler.table([row | {"refusal": "", "mean": [0.25], "variance": []}])
    assert (head, body) == (["sampler", "P"], [["S", "0.25 (0.12)"]])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--problems", "none"], "invalid choice: 'none'"),
        (["--problems", "mixture", "mixture"], "--problems: mixture is given twice"),
        (["--out", "/proc/x"], "which_sampler: --out /proc/x cannot be written"),
    ],
)
def test_bad_arguments_give_one_sentence_and_status_2(arguments, sentence, capsys):
    assert helpers.status(which_sampler.main, *arguments) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_the_law_of_the_logistic_regression_is_that_of_long_chains():
    problem = problems.logistic_regression(1000)
    samples = diffopt.sample(
        diffopt.baoab(0.5, problem.temperature), problem.loss,
        jnp.asarray(problem.mean, jnp.float32), problem.data,
        num_steps=20_000, burn_in=1000, num_chains=32,
    )  # fmt: skip
    z = (np.asarray(samples.draws, float) - problem.mean) / problem.deviation
    for value, exact in ((z, 0), (z**2, 1)):
        of_chains = value.mean(1)
        error = of_chains.std(0, ddof=1) / np.sqrt(len(of_chains))
        assert (np.abs(of_chains.mean(0) - exact) < 4.5 * error).all()


@pytest.mark.slow
def test_a_quick_run_writes_the_figures_of_every_sampler(tmp_path, capsys):
    assert (
        helpers.status(which_sampler.main, "--quick", "--problems", "mixture", "--out", tmp_path)
        == 0
    )
    found = json.loads((tmp_path / "which_sampler.json").read_text())
    names = [row["sampler"] for row in found["rows"]]
    assert set(which_sampler.SAMPLERS) | {"BlackJAX sgld", "replica exchange"} <= set(names)
    assert all(row["gradients"] == [256, 512, 1024] for row in found["rows"])
    ours = [row for row in found["rows"] if row["sampler"] in which_sampler.SAMPLERS]
    assert all(0 < row["mean"][-1] < 1 and not row["variance"] for row in ours)
    assert (tmp_path / "samplers_choice.png").read_bytes().startswith(b"\x89PNG")
    assert "errors at 1,024 gradients" in capsys.readouterr().out
