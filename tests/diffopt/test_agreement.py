"""R-hat and effective sample sizes of what chains say, beside ArviZ and closed forms."""

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffopt
from diffopt.run.agreement import _agree, _compare_variances

same = lambda x: x


def autoregression(rho, chains, draws, number, seed=0):
    """Chains x' = ρx + √(1 - ρ²) ξ of the standard normal law, `[chain, draw, number]`."""
    noise = np.random.default_rng(seed).normal(size=(draws, chains, number))
    x = [noise[0]]
    for xi in noise[1:]:
        x.append(rho * x[-1] + np.sqrt(1 - rho**2) * xi)
    return np.stack(x).swapaxes(0, 1)


@pytest.mark.parametrize("draws", [101, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["independent", "slow", "apart", "wide", "ties"])
def test_both_are_those_of_arviz(kind, draws):
    x = autoregression(0.9 if kind == "slow" else 0.0, 4, draws, 6)
    if kind == "apart":
        x[0] += 1
    if kind == "wide":
        x[0] *= 3
    if kind == "ties":
        x = np.round(x)
    rhat, ess = _agree(x)
    columns = np.moveaxis(x, -1, 0)
    np.testing.assert_allclose(rhat, [arviz.rhat(c) for c in columns], rtol=1e-5)
    np.testing.assert_allclose(ess, [arviz.ess(c) for c in columns], rtol=0.08)


@pytest.mark.slow
def test_the_effective_sample_size_of_an_autoregression():
    """S (1 - ρ)/(1 + ρ), within the spread of one estimate."""
    rho, (chains, draws) = 0.7, (4, 2000)
    _, ess = _agree(autoregression(rho, chains, draws, 300))
    exact = chains * draws * (1 - rho) / (1 + rho)
    assert abs(ess.mean() - exact) < ess.std()
    assert ess.std() < 0.1 * exact


def test_the_law_of_rhat_of_independent_draws():
    """(n - 1)/n + F/n, F of Fisher's law, on normal values."""
    chains, draws = 2, 200
    x = autoregression(0.0, chains, draws, 2000)
    halves = np.concatenate([x[:, :100], x[:, 100:]])
    f = 100 * (_compare_variances(halves) ** 2 - 99 / 100)
    d1, d2 = 3, 4 * 99
    mean = d2 / (d2 - 2)
    variance = 2 * d2**2 * (d1 + d2 - 2) / (d1 * (d2 - 2) ** 2 * (d2 - 4))
    assert abs(f.mean() - mean) < 4.5 * np.sqrt(variance / 2000)


def test_predictions_agree_where_weights_do_not():
    """The sign of a weight is free, and each chain has one of its own."""
    w = np.abs(autoregression(0.3, 4, 300, 1)) + 1
    w[::2] *= -1
    with pytest.warns(UserWarning, match=r"do not agree: R-hat is above 1.05 at 1 of 1 numbers"):
        weights = diffopt.agreement(same, jnp.asarray(w))
    square = diffopt.agreement(lambda w, x: {"at x": w[0] ** 2 * x}, jnp.asarray(w), jnp.ones(3))
    assert weights.rhat > 1.5 and weights.ess < 20
    assert square.rhat["at x"].shape == (3,) and (square.rhat["at x"] < 1.02).all()
    assert (square.ess["at x"] > 300).all()


def test_values_that_stand_still():
    x = jnp.zeros((4, 10, 2)).at[:, :, 1].set(jnp.arange(4.0)[:, None])
    with pytest.warns(UserWarning, match="1 of 2 numbers, and inf at most"):
        found = diffopt.agreement(same, x)
    assert found.rhat.tolist() == [1, np.inf] and found.ess[1] < 40 and found.ess[0] >= 40


def test_a_chain_that_diverged_is_left_out():
    tx = diffopt.sgld(0.1, 1.0)
    starts = jnp.array([[0.0], [0.1], [1e3]])
    far = lambda p: jnp.sum(p**2 / 2 + jnp.where(abs(p) > 100, p**4, 0))
    with pytest.warns(UserWarning, match="not finite"):
        samples = diffopt.sample(tx, far, starts, num_steps=2000, every=4, num_chains=None)
    with pytest.warns(UserWarning, match="chain 2 was not finite.*left out"):
        found = diffopt.agreement(jnp.sin, samples)
    assert found.rhat.shape == (1,) and np.isfinite(found.rhat).all()


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="agreement needs 4 draws of each chain or more, got 3"):
        diffopt.agreement(same, jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="samples must be finite"):
        diffopt.agreement(same, jnp.zeros((2, 5)).at[0, 0].set(jnp.nan))
    draws = jnp.arange(10.0).reshape(2, 5)
    with pytest.raises(ValueError, match="fn is NaN at 2 of 10 draws, first chain 1, draw 3"):
        diffopt.agreement(lambda p: jnp.where(p > 7, jnp.nan, p), draws)
    with pytest.raises(
        TypeError, match="fn must give an array or a tree of arrays, got .*shape=.0,."
    ):
        diffopt.agreement(lambda p: jnp.zeros(0), draws)
    with pytest.warns(UserWarning, match="the halves of the chain do not agree"):
        diffopt.agreement(same, jnp.arange(20.0)[None])
    with pytest.raises(ValueError, match="fn must give real numbers, got complex64"):
        diffopt.agreement(lambda p: 1j * p, draws)
    with pytest.raises(TypeError, match="fn must be a function"):
        diffopt.agreement(None, jnp.zeros((2, 5)))
    with pytest.raises(ValueError, match="leading axes"):
        diffopt.agreement(same, jnp.zeros(5))
    assert jax.tree.leaves(diffopt.agreement(same, jnp.ones((1, 8))).rhat) == [1]
