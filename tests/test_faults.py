"""What a sampler does when a gradient, a parameter tree or a schedule is not as it should be."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt

T = 0.5
# the sampler, from its step size
SAMPLERS = {
    "langevin": lambda lr: optax.chain(diffopt.langevin(T, lr), optax.scale_by_learning_rate(lr)),
    "sgld": lambda lr: diffopt.sgld(lr, T),
    "psgld": lambda lr: diffopt.psgld(lr, T, decay=0.9),
    "sghmc": lambda lr: diffopt.sghmc(lr, T),
    "baoab": lambda h: diffopt.baoab(h, T),
    "sgnht": lambda lr: diffopt.sgnht(lr, T),
    "low_precision": lambda lr: diffopt.low_precision(diffopt.sgld(lr, T)),
}
each_sampler = pytest.mark.parametrize("name", SAMPLERS)
GOOD = jnp.array([0.3, -0.2, 0.1])


def dtype(name):
    return jnp.bfloat16 if name == "low_precision" else jnp.float32


def stepper(tx):
    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads.astype(params.dtype), state, params)
        return optax.apply_updates(params, updates), state

    return step


@each_sampler
def test_with_apply_if_finite_a_bad_batch_leaves_no_trace(name):
    """The parameters, the state and the noise go on as if the batch had not come."""
    tx = optax.apply_if_finite(SAMPLERS[name](0.1), max_consecutive_errors=3)
    step, params = stepper(tx), jnp.ones(3, dtype(name))
    state = after = tx.init(params)
    moved = params
    for grads, bad in ((GOOD, jnp.nan), (-GOOD, jnp.inf), (2 * GOOD, -jnp.inf)):
        params, state = step(params, state, grads)
        moved, after = step(*step(moved, after, GOOD.at[1].set(bad)), grads)
    np.testing.assert_array_equal(moved, params)
    chex.assert_trees_all_equal(
        jax.tree.map(raw, after.inner_state), jax.tree.map(raw, state.inner_state)
    )
    assert after.total_notfinite == 3 and jnp.isfinite(params).all()


def raw(leaf):
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


@each_sampler
def test_without_it_one_parameter_is_lost_and_sgnht_loses_all(name):
    """The others go on as if it had not happened; the one thermostat of sgnht spreads it."""
    tx = SAMPLERS[name](0.1)
    step = stepper(tx)
    for bad in (jnp.nan, jnp.inf):
        params = moved = jnp.ones(3, dtype(name))
        state = after = tx.init(params)
        for grads in (GOOD.at[1].set(bad), GOOD, GOOD):
            moved, after = step(moved, after, grads)
            params, state = step(params, state, GOOD)
        assert not jnp.isfinite(moved[1])
        if name == "sgnht":
            assert not jnp.isfinite(moved).any()
        else:
            np.testing.assert_array_equal(moved[::2], params[::2])


@each_sampler
def test_empty_trees_and_leaves_under_wrappers(name):
    tree = {"empty": jnp.zeros((0, 4), dtype(name)), "none": None, "deeper": {}}
    for tx in (
        optax.apply_if_finite(SAMPLERS[name](0.1), 3),
        optax.MultiSteps(SAMPLERS[name](0.1), 2),
        optax.masked(SAMPLERS[name](0.1), {"empty": True, "none": False, "deeper": False}),
    ):
        updates, _ = tx.update(tree, tx.init(tree), tree)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, tree)


@each_sampler
def test_a_leaf_of_a_billion_elements_by_shape_alone(name):
    leaf = jax.ShapeDtypeStruct((10**9,), dtype(name))
    tx = SAMPLERS[name](0.1)
    state = jax.eval_shape(tx.init, leaf)
    updates, after = jax.eval_shape(tx.update, leaf, state, leaf)
    assert updates == leaf
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


# 0.1, then 0 (a constructor refuses it as a constant), then back, then a jump to four times that
JUMPS = optax.join_schedules(
    [optax.constant_schedule(x) for x in (0.1, 0.0, 0.1, 0.4)], boundaries=[2, 4, 6]
)


@each_sampler
def test_a_jump_takes_effect_at_its_step_and_not_after(name):
    """Each step is that of a sampler whose step size has always been the present one."""
    tx, params = SAMPLERS[name](JUMPS), jnp.ones(3, dtype(name))
    step, state = stepper(tx), tx.init(params)
    constant = {eta: stepper(SAMPLERS[name](lambda _, eta=eta: eta)) for eta in (0.0, 0.1, 0.4)}
    for count in range(9):
        expected, _ = constant[round(float(JUMPS(count)), 3)](params, state, GOOD)
        before = params
        params, state = step(params, state, GOOD)
        np.testing.assert_allclose(params.astype("float32"), expected.astype("float32"), rtol=2e-6)
        if count in (2, 3) and name not in ("sghmc", "sgnht"):  # those coast on their momentum
            assert name == "low_precision" or (params == before).all()


# stationary variance of the last step size on θ²/2
VARIANCE = {
    "langevin": T / (1 - 0.2 / 2),
    "sgld": T / (1 - 0.2 / 2),
    "sghmc": T / (1 - 0.2 / (2 * 1.9)),
    "baoab": T,
    "sgnht": T,
}


@pytest.mark.parametrize("name", VARIANCE)
def test_after_a_jump_and_a_stop_the_law_is_that_of_the_last_step_size(name):
    chains = 100_000
    eta = optax.join_schedules(
        [optax.constant_schedule(x) for x in (0.8, 0.0, 0.2)], boundaries=[30, 50]
    )
    tx = SAMPLERS[name](eta)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(params, state, params)
        return (optax.apply_updates(params, updates), state), None

    params = jnp.zeros(chains)
    run = jax.jit(lambda params: jax.lax.scan(step, (params, tx.init(params)), length=350))
    (params, _), _ = run(params)
    ratio = float(jnp.mean(params**2)) / VARIANCE[name]
    assert abs(ratio - 1) < 4.5 * np.sqrt(2 / chains)


def test_inject_hyperparams_is_told_that_a_noise_function_is_no_schedule():
    ones = lambda key, shape, dtype: jnp.ones(shape, dtype)
    inject = optax.inject_hyperparams
    with pytest.raises(TypeError, match="missing 2 required positional arguments"):
        inject(diffopt.sgld)(0.1, T, noise=ones).init(GOOD)
    tx = inject(diffopt.sgld, static_args="noise")(0.1, T, noise=ones)
    updates, _ = tx.update(GOOD, tx.init(GOOD))
    np.testing.assert_allclose(updates, -0.1 * GOOD + np.sqrt(2 * T * 0.1), rtol=1e-6)
