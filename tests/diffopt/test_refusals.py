"""What a user can get wrong, or have unusual, and what comes of it."""

from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt
from diffopt.run import program
from diffopt.run import sample as sample_module


def quadratic(p):
    return jnp.sum(jnp.square(p)) / 2


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda g, xi, s: g, "step must return"),
        (
            lambda g, xi, s: (jax.tree.map(jnp.sum, g), s),
            r"updates of step\['a'\] must",
        ),
        (lambda g, xi, s: (0.0, s), "updates of step must have the structure"),
        (lambda g, xi, s: (g, None), "state of step must have the structure"),
        (
            lambda g, xi, s: (g, s._replace(count=jnp.zeros(3))),
            "state of step.count must have the",
        ),
    ],
)
def test_a_step_of_another_shape_is_named(step, message):
    tx = diffopt.sampler(step)
    params = {"a": jnp.ones(3)}
    with pytest.raises(TypeError, match=message):
        tx.update(params, tx.init(params))


def test_a_state_without_a_key_is_named():
    tx = diffopt.sampler(lambda g, xi, s: (g, s), lambda p, count, key: {"count": count})
    with pytest.raises(TypeError, match="init must return a NamedTuple with count and key"):
        tx.init(jnp.ones(3))


@pytest.mark.parametrize("tx", [optax.scale(-0.1), optax.MultiSteps(diffopt.sgld(0.1, 1.0), 2)])
def test_sample_compiles_once_for_a_transformation_without_extra_arguments(tx):
    diffopt.sample(tx, quadratic, jnp.ones(2), num_steps=2)
    programs = set(map(id, program._programs.values()))
    diffopt.sample(tx, quadratic, jnp.ones(2), num_steps=2)
    assert set(map(id, program._programs.values())) == programs


def test_the_mean_loss_of_a_chunk_is_not_summed_in_16_bits(monkeypatch):
    seen = []
    describe = lambda meter, carry: seen.append(meter) or ""
    monkeypatch.setattr(sample_module, "_describe", describe)
    monkeypatch.setattr(sample_module, "CHUNK_SECONDS", 1e9)  # however slow the machine
    loss = lambda p: (2.25 + 0 * jnp.sum(p)).astype(jnp.bfloat16)
    diffopt.sample(optax.sgd(0.1), loss, jnp.ones(2), num_steps=5_000, progress=True)
    means = [float(np.mean(meter.loss / meter.steps)) for meter in seen]
    assert max(int(meter.steps[0]) for meter in seen) > 1000
    np.testing.assert_allclose(means, 2.25, rtol=1e-5)


def test_noise_that_is_not_finite_is_not_called_quiet():
    noise = diffopt.gradient_noise_temperature(jnp.full((6, 3), jnp.nan), 0.1)
    assert jnp.isnan(noise.noisiest)
    assert diffopt.gradient_noise_temperature(jnp.ones((6, 3)), 0.1).noisiest == 0


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [None, 2])
def test_estimates_are_float32_where_the_loss_is_not(batch_size):
    loss = lambda p, x: (quadratic(p) + 0 * jnp.mean(x)).astype(jnp.bfloat16)
    estimate = diffopt.local_learning_coefficient(
        loss,
        jnp.zeros(2),
        jnp.ones(6),
        sampler=partial(diffopt.sgld, noise="rademacher"),
        step_size=0.1,
        num_steps=9,
        burn_in=2,
        batch_size=batch_size,
    )
    assert {x.dtype for x in estimate} == {jnp.dtype("float32")}


def test_a_prior_on_bfloat16_under_strict_promotion():
    tx, params = diffopt.gaussian_prior(1.0, 0.5), jnp.ones(2, jnp.bfloat16)
    with jax.numpy_dtype_promotion("strict"):
        updates, _ = tx.update(params, tx.init(params), params)
    assert updates.dtype == jnp.bfloat16 and updates.tolist() == [1.5, 1.5]


@pytest.mark.filterwarnings("error")
def test_the_mean_of_integers_is_float32():
    mean = diffopt.predictive(lambda p: jnp.int32(p > 0), jnp.array([-1.0, 1.0, 2.0, 3.0]))
    assert mean.dtype == jnp.float32 and mean == 0.75


@pytest.mark.parametrize("number", [Fraction(1, 4), np.longdouble(0.25), np.float16(0.25)])
def test_real_numbers_of_python_and_numpy_are_numbers(number):
    tx = diffopt.sgld(number, 0.0)
    assert tx.update(jnp.ones(1), tx.init(jnp.ones(1)))[0].item() == -0.25


@pytest.mark.slow
def test_a_step_size_for_a_temperature_in_an_array():
    args = partial(diffopt.sgld, noise="rademacher"), quadratic, jnp.zeros(2)
    number = diffopt.find_step_size(*args, temperature=0.5, max_gradients=800)[0]
    array = diffopt.find_step_size(*args, temperature=jnp.array(0.5), max_gradients=800)[0]
    assert array == number


def test_arviz_does_not_lose_a_leaf_of_the_same_name():
    pytest.importorskip("arviz")
    loss = lambda p: quadratic(p["a.b"]) + quadratic(p["a"]["b"])
    params = {"a.b": jnp.ones(2), "a": {"b": jnp.ones(3)}}
    samples = diffopt.sample(optax.sgd(0.1), loss, params, num_steps=2)
    with pytest.raises(ValueError, match="several leaves of draws have one name"):
        diffopt.to_arviz(samples)


def test_wrong_types_are_named():
    with pytest.raises(TypeError, match="num_chains must be an int, got 2.5"):
        diffopt.split_keys(diffopt.sgld(0.1, 1.0).init(jnp.ones(2)), 2.5)
    with pytest.raises(ValueError, match="noise must be one of"):
        diffopt.sgld(0.1, 1.0, noise=["gaussian"])


@pytest.mark.parametrize(
    ("loss", "data", "note"),
    [
        (lambda p, batch: 0.0, None, "calls loss(params), here with params['w'] float32[3]"),
        (
            lambda batch, p: jnp.sum(p["w"]),
            (np.zeros((5, 2), np.float32), np.zeros(5, np.int32)),
            "calls loss(params, batch), here with params['w'] float32[3],"
            " batch[0] float32[5, 2], batch[1] int32[5]",
        ),
    ],
    ids=["a loss of batches without data", "arguments in the wrong order"],
)
def test_an_error_of_the_loss_tells_how_it_was_called(loss, data, note):
    with pytest.raises(TypeError) as caught:
        diffopt.sample(diffopt.sgld(0.1, 1.0), loss, {"w": jnp.zeros(3)}, data, num_steps=1)
    assert caught.value.__notes__[-1] == f"one chain {note}"


def test_an_error_of_a_loss_of_many_leaves_is_short():
    with pytest.raises(ZeroDivisionError) as caught:
        diffopt.sample(diffopt.sgld(0.1, 1.0), lambda p: 1 / 0, [jnp.zeros(2)] * 99, num_steps=1)
    assert caught.value.__notes__[-1].endswith("params[7] float32[2], ...")


@pytest.mark.parametrize("tx", [1e-3, optax.adamw])
def test_what_is_no_transformation_is_not_stored_in_16_bits(tx):
    with pytest.raises(TypeError, match="tx must be an Optax transformation, got"):
        diffopt.low_precision(tx)
