"""`sample`: what a draw is, going on, the data, keys, divergence, bad input, many devices."""

import os
import re
import subprocess
import sys
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt
from diffopt.run import program
from diffopt.run import sample as sample_module
from diffopt.run.batches import permute

pytestmark = pytest.mark.slow

X = jax.random.normal(jax.random.key(1), (50, 3))
Y = X @ jnp.array([1.0, -2.0, 0.5]) + jax.random.normal(jax.random.key(2), (50,))
START = {"w": jnp.zeros(3), "b": jnp.zeros([])}


def loss(params, batch):
    x, y = batch
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2) / 2


def bowl(params):
    return jnp.sum(params**2) / 2


SGHMC = diffopt.sghmc(0.05, temperature=1 / 50)
LANGEVIN = diffopt.sgld(0.1, temperature=1.0)


@pytest.fixture(scope="module")
def run():
    """Four chains with minibatches, and what `on_draw` saw of them."""
    seen = []
    samples = diffopt.sample(
        SGHMC,
        loss,
        START,
        (X, Y),
        num_steps=300,
        num_chains=4,
        batch_size=16,
        burn_in=50,
        every=5,
        on_draw=lambda step, draw: seen.append((step, draw)),
    )
    return samples, seen


def leaves_equal(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


# What a draw is


def test_without_noise_the_draws_are_the_iterates_of_the_optimizer():
    tx = optax.sgd(0.1, momentum=0.9)
    samples = diffopt.sample(tx, loss, START, (X, Y), num_steps=7, burn_in=1, every=2)
    params, state = START, tx.init(START)
    for step in range(8):
        if step in (1, 3, 5):
            draw = jax.tree.map(lambda d: d[0, step // 2], samples.draws)
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), draw, params)
        if step == 7:
            last = jax.tree.map(lambda p: p[0], samples.params)
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), last, params)
        updates, state = tx.update(jax.grad(loss)(params, (X, Y)), state)
        params = optax.apply_updates(params, updates)
    assert samples.draws["w"].shape == (1, 3, 3) and samples.draws["b"].shape == (1, 3)


def test_with_noise_each_chain_is_the_sampler_under_its_own_state():
    first = diffopt.sample(LANGEVIN, bowl, jnp.ones(3), num_steps=1, num_chains=4)
    more = diffopt.sample(LANGEVIN, bowl, first.params, num_steps=3, state=first.state)
    params, state = first.params, first.state.opt_state
    for step in range(3):
        np.testing.assert_allclose(more.draws[:, step], params, rtol=1e-5, atol=1e-6)
        updates, state = jax.vmap(LANGEVIN.update)(params, state)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(more.params, params, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:the chains read the temperature")
@pytest.mark.parametrize("tx", [LANGEVIN, diffopt.baoab(0.3, 1.0)], ids=["sgld", "baoab"])
def test_loss_and_temperatures_are_those_of_the_draw(tx):
    samples = diffopt.sample(
        tx, loss, START, (X, Y), num_steps=20, burn_in=4, every=4, num_chains=2
    )
    value = lambda draw: jax.value_and_grad(loss)(draw, (X, Y))
    losses, grads = jax.vmap(jax.vmap(value))(samples.draws)
    np.testing.assert_allclose(samples.losses, losses, rtol=1e-5)
    near = diffopt.sample(tx, loss, START, (X, Y), num_steps=3, num_chains=2).draws
    origin = jax.tree.map(lambda d: d[:, 2:3], near)  # half-way through the burn-in
    away = jax.tree.map(jnp.subtract, samples.draws, origin)
    one = lambda p, g: diffopt.configurational_temperature(p, g).overall
    expected = jax.vmap(jax.vmap(one))(away, grads)
    np.testing.assert_allclose(samples.temperatures.configurational, expected, rtol=1e-4, atol=1e-6)
    kinetic = samples.temperatures.kinetic
    assert kinetic is None if tx is LANGEVIN else kinetic.shape == (2, 4)


def test_kinetic_temperature_of_the_last_state():
    tx = diffopt.baoab(0.3, 1.0)
    first = diffopt.sample(tx, bowl, jnp.ones(50), num_steps=5, num_chains=3)
    more = diffopt.sample(tx, bowl, first.params, num_steps=1, state=first.state)
    expected = jax.vmap(diffopt.kinetic_temperature)(first.state.opt_state).overall
    np.testing.assert_allclose(more.temperatures.kinetic[:, 0], expected, rtol=1e-5)


def test_starts_of_their_own():
    starts = jax.random.normal(jax.random.key(0), (4, 3))
    samples = diffopt.sample(LANGEVIN, bowl, starts, num_steps=2, num_chains=None)
    np.testing.assert_array_equal(samples.draws[:, 0], starts)
    assert samples.losses.shape == (4, 2) and samples.diverged.tolist() == [-1] * 4


def test_the_transformation_gets_the_loss():
    def update(updates, state, params=None, *, value, **extra):
        return jax.tree.map(lambda g: jnp.full_like(g, value), updates), state

    tx = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    samples = diffopt.sample(tx, bowl, jnp.ones(2), num_steps=3)
    assert samples.draws[0].tolist() == [[1, 1], [2, 2], [6, 6]]


def test_complex_parameters_go_downhill():
    samples = diffopt.sample(
        optax.sgd(0.1), lambda z: jnp.sum(jnp.abs(z) ** 2) / 2, jnp.array([3 + 4j]), num_steps=3
    )
    np.testing.assert_allclose(samples.draws[0, :, 0], (3 + 4j) * 0.9 ** np.arange(3), rtol=1e-5)
    away = 1 - 0.9 ** np.arange(3)  # from the start, on the way to 0
    expected = -12.5 * away * 0.9 ** np.arange(3)
    np.testing.assert_allclose(samples.temperatures.configurational[0], expected, rtol=1e-5)


def test_draws_where_a_schedule_says():
    stage = diffopt.sampling_stage(10, 0.7)
    samples = diffopt.sample(optax.sgd(1e-3), bowl, jnp.ones([]), num_steps=25, where=stage)
    expected = [0.999**step for step in (7, 8, 9, 17, 18, 19)]
    np.testing.assert_allclose(samples.draws[0], expected, rtol=1e-5)
    more = diffopt.sample(
        optax.sgd(1e-3), bowl, samples.params, num_steps=5, where=stage, state=samples.state
    )
    np.testing.assert_allclose(more.draws[0], [0.999**step for step in (27, 28, 29)], rtol=1e-5)


# The data


def count_examples(params, batch):
    return jnp.mean(batch @ params)  # whose gradient is the share of each example in the batch


@pytest.mark.filterwarnings("ignore:two chains are equal")
@pytest.mark.parametrize(("batch_size", "steps"), [(4, 3), (5, 2), (12, 1), (None, 1)])
def test_an_epoch_has_every_example_once(batch_size, steps):
    samples = diffopt.sample(
        optax.sgd(1.0),
        count_examples,
        jnp.zeros(12),
        jnp.eye(12),
        num_steps=4 * steps,
        num_chains=3,
        batch_size=batch_size,
    )
    used = -np.diff(np.concatenate([samples.draws, samples.params[:, None]], 1), axis=1)
    used = np.round(used * (batch_size or 12)).reshape(3, 4, steps, 12)
    assert set(np.unique(used)) <= {0, 1} and (used.sum(-1) == (batch_size or 12)).all()
    assert (used.sum(2) <= 1).all()
    if batch_size in (4, 5):
        assert len({used[:, epoch].tobytes() for epoch in range(4)}) == 4
        assert len({used[chain].tobytes() for chain in range(3)}) == 3


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("number", [1, 2, 1797, 200_000])  # the last has equal words
def test_an_order_is_the_permutation_of_jax(number, x64):
    with jax.enable_x64(x64), jax.numpy_dtype_promotion("strict"):
        key, order = jax.random.key(number), jnp.arange(number, dtype=jnp.int32)[::-1]
        made, expected = jax.jit(permute)(key, order), jax.random.permutation(key, order)
    assert made.dtype == expected.dtype
    assert (made == expected).all()


@pytest.mark.filterwarnings("ignore:two chains are equal")
def test_batches_of_two_chains_overlap_as_independent_ones():
    """Two batches of 5 of 20 have 5 · 5/20 examples in common on average."""
    samples = diffopt.sample(
        optax.sgd(1.0),
        count_examples,
        jnp.zeros(20),
        jnp.eye(20),
        num_steps=8000,
        num_chains=2,
        batch_size=5,
    )
    used = np.round(-np.diff(np.asarray(samples.draws, float), axis=1) * 5)
    common = (used[0] * used[1]).sum(-1)[: 4 * 1999].reshape(-1, 4).mean(1)  # by epochs
    error = common.std(ddof=1) / np.sqrt(len(common))
    assert abs(common.mean() - 1.25) < 4.5 * error


# Going on, and draws that leave the device


def test_going_on_is_bit_for_bit_one_run(run):
    whole, _ = run
    arguments = dict(batch_size=16, every=5)
    part = diffopt.sample(
        SGHMC, loss, START, (X, Y), num_steps=135, num_chains=4, burn_in=50, **arguments
    )
    rest = diffopt.sample(
        SGHMC, loss, part.params, (X, Y), num_steps=165, state=part.state, **arguments
    )
    for name in ("draws", "losses", "temperatures"):
        joined = jax.tree.map(
            lambda a, b: np.concatenate([a, b], 1), getattr(part, name), getattr(rest, name)
        )
        leaves_equal(joined, getattr(whole, name))
    leaves_equal(rest.params, whole.params)
    leaves_equal(rest.state, whole.state)
    again = diffopt.sample(  # the state that was gone on from is not used up
        SGHMC, loss, part.params, (X, Y), num_steps=165, state=part.state, **arguments
    )
    leaves_equal(again.draws, rest.draws)


def test_on_draw_sees_each_draw_once_in_order(run):
    samples, seen = run
    assert [step for step, _ in seen] == list(range(50, 300, 5))
    for i, (_, draw) in enumerate(seen):
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(draw))
        leaves_equal(draw, jax.tree.map(lambda d: d[:, i], samples.draws))
    assert isinstance(samples.draws["w"], np.ndarray)


def test_with_on_draw_the_device_holds_a_chunk(monkeypatch):
    """Room for two draws: ten come out, equal to those of a run that kept them."""
    monkeypatch.setattr(sample_module, "CHUNK_BYTES", 2 * 3 * 4)
    steps = []
    arguments = dict(num_steps=30, every=3)
    here = diffopt.sample(
        LANGEVIN, bowl, jnp.ones(3), on_draw=lambda step, draw: steps.append(step), **arguments
    )
    kept = diffopt.sample(LANGEVIN, bowl, jnp.ones(3), **arguments)
    assert steps == list(range(0, 30, 3))
    leaves_equal(here.draws, kept.draws)


def test_a_second_call_compiles_nothing():
    diffopt.sample(LANGEVIN, bowl, jnp.ones(3), num_steps=20)
    programs = list(program._programs.values())
    diffopt.sample(LANGEVIN, bowl, jnp.zeros(3), num_steps=20, key=1)
    assert set(map(id, program._programs.values())) == set(map(id, programs))


def test_progress_is_one_line_on_stderr(capsys):
    diffopt.sample(diffopt.baoab(0.3, 1.0), bowl, jnp.ones(3), num_steps=50, progress=True)
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.endswith("\n")
    last = err.strip().split("\r")[-1]
    assert "50/50" in last and "loss" in last and "temperature" in last


def test_progress_shows_means_as_they_are(capsys):
    starts = jnp.array([[1.0, 1.0], [3.0, 3.0]])
    diffopt.sample(optax.set_to_zero(), bowl, starts, num_steps=40, num_chains=None, progress=True)
    lines = capsys.readouterr().err.strip().split("\r")
    assert all("loss 5 temperature 0 " in line for line in lines)


# Keys


def test_keys_make_the_chains():
    draw = partial(diffopt.sample, LANGEVIN, bowl, jnp.zeros(3), num_steps=5)
    eight, four = draw(num_chains=8).draws, draw(num_chains=4).draws
    np.testing.assert_array_equal(eight[:4], four)
    last = np.concatenate([eight[:, -1], draw(num_chains=8, key=1).draws[:, -1]])
    assert len(np.unique(last.round(5), axis=0)) == 16
    np.testing.assert_array_equal(draw(num_chains=4, key=jax.random.key(0)).draws, four)


def test_two_samplers_of_one_key_in_one_chain_differ():
    labels = {"a": "a", "b": "b"}
    tx = optax.partition({"a": diffopt.sgld(0.1, 1.0), "b": diffopt.sgld(0.1, 1.0)}, labels)
    start = {"a": jnp.zeros(5), "b": jnp.zeros(5)}
    last = diffopt.sample(
        tx, lambda p: bowl(p["a"]) + bowl(p["b"]), start, num_steps=3, num_chains=2
    ).params
    assert not np.isclose(last["a"], last["b"]).any()


# Divergence


def wall(params):
    """|θ|⁴/4: a chain that starts far out diverges at once, one at 0 never does."""
    return jnp.sum(params**4) / 4


@pytest.fixture(scope="module")
def diverging():
    starts = jnp.array([[0.0, 0.1], [0.0, 100.0], [0.1, 0.0]])
    tx = diffopt.sgld(0.01, 0.01)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        samples = diffopt.sample(tx, wall, starts, num_steps=30, num_chains=None)
    return samples, [str(w.message) for w in caught]


def test_a_diverged_chain_is_named_with_its_step(diverging):
    samples, messages = diverging
    step = samples.diverged[1]
    assert samples.diverged.tolist() == [-1, step, -1] and 0 < step < 30
    assert len(messages) == 1 and f"chain 1 was not finite at step {step}" in messages[0]
    assert jnp.isfinite(samples.draws[1, :step]).all() and jnp.isnan(samples.draws[1, step:]).all()
    assert samples.draws.shape == (3, 30, 2)


def test_it_is_left_out_of_averages(diverging):
    samples, _ = diverging
    good = np.asarray(samples.draws)[[0, 2]].reshape(-1, 2)
    np.testing.assert_allclose(diffopt.predictive(jnp.cos, samples), np.cos(good).mean(0), 1e-6)
    each = diffopt.predictions(jnp.cos, samples, batch_size=7)
    np.testing.assert_allclose(each, np.cos(good), rtol=1e-6)


def test_it_is_left_out_of_arviz(diverging):
    samples, _ = diverging
    with pytest.warns(UserWarning, match="chain 1 was not finite"):
        data = diffopt.to_arviz(samples)
    assert data["posterior"]["params"].shape == (2, 30, 2)
    assert data["sample_stats"]["loss"].shape == (2, 30)


def test_divergence_after_the_last_draw_is_seen():
    with pytest.warns(UserWarning, match="chain 0 was not finite at step 1"):
        samples = diffopt.sample(optax.sgd(1e30), wall, jnp.array([1e9]), num_steps=1)
    assert samples.diverged.tolist() == [1]


# Numbers


def test_strict_promotion_and_debug_nans():
    for context in (jax.numpy_dtype_promotion("strict"), jax.debug_nans(True)):
        with context:
            samples = diffopt.sample(
                diffopt.sghmc(0.05, 0.02),
                loss,
                START,
                (X, Y),
                num_steps=20,
                burn_in=5,
                batch_size=8,
            )
        assert jnp.isfinite(samples.draws["w"]).all()


@pytest.mark.parametrize("masked", [False, True])
def test_draws_of_sixteen_bits_are_the_exact_parameters(masked):
    tx = diffopt.low_precision(diffopt.sgld(0.01, 0.01))
    if masked:
        tx = optax.masked(tx, {"low": True, "plain": False})
    start = {"low": jnp.ones(4, jnp.bfloat16), "plain": jnp.zeros(2, jnp.bfloat16)}
    loss = lambda p: bowl(p["low"]) + bowl(p["plain"])
    first = diffopt.sample(tx, loss, start, num_steps=10, num_chains=2)
    assert first.draws["low"].dtype == jnp.float32 and first.draws["low"].shape == (2, 10, 4)
    assert first.draws["plain"].dtype == (jnp.bfloat16 if masked else jnp.float32)
    assert first.params["low"].dtype == jnp.bfloat16
    more = diffopt.sample(tx, loss, first.params, num_steps=1, state=first.state)
    exact = jax.vmap(diffopt.exact_params)(first.params, first.state.opt_state)
    np.testing.assert_allclose(more.draws["low"][:, 0], exact["low"], rtol=1e-6)
    assert (exact["low"] != first.params["low"]).any()


def test_two_low_precisions_in_one_chain_leave_the_parameters_as_they_are():
    part = diffopt.low_precision(diffopt.sgld(0.01, 0.01))
    tx = optax.partition({"a": part, "b": part}, {"a": "a", "b": "b"})
    start = {"a": jnp.ones(4, jnp.bfloat16), "b": jnp.ones(4, jnp.bfloat16)}
    samples = diffopt.sample(tx, lambda p: bowl(p["a"]) + bowl(p["b"]), start, num_steps=3)
    assert samples.draws["a"].dtype == jnp.bfloat16


# Bad input

BAD = {
    "num_steps must be ≥ 1, got 0": dict(num_steps=0),
    "num_steps must be an int, got 1.5": dict(num_steps=1.5),
    "every must be ≥ 1, got 0": dict(every=0),
    "burn_in must be ≥ 0, got -1": dict(burn_in=-1),
    "no draw would be kept: burn_in=10": dict(burn_in=10),
    "where is 0 at every one": dict(where=lambda step: 0),
    "where must be a function": dict(where=3),
    "on_draw must be a function": dict(on_draw=3),
    "num_chains must be ≥ 1, got 0": dict(num_chains=0),
    "batch_size must be ≤ the 50 examples of data, got 51": dict(batch_size=51),
    "batch_size must be ≥ 1, got 0": dict(batch_size=0),
    "key must be an int or": dict(key="a"),
    "key must be an int from": dict(key=2**63),
    "where must return a scalar": dict(where=lambda step: jnp.zeros(3)),
    "state must be that of the Samples": dict(state=optax.EmptyState()),
    "params must have one leading axis of chains": dict(num_chains=None),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_numbers(message):
    arguments = dict(num_steps=10) | BAD[message]
    with pytest.raises((TypeError, ValueError), match=message):
        diffopt.sample(SGHMC, loss, START, (X, Y), **arguments)


def test_bad_functions_and_trees():
    sample = partial(diffopt.sample, num_steps=10)
    for tx in (diffopt.ivon(0.1, 50), optax.chain(diffopt.weight_noise(0.1), optax.sgd(0.1))):
        with pytest.raises(ValueError, match="tx must take its gradients at the parameters"):
            sample(tx, loss, START, (X, Y))
    with pytest.raises(TypeError, match="real scalar, got .*50"):
        sample(SGHMC, lambda p, b: b[1], START, (X, Y))
    with pytest.raises(TypeError, match="real scalar, got .*complex"):
        sample(SGHMC, lambda p, b: loss(p, b) * 1j, START, (X, Y))
    with pytest.raises(TypeError, match="real scalar, got"):
        sample(SGHMC, lambda p, b: (loss(p, b), 1), START, (X, Y))
    with pytest.raises(ValueError, match=r"one leading axis.*data\[1\] \(49,\)"):
        sample(SGHMC, loss, START, (X, Y[:49]))
    with pytest.raises(ValueError, match="batch_size needs data"):
        sample(SGHMC, bowl, jnp.ones(3), batch_size=3)
    with pytest.raises(TypeError, match=r"params\['n'\] has dtype int32"):
        sample(SGHMC, bowl, {"n": jnp.arange(3)})
    with pytest.raises(ValueError, match="no leaves"):
        sample(SGHMC, bowl, {})
    with pytest.raises(TypeError, match="tx must be an Optax transformation"):
        sample(diffopt.sgld, bowl, jnp.ones(3))
    with pytest.raises(TypeError, match="loss must be a function"):
        sample(SGHMC, 1.0, jnp.ones(3))

    with pytest.raises(ValueError, match="params has no elements"):
        sample(SGHMC, bowl, jnp.ones((0, 3)))


def test_a_function_need_not_be_hashable():
    class Unhashable:
        __hash__ = None

        def __call__(self, p):
            return bowl(p)

    samples = diffopt.sample(LANGEVIN, Unhashable(), jnp.ones(3), num_steps=2)
    leaves_equal(samples.draws, diffopt.sample(LANGEVIN, bowl, jnp.ones(3), num_steps=2).draws)


def test_going_on_with_what_does_not_fit(run):
    samples, _ = run
    go_on = partial(diffopt.sample, SGHMC, loss, num_steps=10, state=samples.state)
    others = {"(2,)": lambda p: p[:2], "()": lambda p: p[0], "(1,)": lambda p: p[:1]}
    for shape, take in others.items():
        told = f"params['b'] must have the shape (4,), got {shape}: state has 4 chains, num_chains"
        with pytest.raises(TypeError, match=re.escape(told)):
            go_on(jax.tree.map(take, samples.params), (X, Y), batch_size=16, num_chains=None)
    with pytest.raises(
        ValueError, match="batches out of 50 examples, got one with batches out of 49"
    ):
        go_on(samples.params, (X[:49], Y[:49]), batch_size=16)
    with pytest.raises(ValueError, match="got one with no batches"):
        go_on(samples.params, (X, Y))
    wider = samples.params | {"w": jnp.zeros((4, 3, 1))}
    with pytest.raises(TypeError, match=r"must have the shape \(4, 3\), got \(4, 3, 1\): state"):
        go_on(wider, (X, Y), batch_size=16)
    other = partial(diffopt.sample, diffopt.sgld(0.1, 0.1), loss, num_steps=10)
    with pytest.raises(TypeError, match="go on with the tx and the params it is of"):
        other(samples.params, (X, Y), batch_size=16, state=samples.state)
    with pytest.raises(ValueError, match="num_chains is 3, but state has 4 chains"):
        go_on(samples.params, (X, Y), batch_size=16, num_chains=3)


@pytest.mark.filterwarnings("ignore:loss is .* it sums over")
def test_an_epoch_goes_on_with_batches_of_another_size():
    """After 3 batches of 4 of 20 examples, two of 4 more, or one of 8, end the epoch."""
    seen = lambda p, x: jnp.sum(p) * 0 + jnp.sum(2.0**x)  # tells which examples it is of
    tx, x = optax.sgd(0.1), jnp.arange(20.0)
    first = diffopt.sample(tx, seen, jnp.zeros(1), x, num_steps=3, batch_size=4)
    go_on = partial(diffopt.sample, tx, seen, first.params, x, state=first.state)
    for size, steps in ((4, 2), (8, 1)):
        rest = go_on(num_steps=steps, batch_size=size)
        assert first.losses.sum() + rest.losses.sum() == 2.0**20 - 1
        assert rest.state.epoch.position == 20


# ArviZ


def test_arviz_names_and_groups(run):
    samples, _ = run
    data = diffopt.to_arviz(samples)
    assert set(data["posterior"].data_vars) == {"w", "b"}
    assert data["posterior"]["w"].shape == (4, 50, 3)
    names = {"loss", "configurational_temperature", "kinetic_temperature"}
    assert set(data["sample_stats"].data_vars) == names
    np.testing.assert_array_equal(data["sample_stats"]["loss"], samples.losses)
    np.testing.assert_array_equal(
        diffopt.to_arviz(samples.draws)["posterior"]["w"], samples.draws["w"]
    )


def test_arviz_has_no_variable_called_like_an_axis(run):
    samples, _ = run
    with pytest.raises(ValueError, match="axes called .'chain'.: rename these leaves"):
        diffopt.to_arviz(samples._replace(draws={"chain": samples.draws["w"]}))


def test_arviz_is_asked_for_by_name(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match="pip install arviz"):
        diffopt.to_arviz(run[0])


# Eight devices, and Ctrl-C

DEVICES = """
import signal, sys, warnings
import jax, jax.numpy as jnp, numpy as np, optax
import diffopt
from diffopt.run.chains import share_chains

assert len(jax.devices()) == 8
x = jax.random.normal(jax.random.key(1), (50, 3))
loss = lambda p, x: jnp.mean((x @ p - 1) ** 2) / 2
tx = diffopt.sghmc(0.05, 1 / 50)
run = lambda **k: diffopt.sample(tx, loss, k.pop("params", jnp.zeros(3)), x, batch_size=7, **k)
many = run(num_steps=40, num_chains=16)
assert len(many.draws.sharding.device_set) == 8
assert share_chains(6, ()).size == 6 and share_chains(12, ()).size == 6
assert share_chains(7, ()).size == 7 and share_chains(11, ()) is None
with jax.default_device(jax.devices()[0]):
    one = run(num_steps=40, num_chains=16)
assert len(one.draws.sharding.device_set) == 1
np.testing.assert_allclose(many.draws, one.draws, rtol=1e-4, atol=1e-5)
part = run(num_steps=15, num_chains=16)
rest = run(params=part.params, num_steps=25, state=part.state)
np.testing.assert_array_equal(np.concatenate([part.draws, rest.draws], 1), many.draws)
np.testing.assert_allclose(
    diffopt.predictive(jnp.sin, many), np.sin(many.draws).mean((0, 1)), rtol=1e-5
)

eight = run(num_steps=5, num_chains=8)
without = lambda tree: jax.tree.map(lambda p: p[1:], tree)  # a chain that is left out
state = eight.state._replace(
    opt_state=without(eight.state.opt_state), origin=without(eight.state.origin)
)
seven = run(params=without(eight.params), num_steps=5, state=state)
assert seven.draws.shape == (7, 5, 3) and len(seven.draws.sharding.device_set) == 7
for kind in jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit:
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(kind,))):
        under = run(num_steps=5, num_chains=8)
        mean = diffopt.predictive(jnp.sin, under)
    np.testing.assert_array_equal(under.draws, eight.draws)
    np.testing.assert_allclose(mean, np.sin(eight.draws).mean((0, 1)), rtol=1e-5)

before = signal.getsignal(signal.SIGINT)
def stop(step, draw):
    if step == 20:
        signal.raise_signal(signal.SIGINT)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    short = run(num_steps=10_000_000, num_chains=1, every=10, on_draw=stop)
steps = int(short.state.step)
assert 20 < steps < 10_000_000 and f"interrupted after {steps} of" in str(caught[0].message)
assert short.draws.shape[1] == -(-steps // 10) and np.isfinite(short.draws).all()
assert signal.getsignal(signal.SIGINT) is before
"""


def test_eight_devices_share_the_chains_and_ctrl_c_keeps_the_draws():
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    env |= {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", DEVICES], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_step_size_that_the_state_keeps_is_told():
    """Under `optax.inject_hyperparams` the numbers are in the state."""
    loss = lambda p: jnp.sum(p**2) / 2
    make = optax.inject_hyperparams(diffopt.sgld, static_args="noise")
    first = diffopt.sample(make(0.1, 1.0), loss, jnp.zeros(3), num_steps=4, num_chains=2)
    go_on = lambda tx, state: diffopt.sample(tx, loss, first.params, num_steps=4, state=state)
    with pytest.warns(UserWarning) as told:
        go_on(make(0.001, 1.0), first.state)
    (told,) = told
    assert "learning_rate is 0.1" in str(told.message) and "0.001 in tx" in str(told.message)
    assert "samples.state.opt_state.hyperparams['learning_rate']" in str(told.message)
    assert told.filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        go_on(make(0.1, 1.0), first.state)
        falling = make(optax.linear_schedule(0.1, 0.05, 10), 1.0)
        fresh = diffopt.sample(falling, loss, first.params, num_steps=4, num_chains=None)
        go_on(falling, fresh.state)
