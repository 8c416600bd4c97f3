"""What `collect`, `draws` and `predictive` do at their edges."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffopt
from tests.helpers import normals


def kept(path, **plan):
    """The state of `collect(4, ...)` after the parameters `path[0]`, `path[1]`, ..."""
    keep = diffopt.collect(4, **plan)
    state = keep.init(jax.tree.map(lambda p: p[0], path))
    return jax.lax.scan(lambda s, p: (keep.update(p, s), None), state, path)[0]


# predictive


def test_a_sample_that_is_left_out_has_no_gradient():
    """log has a gradient of NaN at NaN, and at the 0 that one might put in its place."""
    samples = jnp.array([2.0, jnp.nan, 3.0, jnp.inf])
    mean = lambda x: diffopt.predictive(lambda s, x: jnp.log(s * x), samples, x, batch_size=2)
    assert jax.grad(mean)(2.0) == 0.5
    of_samples = jax.grad(lambda s: diffopt.predictive(jnp.log, s))(samples)
    np.testing.assert_allclose(of_samples, [1 / 4, 0, 1 / 6, 0])


@pytest.mark.parametrize(
    "batch_size", [1000, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 10**6))]
)
def test_a_million_samples_cost_no_digits(batch_size):
    samples = jnp.full(10**6, 0.1)
    assert diffopt.predictive(lambda s: s, samples, batch_size=batch_size) == np.float32(0.1)


def test_an_infinite_prediction_stays_infinite():
    assert diffopt.predictive(lambda s: 1 / s, jnp.array([1.0, 0.0, 2.0])) == jnp.inf


def test_empty_slots_of_integers_count_for_nothing():
    state = kept(jnp.array([3, 5]))
    assert diffopt.predictive(lambda s: s, state) == 4
    assert diffopt.predictions(lambda s: s, state).tolist() == [3, 5]


def test_the_states_of_many_chains():
    path = jnp.arange(24.0).reshape(2, 3, 4).at[0, 1, 2].set(jnp.nan)
    state = jax.vmap(jax.vmap(kept))(path)
    good = np.array([0, 1, 2, 3, *range(8, 24)])
    assert diffopt.predictive(jnp.square, state) == pytest.approx((good**2).mean())
    assert diffopt.predictions(lambda s: s, state, batch_size=3).tolist() == good.tolist()
    assert jax.jit(lambda s: diffopt.predictive(jnp.square, s))(state) == (good**2).mean()


def test_predictions_are_the_terms_of_the_mean():
    samples = {"w": normals(0, 10, 3).at[4, 1].set(jnp.inf)}
    fn = lambda sample, x: {"y": x @ sample["w"]}
    x = normals(1, 6, 3)
    each = diffopt.predictions(fn, samples, x, batch_size=4)["y"]
    assert each.shape == (9, 6)
    mean = diffopt.predictive(fn, samples, x, batch_size=4)["y"]
    np.testing.assert_allclose(each.mean(0), mean, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="no sample is finite"):
        diffopt.predictions(jnp.sin, jnp.full(3, jnp.nan))


@pytest.mark.parametrize("batch_size", [1.5, True, "1"])
def test_batch_size_is_an_int(batch_size):
    with pytest.raises(TypeError, match="batch_size must be an int"):
        diffopt.predictive(jnp.sin, jnp.ones(3), batch_size=batch_size)


# draws


def test_nested_chains_with_a_divergence():
    path = jnp.arange(24.0).reshape(2, 3, 4).at[1, 2, 3].set(jnp.inf)
    with pytest.warns(UserWarning, match=r"chain \(1, 2\) was not finite at step 3"):
        assert diffopt.draws(jax.vmap(jax.vmap(kept))(path)).tolist() == (
            path.reshape(6, 4)[:5].tolist()
        )


def test_a_chain_without_a_sample_is_named_and_empties_no_other():
    state = jax.vmap(kept)(jnp.arange(8.0).reshape(2, 4))
    state = state._replace(count=jnp.array([4, 0]))
    with pytest.warns(UserWarning, match="chain 1 has no sample yet"):
        assert diffopt.draws(state).tolist() == [[0, 1, 2, 3]]


def test_chains_of_different_length_are_cut_aloud():
    state = jax.vmap(kept)(jnp.arange(8.0).reshape(2, 4))
    state = state._replace(count=jnp.array([4, 3]))
    with pytest.warns(UserWarning, match="chains have 3 to 4 samples; the first 3"):
        assert diffopt.draws(state).shape == (2, 3)


def test_nothing_is_copied_where_nothing_is_left_out():
    state = jax.vmap(kept)(jnp.ones((2, 4, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draws = diffopt.draws(state)
    assert draws.unsafe_buffer_pointer() == state.samples.unsafe_buffer_pointer()


# collect


def test_thinning_goes_on_past_the_last_step_that_is_counted():
    keep = diffopt.collect(100, burn_in=1, every=3)
    state = keep.init(jnp.zeros([]))._replace(step=jnp.array(2**31 - 5, jnp.int32))
    path = jnp.arange(30.0)
    state = jax.lax.scan(lambda s, p: (keep.update(p, s), None), state, path)[0]
    first = (-(2**31 - 5 - 1)) % 3
    expected = path[first::3].tolist()
    assert state.samples[: int(state.count)].tolist() == expected
    assert 2**31 - 4 <= int(state.step) < 2**31


@pytest.mark.parametrize("plan", [{"burn_in": 2**31}, {"every": 2**31}, {"burn_in": 2**31 - 1}])
def test_what_an_int32_cannot_count(plan):
    with pytest.raises(ValueError, match="< 2³¹"):
        diffopt.collect(3, **plan)


@pytest.mark.parametrize("plan", [{"every": 1.5}, {"burn_in": 0.0}, {"every": True}])
def test_plans_are_ints(plan):
    with pytest.raises(TypeError, match="must be an int"):
        diffopt.collect(3, **plan)
    with pytest.raises(TypeError, match="capacity must be an int"):
        diffopt.collect(3.0)
    with pytest.raises(TypeError, match="where must be a function"):
        diffopt.collect(3, where=1)


def test_samples_where_a_schedule_says():
    stage = diffopt.sampling_stage(5, 0.6)
    assert kept(jnp.arange(20.0), where=stage).samples.tolist() == [3, 4, 8, 9]
    assert kept(jnp.arange(20.0), where=stage, every=2, burn_in=1).samples.tolist() == [
        3,
        9,
        13,
        19,
    ]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
def test_strict_promotion(dtype):
    path = {"a": jnp.ones((3, 2), dtype), "b": jnp.ones(3, jnp.float16), "c": jnp.arange(3)}
    with jax.numpy_dtype_promotion("strict"):
        state = kept(path)
        mean = diffopt.predictive(lambda s: s["a"], state)
    assert int(state.count) == 3 and jnp.array_equal(mean, jnp.ones(2, dtype))


def test_empty_slots_under_debug_nans():
    with jax.debug_nans(True):
        state = jax.jit(kept)(jnp.arange(1.0, 3.0))
        assert diffopt.predictive(lambda s: s, state) == 1.5
        assert diffopt.draws(state).tolist() == [[1, 2]]
