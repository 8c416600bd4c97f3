"""What every sampler does as an Optax transformation, a user's own included.

The samplers are the rows of `tests.helpers.SAMPLERS`. A new one is tested here once it has a row.
"""

import collections
import functools
import inspect
import os
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen, nnx
from flax.core import FrozenDict
from flax.training.train_state import TrainState

import diffopt
from tests.helpers import (
    LAST_COUNT,
    SAMPLERS,
    assert_close,
    assert_equal,
    assert_like,
    is_key,
    of_name,
    path,
    plain,
    run,
)

ETA, T = 0.1, 0.5
KEY = 7
QUICK = ("sgld", "sghmc", "midpoint")  # the others are slow


each_sampler = pytest.mark.parametrize(
    "name", [pytest.param(v, marks=[pytest.mark.slow] * (v not in QUICK)) for v in SAMPLERS]
)
# They move on where the step size is 0: by their momentum, or by rounding at random.
COASTING = ("sghmc", "sgnht", "low_precision")


def tree(dtype):
    """Parameters of every kind of leaf."""
    return {
        "w": jnp.linspace(-1, 2, 6).reshape(2, 3).astype(dtype),
        "b": jnp.ones(3, dtype),
        "scalar": jnp.asarray(0.5, dtype),
        "empty": jnp.zeros((0, 4), dtype),
        "none": None,
    }


def setting(name, dtype=None):
    """Parameters and gradients for the sampler of that name."""
    params = tree(dtype or SAMPLERS[name].dtype)
    return params, jax.tree.map(lambda p: p / 2 - 1, params)


def tolerance(name):
    """Float rounding, or a spacing of bfloat16, which a rounding at random can make of it."""
    if SAMPLERS[name].dtype == "bfloat16":
        return {"rtol": 2.0**-7, "atol": 2.0**-9}
    return {"rtol": 1e-5, "atol": 1e-6}


def cheap(key, shape, dtype):
    """A noise that compiles in no time, for what does not depend on it: a number for each leaf."""
    word = jax.random.key_data(key)[0]
    return jnp.full(shape, (word >> 8).astype(dtype) * 2.0**-23 - 1)


@functools.cache
def maker(name, noise=cheap):
    """The factory of a sampler, whose noise `inject_hyperparams` cannot take for a schedule."""

    def make(step_size, temperature, *, key=KEY):
        return SAMPLERS[name].make(step_size, temperature, key=key, noise=noise)

    return make


@functools.cache
def standard(name, noise=cheap):
    """The sampler at the step size ETA and the temperature T, and its compiled update."""
    tx = maker(name, noise)(ETA, T)
    return tx, jax.jit(tx.update)


def step(tx, params, grads):
    return jax.jit(tx.update)(grads, tx.init(params), params)[0]


def exact(name, params, state):
    """The parameters, and what `low_precision` keeps of them beside."""
    return diffopt.exact_params(params, state) if name == "low_precision" else params


def leaf_by_leaf(fn, *trees):
    return jax.tree.leaves(jax.tree.map(fn, *trees))


# Keys and counts


@each_sampler
def test_the_state_counts_and_has_a_typed_key_that_changes(name):
    params, grads = setting(name)
    tx, update = standard(name)
    states = [tx.init(params)]
    for _ in range(2):
        states.append(update(grads, states[-1], params)[1])
    assert [set(map(int, of_name(state, "count"))) for state in states] == [{0}, {1}, {2}]
    keys = [key for state in states for key in of_name(state, "key")]
    assert all(map(is_key, keys))
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == len(keys)


@each_sampler
def test_the_key_decides_the_noise_in_whatever_form_it_comes(name):
    params, grads = setting(name)
    _, update = standard(name, "gaussian")
    init = lambda key: maker(name, "gaussian")(ETA, T, key=key).init(params)
    forms = (3, np.int64(3), jnp.array(3), jax.random.key(3), jax.random.PRNGKey(3))
    first, *others = map(init, forms)
    for other in others:
        assert_equal(first, other)
    third, fourth = (update(grads, init(key), params)[0]["w"] for key in (3, 4))
    assert (third != fourth).all()


@each_sampler
@pytest.mark.parametrize("form", [jax.random.key, jax.random.PRNGKey], ids=["typed", "raw"])
def test_a_donated_state_leaves_the_key_of_the_caller_alone(name, form):
    params, grads = setting(name)
    tx, update = standard(name)
    expected = update(grads, tx.init(params), params)
    init = maker(name)(ETA, T, key=form(KEY)).init
    donating = jax.jit(tx.update, donate_argnums=1)
    for start in (init, jax.jit(init), init):
        assert_equal(donating(grads, start(params), params), expected)


# Compiled, in a loop, in many chains


NEAR_ONE = {  # a momentum, friction or decay that is 1 in bfloat16
    "psgld": lambda: diffopt.psgld(0.03, 0.5, decay=0.999),
    "sghmc": lambda: diffopt.sghmc(0.03, 0.5, momentum=0.999),
    "baoab": lambda: diffopt.baoab(0.3, 0.5, friction=0.003),
    "ubu": lambda: diffopt.ubu(0.3, 0.5, friction=0.003),
    "sgnht": lambda: diffopt.sgnht(0.03, 0.5, momentum=0.999),
}


@each_sampler
def test_jit_equals_eager_to_the_bit_in_bfloat16_and_compiles_once(name):
    tx = NEAR_ONE.get(name, lambda: maker(name, "gaussian")(0.03, 0.5))()
    low = jnp.linspace(-2, 2, 100, dtype=jnp.bfloat16)
    grads = {"low": low, "float32": low.astype(jnp.float32)[::7]}
    state = compiled_state = tx.init(grads)
    update = jax.jit(tx.update)
    for _ in range(3):
        eager, state = tx.update(grads, state, grads)
        compiled, compiled_state = update(grads, compiled_state, grads)
        assert_equal(compiled["low"], eager["low"])
        assert_close(compiled["float32"], eager["float32"], rtol=1e-5, atol=1e-6)
    assert update._cache_size() == 1


@each_sampler
def test_a_weakly_typed_parameter_compiles_once(name):
    tx, weak = maker(name)(ETA, T), jnp.asarray(1.0)
    assert weak.weak_type
    update = jax.jit(tx.update)
    state = tx.init(weak)
    for _ in range(3):
        _, state = update(weak, state, weak)
    assert update._cache_size() == 1


@each_sampler
def test_scan_equals_a_loop(name):
    params, grads = setting(name)
    tx, update = standard(name, "gaussian")
    last, after, _ = run(tx, params, lambda params: grads, 3)
    state = tx.init(params)
    for _ in range(3):
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert_close(last, params, **tolerance(name))
    assert_equal(of_name(after, "key"), of_name(state, "key"))


@each_sampler
def test_chains_under_vmap_are_each_that_chain_alone(name):
    params, grads = setting(name)
    tx, update = standard(name, "gaussian")
    chains = lambda tree: jax.tree.map(lambda x: jnp.stack([x] * 3), tree)
    states = diffopt.split_keys(tx.init(params), 3)
    updates, after = jax.jit(jax.vmap(tx.update))(chains(grads), states, chains(params))
    for i in range(3):
        alone, state = update(grads, jax.tree.map(lambda x: x[i], states), params)
        assert_close(jax.tree.map(lambda x: x[i], updates), alone, **tolerance(name))
        assert_equal(of_name(jax.tree.map(lambda x: x[i], after), "key"), of_name(state, "key"))
        assert (updates["w"][i] != updates["w"][i - 1]).all()


# Leaves


@each_sampler
def test_structure_shapes_and_dtypes_are_kept_leaf_by_leaf(name):
    dtypes = ("bfloat16", "float16", "float32", "complex64")
    params = {dtype: {"w": tree(dtype)["w"], "none": None} for dtype in dtypes}
    grads = jax.tree.map(lambda p: p / 2 - 1, params)
    # scale_by_learning_rate, which ends langevin's chain, promotes where η is an array
    tx = maker(name, "gaussian")(ETA if name == "langevin" else jnp.float32(ETA), T)
    state = tx.init(params)
    updates, after = jax.jit(tx.update)(grads, state, params)
    assert_like(updates, params)
    assert_like(after, state)
    assert all(leaf_by_leaf(lambda u: bool(jnp.isfinite(u).all()), updates))
    assert all((updates[dtype]["w"] != 0).all() for dtype in dtypes)
    assert (updates["complex64"]["w"].imag != 0).all()


@each_sampler
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_scan_under_x64_keeps_the_dtypes(name, dtype):
    with jax.enable_x64(True):
        params, grads = setting(name, dtype)
        tx, _ = standard(name, "gaussian")
        state = tx.init(params)
        last, after, _ = jax.eval_shape(lambda: run(tx, params, lambda params: grads, 2))
        assert_like(last, params)
        assert_like(after, state)
        assert all(mass.dtype == jnp.float32 for mass in of_name(state, "mass"))


@each_sampler
def test_the_noise_of_a_float64_leaf_has_all_its_bits(name):
    with jax.enable_x64(True):
        params = jnp.zeros(50, "float64")
        tx, _ = standard(name, "gaussian")
        updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
        assert updates.dtype == jnp.float64
        assert (updates != updates.astype("float32")).mean() > 0.9


@each_sampler
def test_the_container_of_the_leaves_does_not_matter(name):
    """A list, Haiku's dicts of modules, Flax's frozen dicts, a named tuple: leaves in one order."""
    leaves = [jnp.full(shape, 0.5, SAMPLERS[name].dtype) for shape in ((2, 3), (3,), (3, 1))]
    a, b, c = leaves
    containers = (
        {"mlp/~/linear_0": {"b": a, "w": b}, "mlp/~/linear_1": {"w": c}},
        FrozenDict({"params": {"a": {"kernel": a}, "b": {"kernel": b}, "c": c}}),
        collections.namedtuple("Layers", "first second")(a, (b, c)),
    )
    tx, _ = standard(name, "gaussian")
    program = lambda params: str(jax.make_jaxpr(tx.update)(params, tx.init(params), params))
    for params in containers:
        updates, _ = jax.eval_shape(tx.update, params, tx.init(params), params)
        assert_like(updates, params)
        assert program(params) == program(leaves)


@each_sampler
def test_trees_without_elements_pass_under_wrappers_too(name):
    make = maker(name)
    params = {"empty": jnp.zeros((0, 4), SAMPLERS[name].dtype), "none": None, "deeper": {}}
    for tx in (
        make(ETA, T),
        optax.apply_if_finite(make(ETA, T), 3),
        optax.MultiSteps(make(ETA, T), 2),
        optax.masked(make(ETA, T), {"empty": True, "none": False, "deeper": False}),
    ):
        updates, _ = tx.update(params, tx.init(params), params)
        assert_like(updates, params)
    assert make(ETA, T).update({}, make(ETA, T).init({}), {})[0] == {}


@each_sampler
def test_a_leaf_of_a_billion_elements_by_shape_alone(name):
    leaf = jax.ShapeDtypeStruct((10**9,), SAMPLERS[name].dtype)
    tx, _ = standard(name)
    state = jax.eval_shape(tx.init, leaf)
    updates, after = jax.eval_shape(tx.update, leaf, state, leaf)
    assert_like(updates, leaf)
    assert_like(after, state)


@each_sampler
def test_integer_parameters_are_refused_by_name(name):
    with pytest.raises(TypeError, match=r"params\['layer'\]\[1\] has dtype int32"):
        standard(name)[0].init({"layer": [jnp.ones(2), jnp.arange(3)]})


# In Optax's wrappers


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
    params = {"a": jnp.ones(3, SAMPLERS[name].dtype), "b": jnp.ones(3, SAMPLERS[name].dtype)}
    groups = {label: maker(name)(ETA, T, key=i) for i, label in enumerate(params)}
    updates = step(optax.partition(groups, {"a": "a", "b": "b"}), params, params)
    for label, tx in groups.items():
        alone = {label: params[label]}
        expected, _ = standard(name)[1](alone, tx.init(alone), alone)
        assert_close({label: updates[label]}, expected, **tolerance(name))
    assert (updates["a"] != updates["b"]).all()


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
    expected = step(maker(name)(ETA, 0.0), params, grads)
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
def test_without_it_one_parameter_is_lost_and_sgnht_loses_all(name):
    """The others go on as if it had not happened; the one thermostat of sgnht spreads it."""
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
        assert not jnp.isfinite(moved[1])
        if name == "sgnht":
            assert not jnp.isfinite(moved).any()
        else:
            assert_equal(moved[::2], params[::2])


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


# In the hands of the libraries for networks


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Parameters and states of all samplers after a step, saved by Orbax and restored."""
    runs = {}
    for name in SAMPLERS:
        params, grads = setting(name)
        del params["empty"], grads["empty"]  # Orbax has no room for nothing
        tx = maker(name)(ETA, T)
        _, state = jax.jit(tx.update)(grads, tx.init(params), params)
        runs[name] = {"params": params, "grads": grads, "state": state}
    with ocp.StandardCheckpointer() as checkpointer:
        folder = tmp_path_factory.mktemp("orbax") / "runs"
        checkpointer.save(folder, runs)
        checkpointer.wait_until_finished()
        blank = jax.tree.map(lambda x: x if is_key(x) else jnp.zeros_like(x), runs)
        return runs, checkpointer.restore(folder, blank)


@each_sampler
def test_a_run_restored_by_orbax_goes_on_to_the_same_bits(name, checkpoint):
    saved, restored = (runs[name] for runs in checkpoint)
    assert_equal(restored, saved)
    _, update = standard(name)
    steps = (update(run["grads"], run["state"], run["params"]) for run in (saved, restored))
    assert_equal(*steps)


@each_sampler
def test_flax_nnx_takes_its_steps(name):
    layer = functools.partial(nnx.Linear, 3, 2, param_dtype=SAMPLERS[name].dtype)
    model = layer(rngs=nnx.Rngs(0))
    tx, update = standard(name)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    loss = lambda model: jnp.sum(model(jnp.ones((1, 3))) ** 2)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    grads = nnx.to_pure_dict(nnx.grad(loss)(model))
    updates, _ = update(grads, tx.init(params), params)

    @nnx.jit
    def train(model, optimizer):
        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads, value=value)

    train(model, optimizer)
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert_close(after, optax.apply_updates(params, updates), **tolerance(name))
    assert (after["kernel"] != params["kernel"]).any()


@each_sampler
def test_a_linen_train_state_takes_its_steps(name):
    net = linen.Dense(2, param_dtype=SAMPLERS[name].dtype)
    params = net.init(jax.random.key(0), jnp.ones((1, 3)))
    tx, update = standard(name)
    state = TrainState.create(apply_fn=net.apply, params=params, tx=tx)
    stepped = jax.jit(lambda s: s.apply_gradients(grads=s.params))(state)
    updates, _ = update(params, tx.init(params), params)
    assert stepped.step == 1 and set(map(int, of_name(stepped.opt_state, "count"))) == {1}
    assert_close(stepped.params, optax.apply_updates(params, updates), **tolerance(name))


@each_sampler
def test_a_filtered_equinox_model_takes_its_steps(name):
    model = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0), dtype=jnp.dtype(SAMPLERS[name].dtype))
    tx, _ = standard(name)
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def train(model, state):
        grads = eqx.filter_grad(lambda m: jnp.sum(m(jnp.ones(3)) ** 2))(model)
        updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state

    after, _ = train(model, state)
    assert after.activation is model.activation
    assert (after.layers[0].weight != model.layers[0].weight).any()


# Under JAX's strictest settings


@each_sampler
def test_a_run_is_the_same_under_rank_promotion_raise_debug_nans_and_debug_key_reuse(name):
    params, grads = setting(name)
    tx = maker(name, "gaussian")(optax.linear_schedule(ETA, 0.0, 2), optax.linear_schedule(T, 0, 1))
    expected = run(tx, params, lambda params: grads, 3)[:2]
    with jax.numpy_rank_promotion("raise"), jax.debug_nans(True), jax.debug_key_reuse(True):
        assert_equal(run(tx, params, lambda params: grads, 3)[:2], expected)


@each_sampler
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "complex64", "float64"])
def test_it_promotes_no_dtypes_by_itself(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        params, grads = setting(name, dtype)
        for step_size, temperature in ((ETA, T), (lambda _: ETA, optax.linear_schedule(T, 0, 2))):
            tx = maker(name, "gaussian")(step_size, temperature)
            with jax.numpy_dtype_promotion("strict"):
                state = jax.eval_shape(tx.init, params)
                assert_like(jax.eval_shape(tx.update, grads, state, params)[0], params)


# Schedules


@each_sampler
def test_numbers_arrays_and_schedules_agree(name):
    params, grads = setting(name)
    tx, update = standard(name)
    expected, _ = update(grads, tx.init(params), params)
    kinds = ((jnp.array(ETA), np.float32(T)), (lambda _: ETA, optax.constant_schedule(T)))
    others = [maker(name)(*kind) for kind in kinds]
    found = jax.jit(lambda g, p: [tx.update(g, tx.init(p), p)[0] for tx in others])
    for updates in found(grads, params):
        assert_close(updates, expected, **tolerance(name))


@each_sampler
def test_it_can_be_made_of_arrays_in_a_traced_function(name):
    params, grads = setting(name)
    arrays = jnp.array(ETA), jnp.array(T)

    def first_step(params, grads):
        tx = maker(name)(*arrays)
        return tx.update(grads, tx.init(params), params)

    assert_like(jax.eval_shape(first_step, params, grads)[0], params)


@each_sampler
def test_a_schedule_is_read_at_the_step_count(name):
    params, _ = setting(name)
    zero = jax.tree.map(jnp.zeros_like, params)
    tx = maker(name)(ETA, lambda count: jnp.where(count == 1, 1.0, 0.0))
    update = jax.jit(tx.update)
    still, state = update(zero, tx.init(params), params)
    moving, _ = update(zero, state, params)
    assert_equal(still, zero)
    assert all(leaf_by_leaf(lambda u: bool((u != 0).all()), moving))


@each_sampler
def test_schedules_that_end_at_zero_or_just_below_give_no_noise_and_no_nan(name):
    params, grads = setting(name)
    make = maker(name)

    @jax.jit
    @jax.vmap
    def paths(end):
        falling = lambda count: jnp.where(count < 2, ETA * (2 - count), end)
        return [
            run(make(*pair), params, lambda params: grads, 4, keep=lambda *both: both)[2]
            for pair in ((falling, T), (ETA, falling))
        ]

    found = paths(jnp.array([0.0, -1e-10]))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(plain(found)))
    still = found[0][0]["w"]
    if name not in COASTING:
        assert_equal(still[:, 3], still[:, 1])
    # without noise a step from a state is that of the same sampler at T = 0
    third, fourth = (jax.tree.map(lambda x: x[0, i], found[1]) for i in (2, 3))
    updates, state = jax.jit(make(ETA, 0.0).update)(grads, third[1], third[0])
    moved = optax.apply_updates(third[0], updates)
    assert_close(exact(name, moved, state), exact(name, *fourth), rtol=1e-4, atol=1e-5)


JUMPS = optax.join_schedules(  # a constructor refuses 0 as a constant
    [optax.constant_schedule(x) for x in (0.1, 0.0, 0.1, 0.4)], boundaries=[2, 4, 6]
)


@each_sampler
def test_a_jump_takes_effect_at_its_step_and_not_after(name):
    """Each step is that of a sampler whose step size has always been the present one."""
    params, grads = setting(name)
    make = maker(name)
    update = jax.jit(make(JUMPS, T).update)
    constant = jax.jit(lambda eta, *step: make(lambda _: eta, T).update(*step))
    state = make(JUMPS, T).init(params)
    for count in range(9):
        expected, _ = constant(JUMPS(count), grads, state, params)
        updates, state = update(grads, state, params)
        assert_close(updates, expected, rtol=2e-6, atol=2e-7)
        if count in (2, 3) and name not in COASTING:
            assert_equal(updates, jax.tree.map(jnp.zeros_like, updates))
        params = optax.apply_updates(params, updates)


@each_sampler
def test_the_count_stays_at_its_last_value_and_the_noise_keeps_coming(name):
    """There a schedule stays at its last value as well."""
    params = jnp.ones(20, SAMPLERS[name].dtype)
    make = maker(name, "gaussian")
    tx = make(lambda count: jnp.where(count < LAST_COUNT, 0.4, 0.2), T)
    state = optax.tree.set(tx.init(params), count=jnp.int32(LAST_COUNT))
    keep = lambda params, state: (params, jnp.stack(of_name(state, "key")))
    _, state, (moved, keys) = run(tx, params, lambda p: p, 5, state=state, keep=keep)
    assert set(map(int, of_name(state, "count"))) == {LAST_COUNT}
    assert len(np.unique(jax.random.key_data(keys).reshape(-1, 2), axis=0)) == keys.size
    expected = path(make(0.2, T), params, lambda p: p, 5)
    assert_close(moved, expected, atol=1e-6)
    assert (np.std(np.diff(plain(moved), axis=0), axis=1) > 0.02).all()


# T = 0


def bumpy(params):
    """The gradient of a sum of cosines in a shallow bowl: not convex."""
    loss = lambda p: jnp.sum(jnp.cos(3 * p)) + 0.1 * jnp.sum(p**2)
    return jax.grad(lambda params: sum(map(loss, jax.tree.leaves(params))))(params)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if SAMPLERS[name].cold])
def test_at_zero_temperature_it_is_the_optimizer(name):
    params, _ = setting(name, "float32")
    eta = 0.002 if name == "psgld" else 0.02
    reference = path(SAMPLERS[name].cold(eta), params, bumpy, 100)
    assert_close(path(maker(name)(eta, 0.0), params, bumpy, 100), reference, rtol=1e-4)
    assert np.abs(reference["w"][-1] - params["w"]).max() > 0.1


# Noise


@each_sampler
def test_every_noise_is_drawn_and_an_unknown_one_is_refused(name):
    params, grads = setting(name)
    ones = lambda key, shape, dtype: jnp.ones(shape, dtype)
    first, second, known = (
        step(maker(name, noise)(ETA, T), params, grads)
        for noise in ("gaussian", "rademacher", ones)
    )
    assert_like(second, params)
    assert (first["w"] != second["w"]).any()
    tx, update = standard(name, ones)
    assert_close(update(grads, tx.init(params), params)[0], known, **tolerance(name))
    with pytest.raises(
        ValueError, match=r"noise must be one of \['gaussian', 'gaussian16', 'rademacher'\]"
    ):
        maker(name, "cauchy")(ETA, T)


def test_inject_hyperparams_is_told_that_a_noise_function_is_no_schedule():
    ones = lambda key, shape, dtype: jnp.ones(shape, dtype)
    inject = optax.inject_hyperparams
    grads = jnp.array([0.3, -0.2, 0.1])
    with pytest.raises(TypeError, match="missing 2 required positional arguments"):
        inject(diffopt.sgld)(0.1, T, noise=ones).init(grads)
    tx = inject(diffopt.sgld, static_args="noise")(0.1, T, noise=ones)
    updates, _ = tx.update(grads, tx.init(grads))
    np.testing.assert_allclose(updates, -0.1 * grads + np.sqrt(2 * T * 0.1), rtol=1e-6)


# Bad arguments

OURS = [diffopt.sgld, diffopt.psgld, diffopt.sghmc, diffopt.baoab, diffopt.ubu, diffopt.sgnht]
GOOD = {make: dict.fromkeys(list(inspect.signature(make).parameters)[:2], 0.1) for make in OURS}
GOOD[diffopt.langevin] = {"diffusion": 0.1, "learning_rate": 0.1}
each_of_ours = pytest.mark.parametrize("make", GOOD, ids=lambda make: make.__name__)
NEGATIVE = [-1.0, float("nan"), float("inf"), np.float32(-1), jnp.array(-1.0), jnp.array(jnp.nan)]


@each_of_ours
@pytest.mark.parametrize("bad", NEGATIVE)
def test_bad_numbers_are_refused_by_name_and_value(make, bad):
    for name in GOOD[make]:
        shown = str(float(bad)).removesuffix(".0")
        with pytest.raises(ValueError, match=f"{name} must be finite.*{shown}"):
            make(**GOOD[make] | {name: bad})


@each_of_ours
def test_a_step_size_of_zero_and_wrong_types_are_refused_by_name(make):
    step_size = next(name for name in GOOD[make] if name in ("learning_rate", "step_size"))
    for zero in (0, 0.0):
        with pytest.raises(ValueError, match=f"{step_size} must be finite and > 0, got 0"):
            make(**GOOD[make] | {step_size: zero})
    for bad in ("0.1", True, 1j, jnp.ones(3), jnp.ones((), bool)):
        for name in GOOD[make]:
            with pytest.raises(TypeError, match=f"{name} must be a"):
                make(**GOOD[make] | {name: bad})


@each_of_ours
def test_what_is_no_key_is_refused_by_name(make):
    for bad in (1.5, "0", None, True, jnp.zeros(3), jax.random.split(jax.random.key(0))):
        with pytest.raises(TypeError, match="key must be an int or a single PRNG key"):
            make(**GOOD[make], key=bad)


@pytest.mark.parametrize(
    "make,name,bad",
    [
        (diffopt.psgld, "decay", (1.0, -0.1)),
        (diffopt.psgld, "eps", (0.0, -1.0)),
        (diffopt.sghmc, "momentum", (1.0, -0.1, float("nan"))),
        (diffopt.sgnht, "momentum", (1.0, -0.1, float("nan"))),
        (diffopt.baoab, "friction", (-1.0, float("inf"))),
        (diffopt.ubu, "friction", (-1.0, float("inf"))),
    ],
)
def test_other_numbers_are_refused_by_name_and_value(make, name, bad):
    for value in bad:
        with pytest.raises(ValueError, match=f"{name} must be .*, got {value}"):
            make(**GOOD[make], **{name: value})
    for value in (jnp.ones(2), lambda count: 0.9, "small"):
        with pytest.raises(TypeError, match=f"{name} must be a"):
            make(**GOOD[make], **{name: value})


# Memory


def program(tx, params, steps):
    """The compiled program of a run that also keeps ten samples."""
    keep = diffopt.collect(10, every=steps // 10)

    @jax.jit
    def simulate(params, state, kept):
        def step(carry, _):
            params, state, kept = carry
            updates, state = tx.update(params, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state, keep.update(params, kept)), None

        return jax.lax.scan(step, (params, state, kept), length=steps)[0]

    arguments = params, tx.init(params), keep.init(params)
    return simulate.lower(*arguments).compile(), arguments


@pytest.mark.parametrize("name", ["sgld", "sgnht", "low_precision"])
def test_memory_of_a_million_steps_is_that_of_a_thousand(name):
    params = jnp.zeros(1_000, SAMPLERS[name].dtype)
    sizes = []
    for steps in (10**3, 10**6):
        m = program(standard(name, "gaussian")[0], params, steps)[0].memory_analysis()
        sizes.append((m.temp_size_in_bytes, m.output_size_in_bytes, m.argument_size_in_bytes))
    assert sizes[0] == sizes[1]
    assert sizes[0][0] > 0


@pytest.mark.slow
def test_the_process_does_not_grow_in_a_million_steps():
    pages = Path("/proc/self/statm")
    if not pages.exists():
        pytest.skip("reads Linux's /proc")

    def resident():
        return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    compiled, arguments = program(diffopt.sghmc(0.2, 1.0), jnp.zeros(4), 10**6)
    jax.block_until_ready(compiled(*arguments))
    before = resident()
    *_, kept = jax.block_until_ready(compiled(*arguments))
    assert kept.count == 10
    assert resident() - before < 10**6  # a key that stayed behind at each step would be 8 MB
