"""What `sample` returns: its averages, its doubts, and the draws as others take them."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt
from diffopt.run.results import check_room
from tests.helpers import on_devices, report

pytestmark = pytest.mark.slow

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import arviz

X = jnp.linspace(-1.0, 1.0, 64)
TX = diffopt.baoab(0.3, temperature=1.0)


def bowl(p, center=0.0):
    return jnp.sum((p - center) ** 2) / 2


def mean_loss(p, batch):
    return jnp.mean((p - batch) ** 2) / 2


@pytest.fixture(scope="module")
def samples():
    return diffopt.sample(TX, bowl, jnp.zeros(3), num_steps=100, num_chains=4)


# Temperatures


@pytest.mark.parametrize("num_chains", [1, 8])
@pytest.mark.parametrize("center", [0.0, 100.0])
def test_a_right_chain_reads_its_temperature_wherever_its_minimum_is(center, num_chains):
    T = 0.01
    samples = diffopt.sample(
        diffopt.baoab(0.5, T), partial(bowl, center=center), jnp.full(100, center),
        num_steps=4000, burn_in=200, num_chains=num_chains,
    )  # fmt: skip
    for mean, error in samples.temperatures.average():
        assert 0 < error < 0.05 * T
        assert abs(mean - T) < 4.5 * error


def test_an_average_is_over_the_finite_chains():
    values = np.random.default_rng(0).normal(1, 0.1, (3, 80))
    values[1, 40:] = np.nan
    both = diffopt.Temperatures(jnp.asarray(values), None).average()
    parts = values[[0, 2]].mean(1)
    np.testing.assert_allclose(both.configurational.mean, parts.mean(), rtol=1e-6)
    error = parts.std(ddof=1) / 2**0.5
    np.testing.assert_allclose(both.configurational.standard_error, error, rtol=1e-5)
    assert both.kinetic is None
    alone = diffopt.Temperatures(values[:1], None).average().configurational
    error = values[0].reshape(8, 10).mean(1).std(ddof=1) / 8**0.5
    np.testing.assert_allclose(alone.standard_error, error, rtol=1e-5)
    nothing = diffopt.Temperatures(values[1:2], None).average().configurational
    assert np.isnan(nothing.mean) and np.isnan(nothing.standard_error)


def test_frozen_leaves_do_not_count():
    tx = optax.partition(
        {"move": diffopt.baoab(0.3, 1.0), "rest": optax.set_to_zero()},
        {"head": "move", "body": "rest"},
    )
    loss = lambda p: bowl(p["head"]) + jnp.sum(p["body"] * jnp.arange(1000.0))
    params = {"head": jnp.zeros(20), "body": jnp.ones(1000)}
    samples = diffopt.sample(tx, loss, params, num_steps=5000, burn_in=100, num_chains=8)
    assert (samples.params["body"] == 1).all()
    for mean, error in samples.temperatures.average():
        assert error < 0.03
        assert abs(mean - 1) < 4.5 * error


def test_one_bad_batch_is_no_divergence():
    """Each epoch of 10 batches has the bad one once."""
    data = jnp.ones(10).at[3].set(jnp.nan)
    tx = optax.apply_if_finite(diffopt.baoab(0.3, 0.1), max_consecutive_errors=10)
    with pytest.warns(UserWarning) as told:
        samples = diffopt.sample(
            tx, mean_loss, jnp.zeros(2), data, num_steps=100, batch_size=1, num_chains=2
        )
    (message,) = [str(w.message) for w in told if "not finite" in str(w.message)]
    assert message.startswith("the loss was not finite at 20 steps of 2 chains (0, 1), first at")
    assert "look for it in the data" in message
    assert samples.diverged.tolist() == [-1, -1]
    assert samples.nonfinite_losses.tolist() == [10, 10]
    assert np.isfinite(samples.draws).all()


# Doubts


def raw_key_noise():
    """A user's transformation with a key that is no typed one."""

    def update(updates, key, params=None):
        key, now = jax.random.split(key)
        xi = jax.random.normal(now, updates.shape)
        return -0.1 * updates + jnp.sqrt(0.2) * xi, key

    return optax.GradientTransformation(lambda params: jax.random.PRNGKey(0), update)


def test_chains_of_one_raw_key_are_told_to_be_equal():
    with pytest.warns(UserWarning, match="two chains are equal to the bit: tx adds no noise, or"):
        diffopt.sample(raw_key_noise(), bowl, jnp.zeros(3), num_steps=20, num_chains=3)


@pytest.mark.parametrize("batch_size", [None, 8])
def test_a_schedule_that_falls_below_0_leaves_chains_that_stand_still(batch_size):
    tx = diffopt.sgld(optax.linear_schedule(0.1, -0.1, 100), 1 / 64)
    run = partial(diffopt.sample, tx, mean_loss, jnp.zeros([]), X, batch_size=batch_size)
    with pytest.warns(UserWarning, match=r"2 chains \(0, 1\) stood still: the last 30 draws"):
        samples = run(num_steps=300, num_chains=2)
    assert (samples.draws[:, 51:] == samples.draws[:, -1:]).all()
    run(num_steps=50)


def test_an_optimizer_may_stand_still():
    diffopt.sample(optax.sgd(1.0), bowl, jnp.ones(3), num_steps=100)


def test_a_schedule_that_is_not_finite_is_a_cause_of_divergence():
    tx = diffopt.sgld(lambda count: jnp.where(count < 10, 0.1, jnp.nan), 1.0)
    with pytest.warns(UserWarning, match="chain 0 was not finite at step 11: .*or a schedule are"):
        diffopt.sample(tx, bowl, jnp.zeros(3), num_steps=100)


def test_draws_that_no_memory_holds_are_refused_with_their_size():
    with pytest.raises(MemoryError, match=r"10{9} draws of 1 chains, 1200 bytes .* 1.2e\+03 GB"):
        diffopt.sample(TX, bowl, jnp.zeros(300), num_steps=10**9)
    check_room(1000, jnp.zeros(300), 4, on_host=True)


# transform=


def test_predictions_are_kept_in_place_of_parameters():
    inputs = jnp.array([0.0, 1.0, 2.0])
    predict = lambda p: {"y": inputs * p["w"]}
    loss = lambda p: bowl(p["w"])
    run = partial(diffopt.sample, TX, loss, {"w": jnp.zeros([])}, num_steps=50, num_chains=2)
    whole, kept = run(), run(transform=predict)
    assert kept.draws["y"].shape == (2, 50, 3)
    np.testing.assert_allclose(kept.draws["y"], whole.draws["w"][..., None] * inputs, rtol=1e-6)
    np.testing.assert_array_equal(kept.params["w"], whole.params["w"])
    data = diffopt.to_arviz(kept)
    np.testing.assert_array_equal(data["posterior"]["y"], kept.draws["y"])
    assert data["sample_stats"]["loss"].shape == (2, 50)
    np.testing.assert_allclose(
        diffopt.predictive(lambda draw: draw["y"], kept),
        diffopt.predictive(lambda p: inputs * p["w"], whole),
        rtol=1e-5,
        atol=1e-6,
    )


# ArviZ

NUMBERS = np.random.default_rng(0).normal(size=(2, 9, 3)).astype(np.float32)
NAMES = {
    "mlp/~/linear_0": {"w": NUMBERS, "b": NUMBERS[..., 0]},
    "a b": NUMBERS[..., 0],
    "θ[0]": NUMBERS[..., 1],
    "~x": jnp.bfloat16(NUMBERS[..., 2]),
    "/": NUMBERS[..., 0] > 0,
    "z": NUMBERS[..., 0] + 1j * NUMBERS[..., 1],
}


def test_names_go_through_a_file(tmp_path):
    pytest.importorskip("h5netcdf")
    data = diffopt.to_arviz(NAMES)
    data.to_netcdf(str(tmp_path / "draws.nc"))
    read = arviz.from_netcdf(str(tmp_path / "draws.nc"))["posterior"]
    named = {"mlp.linear_0.w", "mlp.linear_0.b", "a.b", "θ.0", "x", "params", "z.real", "z.imag"}
    assert set(read.data_vars) == named
    np.testing.assert_array_equal(read["mlp.linear_0.w"], NUMBERS)
    np.testing.assert_array_equal(read["z.imag"], NUMBERS[..., 1])
    assert len(arviz.summary(data)) == 10


def test_samples_go_through_a_file(samples, tmp_path):
    pytest.importorskip("h5netcdf")
    haiku = samples._replace(draws={"linear/~/head": {"w": samples.draws}})
    diffopt.to_arviz(haiku).to_netcdf(str(tmp_path / "samples.nc"))
    read = arviz.from_netcdf(str(tmp_path / "samples.nc"))
    np.testing.assert_array_equal(read["posterior"]["linear.head.w"], samples.draws)
    np.testing.assert_array_equal(read["sample_stats"]["loss"], samples.losses)


def test_names_that_become_one_are_refused():
    draws = {"a/b": jnp.zeros((2, 3)), "a.b": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match="several leaves of draws have one name"):
        diffopt.to_arviz(draws)


def loop(init, steps=20):
    """The state of `collect` after a loop of one's own."""
    params, keep = jnp.zeros((3, 2)), diffopt.collect(steps)
    tx = diffopt.sgld(0.1, 1.0)

    @jax.vmap
    def step(params, state, kept):
        updates, state = tx.update(params, state)
        params = optax.apply_updates(params, updates)
        return params, state, keep.update(params, kept)

    carry = params, init(tx, params), jax.vmap(keep.init)(params)
    return jax.lax.scan(lambda c, _: (step(*c), None), carry, length=steps)[0][2]


def split(tx, params):
    return diffopt.split_keys(tx.init(params[0]), len(params))


def test_draws_of_a_loop_of_ones_own():
    state = loop(split)
    draws = diffopt.draws(state)
    for given in (state, draws, np.asarray(draws)):
        data = diffopt.to_arviz(given)
        np.testing.assert_array_equal(data["posterior"]["params"], draws)
        assert not hasattr(data, "sample_stats")
    flat = jax.tree.map(jnp.concatenate, draws)
    mean = diffopt.predictive(jnp.square, flat)
    np.testing.assert_array_equal(diffopt.predictive(jnp.square, state), mean)
    np.testing.assert_array_equal(diffopt.predictions(jnp.square, flat), flat**2)


@pytest.mark.parametrize("average", [diffopt.predictive, diffopt.predictions])
def test_draws_in_place_of_samples_have_a_cure(average, samples):
    with pytest.raises(TypeError) as raised:
        average(lambda w: jnp.ones((2, 3)) @ w, samples.draws)
    (note,) = [note for note in raised.value.__notes__ if "fn was called" in note]
    assert "of shape (100, 3)" in note and "jax.tree.map(jnp.concatenate, draws)" in note
    with pytest.raises(TypeError) as raised:
        average(lambda w: jnp.ones((2, 4)) @ w, samples)
    assert not any("fn was called" in note for note in getattr(raised.value, "__notes__", []))


def test_chains_that_are_equal_are_told():
    state = loop(lambda tx, params: jax.vmap(tx.init)(params))
    with pytest.warns(UserWarning, match="two chains are equal to the bit: .*split_keys"):
        draws = diffopt.draws(state)
    with pytest.warns(UserWarning, match="two chains are equal to the bit"):
        diffopt.to_arviz(draws)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        diffopt.to_arviz(jnp.ones((3, 20)))  # nothing moves
        diffopt.to_arviz(draws[:1])


@pytest.mark.parametrize("draws", [jnp.zeros(3), {"a": jnp.zeros((2, 3)), "b": jnp.zeros((2, 4))}])
def test_draws_without_common_axes_are_refused(draws):
    with pytest.raises(ValueError, match=r"draws must have the leading axes \[chain, draw\]"):
        diffopt.to_arviz(draws)


def test_what_is_no_draws_is_refused():
    with pytest.raises(TypeError, match="draws must be an array of numbers, got builtins.str"):
        diffopt.to_arviz("chain")
    with pytest.raises(ValueError, match="draws hold no draw"):
        diffopt.to_arviz(jnp.zeros((2, 0, 3)))


# Thinned by hand


def test_thinned_draws(samples):
    thin = samples._replace(draws=samples.draws[:, ::10])
    expected = np.asarray(samples.draws[:, ::10]).mean((0, 1))
    np.testing.assert_allclose(diffopt.predictive(lambda w: w, thin), expected, rtol=1e-5)
    assert diffopt.predictions(lambda w: w, thin).shape == (40, 3)
    with pytest.raises(ValueError, match=r"\[4, 10\] and losses of \[4, 100\]: give to_arviz"):
        diffopt.to_arviz(thin)
    assert diffopt.to_arviz(thin.draws)["posterior"]["params"].shape == (4, 10, 3)
    both = thin._replace(
        losses=samples.losses[:, ::10],
        temperatures=jax.tree.map(lambda t: t[:, ::10], samples.temperatures),
    )
    assert diffopt.to_arviz(both)["sample_stats"]["loss"].shape == (4, 10)
    with pytest.raises(ValueError, match=r"draws have 2 chains and samples.diverged 4"):
        diffopt.predictive(lambda w: w, samples._replace(draws=samples.draws[:2]))


# What a function sees, and gives


def test_predictions_are_those_of_the_present_function(samples):
    class Model:
        offset = jnp.zeros(2)

        def predict(self, w):
            return self.offset

    model = Model()
    for value in (1.0, 7.0):
        model.offset = jnp.full(2, value)
        assert (diffopt.predictions(model.predict, samples) == value).all()
        assert (diffopt.predictive(model.predict, samples) == value).all()


@pytest.mark.parametrize("average", [diffopt.predictive, diffopt.predictions])
def test_a_function_that_gives_nothing_is_named(average, samples):
    with pytest.raises(TypeError, match="fn must give an array or a tree of arrays, got None"):
        average(lambda w: None, samples)


def test_batch_sizes_that_are_arrays(samples):
    mean = diffopt.predictive(jnp.square, samples, batch_size=jnp.array(7))
    np.testing.assert_allclose(mean, diffopt.predictive(jnp.square, samples), rtol=1e-5)
    assert diffopt.predictions(jnp.square, samples, batch_size=np.int32(7)).shape == (400, 3)


# Arguments of other shapes, types and settings


def test_gradients_of_another_shape_are_refused():
    for grads in (jnp.ones((4, 3)), jnp.ones(())):
        with pytest.raises(TypeError, match=r"grads must have the shape \(3,\)"):
            diffopt.configurational_temperature(jnp.zeros(3), grads)
    keep = diffopt.collect(3)
    with pytest.raises(TypeError, match=r"params has shape \(3,\), and the state was made"):
        keep.update(jnp.zeros(3), keep.init(jnp.zeros([])))


def test_masked_arrays_are_refused():
    masked = np.ma.masked_array(np.asarray(X), np.asarray(X) > 0)
    options = dict(num_steps=20, burn_in=5)
    with pytest.raises(TypeError, match="MaskedArray .*drop the masked entries"):
        diffopt.sample(TX, mean_loss, jnp.zeros([]), masked, **options)
    with pytest.raises(TypeError, match="MaskedArray .*drop the masked entries"):
        diffopt.local_learning_coefficient(
            mean_loss, jnp.zeros([]), masked, step_size=0.1, **options
        )


def test_data_without_leaves_are_named():
    with pytest.raises(ValueError, match="data must have one leading axis .*without leaves"):
        diffopt.sample(TX, lambda p, batch: bowl(p), jnp.zeros(3), {}, num_steps=3)


def test_float64_from_before_is_named():
    with jax.enable_x64(True):
        before = diffopt.sample(TX, bowl, jnp.zeros(3, "float64"), num_steps=3)
    go_on = partial(diffopt.sample, TX, bowl, num_steps=3, state=before.state)
    with pytest.raises(TypeError, match="params is float64, but jax_enable_x64 is off"):
        go_on(before.params)
    with pytest.raises(TypeError, match=r"state.opt_state.velocity is float64, but"):
        go_on(jnp.float32(np.asarray(before.params)))


SETTINGS = {
    "rank": lambda: jax.numpy_rank_promotion("raise"),
    "leaks": jax.checking_leaks,
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_strict_settings_of_jax(setting, samples):
    with SETTINGS[setting]():
        tx = diffopt.baoab(0.3, 1 / 64)
        batches = dict(batch_size=8, num_chains=2)
        diffopt.sample(tx, mean_loss, jnp.zeros([]), X, num_steps=5, **batches)
        diffopt.sample(TX, lambda p: bowl(p["a"]), {"a": jnp.zeros(3)}, num_steps=5, burn_in=3)
        ladder = diffopt.replica_exchange(diffopt.baoab, 0.1, [0.1, 0.2, 0.3], every=2)
        params = jnp.ones((3, 4))
        ladder.update(params, ladder.init(params), params, value=jnp.ones(3))
        grads = jax.random.normal(jax.random.key(0), (8, 3))
        diffopt.gradient_noise_temperature(grads, 0.1, hvp=lambda v: v)
        diffopt.predictions(jnp.square, samples, batch_size=7)
        diffopt.predictive(jnp.square, samples, batch_size=7)
        diffopt.to_arviz(samples)
        diffopt.find_step_size(diffopt.baoab, bowl, jnp.zeros(3), temperature=1.0)


# Two devices


def check_a_key_elsewhere():
    here, there = jax.devices()
    key = jax.device_put(jax.random.key(0), there)
    expected = diffopt.sample(TX, bowl, jnp.zeros(3), num_steps=5, num_chains=2).draws
    for params in (jnp.zeros(3), jax.device_put(jnp.zeros(3), here)):
        for tx in (TX, diffopt.baoab(0.3, 1.0, key=key)):
            samples = diffopt.sample(tx, bowl, params, num_steps=5, num_chains=2, key=key)
            np.testing.assert_array_equal(samples.draws, expected)


def check_arguments_of_predictive_elsewhere():
    here, there = jax.devices()
    x = jax.device_put(jnp.ones((2, 3)), there)
    for params in (jnp.zeros(3), jax.device_put(jnp.zeros(3), here)):
        samples = diffopt.sample(TX, bowl, params, num_steps=20, num_chains=2)
        each = diffopt.predictions(lambda w, x: x @ w, samples, x)
        sums = np.asarray(samples.draws).reshape(-1, 3).sum(1)
        np.testing.assert_allclose(each[:, 0], sums, rtol=1e-5)
        mean = diffopt.predictive(lambda w, x: x @ w, samples, x)
        np.testing.assert_allclose(mean, each.mean(0), rtol=1e-5, atol=1e-6)


def check_data_of_a_learning_coefficient_elsewhere():
    here, there = jax.devices()
    estimate = partial(
        diffopt.local_learning_coefficient, mean_loss,
        step_size=0.3, num_steps=50, burn_in=10, batch_size=16,
    )  # fmt: skip
    expected = estimate(jnp.zeros([]), X).mean
    for params in (jnp.zeros([]), jax.device_put(jnp.zeros([]), here)):
        np.testing.assert_allclose(estimate(params, jax.device_put(X, there)).mean, expected, 1e-4)


CHECKS = {name: check for name, check in globals().items() if name.startswith("check_")}
del CHECKS["check_room"]


@pytest.mark.slow
def test_two_devices():
    assert on_devices("tests.diffopt.test_results", devices=2) == {}


if __name__ == "__main__":
    report(CHECKS)
