"""low_precision loses nothing and trains like float32, around a sampler or an optimizer."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt
from diffopt.samplers.low_precision import _second_16_bits, add_residual

PARAMS = {"w": jnp.arange(-3.0, 3.0, dtype="bfloat16").reshape(2, 3), "b": jnp.ones(3, "float16")}
GRADS = jax.tree.map(lambda p: p / 2 - 1, PARAMS)
MAKERS = {
    "adam": lambda: optax.adam(0.01),
    "sghmc": lambda: diffopt.sghmc(0.01, 0.1),
    "langevin": lambda: optax.chain(diffopt.langevin(0.1, learning_rate=0.01), optax.sgd(0.01)),
}
inner = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
low = pytest.mark.parametrize(
    "dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)]
)


def step(tx, params=PARAMS, grads=GRADS):
    return jax.jit(tx.update)(grads, tx.init(params), params)


def spacing(p):
    info = jnp.finfo(p.dtype)
    _, exponent = np.frexp(np.abs(np.asarray(p, np.float64)))
    binade = np.maximum(2.0 ** (exponent - 1), float(info.tiny)) * (np.asarray(p) != 0)
    return np.maximum(binade * float(info.eps), float(info.smallest_subnormal))


def exact(params, state):
    """θ = p + r in float64, which `exact_params` rounds to float32."""
    unit = np.maximum(spacing(params) / 2**14, np.finfo("float32").tiny)  # less is flushed to 0
    theta = np.asarray(params, np.float64) + np.asarray(state.residual) * unit
    np.testing.assert_array_equal(diffopt.exact_params(params, state), theta.astype("float32"))
    return theta


def increments(updates):
    """The wrapped transformation that moves by known updates, one for each step."""
    return optax.GradientTransformation(
        lambda params: jnp.zeros([], jnp.int32),
        lambda grads, count, params=None: (updates[count], count + 1),
    )


@low
def test_parameter_and_residual_add_up_to_the_exact_sum(dtype):
    """Of updates from 2⁻¹⁰ spacings up to half the parameter, nothing is lost but 2⁻¹⁴ spacing."""
    key, *keys = jax.random.split(jax.random.key(0), 3)
    params = jax.random.normal(key, 10_000).astype(dtype)
    size = 2.0 ** jax.random.uniform(keys[0], (10_000,), minval=-18, maxval=-1)
    u = size * params.astype(jnp.float32) * jax.random.rademacher(keys[1], (10_000,))
    tx = diffopt.low_precision(increments(u[None]))

    @jax.jit
    def apply(params, state):
        updates, state = tx.update(params, state, params)
        return optax.apply_updates(params, updates), state

    after, state = apply(params, tx.init(params))
    assert after.dtype == dtype
    error = exact(after, state) - (np.asarray(params, np.float64) + np.asarray(u, np.float64))
    assert np.all(np.abs(error) <= 1.01 * spacing(after) / 2**14 + 2.0**-38)
    assert np.mean(np.asarray(state.residual) != 0) > 0.9


def test_a_step_through_zero_loses_at_most_the_rounding_of_the_update():
    params = jnp.full(10_000, 1.0, "bfloat16")
    u = -1 + 0.02 * jax.random.normal(jax.random.key(0), (1, 10_000))
    tx = diffopt.low_precision(increments(u))
    updates, state = step(tx, params, params)
    after = optax.apply_updates(params, updates)
    assert np.abs(exact(after, state) - (1 + np.asarray(u[0]))).max() <= 2.0**-8 * (1 + 2.0**-7)


@pytest.mark.slow
@low
def test_an_update_that_float32_would_lose_moves_the_parameter_on_average(dtype):
    """2,000 updates of 2⁻¹⁸ spacing, of which float32 would lose each."""
    params = jnp.ones(2_000, dtype)
    u = float(jnp.finfo(dtype).eps) * 2.0**-18
    tx = diffopt.low_precision(increments(jnp.full((1, 2_000), u)))

    def one(carry, _):
        params, state = carry
        updates, state = tx.update(params, state._replace(inner_state=jnp.array(0)), params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(one, (params, tx.init(params)), length=2_000)
    moved = (exact(params, state) - 1) / (2_000 * u)
    unit = 2.0**4  # of the residual, in updates
    assert abs(moved.mean() - 1) < 4.5 * np.sqrt(unit / 2_000 / 2_000)
    assert np.float32(1) + np.float32(jnp.finfo("bfloat16").eps * 2.0**-18) == 1


def test_the_visible_parameter_is_right_on_average():
    params = jnp.ones(20_000, "bfloat16")
    tx = diffopt.low_precision(increments(jnp.full((1, 20_000), 0.3 * 2.0**-7)))
    updates, _ = step(tx, params, params)
    after = np.asarray(optax.apply_updates(params, updates), np.float64)
    assert set(np.unique(after)) == {1.0, 1 + 2.0**-7}
    raised = (after > 1).mean()
    assert abs(raised - 0.3) < 4.5 * np.sqrt(0.3 * 0.7 / 20_000)


def test_a_parameter_that_was_never_moved_stays():
    updates, state = step(diffopt.low_precision(optax.set_to_zero()))
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, PARAMS))
    chex.assert_trees_all_equal(state.residual, jax.tree.map(lambda p: 0 * p, state.residual))


@pytest.mark.parametrize(
    "tx",
    [pytest.param(optax.sgd(1e-4), id="sgd", marks=pytest.mark.slow), optax.adam(1e-4)],
)
def test_it_trains_like_float32_where_bfloat16_stalls(tx):
    """A quadratic with its minimum at 2, from 1: each step is below 1/70 of the spacing."""

    @partial(jax.jit, static_argnums=1)
    def train(params, wrap):
        opt = diffopt.low_precision(tx) if wrap else tx

        def one(carry, _):
            params, state = carry
            updates, state = opt.update(params - 2, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(one, (params, opt.init(params)), length=3_000)[0][0].mean()

    start = jnp.ones(1_000)
    reference = train(start, False)
    assert abs(train(start.astype("bfloat16"), True) - reference) < 0.002
    assert reference > 1.2 and train(start.astype("bfloat16"), False) == 1


def test_the_wrapped_transformation_sees_float32_and_exact_parameters():
    seen = []

    def update_fn(grads, state, params):
        seen.append((grads, params))
        return jax.tree.map(lambda g: jnp.full_like(g, 2.0**-12), grads), state

    tx = diffopt.low_precision(optax.GradientTransformation(lambda params: params, update_fn))
    params = jnp.ones(3, "bfloat16")
    state = tx.init(params)
    assert state.inner_state.dtype == jnp.float32
    for _ in range(2):
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
    (grads, _), (_, second) = seen
    assert grads.dtype == second.dtype == jnp.float32
    np.testing.assert_array_equal(second, 1 + 2.0**-12)


@pytest.mark.slow
@inner
def test_updates_have_the_dtypes_of_the_gradients_and_the_state_keeps_its_own(make):
    tx = diffopt.low_precision(make())
    state = tx.init(PARAMS)
    for grads in (GRADS, jax.tree.map(lambda g: g.astype(jnp.float32), GRADS)):
        updates, after = jax.jit(tx.update)(grads, state, PARAMS)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, grads)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
        moved = optax.apply_updates(PARAMS, updates)
        chex.assert_trees_all_equal_shapes_and_dtypes(moved, PARAMS)
        assert all(jnp.isfinite(p).all() for p in jax.tree.leaves(moved))


@pytest.mark.slow
@inner
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_wider_leaves_pass_unchanged(make, dtype):
    wide = {"wide": jnp.ones((2, 3), dtype), "none": None}
    tx = diffopt.low_precision(make())
    updates, state = step(tx, wide, wide)
    expected, _ = step(make(), wide, wide)
    chex.assert_trees_all_equal(updates, expected)
    assert isinstance(state.residual["wide"], optax.MaskedNode)
    mixed = {**wide, "low": jnp.ones(3, "bfloat16")}
    updates, state = step(tx, mixed, mixed)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, mixed)
    assert updates["none"] is None and state.residual["none"] is None


def test_bfloat16_gradients_of_float32_parameters_pass_unchanged():
    params, grads = jnp.ones(3), jnp.full(3, 0.3, "bfloat16")
    expected, _ = step(optax.sgd(0.1), params, grads)
    updates, _ = step(diffopt.low_precision(optax.sgd(0.1)), params, grads)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, expected)
    chex.assert_trees_all_equal(updates, expected)


@pytest.mark.slow
def test_float64_anywhere_else_does_no_harm():
    with jax.enable_x64(True):
        params = {"low": jnp.ones(3, "bfloat16"), "wide": jnp.ones(3, "float64")}
        updates, _ = step(diffopt.low_precision(diffopt.sgld(0.01, 0.1)), params, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)


def test_missing_parameters_integers_and_bad_keys_are_refused():
    tx = diffopt.low_precision(optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"low_precision needs the parameters: tx.update\(grads"):
        tx.update(GRADS, tx.init(PARAMS))
    with pytest.raises(TypeError, match=r"params\['n'\] has dtype int32"):
        tx.init({"n": jnp.arange(3)})
    with pytest.raises(TypeError, match="key must be"):
        diffopt.low_precision(optax.sgd(0.1), key=1.5)


def test_the_rounding_does_not_share_a_key_with_the_sampler():
    tx = diffopt.low_precision(diffopt.sgld(0.01, 0.1, key=3), key=3)
    params = jnp.ones(3, "bfloat16")
    state = tx.init(params)
    keys = []
    for _ in range(3):
        for key in (state.key, state.inner_state.key):
            keys += [key, *jax.random.split(key)[1:]]
        _, state = tx.update(params, state, params)
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == len(keys) == 12


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_what_is_not_finite_shows(value):
    params = jnp.ones(2, "bfloat16")
    grads = jnp.array([value, 1.0], "bfloat16")
    updates, _ = step(diffopt.low_precision(optax.sgd(1.0)), params, grads)
    after = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(after[0].astype("float32"), -value)
    assert after[1] == 0


def test_inject_hyperparams_inside():
    tx = diffopt.low_precision(optax.inject_hyperparams(optax.sgd)(learning_rate=0.1))
    state = tx.init(PARAMS)
    assert state.inner_state.hyperparams["learning_rate"].dtype == jnp.float32
    state.inner_state.hyperparams["learning_rate"] *= 0
    updates, _ = jax.jit(tx.update)(GRADS, state, PARAMS)
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, PARAMS))


def test_tree_map_params_maps_residual_and_inner_state():
    mixed = {**PARAMS, "wide": jnp.ones(2)}
    tx = diffopt.low_precision(diffopt.sghmc(0.01, 0.1))
    state = tx.init(mixed)
    mapped = optax.tree.map_params(tx, lambda p: p + 1, state)
    assert mapped.key == state.key and (mapped.residual["w"] == 1).all()
    assert (mapped.inner_state.velocity["wide"] == 1).all()


@pytest.mark.slow
def test_extra_arguments_reach_the_wrapped_transformation():
    wants_loss = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(),
        lambda updates, state, params=None, *, loss: (optax.tree.scale(loss, updates), state),
    )
    tx = diffopt.low_precision(wants_loss)
    params = jnp.zeros(2, "bfloat16")
    updates, _ = tx.update(params + 1, tx.init(params), params, loss=2.0)
    assert (updates == 2).all()


@pytest.mark.slow
def test_chains_and_temperatures():
    params = jnp.zeros((4, 10_000), "bfloat16")
    tx = diffopt.low_precision(diffopt.sghmc(1e-2, 0.5))
    state = diffopt.split_keys(tx.init(params[0]), 4)
    updates, state = jax.jit(jax.vmap(tx.update))(params, state, params)
    assert len(np.unique(jax.random.key_data(state.key), axis=0)) == 4
    assert (updates[0] != updates[1]).mean() > 0.9
    one = jax.tree.map(lambda x: x[0], state)
    assert diffopt.kinetic_temperature(one).overall > 0


def test_the_bits_of_both_roundings_are_even_in_a_square():
    bits = jnp.arange(2**16, dtype=jnp.uint32)
    partner = np.asarray(_second_16_bits(bits), np.float64)
    assert len(np.unique(partner)) == 2**16
    assert np.abs(np.cumsum(partner - partner.mean())).max() / 2**32 < 5e-5


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="reads the program for a CPU")
def test_the_wrapped_update_is_computed_once():
    params = jnp.zeros((512, 1024), "bfloat16")
    tx = diffopt.low_precision(diffopt.sgld(0.1, 0.5))
    compiled = jax.jit(tx.update).lower(params, tx.init(params), params).compile()
    assert compiled.as_text().count(" log-plus-one(") == 1


def test_a_gradient_of_none_passes_on():
    """As Equinox has it: None for what is no parameter, and the whole model beside it."""
    params = {"w": jnp.ones(3, "bfloat16"), "wide": jnp.ones(2), "no": None}
    for make in (lambda: diffopt.sgld(0.1, 0.1), lambda: optax.adamw(0.1)):
        tx = diffopt.low_precision(make())
        grads = {"w": jnp.ones(3, "bfloat16"), "wide": jnp.ones(2), "no": None}
        for no in (jnp.tanh, jnp.ones(2, "bfloat16"), jnp.arange(3)):
            updates, _ = tx.update(grads, tx.init(params), params | {"no": no})
            assert updates["no"] is None and (updates["w"] != 0).all()
    tx = diffopt.low_precision(diffopt.sgld(0.1, 0.1))
    _, state = tx.update(params, tx.init(params), params)
    updates, after = tx.update({"w": None, "wide": None, "no": None}, state, params)
    assert jax.tree.leaves(updates) == []
    np.testing.assert_array_equal(after.residual["w"], state.residual["w"])


def test_parameters_that_were_cast_after_init_are_named():
    tx = diffopt.low_precision(diffopt.sgld(0.1, 0.1))
    wide, low = {"w": jnp.ones(3)}, {"w": jnp.ones(3, "bfloat16")}
    for before, now, message in (
        (wide, low, r"params\['w'\] is of bfloat16, but .* a parameter of 32 bits or more"),
        (low, wide, r"params\['w'\] is of float32, but .* a parameter of 16 bits"),
    ):
        with pytest.raises(TypeError, match=message):
            tx.update(now, tx.init(before), now)
    with pytest.raises(TypeError, match=message):  # the other may have been left out by a mask
        diffopt.exact_params(wide, tx.init(low))


@pytest.mark.slow
def test_the_residual_drifts_by_some_2_to_the_minus_26_of_the_spacing():
    """Of residuals of all sizes, by updates of 0: what the docstring states as the limit."""
    params, steps = jnp.full(200_000, 1.3, "bfloat16"), 100
    tx = diffopt.low_precision(optax.set_to_zero())
    residual = jax.random.randint(jax.random.key(0), params.shape, -(2**14), 2**14, jnp.int16)
    state = tx.init(params)._replace(residual=residual)

    def one(carry, _):
        params, state = carry
        updates, state = tx.update(params, state, params)
        return (optax.apply_updates(params, updates), state), None

    (moved, after), _ = jax.jit(lambda c: jax.lax.scan(one, c, length=steps))((params, state))
    drift = (exact(moved, after) - exact(params, state)) / steps / 2.0**-7
    assert 2.0**-27 < drift.mean() < 2.0**-25


@pytest.mark.slow
def test_flax_nnx():
    """A Param in the model is an OptVariable in the optimizer's state."""
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16)
    model.bias = nnx.Param(jnp.ones(2))
    tx = diffopt.low_precision(diffopt.sghmc(1e-3, 1e-3))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    loss = lambda model: jnp.mean(model(jnp.ones((4, 3))).astype(jnp.float32) ** 2)
    grads = nnx.grad(loss)(model)
    optimizer.update(model, grads)
    params = nnx.state(model, nnx.Param)
    plain = nnx.to_pure_dict(params)
    found = diffopt.exact_params(params, optimizer.opt_state)
    residual = nnx.to_pure_dict(optimizer.opt_state.residual)
    expected = add_residual(plain["kernel"], residual["kernel"])
    np.testing.assert_array_equal(found["kernel"][...], expected)
    assert type(found["kernel"]) is nnx.Param and found["kernel"].dtype == jnp.float32
    of_dicts = diffopt.exact_params(plain, optimizer.opt_state)
    chex.assert_trees_all_equal(of_dicts, nnx.to_pure_dict(found))
    warm = diffopt.configurational_temperature(params, grads)
    same = diffopt.configurational_temperature(params, nnx.to_pure_dict(grads))
    assert warm.overall == same.overall != 0
    assert diffopt.kinetic_temperature(optimizer.opt_state).overall > 0
    collect = diffopt.collect(2)
    assert collect.update(found, collect.init(found)).count == 1


# A state in 16 bits


def state_bytes(tx, params):
    """Of the parameters and the state, for each parameter."""
    leaves = [x for x in jax.tree.leaves((params, tx.init(params))) if jnp.ndim(x)]
    return sum(x.size * x.dtype.itemsize for x in leaves) / params.size


BYTES = {
    "sgd": (lambda: optax.sgd(0.1), (4, 2, 4, 4, 2)),
    "sgld": (lambda: diffopt.sgld(0.1, 0.1), (4, 2, 4, 4, 2)),
    "momentum": (lambda: optax.sgd(0.1, momentum=0.9), (8, 4, 8, 6, 4)),
    "sghmc": (lambda: diffopt.sghmc(0.1, 0.1), (8, 4, 8, 6, 4)),
    "adamw": (lambda: optax.adamw(0.1), (12, 6, 12, 8, 6)),
}


@pytest.mark.parametrize("name", BYTES)
def test_bytes_of_a_parameter(name):
    make, expected = BYTES[name]
    wide, narrow = jnp.zeros([8, 8]), jnp.zeros([8, 8], jnp.bfloat16)
    kept = ({}, {"state_dtype": jnp.bfloat16}, {"residual": False, "state_dtype": jnp.bfloat16})
    ours = (diffopt.low_precision(make(), **options) for options in kept)
    found = [state_bytes(make(), wide), state_bytes(make(), narrow)]
    assert (*found, *(state_bytes(tx, narrow) for tx in ours)) == expected


@pytest.mark.slow
def test_what_is_like_no_parameter_of_16_bits_stays_in_float32():
    params = {"low": jnp.ones(3, "float16"), "wide": jnp.ones(3), "none": None}
    tx = diffopt.low_precision(
        optax.chain(optax.adam(0.1), diffopt.sgnht(0.1, 0.1)), state_dtype=jnp.bfloat16
    )
    state = tx.init(params)
    adam, sgnht = state.inner_state[0][0], state.inner_state[1]
    assert adam.nu["low"].dtype == jnp.bfloat16 and adam.nu["wide"].dtype == jnp.float32
    assert adam.count.dtype == jnp.int32
    assert all(x.dtype != jnp.bfloat16 for x in jax.tree.leaves(sgnht) if x.ndim == 0)
    _, after = jax.jit(tx.update)(params, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


@pytest.mark.slow
def test_a_state_in_16_bits_passes_through_wrappers_and_keeps_what_has_no_gradient():
    make = lambda: diffopt.low_precision(diffopt.sghmc(0.1, 0.1), state_dtype=jnp.bfloat16)
    params = {"a": jnp.ones(4, "bfloat16"), "b": jnp.ones(2, "bfloat16")}
    for tx in (optax.MultiSteps(make(), 2), optax.masked(make(), {"a": True, "b": False})):
        state = tx.init(params)
        _, after = jax.jit(tx.update)(params, state, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    chains = diffopt.split_keys(make().init(params), 3)
    assert chains.inner_state.velocity["a"].shape == (3, 4)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32, jnp.int8, "half a byte"])
def test_another_dtype_of_the_state_is_refused(dtype):
    with pytest.raises(ValueError, match="state_dtype must be jnp.bfloat16, or None"):
        diffopt.low_precision(optax.sgd(0.1), state_dtype=dtype)


@pytest.mark.parametrize("make", [optax.adam, optax.lion])
def test_a_state_that_is_of_16_bits_already_is_refused(make):
    tx = diffopt.low_precision(make(0.1, mu_dtype=jnp.bfloat16), state_dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match=r"mu\['b'\] in the state of tx is of bfloat16 already"):
        tx.init(PARAMS)


def test_scalars_of_the_state_stay_in_float32():
    params = jnp.ones((), "bfloat16")
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    state = diffopt.low_precision(tx, state_dtype=jnp.bfloat16).init(params)
    assert state.inner_state.hyperparams["learning_rate"].dtype == jnp.float32


@low
@pytest.mark.parametrize("steps", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_no_rounding_is_dropped_within_a_program(dtype, steps):
    """XLA drops a cast to bfloat16 and back: then the residual is of another parameter.

    Of updates as large as the parameters, which are rounded to the dtype of the updates; what is
    left of them is in the residual, wherever it has place.
    """
    keys = jax.random.split(jax.random.key(0), steps + 1)
    params = jax.random.normal(keys[-1], (20_000,)).astype(dtype)
    u = jax.vmap(lambda key: jax.random.normal(key, params.shape))(keys[:-1])
    tx = diffopt.low_precision(increments(u))

    def step(params, state):
        updates, state = tx.update(params, state, params)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def together(params, state):
        has_place = jnp.ones(params.shape, bool)
        for _ in range(steps):
            params, state = step(params, state)
            has_place &= (state.residual > -(2**15)) & (state.residual < 2**15 - 1)
        return params, state, has_place

    after, state, has_place = together(params, tx.init(params))
    expected = np.asarray(params, np.float64) + np.asarray(u, np.float64).sum(0)
    error = np.abs(exact(after, state) - expected)[has_place]
    sizes = np.abs(np.asarray(params, np.float64)) + np.abs(np.asarray(u, np.float64)).sum(0)
    unit = float(jnp.finfo(dtype).eps) / 2**14
    assert has_place.mean() > 0.7
    assert (error / sizes[has_place]).max() < steps * (unit + 2.0**-22)


def test_a_state_of_ivon_in_16_bits_is_refused():
    tx = optax.chain(optax.clip(1.0), diffopt.ivon(0.1, 100))
    with pytest.raises(ValueError, match="state_dtype .* the precision of ivon"):
        diffopt.low_precision(tx, state_dtype=jnp.bfloat16).init(PARAMS)


# Without a residual


bare = partial(diffopt.low_precision, residual=False)


@low
def test_without_a_residual_a_step_adds_the_variance_of_its_rounding(dtype):
    """Of steps ±u below the spacing Δ: |u|Δ each, where exact ones add u²; and no drift."""
    size, steps = 100_000, 20
    delta = float(jnp.finfo(dtype).eps)
    u = delta / 8 * jax.random.rademacher(jax.random.key(0), (steps, size), jnp.float32)

    @jax.jit
    def walk(params):
        def step(carry, u):
            params, state = carry
            tx = bare(optax.stateless(lambda grads, params: u))
            updates, state = tx.update(params, state, params)
            return (optax.apply_updates(params, updates), state), None

        state = bare(optax.set_to_zero()).init(params)
        return jax.lax.scan(step, (params, state), u)[0]

    params, state = walk(jnp.full(size, 1.5, dtype))
    assert state.residual is None
    moved = (np.asarray(params, np.float64) - 1.5) / delta
    variance = steps / 8
    assert abs(moved.mean()) < 4.5 * np.sqrt(variance / size)
    kurtosis = np.mean(moved**4) / variance**2
    assert abs(moved.var() / variance - 1) < 4.5 * np.sqrt((kurtosis - 1) / size)
    exact = diffopt.exact_params(params, state)
    assert exact.dtype == jnp.float32
    np.testing.assert_array_equal(exact, params.astype(jnp.float32))


def test_without_a_residual_trees_pass_as_with_one():
    mixed = {**PARAMS, "wide": jnp.ones(2), "none": None, "empty": jnp.ones(0, "bfloat16")}
    tx = bare(optax.adam(0.1))
    updates, state = step(tx, mixed, mixed)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, mixed)
    kept, _ = step(diffopt.low_precision(optax.adam(0.1)), mixed, mixed)
    chex.assert_trees_all_equal(updates, kept)  # the first step: the same bits, no residual yet
    no_gradient = mixed | {"w": None}
    updates, _ = tx.update(no_gradient, tx.init(no_gradient), mixed)
    assert updates["w"] is None
    mapped = optax.tree.map_params(tx, lambda p: p + 1, state)
    assert mapped.residual is None and (mapped.inner_state[0].mu["wide"] > 1).all()
    assert diffopt.split_keys(state, 3).inner_state[0].mu["w"].shape == (3, 2, 3)


def test_a_state_made_with_another_residual_is_refused():
    for keeps in (True, False):
        state = diffopt.low_precision(optax.sgd(0.1), residual=not keeps).init(PARAMS)
        tx = diffopt.low_precision(optax.sgd(0.1), residual=keeps)
        message = rf"low_precision\(residual={keeps}\) got a state made with residual={not keeps}"
        with pytest.raises(TypeError, match=message):
            tx.update(GRADS, state, PARAMS)
    with pytest.raises(TypeError, match="residual must be True or False, got 'no'"):
        diffopt.low_precision(optax.sgd(0.1), residual="no")
