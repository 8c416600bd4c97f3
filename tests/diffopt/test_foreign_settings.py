"""What other programs set, hand over or leave among the parameters: none of it stops a sampler."""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

import diffopt

pytestmark = pytest.mark.slow

ETA, T = 0.1, 0.5
SAMPLERS = {
    "langevin": diffopt.langevin,
    "sgld": diffopt.sgld,
    "psgld": diffopt.psgld,
    "sghmc": diffopt.sghmc,
    "baoab": diffopt.baoab,
    "sgnht": diffopt.sgnht,
}
each_sampler = pytest.mark.parametrize("name", SAMPLERS)


def make(name, learning_rate=ETA, temperature=T, wrap=lambda factory: factory, **kwargs):
    if name == "langevin":
        return wrap(diffopt.langevin)(temperature, learning_rate=learning_rate, **kwargs)
    return wrap(SAMPLERS[name])(learning_rate, temperature, **kwargs)


def cheap(key, shape, dtype):
    """A noise that compiles in no time: a number for each leaf."""
    return jnp.full(shape, (jax.random.key_data(key)[0] >> 8).astype(dtype) * 2.0**-23 - 1)


def run(tx, params, grads=None):
    grads = params if grads is None else grads
    updates, state = jax.jit(tx.update)(grads, tx.init(params), params)
    return optax.apply_updates(params, updates), state


def to_data(x):
    is_key = jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
    return jax.random.key_data(x) if is_key else x


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


# jax.debug_key_reuse


@each_sampler
def test_no_key_is_used_twice(name):
    with jax.debug_key_reuse(True):
        key = jax.random.key(1)
        tx = diffopt.low_precision(make(name, key=key), key=key)
        params = {"w": jnp.ones(3, jnp.bfloat16), "c": jnp.ones((2, 300, 300))}
        run(tx, params)
        jax.random.normal(key)  # the caller's key is not used up


def test_chains_use_no_key_twice():
    tx = optax.chain(diffopt.low_precision(diffopt.sgld(ETA, T)), diffopt.langevin(T))
    params = jnp.ones((4, 3), jnp.bfloat16)
    with jax.debug_key_reuse(True):
        state = diffopt.split_keys(tx.init(params[0]), 4)
        jax.vmap(tx.update)(params, state, params)
        state = diffopt.split_keys(diffopt.split_keys(tx.init(params[0]), 2), 3)
    keys = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
    words = np.concatenate([jax.random.key_data(key).reshape(-1, 2) for key in keys])
    assert [key.shape for key in keys] == [(3, 2)] * 3
    assert len(np.unique(words, axis=0)) == 18


# optax.inject_hyperparams gives hyperparameters the dtype of the first parameter


@each_sampler
@pytest.mark.parametrize("jit", [False, True])
def test_hyperparameters_of_complex_parameters_may_be_injected(name, jit):
    params = {"w": jnp.ones(3, jnp.complex64)}
    inject = lambda factory: optax.inject_hyperparams(factory, static_args="noise")
    injected = make(name, wrap=inject, noise=cheap)
    state = (jax.jit(injected.init) if jit else injected.init)(params)
    hyperparameters = jax.tree.leaves(state.hyperparams)
    assert any(jnp.iscomplexobj(x) for x in hyperparameters)
    updates, _ = jax.jit(injected.update)(params, state, params)
    plain = make(name, noise=cheap)
    expected, _ = jax.jit(plain.update)(params, plain.init(params), params)
    np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-6)


@pytest.mark.parametrize("bad", [0.1 + 0.1j, jnp.array(0.1 + 0.1j)])
def test_a_number_that_is_really_complex_is_refused_by_name(bad):
    with pytest.raises(TypeError, match="learning_rate must be a"):
        diffopt.sgld(bad, T)


# Parameters that are shapes alone


@each_sampler
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
def test_a_state_can_be_made_of_shapes(name, dtype):
    shapes = {"w": jax.ShapeDtypeStruct((2, 3), dtype), "b": jax.ShapeDtypeStruct((3,), dtype)}
    params = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    tx = diffopt.low_precision(make(name))
    shape = lambda x: (x.shape, x.dtype)
    of_shapes, of_arrays = tx.init(shapes), tx.init(params)
    assert jax.tree.map(shape, of_shapes) == jax.tree.map(shape, of_arrays)
    assert jax.tree.map(shape, jax.eval_shape(tx.init, shapes)) == jax.tree.map(shape, of_arrays)


# jax_numpy_dtype_promotion="strict"


@pytest.mark.parametrize("x64", [False, True])
@each_sampler
def test_strict_promotion_changes_nothing(name, x64):
    with jax.enable_x64(x64):
        dtypes = [jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64]
        dtypes += [jnp.float64, jnp.complex128] if x64 else []
        params = {str(i): jnp.ones(3, dtype) for i, dtype in enumerate(dtypes)}
        schedule = diffopt.cyclical_schedule(ETA, 10)
        hot = lambda count: T * _stage(count)
        with jax.numpy_dtype_promotion("strict"):
            for noise in ("gaussian", "gaussian16", "rademacher"):
                tx = diffopt.low_precision(make(name, ETA, T, noise=noise))
                updates, _ = jax.eval_shape(lambda p, tx=tx: tx.update(p, tx.init(p), p), params)
                assert jax.tree.all(jax.tree.map(lambda u, p: u.dtype == p.dtype, updates, params))
        tx = make(name, schedule, hot, noise=cheap)
        expected = run(tx, params)
        with jax.numpy_dtype_promotion("strict"):
            assert_equal(jax.tree.map(to_data, run(tx, params)), jax.tree.map(to_data, expected))


_stage = diffopt.sampling_stage(10, 0.5)


def test_schedules_and_temperatures_under_strict_promotion():
    count = jnp.int32(3)
    with jax.numpy_dtype_promotion("strict"):
        for peak in (ETA, jnp.float32(ETA), np.float64(ETA)):
            schedule = diffopt.cyclical_schedule(peak, 10)
            np.testing.assert_allclose(schedule(count), ETA / 2 * (np.cos(np.pi * 0.3) + 1), 1e-6)
        assert _stage(count) == 0
    for x64 in (False, True):
        with jax.enable_x64(x64), jax.numpy_dtype_promotion("strict"):
            params = {
                "a": jnp.ones(2, jnp.bfloat16),
                "b": jnp.ones(2),
                "c": jnp.ones(2, "complex64"),
            }
            assert diffopt.configurational_temperature(params, params).overall == 6 / 8
            _, state = run(diffopt.sghmc(ETA, T), params)
            assert diffopt.kinetic_temperature(state).overall > 0


# jax.export with a symbolic dimension


@each_sampler
def test_every_sampler_can_be_exported(name):
    tx = diffopt.low_precision(make(name))
    (a,) = export.symbolic_shape("a")
    params = {"w": jax.ShapeDtypeStruct((a, 3), jnp.float32)}
    step = lambda params: tx.update(params, tx.init(params), params)[0]
    exported = export.export(jax.jit(step))(params)
    assert str(exported.out_avals[0].shape) == "(a, 3)"


@pytest.mark.parametrize("noise", ["gaussian", "gaussian16", "rademacher"])
def test_a_step_can_be_exported_for_every_size(noise):
    tx = diffopt.low_precision(diffopt.sghmc(ETA, T, noise=noise))

    def step(params):
        updates, _ = tx.update(params, tx.init(params), params)
        return optax.apply_updates(params, updates)

    a, b = export.symbolic_shape("a, b")
    shapes = {
        "w": jax.ShapeDtypeStruct((a, b), jnp.float32),
        "h": jax.ShapeDtypeStruct((b, 3), jnp.bfloat16),
        "v": jax.ShapeDtypeStruct((7,), jnp.float32),
    }
    exported = export.export(jax.jit(step))(shapes)
    for sizes in ((3, 4), (500, 400)):
        params = {
            "w": jnp.zeros(sizes),
            "h": jnp.zeros((sizes[1], 3), jnp.bfloat16),
            "v": jnp.zeros(7),
        }
        moved = exported.call(params)["w"]
        assert (jnp.unique(jnp.abs(moved)).size == 1) == (noise == "rademacher")
        if moved.size > 10_000:
            variance = 2 * 0.1 * ETA * T
            assert abs(jnp.var(moved) / variance - 1) < 4.5 * np.sqrt(2 / moved.size)


# Python numbers and other things among the parameters


@each_sampler
@pytest.mark.parametrize("dtype", [float, complex])
def test_python_numbers_are_parameters(name, dtype):
    tx = make(name, noise=cheap)
    params, grads = {"w": dtype(1.0), "b": jnp.ones(2)}, {"w": dtype(0.5), "b": jnp.ones(2)}
    arrays = jax.tree.map(jnp.asarray, (params, grads))
    expected = run(tx, *arrays)[0]
    for p, g in ((params, grads), (arrays[0], grads), (params, arrays[1])):
        assert_equal(run(tx, p, g)[0], expected)
    eager, _ = tx.update(grads, tx.init(params), params)
    assert eager["w"].dtype == expected["w"].dtype
    moved, _ = run(diffopt.low_precision(tx), params, grads)
    assert moved["w"].dtype == expected["w"].dtype


@each_sampler
@pytest.mark.parametrize("bad", [jax.nn.relu, len, "float32", jnp.float32, np.float32])
def test_what_is_no_array_is_named(name, bad):
    params = {"layers": [{"activation": bad, "w": jnp.ones(2)}]}
    for tx in (make(name), diffopt.low_precision(make(name))):
        with pytest.raises(TypeError, match=r"params\['layers'\]\[0\]\['activation'\] is "):
            tx.init(params)


def test_an_equinox_module_with_its_functions_is_refused_by_name_and_without_them_it_works():
    model = eqx.nn.MLP(2, 1, 3, 1, key=jax.random.key(0))
    tx = diffopt.sgld(ETA, T)
    with pytest.raises(TypeError, match=r"params\.activation is "):
        tx.init(model)
    params = eqx.filter(model, eqx.is_inexact_array)
    grads = eqx.filter_grad(lambda m: jnp.sum(m(jnp.ones(2))))(model)
    updates, _ = tx.update(grads, tx.init(params), params)
    moved = eqx.apply_updates(model, updates)
    assert (moved.layers[0].weight != model.layers[0].weight).all()


def test_a_transformation_in_place_of_its_state_is_refused_by_name():
    with pytest.raises(TypeError, match=r"opt_state\.init is "):
        diffopt.split_keys(diffopt.sgld(ETA, T), 4)


# Annotations


@each_sampler
def test_schedules_are_annotated_with_the_type_of_optax(name):
    parameters = inspect.signature(SAMPLERS[name]).parameters
    optional = optax.ScalarOrSchedule | None
    for argument in ("learning_rate", "step_size", "temperature", "diffusion"):
        if argument in parameters:
            expected = optional if parameters[argument].default is None else optax.ScalarOrSchedule
            assert parameters[argument].annotation == expected
    assert inspect.signature(SAMPLERS[name]).return_annotation is (
        optax.GradientTransformationExtraArgs
    )
