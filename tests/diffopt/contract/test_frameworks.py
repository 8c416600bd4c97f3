"""Every sampler in the hands of the libraries for networks and under JAX's strictest settings."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState

from tests.diffopt.contract.helpers import (
    ETA,
    T,
    each_sampler,
    maker,
    setting,
    standard,
    tolerance,
)
from tests.helpers import SAMPLERS, assert_close, assert_equal, assert_like, is_key, of_name, run

# In the hands of the libraries for networks


@pytest.mark.slow
@each_sampler
def test_a_run_restored_by_orbax_goes_on_to_the_same_bits(name, tmp_path):
    params, grads = setting(name)
    del params["empty"], grads["empty"]  # Orbax has no room for nothing
    tx, update = standard(name)
    _, state = update(grads, tx.init(params), params)
    saved = {"params": params, "grads": grads, "state": state}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", saved)
        checkpointer.wait_until_finished()
        blank = jax.tree.map(lambda x: x if is_key(x) else jnp.zeros_like(x), saved)
        restored = checkpointer.restore(tmp_path / "run", blank)
    assert_equal(restored, saved)
    steps = (update(run["grads"], run["state"], run["params"]) for run in (saved, restored))
    assert_equal(*steps)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
