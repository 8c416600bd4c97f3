"""psgld as an Optax transformation: its step, its limit, its contract."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt

PARAMS = {"w": jnp.array([[0.5, -1.0], [2.0, 0.1]]), "b": jnp.array([0.3, -0.7])}


def loss(params):
    """Not convex: a sum of cosines in a shallow bowl."""
    return sum(jnp.sum(jnp.cos(3 * p)) + 0.1 * jnp.sum(p**2) for p in jax.tree.leaves(params))


def path(tx, steps=100):
    """All parameters on the way of a compiled run."""

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(step, (params, tx.init(params)), length=steps)[1]

    return run(PARAMS)


def assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.parametrize("decay,eps", [(0.99, 1e-5), (0.0, 0.1)])
def test_at_zero_temperature_it_is_rmsprop(decay, eps):
    reference = optax.rmsprop(0.002, decay=decay, eps=eps, eps_in_sqrt=False)
    assert_close(path(diffopt.psgld(0.002, 0.0, decay=decay, eps=eps)), path(reference), rtol=1e-4)


def test_the_step_is_that_of_the_docstring():
    eta, T, decay, eps, g = 0.04, 0.7, 0.9, 0.1, np.array([0.3, -2.0, 0.0], np.float32)
    ones = lambda key, shape, dtype: jnp.ones(shape, dtype)
    tx = diffopt.psgld(eta, T, decay=decay, eps=eps, noise=ones)
    nu = np.array([1.0, 2.0, 0.0])
    updates, state = tx.update(jnp.asarray(g), tx.init(jnp.zeros(3))._replace(nu=jnp.asarray(nu)))
    nu = decay * nu + (1 - decay) * g**2
    G = 1 / (np.sqrt(nu) + eps)
    np.testing.assert_allclose(state.nu, nu, rtol=1e-6)
    np.testing.assert_allclose(updates, -eta * G * g + np.sqrt(2 * T * eta * G), rtol=1e-5)


def test_a_complex_element_has_one_preconditioner_and_two_noises():
    g = jnp.array([3 + 4j, 1j], jnp.complex64)
    tx = diffopt.psgld(0.1, 0.5, decay=0.0)
    updates, state = tx.update(g, tx.init(g))
    np.testing.assert_allclose(state.nu, [25.0, 1.0], rtol=1e-6)
    assert updates.dtype == jnp.complex64 and state.nu.dtype == jnp.float32
    assert jnp.all(updates.real != updates.imag)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dtypes_none_and_empty_leaves_are_kept(dtype):
    params = {"x": jnp.ones(4, dtype), "none": None, "empty": jnp.zeros([0, 3])}
    tx = diffopt.psgld(jnp.float32(0.1), 0.5)
    updates, state = jax.jit(tx.update)(params, tx.init(params))
    for tree in (updates, state.nu):
        assert tree["none"] is None and tree["empty"].shape == (0, 3)
    assert updates["x"].dtype == dtype and state.nu["x"].dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_squared_gradients_of_16_bits_neither_underflow_nor_stop_adding_up(dtype):
    g, decay = jnp.array([1e-4, 1.0], dtype), 0.999
    tx = diffopt.psgld(0.1, 0.0, decay=decay)

    def step(state, _):
        updates, state = tx.update(g, state)
        return state, updates

    state, updates = jax.jit(lambda: jax.lax.scan(step, tx.init(g), length=2_000))()
    exact = np.asarray(g, np.float64)
    nu = (1 - decay**2_000) * exact**2
    np.testing.assert_allclose(state.nu, nu, rtol=1e-3)
    np.testing.assert_allclose(
        np.asarray(updates[-1], np.float64), -0.1 * exact / (np.sqrt(nu) + 1e-5), rtol=1e-2
    )


def test_jit_equals_eager_and_compiles_once():
    tx = diffopt.psgld(0.02, 0.5)
    update = jax.jit(tx.update)
    state = eager_state = tx.init(PARAMS)
    for _ in range(3):
        updates, state = update(PARAMS, state)
        eager, eager_state = tx.update(PARAMS, eager_state)
        assert_close(updates, eager, rtol=1e-5, atol=1e-6)
    assert update._cache_size() == 1
    assert state.count == 3


def test_the_key_is_split_at_every_step_and_decides_the_noise():
    def first_two(key):
        tx = diffopt.psgld(0.1, 1.0, key=key)
        first, state = tx.update(jnp.zeros(3), tx.init(jnp.zeros(3)))
        return np.asarray(first), np.asarray(tx.update(jnp.zeros(3), state)[0])

    first, second = first_two(7)
    assert not np.any(first == second)
    np.testing.assert_array_equal(first_two(jax.random.key(7))[0], first)
    assert not np.any(first_two(8)[0] == first)


@pytest.mark.parametrize("end", [0.0, -1e-10])
def test_schedules_that_end_at_zero_or_just_below_give_no_nan(end):
    falling = lambda count: jnp.where(count < 2, 0.1 * (2 - count), end)
    for learning_rate, temperature in ((falling, 0.5), (0.1, falling), (falling, falling)):
        tx = diffopt.psgld(learning_rate, temperature)
        state = tx.init(jnp.ones(2))
        for _ in range(4):
            updates, state = tx.update(jnp.array([1.0, 0.0]), state)
            assert jnp.isfinite(updates).all()


def test_the_wrappers_of_optax_take_it():
    schedule = optax.linear_schedule(0.1, 0.0, 10)
    injected = optax.inject_hyperparams(diffopt.psgld)(schedule, temperature=0.5)
    assert_close(path(injected, 20), path(diffopt.psgld(schedule, 0.5), 20), rtol=1e-3, atol=1e-4)

    tx = diffopt.psgld(0.1, 0.5)
    state = optax.tree.map_params(tx, lambda _: "p", tx.init(PARAMS), transform_non_params=str)
    assert state.nu == {"w": "p", "b": "p"} and state.count == "0"

    many = optax.MultiSteps(tx, 2)
    _, state = many.update({"w": jnp.full(3, 2.0)}, many.init({"w": jnp.zeros(3)}))
    updates, _ = many.update({"w": jnp.full(3, 4.0)}, state)
    once, _ = tx.update({"w": jnp.full(3, 3.0)}, tx.init({"w": jnp.zeros(3)}))
    assert_close(updates, once, rtol=1e-5)

    mixed = {"w": jnp.ones(2), "count": jnp.arange(2)}
    masked = optax.masked(tx, {"w": True, "count": False})
    updates, _ = masked.update(mixed, masked.init(mixed))
    np.testing.assert_array_equal(updates["count"], mixed["count"])

    careful = optax.apply_if_finite(tx, 5)
    updates, state = careful.update({"w": jnp.full(3, jnp.nan)}, careful.init({"w": jnp.zeros(3)}))
    assert_close((updates["w"], state.inner_state.nu["w"]), (jnp.zeros(3), jnp.zeros(3)))


@pytest.mark.parametrize(
    "arguments,error,message",
    [
        ({"learning_rate": 0.0}, ValueError, "learning_rate .* got 0.0"),
        ({"temperature": -1.0}, ValueError, "temperature .* got -1.0"),
        ({"decay": 1.0}, ValueError, "decay must be < 1, got 1.0"),
        ({"decay": -0.1}, ValueError, "decay .* got -0.1"),
        ({"decay": lambda count: 0.9}, TypeError, "decay must be a number"),
        ({"eps": 0.0}, ValueError, "eps .* got 0.0"),
        ({"eps": "small"}, TypeError, "eps .* got 'small'"),
        ({"noise": "pink"}, ValueError, "noise .* got 'pink'"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        diffopt.psgld(**{"learning_rate": 0.1, "temperature": 0.5} | arguments)


def test_integer_parameters_are_refused_by_name():
    with pytest.raises(TypeError, match=r"\['count'\] has dtype int32"):
        diffopt.psgld(0.1, 0.5).init({"w": jnp.ones(2), "count": jnp.arange(2)})
