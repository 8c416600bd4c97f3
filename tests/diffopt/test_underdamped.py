"""sghmc, baoab and sgnht as Optax transformations: their steps, their limits, their contract."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt

SAMPLERS = {"sghmc": diffopt.sghmc, "baoab": diffopt.baoab, "sgnht": diffopt.sgnht}
STEP = {diffopt.sghmc: "learning_rate", diffopt.baoab: "step_size", diffopt.sgnht: "learning_rate"}
PARAMS = {"w": jnp.array([[0.5, -1.0], [2.0, 0.1]]), "b": jnp.array([0.3, -0.7])}

each_sampler = pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)


def loss(params):
    """Not convex: a sum of cosines in a shallow bowl, with every parameter coupled."""
    x = jnp.concatenate([jnp.ravel(p) for p in jax.tree.leaves(params)])
    return jnp.sum(jnp.cos(3 * x)) + 0.1 * jnp.sum(x**2) + jnp.prod(jnp.tanh(x))


def train(tx, params=PARAMS, steps=100, loss=loss):
    """The last parameters and state, every step compiled, and all parameters on the way."""

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(step, (params, tx.init(params)), length=steps)

    (params, state), path = run(params)
    return params, state, path


def assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def ones(key, shape, dtype):
    """A known increment, ξ = 1."""
    return jnp.ones(shape, dtype)


@pytest.mark.parametrize("make", [diffopt.sghmc, diffopt.sgnht])
@pytest.mark.parametrize("m", [0.0, 0.5, 0.9])
def test_at_zero_temperature_it_is_sgd_with_momentum(make, m):
    _, _, path = train(make(0.02, 0.0, momentum=m))
    _, _, reference = train(optax.sgd(0.02, momentum=m))
    assert_close(path, reference, rtol=2e-5, atol=2e-6)
    assert np.abs(path["w"][-1] - PARAMS["w"]).max() > 0.1


def test_sghmc_without_momentum_is_sgld():
    _, _, path = train(diffopt.sghmc(0.02, 0.5, momentum=0.0, key=3))
    _, _, reference = train(diffopt.sgld(0.02, 0.5, key=3))
    assert_close(path, reference, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("friction", [0.0, 0.7])
def test_at_zero_temperature_baoab_is_damped_leapfrog(friction):
    h = 0.1
    _, _, path = train(diffopt.baoab(h, 0.0, friction=friction))
    theta, v = PARAMS, jax.tree.map(jnp.zeros_like, PARAMS)
    grad = jax.jit(jax.grad(loss))
    for i in range(100):
        kicked = jax.tree.map(lambda v, g: v - h * g, v, grad(theta))
        v = jax.tree.map(lambda v: np.exp(-friction * h) * v, kicked)
        theta = jax.tree.map(lambda p, a, b: p + h * (a + b) / 2, theta, kicked, v)
        assert_close(jax.tree.map(lambda p: p[i], path), theta, rtol=1e-4, atol=1e-4)


def test_leapfrog_keeps_the_energy():
    """θ²/2 + v²/2, taken where both are known at one time, stays within O(h²) for 10,000 steps."""
    h, theta = 0.1, jnp.array([1.0])
    tx = diffopt.baoab(h, 0.0, friction=0.0)
    _, state, path = train(tx, theta, 10_000, lambda p: jnp.sum(p**2) / 2)
    v = state.velocity - h / 2 * path[-1]
    assert abs(float((path[-1] ** 2 + v**2)[0]) - 1) < h**2


def test_the_steps_are_those_of_the_docstrings():
    g, T, m = jnp.array([0.3, -2.0]), 0.7, 0.8
    v0, theta = jnp.array([0.1, 0.2]), jnp.zeros(2)

    def step(tx, **start):
        updates, state = tx.update(g, tx.init(theta)._replace(velocity=v0, **start))
        return np.asarray(updates), state

    eta = 0.04
    updates, state = step(diffopt.sghmc(eta, T, momentum=m, noise=ones))
    v = m * v0 - eta * g + np.sqrt(2 * (1 - m) * eta * T)
    np.testing.assert_allclose(updates, v, rtol=1e-6)
    np.testing.assert_allclose(state.velocity, v, rtol=1e-6)
    np.testing.assert_allclose(state.mass, (1 + m) / (2 * eta), rtol=1e-6)

    h, gamma = 0.2, 1.5
    updates, state = step(diffopt.baoab(h, T, friction=gamma, noise=ones))
    kicked, c = v0 - h * g, np.exp(-gamma * h)
    v = c * kicked + np.sqrt((1 - c**2) * T)
    np.testing.assert_allclose(updates, h * kicked / 2 + h * v / 2, rtol=1e-6)
    np.testing.assert_allclose(state.velocity, v, rtol=1e-6)
    assert state.mass == 1

    alpha = jnp.float32(0.4)
    updates, state = step(diffopt.sgnht(eta, T, momentum=m, noise=ones), friction=alpha)
    v = (1 - alpha) * v0 - eta * g + np.sqrt(2 * (1 - m) * eta * T)
    kinetic = (2 - alpha) * (v @ v) / (2 * eta * 2)
    np.testing.assert_allclose(updates, v, rtol=1e-6)
    np.testing.assert_allclose(
        state.friction, 0.4 + (1 - m) ** 2 / 2 * (kinetic / T - 1), rtol=1e-5
    )


def test_the_thermostat_starts_at_one_minus_momentum_and_stops_at_one():
    tx = diffopt.sgnht(0.1, 1e-6, momentum=0.8)
    state = tx.init(jnp.zeros(4))
    assert state.friction == jnp.float32(0.2)
    _, state = tx.update(jnp.full(4, 100.0), state)
    assert state.friction == 1
    _, state, _ = train(tx, jnp.zeros(1000), 500, lambda p: jnp.sum(p**2) / 2)
    assert 0.1 < state.friction < 0.4


@each_sampler
def test_jit_equals_eager_and_compiles_once(make):
    tx = make(0.02, 0.5)
    update = jax.jit(tx.update)
    params, state = PARAMS, tx.init(PARAMS)
    eager_params, eager_state = PARAMS, tx.init(PARAMS)
    for _ in range(3):
        updates, state = update(jax.grad(loss)(params), state)
        params = optax.apply_updates(params, updates)
        updates, eager_state = tx.update(jax.grad(loss)(eager_params), eager_state)
        eager_params = optax.apply_updates(eager_params, updates)
    assert_close(params, eager_params, rtol=1e-5, atol=1e-6)
    assert_close(state.velocity, eager_state.velocity, rtol=1e-5, atol=1e-6)
    assert update._cache_size() == 1
    assert state.count == 3


@each_sampler
def test_the_key_is_split_at_every_step_and_decides_the_noise(make):
    def first_two(key):
        tx = make(0.1, 1.0, key=key)
        state = tx.init(jnp.zeros(3))
        first, state = tx.update(jnp.zeros(3), state._replace(velocity=jnp.zeros(3)))
        second, _ = tx.update(jnp.zeros(3), state._replace(velocity=jnp.zeros(3)))
        return np.asarray(first), np.asarray(second)

    first, second = first_two(7)
    assert not np.any(first == second)
    for same in (jax.random.key(7), jax.random.PRNGKey(7), jnp.asarray(7)):
        np.testing.assert_array_equal(first_two(same)[0], first)
    assert not np.any(first_two(8)[0] == first)
    assert jnp.issubdtype(make(0.1, 1.0).init(jnp.zeros(1)).key.dtype, jax.dtypes.prng_key)


@each_sampler
@pytest.mark.parametrize("end", [0.0, -1e-10])
def test_schedules_that_end_at_zero_or_just_below_give_no_nan(make, end):
    falling = lambda count: jnp.where(count < 2, 0.1 * (2 - count), end)
    for step_size, temperature in ((falling, 0.5), (0.1, falling), (falling, falling)):
        tx = make(step_size, temperature)
        state = tx.init(jnp.ones(2))
        for _ in range(5):
            updates, state = tx.update(jnp.ones(2), state)
            assert jnp.isfinite(updates).all()
        assert jnp.isfinite(diffopt.kinetic_temperature(state).overall)


@each_sampler
def test_a_schedule_is_read_at_the_step_count(make):
    grads = jnp.zeros(3)
    tx = make(0.1, lambda count: jnp.where(count == 1, 1.0, 0.0))
    still, state = tx.update(grads, tx.init(grads))
    moving, _ = tx.update(grads, state)
    assert not jnp.any(still) and jnp.all(moving)


@each_sampler
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.complex64])
def test_dtypes_are_kept(make, dtype):
    params = {"x": jnp.ones(4, dtype), "f": jnp.ones(2)}
    tx = make(jnp.float32(0.1), 0.5)
    updates, state = jax.jit(tx.update)(params, tx.init(params))
    for tree in (updates, state.velocity):
        assert jax.tree.map(lambda x: x.dtype, tree) == {"x": dtype, "f": jnp.float32}
    assert jax.tree.map(jnp.shape, updates) == {"x": (4,), "f": (2,)}
    assert state.mass.dtype == jnp.float32
    if dtype == jnp.complex64:
        assert jnp.all(updates["x"].imag != 0)


@each_sampler
def test_none_and_empty_leaves_pass(make):
    params = {"w": jnp.ones(2), "none": None, "empty": jnp.zeros([0, 3])}
    tx = make(0.1, 0.5)
    updates, _ = tx.update(params, tx.init(params))
    assert updates["none"] is None and updates["empty"].shape == (0, 3)
    assert bool(jnp.isfinite(updates["w"]).all())
    assert tx.update({}, tx.init({}))[0] == {}


@each_sampler
def test_masked_leaves_pass_unchanged(make):
    params = {"w": jnp.ones(2), "count": jnp.arange(2)}
    tx = optax.masked(make(0.1, 0.5), {"w": True, "count": False})
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(updates["count"], params["count"])
    assert not np.any(updates["w"] == 1)


@each_sampler
def test_integer_parameters_are_refused_by_name(make):
    with pytest.raises(TypeError, match=r"\['count'\] has dtype int32"):
        make(0.1, 0.5).init({"w": jnp.ones(2), "count": jnp.arange(2)})


@each_sampler
def test_multisteps_takes_one_step_for_many_gradients(make):
    grads = [{"w": jnp.full(3, x)} for x in (1.0, 2.0, 6.0)]
    params = {"w": jnp.zeros(3)}
    once, _ = make(0.1, 0.5).update({"w": jnp.full(3, 3.0)}, make(0.1, 0.5).init(params))
    many = optax.MultiSteps(make(0.1, 0.5), 3)
    state = many.init(params)
    for g in grads:
        updates, state = jax.jit(many.update)(g, state, params)
    assert_close(updates, once, rtol=1e-5)


@each_sampler
def test_hyperparameters_can_be_injected(make):
    schedule = optax.linear_schedule(0.1, 0.0, 10)
    arguments = {STEP[make]: schedule, "temperature": 0.5}
    _, state, path = train(optax.inject_hyperparams(make)(**arguments), steps=20)
    _, _, reference = train(make(**arguments), steps=20)
    assert_close(path, reference, rtol=1e-4, atol=1e-5)
    assert state.hyperparams["temperature"] == 0.5


@each_sampler
def test_a_step_with_a_nan_gradient_can_be_skipped(make):
    tx = optax.apply_if_finite(make(0.1, 0.5), 5)
    _, state = tx.update(PARAMS, tx.init(PARAMS))
    bad = jax.tree.map(lambda p: p * jnp.nan, PARAMS)
    updates, after = tx.update(bad, state)
    assert_close(updates, jax.tree.map(jnp.zeros_like, PARAMS))
    assert_close(after.inner_state.velocity, state.inner_state.velocity)
    updates, _ = tx.update(PARAMS, after)
    assert jax.tree.all(jax.tree.map(lambda u: bool(jnp.isfinite(u).all()), updates))


@each_sampler
def test_the_velocity_is_mapped_as_parameters_and_nothing_else(make):
    tx = make(0.1, 0.5)
    state = optax.tree.map_params(tx, lambda _: "p", tx.init(PARAMS), transform_non_params=str)
    assert state.velocity == {"w": "p", "b": "p"}
    assert "p" not in jax.tree.leaves(state._replace(velocity=None))


@each_sampler
def test_it_stands_in_a_chain_and_takes_extra_arguments(make):
    tx = optax.chain(optax.clip_by_global_norm(1.0), make(0.1, 0.5))
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=1.0)
    assert jax.tree.structure(updates) == jax.tree.structure(PARAMS)


@each_sampler
def test_chains_can_be_vmapped(make):
    tx = make(0.1, 0.5)
    states = jax.vmap(lambda key: tx.init(jnp.zeros(3))._replace(key=key))(
        jax.random.split(jax.random.key(0), 4)
    )
    updates, states = jax.vmap(tx.update)(jnp.zeros([4, 3]), states)
    assert len(np.unique(updates)) == 12 and states.velocity.shape == (4, 3)


BAD = [
    ({"temperature": -1.0}, ValueError, r"temperature .* got -1.0"),
    ({"temperature": float("nan")}, ValueError, "temperature .* got nan"),
    ({"temperature": "hot"}, TypeError, "temperature .* got 'hot'"),
    ({"noise": "pink"}, ValueError, "noise .* got 'pink'"),
]
BAD_STEP = [(0.0, ValueError), (-0.1, ValueError), (float("inf"), ValueError), ("x", TypeError)]
BAD_MOMENTUM = [
    (1.0, ValueError),
    (-0.1, ValueError),
    (float("nan"), ValueError),
    (jnp.ones(2), TypeError),
    (lambda count: 0.9, TypeError),
]


@each_sampler
@pytest.mark.parametrize("arguments,error,message", BAD)
def test_bad_arguments_are_named(make, arguments, error, message):
    with pytest.raises(error, match=message):
        make(0.1, **{"temperature": 0.5} | arguments)


@each_sampler
@pytest.mark.parametrize("value,error", BAD_STEP)
def test_a_bad_step_is_named(make, value, error):
    with pytest.raises(error, match=f"{STEP[make]} must"):
        make(value, 0.5)


@pytest.mark.parametrize("make", [diffopt.sghmc, diffopt.sgnht])
@pytest.mark.parametrize("value,error", BAD_MOMENTUM)
def test_a_bad_momentum_is_named(make, value, error):
    with pytest.raises(error, match="momentum must"):
        make(0.1, 0.5, momentum=value)


@pytest.mark.parametrize("value,error", [(-1.0, ValueError), (jnp.ones(2), TypeError)])
def test_a_bad_friction_is_named(value, error):
    with pytest.raises(error, match="friction must"):
        diffopt.baoab(0.1, 0.5, friction=value)
