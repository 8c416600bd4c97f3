"""Every sampler in Optax's wrappers, a user's own included."""

import jax
import jax.numpy as jnp
import optax
import pytest

import diffopt
from tests.diffopt.contract.helpers import (
    ETA,
    KEY,
    T,
    each_sampler,
    maker,
    setting,
    standard,
    step,
    tolerance,
    unlike,
)
from tests.helpers import SAMPLERS, assert_close, assert_equal, of_name, run


@each_sampler
def test_masked_leaves_pass_and_the_others_step_as_if_alone(name):
    params, grads = setting(name)
    tx, update = standard(name)
    alone = {"w": params["w"]}
    expected, _ = update({"w": grads["w"]}, tx.init(alone), alone)
    rest = {"b": grads["b"], "n": jnp.arange(3), "none": None}
    masked = optax.masked(tx, {"w": True, "b": False, "n": False, "none": False})
    updates = step(masked, alone | rest, {"w": grads["w"], **rest})
    assert_close(updates, expected | rest, **tolerance(name))


@each_sampler
def test_each_group_of_a_partition_steps_as_if_alone(name):
    params = {label: jnp.linspace(1, 2, 20, dtype=SAMPLERS[name].dtype) for label in "ab"}
    groups = {label: maker(name)(ETA, T, key=i) for i, label in enumerate(params)}
    updates = step(optax.partition(groups, {"a": "a", "b": "b"}), params, params)
    for label, tx in groups.items():
        alone = {label: params[label]}
        expected, _ = standard(name)[1](alone, tx.init(alone), alone)
        assert_close({label: updates[label]}, expected, **tolerance(name))
    assert unlike(name, updates["a"], updates["b"])


@each_sampler
def test_multisteps_takes_one_step_with_the_mean_gradient(name):
    params, grads = setting(name)
    tx, update = standard(name)
    expected, after = update(grads, tx.init(params), params)
    many = optax.MultiSteps(tx, 2)
    many_update, state = jax.jit(many.update), many.init(params)
    for scale in (0.5, 1.5):
        updates, state = many_update(jax.tree.map(lambda g: scale * g, grads), state, params)
        if scale == 0.5:
            assert_equal(updates, jax.tree.map(jnp.zeros_like, params))
    assert_close(updates, expected, **tolerance(name))
    assert_equal(of_name(state.inner_opt_state, "count"), of_name(after, "count"))


def injected(name, step_size=ETA, **keywords):
    inject = optax.inject_hyperparams(maker(name), hyperparam_dtype=jnp.float32)
    return inject(step_size, temperature=T, **keywords)


@each_sampler
def test_an_injected_temperature_is_set_without_compiling_again(name):
    params, grads = setting(name)
    tx = injected(name)
    state, update = tx.init(params), jax.jit(tx.update)
    warm, _ = update(grads, state, params)
    assert_close(warm, step(standard(name)[0], params, grads), **tolerance(name))
    state.hyperparams["temperature"] = jnp.zeros_like(state.hyperparams["temperature"])
    cold, _ = update(grads, state, params)
    expected = step(maker(name)(ETA, lambda count: 0.0), params, grads)
    assert_close(cold, expected, **tolerance(name))
    assert update._cache_size() == 1


@pytest.mark.parametrize("form", [int, jax.random.key, jax.random.PRNGKey])
def test_inject_hyperparams_takes_a_key_in_every_form(form):
    params, grads = setting("sgld")
    tx = optax.inject_hyperparams(diffopt.sgld)(ETA, temperature=T, key=form(KEY))
    assert_close(step(tx, params, grads), step(diffopt.sgld(ETA, T, key=KEY), params, grads))


@each_sampler
def test_chains_under_vmap_have_each_its_own_injected_temperature(name):
    params, grads = setting(name)
    tx = injected(name)
    states = diffopt.split_keys(tx.init(params), 3)
    temperatures = jnp.array([0, 0.25, 4])
    states.hyperparams["temperature"] = temperatures
    update = jax.jit(jax.vmap(tx.update, in_axes=(None, 0, None)))
    updates, _ = update(grads, states, params)
    alone = jax.jit(lambda T, *arguments: maker(name)(ETA, T).update(*arguments))
    for i in range(3):
        start = jax.tree.map(lambda x: x[i], states.inner_state)
        expected, _ = alone(temperatures[i], grads, start, params)
        assert_close(jax.tree.map(lambda u: u[i], updates), expected, **tolerance(name))


@each_sampler
def test_an_injected_schedule_that_reaches_zero_is_that_schedule_eagerly_too(name):
    """Where it is not traced the value of the schedule is checked as a constant is."""
    params, grads = setting(name)
    schedule = optax.linear_schedule(ETA, 0.0, 1)
    tx = injected(name, schedule)
    _, state = tx.update(grads, tx.init(params), params)
    updates, _ = tx.update(grads, state, params)
    still = jax.jit(lambda eta, *step: maker(name)(eta, T).update(*step))
    expected, _ = still(0.0, grads, state.inner_state, params)
    assert_close(updates, expected, **tolerance(name))


@each_sampler
def test_with_apply_if_finite_a_bad_batch_leaves_no_trace(name):
    """The parameters, the state and the noise go on as if the batch had not come."""
    params, grads = setting(name)
    tx = optax.apply_if_finite(standard(name)[0], max_consecutive_errors=3)
    update = jax.jit(tx.update)

    def step(params, state, grads):
        updates, state = update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = after = tx.init(params)
    moved = params
    for sign, bad in ((1, jnp.nan), (-1, jnp.inf), (2, -jnp.inf)):
        good = jax.tree.map(lambda g: sign * g, grads)
        params, state = step(params, state, good)
        broken = good | {"b": good["b"].at[1].set(bad)}
        moved, after = step(*step(moved, after, broken), good)
    assert_equal(moved, params)
    assert_equal(after.inner_state, state.inner_state)
    assert after.total_notfinite == 3 and jnp.isfinite(params["b"]).all()


@each_sampler
def test_without_it_one_parameter_is_lost_or_all_that_share_a_sum(name):
    """The others go on as if it had not happened; the sums of sgnht and mclmc spread it.

    A coin that an infinite gradient weighs falls on its side, and nothing is lost.
    """
    tx, update = standard(name)
    good = jnp.array([0.3, -0.2, 0.1], SAMPLERS[name].dtype)
    for bad in (jnp.nan, jnp.inf):
        params = moved = jnp.ones_like(good)
        state = after = tx.init(params)
        for grads in (good.at[1].set(bad), good, good):
            updates, after = update(grads, after, moved)
            moved = optax.apply_updates(moved, updates)
            updates, state = update(good, state, params)
            params = optax.apply_updates(params, updates)
        assert jnp.isfinite(moved[1]) == (SAMPLERS[name].tosses and not jnp.isnan(bad))
        if SAMPLERS[name].sums:
            assert not jnp.isfinite(moved).any()
        else:
            assert_equal(moved[::2], params[::2])


@pytest.mark.slow
@each_sampler
def test_lookahead_takes_its_fast_steps_and_meets_it_halfway(name):
    params, grads = setting(name)
    fast, _, _ = run(standard(name)[0], params, lambda params: grads, 2)
    tx = optax.lookahead(standard(name)[0], sync_period=2, slow_step_size=0.5)
    both = optax.LookaheadParams.init_synced(params)
    state, update = tx.init(both), jax.jit(tx.update)
    for _ in range(2):
        updates, state = update(grads, state, both)
        both = optax.apply_updates(both, updates)
    halfway = jax.tree.map(lambda a, b: (a + b) / 2, params, fast)
    assert_close(both.slow, halfway, **tolerance(name))
    assert_close(both.fast, halfway, **tolerance(name))


@each_sampler
def test_tree_map_params_maps_what_is_like_the_parameters_and_nothing_else(name):
    params = {"w": jnp.ones((2, 3), SAMPLERS[name].dtype), "b": jnp.ones(5, SAMPLERS[name].dtype)}
    tx, _ = standard(name)
    state = tx.init(params)
    mapped = optax.tree.map_params(tx, lambda _: "p", state, transform_non_params=lambda _: "n")
    like_params = lambda x: "p" if jnp.shape(x) in ((2, 3), (5,)) else "n"
    assert mapped == jax.tree.map(like_params, state)


@each_sampler
def test_extra_arguments_pass_by(name):
    params, grads = setting(name)
    wants_loss = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(),
        lambda updates, state, params=None, *, loss, **_: (optax.tree.scale(loss, updates), state),
    )
    tx = optax.chain(standard(name)[0], wants_loss)
    expected, _ = standard(name)[1](grads, tx.init(params)[0], params)
    doubled, _ = jax.jit(tx.update)(grads, tx.init(params), params, loss=2.0, value=1.0)
    assert_close(doubled, optax.tree.scale(2.0, expected), **tolerance(name))
