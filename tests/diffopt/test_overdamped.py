"""langevin and sgld keep Optax's contract and refuse bad input."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState

import diffopt

PARAMS = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(3)}
GRADS = jax.tree.map(lambda p: p / 2 - 1, PARAMS)
KEY = jax.random.key(0)
SAMPLERS = {
    "langevin": lambda **kw: diffopt.langevin(0.1, **kw),
    "langevin_lr": lambda **kw: diffopt.langevin(0.1, 0.01, **kw),
    "sgld": lambda **kw: diffopt.sgld(0.01, 0.1, **kw),
}
samplers = pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS.keys())


def step(tx, params=PARAMS, grads=GRADS):
    return tx.update(grads, tx.init(params), params)


@samplers
def test_state_holds_a_count_and_a_typed_key_that_changes(make):
    tx = make(key=7)
    state = tx.init(PARAMS)
    _, after = tx.update(GRADS, state)
    assert jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key)
    assert (state.count, after.count) == (0, 1)
    assert after.key != state.key


@samplers
def test_keys_of_every_kind_give_the_same_noise(make):
    forms = (3, np.int64(3), jnp.array(3), jax.random.key(3), jax.random.PRNGKey(3))
    first, *others = (step(make(key=key))[0] for key in forms)
    for other in others:
        chex.assert_trees_all_equal(first, other)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(first, step(make(key=4))[0])


@pytest.mark.parametrize(
    "key", [1.5, "0", None, True, jnp.zeros(3), jax.random.split(jax.random.key(0))]
)
def test_other_keys_are_refused_by_name(key):
    with pytest.raises(TypeError, match="key must be"):
        diffopt.sgld(0.1, 1.0, key=key)


@samplers
def test_jit_equals_eager_and_compiles_once(make):
    tx = make()
    traces = []

    @jax.jit
    def update(grads, state):
        traces.append(1)
        return tx.update(grads, state)

    state = jitted = tx.init(PARAMS)
    for _ in range(3):
        eager, state = tx.update(GRADS, state)
        compiled, jitted = update(GRADS, jitted)
        chex.assert_trees_all_close(eager, compiled, rtol=1e-5)
    assert len(traces) == 1
    assert state.key == jitted.key


@samplers
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "complex64"])
def test_dtypes_and_shapes_are_kept(make, dtype):
    params = {"a": jnp.ones((2, 3), dtype), "b": jnp.ones((), dtype), "c": jnp.ones((0, 4), dtype)}
    updates, _ = step(make(), params, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    assert all(jnp.isfinite(u).all() for u in jax.tree.leaves(updates))


def test_float64_noise_has_full_precision():
    with jax.enable_x64(True):
        params = jnp.zeros(1000, jnp.float64)
        updates, _ = step(diffopt.sgld(0.01, 0.1), params, params)
        assert updates.dtype == jnp.float64
        assert (updates != updates.astype(jnp.float32)).mean() > 0.9


@samplers
def test_none_leaves_and_empty_trees_pass(make):
    params = {"w": jnp.ones(2), "frozen": None}
    updates, _ = step(make(), params, params)
    assert updates["frozen"] is None
    assert step(make(), {}, {})[0] == {}


@samplers
def test_integer_parameters_are_named(make):
    with pytest.raises(TypeError, match=r"params\['layer'\]\[1\] has dtype int32"):
        make().init({"layer": [jnp.ones(2), jnp.arange(3)]})


BAD = [-1.0, float("nan"), float("inf"), np.float32(-1), jnp.array(-1.0), jnp.array(jnp.nan)]


@pytest.mark.parametrize("bad", BAD)
def test_bad_numbers_are_refused_by_name_and_value(bad):
    shown = str(float(bad)).removesuffix(".0")
    for build, name in (
        (lambda: diffopt.langevin(bad), "diffusion"),
        (lambda: diffopt.langevin(1.0, bad), "learning_rate"),
        (lambda: diffopt.sgld(bad, 1.0), "learning_rate"),
        (lambda: diffopt.sgld(0.1, bad), "temperature"),
    ):
        with pytest.raises(ValueError, match=f"{name} must be finite.*{shown}"):
            build()


def test_zero_step_unknown_noise_and_wrong_types_are_refused():
    for build in (lambda: diffopt.langevin(1.0, 0.0), lambda: diffopt.sgld(0, 1.0)):
        with pytest.raises(ValueError, match="learning_rate must be finite and > 0, got 0"):
            build()
    for bad in ("0.1", None, True, 1j, jnp.ones(3), jnp.ones((), bool)):
        with pytest.raises(TypeError, match="temperature must be a"):
            diffopt.sgld(0.1, bad)
    with pytest.raises(ValueError, match="noise must be one of.*'cauchy'"):
        diffopt.langevin(1.0, noise="cauchy")


@pytest.mark.parametrize("end", [0.0, -1e-10])
def test_a_schedule_that_ends_at_zero_or_just_below_gives_no_noise(end):
    lr = optax.piecewise_constant_schedule(0.1, {2: 0.0})
    slipping = lambda count: jnp.where(count < 2, lr(count), end)
    for tx, rest in (
        (diffopt.langevin(1.0, slipping), GRADS),
        (diffopt.langevin(slipping), GRADS),
        (diffopt.sgld(slipping, 1.0), jax.tree.map(jnp.zeros_like, GRADS)),
        (diffopt.sgld(0.1, slipping), jax.tree.map(lambda g: -0.1 * g, GRADS)),
    ):
        state = tx.init(PARAMS)
        seen = []
        for _ in range(4):
            updates, state = tx.update(GRADS, state)
            seen.append(updates)
        assert all(jnp.isfinite(u).all() for u in jax.tree.leaves(seen))
        assert not jnp.allclose(seen[0]["w"], rest["w"])
        chex.assert_trees_all_close(seen[3], rest, rtol=1e-6)


def test_schedules_numbers_and_arrays_agree():
    expected = step(diffopt.sgld(0.01, 0.1))[0]
    for lr, T in (
        (jnp.array(0.01), np.float32(0.1)),
        (lambda _: 0.01, optax.constant_schedule(0.1)),
    ):
        chex.assert_trees_all_close(step(diffopt.sgld(lr, T))[0], expected, rtol=1e-6)


def test_at_temperature_zero_sgld_is_sgd():
    sgd, cold = optax.sgd(0.01), diffopt.sgld(0.01, 0.0)
    chex.assert_trees_all_equal(step(cold)[0], step(sgd)[0])
    chex.assert_trees_all_equal(step(diffopt.langevin(0.0))[0], GRADS)


def test_langevin_before_sgd_is_sgld_with_the_sign_of_the_noise_turned():
    sgld = step(diffopt.sgld(0.01, 0.1, key=5))[0]
    drift = jax.tree.map(lambda g: -0.01 * g, GRADS)
    expected = jax.tree.map(lambda d, u: d - (u - d), drift, sgld)
    with_lr = optax.chain(diffopt.langevin(0.1, 0.01, key=5), optax.sgd(0.01))
    without = optax.chain(diffopt.langevin(0.1 / 0.01, key=5), optax.sgd(0.01))
    for chain in (with_lr, without):
        chex.assert_trees_all_close(step(chain)[0], expected, rtol=1e-5, atol=1e-7)


@samplers
def test_masked_noise_leaves_the_rest_alone(make):
    updates, _ = step(optax.masked(make(), {"w": True, "b": False}))
    chex.assert_trees_all_equal(updates["b"], GRADS["b"])
    assert not jnp.allclose(updates["w"], GRADS["w"])


@samplers
def test_multisteps_draws_once_per_real_step(make):
    tx = optax.MultiSteps(make(), every_k_schedule=4)
    state = tx.init(PARAMS)
    for i in range(8):
        updates, state = tx.update(GRADS, state, PARAMS)
        moved = any(jnp.any(u != 0) for u in jax.tree.leaves(updates))
        assert moved == (i % 4 == 3)
    assert state.inner_opt_state.count == 2


@pytest.mark.parametrize(
    "key", [0, jax.random.key(0), jax.random.PRNGKey(0)], ids=["int", "key", "raw"]
)
def test_inject_hyperparams_sets_the_temperature_without_recompiling(key):
    tx = optax.inject_hyperparams(diffopt.sgld)(0.01, temperature=0.1, key=key)
    state = tx.init(PARAMS)
    update = jax.jit(tx.update)
    warm, _ = update(GRADS, state, PARAMS)
    chex.assert_trees_all_close(warm, step(diffopt.sgld(0.01, 0.1))[0], rtol=1e-5)
    state.hyperparams["temperature"] = jnp.zeros_like(state.hyperparams["temperature"])
    cold, _ = update(GRADS, state, PARAMS)
    chex.assert_trees_all_close(cold, jax.tree.map(lambda g: -0.01 * g, GRADS), rtol=1e-6)
    assert update._cache_size() == 1


def test_inject_hyperparams_with_a_schedule_that_reaches_zero_runs_eagerly():
    tx = optax.inject_hyperparams(diffopt.langevin)(
        0.1, learning_rate=optax.linear_schedule(0.1, 0.0, 2)
    )
    state = tx.init(PARAMS)
    for _ in range(4):
        updates, state = tx.update(GRADS, state, PARAMS)
    chex.assert_trees_all_equal(updates, GRADS)


@samplers
def test_apply_if_finite_skips_a_bad_gradient(make):
    tx = optax.apply_if_finite(make(), max_consecutive_errors=3)
    bad = {**GRADS, "b": jnp.full(3, jnp.nan)}
    updates, state = tx.update(bad, tx.init(PARAMS), PARAMS)
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, PARAMS))
    updates, state = tx.update(GRADS, state, PARAMS)
    assert all(jnp.isfinite(u).all() and (u != 0).any() for u in jax.tree.leaves(updates))


@samplers
def test_tree_map_params_leaves_the_state_alone(make):
    tx = make()
    state = tx.init(PARAMS)
    mapped = optax.tree.map_params(tx, lambda p: p + 1, state)
    assert mapped.count == state.count and mapped.key == state.key


@samplers
def test_chain_passes_extra_arguments_by(make):
    wants_loss = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(),
        lambda updates, state, params=None, *, loss: (optax.tree.scale(loss, updates), state),
    )
    tx = optax.chain(make(), wants_loss)
    doubled, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS, loss=2.0)
    chex.assert_trees_all_close(doubled, optax.tree.scale(2.0, step(make())[0]), rtol=1e-6)


@samplers
def test_scan_equals_a_loop(make):
    tx = make()
    state = tx.init(PARAMS)
    _, scanned = jax.lax.scan(lambda s, _: tx.update(GRADS, s)[::-1], state, length=3)
    for i in range(3):
        updates, state = tx.update(GRADS, state)
        chex.assert_trees_all_close(updates, jax.tree.map(lambda x: x[i], scanned), rtol=1e-5)


def quadratic(params):
    return sum(jnp.sum(p**2) for p in jax.tree.leaves(params))


@samplers
def test_flax_nnx_optimizer(make):
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    before = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, optax.chain(make(), optax.sgd(0.1)), wrt=nnx.Param)

    @nnx.jit
    def train(model, optimizer):
        grads = nnx.grad(lambda m: jnp.sum(m(jnp.ones((1, 3))) ** 2))(model)
        optimizer.update(model, grads)

    for _ in range(2):
        train(model, optimizer)
    after = nnx.state(model, nnx.Param)
    moved = jax.tree.map(lambda a, b: jnp.all(a != b), before, after)
    assert all(jax.tree.leaves(moved))


@samplers
def test_linen_train_state(make):
    net = linen.Dense(2)
    params = net.init(jax.random.key(0), jnp.ones((1, 3)))
    state = TrainState.create(apply_fn=net.apply, params=params, tx=make())
    stepped = jax.jit(lambda s: s.apply_gradients(grads=jax.grad(quadratic)(s.params)))(state)
    assert stepped.step == 1 and stepped.opt_state.count == 1
    assert not jnp.allclose(stepped.params["params"]["kernel"], params["params"]["kernel"])


@samplers
def test_equinox_filtered_model(make):
    model = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    tx = make()
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def train(model, state):
        grads = eqx.filter_grad(lambda m: jnp.sum(m(jnp.ones(3)) ** 2))(model)
        updates, state = tx.update(grads, state)
        return eqx.apply_updates(model, updates), state

    after, state = train(model, state)
    assert after.activation is model.activation
    assert not jnp.allclose(after.layers[0].weight, model.layers[0].weight)
