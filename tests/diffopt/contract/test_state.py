"""The state of every sampler, a user's own included, and the steps that it takes."""

import collections
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict

import diffopt
from tests.diffopt.contract.helpers import (
    COASTING,
    ETA,
    KEY,
    T,
    each,
    each_sampler,
    each_with_a_noise,
    exact,
    leaf_by_leaf,
    maker,
    setting,
    standard,
    step,
    tolerance,
    tree,
    unlike,
)
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
    assert unlike(name, third, fourth)


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
    "mclmc": lambda: diffopt.mclmc(0.3, 0.5, friction=0.003),
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
    tx, weak = maker(name)(ETA, T), (jnp.asarray(1.0), jnp.asarray(2.0))
    assert all(x.weak_type for x in weak)
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
        assert unlike(name, updates["w"][i], updates["w"][i - 1])


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
    updates, state = jax.jit(make(ETA, lambda count: 0.0).update)(grads, third[1], third[0])
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


@each(name for name in SAMPLERS if SAMPLERS[name].cold)
def test_at_zero_temperature_it_is_the_optimizer(name):
    params, _ = setting(name, "float32")
    eta = 0.002 if name == "psgld" else 0.02
    reference = path(SAMPLERS[name].cold(eta), params, bumpy, 100)
    assert_close(path(maker(name)(eta, 0.0), params, bumpy, 100), reference, rtol=1e-4)
    assert np.abs(reference["w"][-1] - params["w"]).max() > 0.1


# Noise


@each_with_a_noise
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


@each(("sghmc", "sgnht", "low_precision"))
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
