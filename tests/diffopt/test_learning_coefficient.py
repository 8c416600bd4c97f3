"""What the estimates return and refuse."""

import re
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffopt
from diffopt.run import program

pytestmark = pytest.mark.slow

DATA = jnp.linspace(-1.0, 1.0, 20)
OPTIONS = {"step_size": 0.3, "num_steps": 30, "burn_in": 10, "num_chains": 3}


def loss(w, batch):
    return jnp.mean((w - batch) ** 2) / 2


def log_prior(w):
    return -(w**2) / 2


def llc(**arguments):
    return diffopt.local_learning_coefficient(
        **{"loss": loss, "params": jnp.zeros([]), "data": DATA} | OPTIONS | arguments
    )


def wbic(**arguments):
    return diffopt.wbic(
        **{"loss": loss, "params": jnp.zeros([]), "data": DATA, "log_prior": log_prior}
        | OPTIONS
        | arguments
    )


@pytest.mark.parametrize("batch_size", [None, 7])
def test_what_is_returned(batch_size):
    estimate = llc(batch_size=batch_size)
    assert estimate.losses.shape == (3, 30)
    assert estimate.per_chain.shape == (3,)
    start = loss(0.0, DATA)
    np.testing.assert_allclose(estimate.losses[:, 0], start, rtol=1e-5)
    excess = estimate.losses[:, 10:].mean(1) - start
    np.testing.assert_allclose(estimate.per_chain, excess * 20 / np.log(20), rtol=1e-3)
    np.testing.assert_allclose(estimate.mean, np.mean(estimate.per_chain), rtol=1e-6)
    error = np.std(estimate.per_chain, ddof=1) / 3**0.5
    np.testing.assert_allclose(estimate.standard_error, error, rtol=1e-5)
    assert len(set(np.asarray(estimate.per_chain).tolist())) == 3  # chains of their own


def test_the_free_energy_is_of_all_examples_with_nothing_subtracted():
    estimate = wbic()
    np.testing.assert_allclose(estimate.per_chain, 20 * estimate.losses[:, 10:].mean(1), rtol=1e-6)


def test_a_key_is_the_same_estimate_and_another_another():
    assert llc(key=1).mean == llc(key=1).mean
    assert llc(key=1).mean != llc(key=jax.random.key(2)).mean


@pytest.mark.parametrize("make", [llc, wbic])
def test_one_chain_has_a_standard_error_of_its_eighths(make):
    estimate = make(num_chains=1, num_steps=90)
    scale = 20 if make is wbic else 20 / np.log(20)
    eighths = scale * np.asarray(estimate.losses[0, 10:], float).reshape(8, 10).mean(1)
    error = eighths.std(ddof=1) / 8**0.5
    np.testing.assert_allclose(estimate.standard_error, error, rtol=1e-3)


def test_a_second_network_needs_no_second_compilation():
    llc(batch_size=5)
    programs = set(map(id, program._programs.values()))
    llc(loss=lambda w, batch: loss(w, batch), params=jnp.ones([]), batch_size=5, key=3)
    assert set(map(id, program._programs.values())) == programs


def test_numbers_may_be_arrays():
    numbers = {name: jnp.array(OPTIONS[name]) for name in ("num_steps", "burn_in", "num_chains")}
    assert llc(batch_size=jnp.array(7), **numbers).mean == llc(batch_size=7).mean


def test_a_chain_that_diverges_is_named_and_left_out():
    # a slope below w = -2 takes a chain away for good
    cliff = lambda w: jnp.where(w > -2, w**2 / 2, -jnp.exp(w**2))
    with pytest.warns(UserWarning, match="chains .* not finite at step"):
        estimate = llc(loss=cliff, data=None, temperature=1.0, num_chains=20, num_steps=60, key=1)
    good = np.isfinite(np.asarray(estimate.per_chain))
    assert 0 < good.sum() < 20
    np.testing.assert_allclose(
        estimate.mean, np.asarray(estimate.per_chain)[good].mean(), rtol=1e-6
    )
    with warnings.catch_warnings(), pytest.raises(ValueError, match="every chain diverged"):
        warnings.simplefilter("ignore")
        llc(step_size=50.0, num_steps=500, burn_in=0)


def test_chains_that_all_diverge_before_the_end_of_burn_in_are_told():
    with warnings.catch_warnings(), pytest.raises(ValueError, match="every chain diverged"):
        warnings.simplefilter("ignore")
        llc(step_size=1e6, num_steps=500, burn_in=400)


@pytest.mark.parametrize("estimate", [llc, wbic])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"step_size": 0.0}, ValueError, "step_size"),
        ({"step_size": None}, TypeError, "step_size"),
        ({"num_steps": 0}, ValueError, "num_steps"),
        ({"num_steps": 10.0}, TypeError, "num_steps"),
        ({"burn_in": -1}, ValueError, "burn_in"),
        ({"burn_in": 30}, ValueError, "burn_in must be < num_steps = 30, got 30"),
        ({"num_chains": 0}, ValueError, "num_chains"),
        ({"batch_size": 21}, ValueError, "batch_size must be ≤ the 20 examples"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"key": 1.5}, TypeError, "key"),
        ({"params": jnp.zeros([], int)}, TypeError, "floating-point"),
        ({"loss": lambda w, batch: w - batch}, TypeError, "loss must return a real scalar"),
        ({"loss": lambda w, batch: 1j * w}, TypeError, "loss must return a real scalar"),
        ({"data": {"x": DATA, "y": DATA[1:]}}, ValueError, "leading axis"),
        ({"data": DATA[:1]}, ValueError, "at least 2 examples, got 1"),
        ({"data": None}, ValueError, "needs a temperature"),
    ],
)
def test_bad_arguments_are_named(estimate, arguments, error, message):
    with pytest.raises(error, match=message):
        estimate(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"temperature": 0.0}, ValueError, "temperature"),
        ({"temperature": "hot"}, TypeError, "temperature"),
        ({"localization": -1.0}, ValueError, "localization"),
        ({"data": None, "temperature": 1.0, "batch_size": 3}, ValueError, "batch_size needs data"),
    ],
)
def test_bad_arguments_of_the_coefficient_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        llc(**arguments)


def test_the_prior_has_to_be_a_density():
    with pytest.raises(TypeError, match="log_prior"):
        wbic(log_prior=lambda w: jnp.ones(3) * w)
    with pytest.raises(TypeError, match="log_prior"):
        diffopt.wbic(loss, jnp.zeros([]), DATA, **OPTIONS)


def bowl(w):
    return jnp.sum(w**2) / 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(step_size=1.9), r"λ̂ = .* is above d/2 = 2, which no λ is"),
        (
            dict(step_size=0.002, burn_in=0),
            "not at rest after burn_in: λ̂ is .* and .* in the second",
        ),
    ],
)
def test_a_doubtful_estimate_is_told(arguments, message):
    options = dict(temperature=0.01, num_steps=500, burn_in=100, num_chains=8) | arguments
    with pytest.warns(UserWarning, match=message):
        diffopt.local_learning_coefficient(bowl, jnp.zeros(4), **options)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, r"times theirs, 0.15, log\(n\)/n of 20 examples: they still descend"),
        (dict(temperature=0.01), "times theirs, 0.01: they still descend"),
    ],
)
def test_hot_chains_are_told_with_the_temperature_that_they_were_given(arguments, told):
    with pytest.warns(UserWarning, match="the chains read the temperature .* " + told):
        llc(step_size=1.95, localization=0, num_steps=300, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llc(temperature=5.0, localization=0, num_steps=300)  # 33 times log(n)/n, and asked for


def test_a_sampler_that_cannot_be_called_is_named():
    with pytest.raises(TypeError, match="sampler must accept sampler.step_size, temperature"):
        llc(sampler=lambda step_size: diffopt.sgld(step_size, 1.0))


# A loss that is no mean, a loss that is too coarse, and a point that is no minimum

CLASSES = jnp.arange(200) % 5 == 0
VALUES = jax.random.normal(jax.random.key(0), (200,)) + 2 * CLASSES
MODE = VALUES.mean()


def weighted(w, batch):
    is_rare, y = batch
    weight = jnp.where(is_rare, 4.0, 1.0)
    return jnp.sum(weight * (w - y) ** 2) / jnp.sum(weight) / 2


def summed(w, batch):
    return jnp.sum((w - batch[1]) ** 2) / 2


@pytest.mark.filterwarnings("ignore:the chains", "ignore:λ̂")
@pytest.mark.parametrize("estimate", [llc, wbic])
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (weighted, "loss is .*: it is not a mean over examples"),
        (summed, "loss is .*: it sums over"),
    ],
)
def test_a_loss_that_is_no_mean_is_told_once(estimate, loss, message):
    with pytest.warns(UserWarning) as told:
        estimate(loss=loss, params=MODE, data=(CLASSES, VALUES), batch_size=8, step_size=0.01)
    (doubt,) = [str(w.message) for w in told if str(w.message).startswith("loss is")]
    assert re.match(message, doubt)


def raised(w, by):
    return by + jnp.sum(w**2) / 2


@pytest.mark.parametrize(("by", "temperature"), [(1e4, 1e-4), (1e2, 1e-6), (1e3, 1e-4)])
def test_a_loss_too_coarse_for_the_temperature_is_told(by, temperature):
    with pytest.warns(
        UserWarning, match="the loss at params is known to .* not far below the temp"
    ):
        llc(
            loss=partial(raised, by=by), data=None, params=jnp.zeros(4), temperature=temperature,
            num_steps=200,
        )  # fmt: skip


@pytest.mark.parametrize(("by", "temperature", "x64"), [(1e2, 1e-4, False), (1e4, 1e-4, True)])
def test_a_loss_that_is_known_well_below_the_temperature_is_right(by, temperature, x64):
    with jax.enable_x64(x64):
        estimate = llc(
            loss=partial(raised, by=by), data=None, params=jnp.zeros(4), temperature=temperature,
            sampler=diffopt.baoab, num_steps=3000, burn_in=200, num_chains=32,
        )  # fmt: skip
        exact = 4 / (1 + temperature) / 2
        assert estimate.losses.dtype == (jnp.float64 if x64 else jnp.float32)
        assert estimate.standard_error < 0.05
        assert abs(estimate.mean - exact) < 4.5 * estimate.standard_error


def test_a_coarse_likelihood_is_told():
    data = jnp.linspace(-1.0, 1.0, 200_000)
    with pytest.warns(
        UserWarning, match="the loss at params is known to .* not far below the temp"
    ):
        wbic(loss=lambda w, y: 100 + loss(w, y), data=data, num_steps=12)


def test_a_coefficient_below_0_is_told():
    double_well = lambda w: jnp.sum((w**2 - 1) ** 2) / 4
    with pytest.warns(
        UserWarning, match="λ̂ = -.* is below 0, which no λ is: params are no minimum"
    ):
        llc(
            loss=double_well, data=None, params=jnp.zeros(4), temperature=0.01, step_size=0.1,
            num_steps=600, burn_in=300, num_chains=8,
        )  # fmt: skip
