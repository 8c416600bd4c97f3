"""replica_exchange: who swaps with whom and when, what a step then is, and what is refused."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt
from tests.helpers import assert_equal, assert_like

LADDER = [1.0, 2.0, 4.0, 8.0]
ZERO = {"w": jnp.zeros((4, 3)), "b": jnp.zeros(4, jnp.bfloat16), "none": None}
DOWNHILL = jnp.array([4e4, 3e4, 2e4, 1e4])  # every pair that may swap at first does


def ones(key, shape, dtype):
    """A known increment, ξ = 1."""
    return jnp.ones(shape, dtype)


def zeros(key, shape, dtype):
    return jnp.zeros(shape, dtype)


@cache
def compiled(every):
    """The first state of chains that stay, and an update of it."""
    tx = diffopt.replica_exchange(partial(diffopt.sgld, noise=zeros), 0.1, LADDER, every=every)
    still = jnp.zeros(4)
    update = jax.jit(lambda state, losses: tx.update(still, state, value=losses)[1])
    return jax.jit(tx.init)(still), update


def rungs(losses, steps, *, every=1):
    """The rungs after each step of the same losses, and the last state."""
    state, update = compiled(every)
    found = []
    for _ in range(steps):
        state = update(state, losses)
        found.append(state.rung.tolist())
    return found, state


def test_pairs_take_turns_and_the_lower_loss_goes_to_the_cold():
    found, state = rungs(DOWNHILL, 4)
    assert found == [[1, 0, 3, 2], [2, 0, 3, 1], [3, 1, 2, 0], [3, 2, 1, 0]]
    assert state.swaps.tolist() == [2, 2, 2]
    assert state.attempts.tolist() == [2, 2, 2]
    found, state = rungs(-DOWNHILL, 4)
    assert found == [[0, 1, 2, 3]] * 4
    assert state.swaps.tolist() == [0, 0, 0]


def test_swaps_are_tried_once_in_every_so_many_steps():
    found, state = rungs(DOWNHILL, 7, every=3)
    assert found == [[1, 0, 3, 2]] * 3 + [[2, 0, 3, 1]] * 3 + [[3, 1, 2, 0]]
    assert state.attempts.tolist() == [2, 1, 2]


def test_a_chain_without_a_loss_swaps_with_none_and_one_at_infinity_leaves_the_cold():
    nan, inf = float("nan"), float("inf")
    assert rungs(jnp.array([nan, -9e4, 9e4, 0.0]), 4)[0] == [[0, 1, 3, 2]] * 4
    assert rungs(jnp.array([inf, 0.0, 1e4, 1e9]), 4)[0][-1] == [3, 0, 1, 2]
    assert rungs(jnp.array([inf, inf, inf, inf]), 4)[0][-1] == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_pair_swaps_as_often_as_the_formula_says():
    trials, losses = 20_000, jnp.array([0.3, 0.9, -0.4])
    covariance = jnp.array([[0.5, 0.2, 0.0], [0.2, 0.9, -0.1], [0.0, -0.1, 0.4]])
    tx = diffopt.replica_exchange(partial(diffopt.sgld, noise=zeros), 0.1, [0.5, 1.0, 1.6])
    start = tx.init(jnp.zeros(3))._replace(rung=jnp.array([1, 2, 0]))  # chains 2, 0, 1

    @jax.jit
    @jax.vmap
    def swaps(key, phase):
        state = start._replace(key=key, phase=phase)
        return tx.update(jnp.zeros(3), state, value=losses, covariance=covariance)[1].swaps

    keys = jax.random.split(jax.random.key(0), 2 * trials).reshape(2, trials)
    for pair, (i, j) in enumerate([(2, 0), (0, 1)]):
        rate = float(swaps(keys[pair], jnp.full(trials, 10 * pair)).mean(axis=0)[pair])
        delta = (1 / 0.5 - 1 / 1.0, 1 / 1.0 - 1 / 1.6)[pair]
        variance = covariance[i, i] + covariance[j, j] - 2 * covariance[i, j]
        exact = float(jnp.exp(delta * (losses[i] - losses[j]) - delta**2 * variance / 2))
        assert 0 < exact < 1
        assert abs(rate - exact) < 4.5 * np.sqrt(exact * (1 - exact) / trials)


def test_each_chain_takes_the_step_of_its_own_temperature_and_keeps_its_place():
    tx = diffopt.replica_exchange(partial(diffopt.sgld, noise=ones), 0.1, LADDER)
    grads = {"w": jnp.arange(12.0).reshape(4, 3), "b": jnp.ones(4, jnp.bfloat16), "none": None}
    updates, state = jax.jit(partial(tx.update, value=DOWNHILL))(grads, jax.jit(tx.init)(grads))
    assert_like(updates, grads)
    T = np.array(LADDER)[np.array([1, 0, 3, 2])]
    expected = -0.1 * grads["w"] + np.sqrt(0.2 * T)[:, None]
    np.testing.assert_allclose(updates["w"], expected, rtol=1e-6, atol=1e-6)
    assert state.states.count.tolist() == [1] * 4


@pytest.mark.slow
def test_velocities_change_with_the_temperature():
    make = partial(diffopt.baoab, friction=0.0, noise=zeros)
    tx = diffopt.replica_exchange(make, 0.1, LADDER)
    state = jax.jit(tx.init)(ZERO)
    velocity = {"w": jnp.ones((4, 3)), "b": jnp.ones(4, jnp.bfloat16), "none": None}
    state = state._replace(states=state.states._replace(velocity=velocity))
    update = jax.jit(lambda state, losses: tx.update(ZERO, state, value=losses))
    _, after = update(state, DOWNHILL)
    factors = np.sqrt([2, 1 / 2, 2, 1 / 2])
    np.testing.assert_allclose(after.states.velocity["w"], factors[:, None] * np.ones(3), rtol=1e-6)
    assert_like(after, state)
    _, still = update(state, -DOWNHILL)
    assert_equal(still.states.velocity, velocity)


@pytest.mark.slow
@pytest.mark.parametrize("make", [diffopt.baoab, diffopt.ubu, diffopt.sghmc])
def test_it_is_the_velocity_at_the_parameters_that_changes(make):
    """v less the half kick that the state tells, which the temperature does not change."""
    tx = diffopt.replica_exchange(partial(make, noise=zeros), 0.1, LADDER)
    grads = {"w": jnp.arange(12.0).reshape(4, 3) + 1, "b": jnp.ones(4, jnp.bfloat16), "none": None}
    _, state = tx.update(grads, tx.init(grads), value=-DOWNHILL)  # nobody swaps
    state = state._replace(phase=jnp.zeros_like(state.phase))
    after = [
        tx.update(grads, state, value=x)[1].states.velocity["w"] for x in (DOWNHILL, -DOWNHILL)
    ]
    v, c = state.states.velocity["w"], np.asarray(state.states.half_kick)[:, None]
    assert (c > 0).all()
    factors = np.sqrt([2, 1 / 2, 2, 1 / 2])[:, None]
    change = (factors - 1) * (v - c * grads["w"])
    kept = 0.9 if make is diffopt.sghmc else np.exp(-0.1)
    np.testing.assert_allclose(after[0] - after[1], kept * change, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_velocities_of_a_part_change_and_those_of_another_form_of_the_parameters():
    """Where the gradient of a velocity is not to be found, the velocity alone is scaled."""
    grads = {"w": jnp.ones((4, 3)), "b": jnp.ones(4)}
    make = lambda h, T, key: optax.masked(diffopt.baoab(h, T, key=key), {"w": True, "b": False})
    flat = lambda h, T, key: optax.flatten(diffopt.baoab(h, T, key=key))
    for part in (make, flat):
        tx = diffopt.replica_exchange(part, 0.1, LADDER)
        state = tx.init(grads)
        for _ in range(2):
            updates, state = tx.update(grads, state, grads, value=DOWNHILL)
        assert_like(updates, grads)
        assert all(np.isfinite(u).all() for u in jax.tree.leaves(updates))


@pytest.mark.slow
def test_chains_of_one_key_differ_and_it_runs_in_a_chain_in_scan_under_strict_settings():
    tx = optax.chain(optax.scale(0.5), diffopt.replica_exchange(diffopt.sghmc, 0.1, LADDER, key=3))

    @jax.jit
    def simulate(params, state):
        def step(carry, _):
            params, state = carry
            losses = jnp.sum(params["w"] ** 2, axis=1)
            updates, state = tx.update(params, state, params, value=losses)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), length=30)[0]

    with (
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
        jax.debug_nans(True),
        jax.debug_key_reuse(True),
    ):
        params, state = simulate(ZERO, tx.init(ZERO))
    assert_like(params, ZERO)
    assert len(np.unique(params["w"])) == 12
    assert sorted(state[1].rung.tolist()) == [0, 1, 2, 3]
    assert state[1].attempts.tolist() == [2, 1, 2]


def test_it_can_be_made_of_arrays_in_a_traced_function():
    def first_step(ladder, params):
        tx = diffopt.replica_exchange(diffopt.sgld, 0.1, ladder)
        return tx.update(params, tx.init(params), value=params["b"])

    updates, state = jax.eval_shape(first_step, jnp.array(LADDER), ZERO)
    assert_like(updates, ZERO)
    assert state.rung.shape == (4,)


def test_what_is_no_ladder_is_refused_by_name_and_value():
    sgld = diffopt.sgld
    for bad in ([1.0], [], [2.0, 1.0], [1.0, 1.0], [0.0, 1.0], [-1.0, 1.0], [1.0, np.inf]):
        with pytest.raises(ValueError, match=r"must be two or more numbers, .*, got \["):
            diffopt.replica_exchange(sgld, 0.1, bad)
    for bad in (1.0, None, "warm", [[1.0, 2.0]], [1.0, "hot"], lambda count: 1.0):
        with pytest.raises(TypeError, match="temperatures must be a sequence of numbers, got"):
            diffopt.replica_exchange(sgld, 0.1, bad)
    with pytest.raises(ValueError, match="every must be ≥ 1, got 0"):
        diffopt.replica_exchange(sgld, 0.1, LADDER, every=0)
    with pytest.raises(TypeError, match="key must be"):
        diffopt.replica_exchange(sgld, 0.1, LADDER, key=0.5)
    with pytest.raises(
        TypeError, match="sampler must accept sampler.step_size, temperature, key=key."
    ):
        diffopt.replica_exchange(diffopt.sgld(0.1, 1.0), 0.1, LADDER)


def test_params_gradients_losses_and_covariances_of_another_shape_are_refused():
    tx = diffopt.replica_exchange(diffopt.sgld, 0.1, LADDER)
    with pytest.raises(ValueError, match=r"params\['b'\] must have a leading axis of 4 .* \(3,\)"):
        tx.init({"a": jnp.zeros(4), "b": jnp.zeros(3)})
    with pytest.raises(TypeError, match=r"params has dtype int32"):
        tx.init(jnp.zeros(4, int))
    state, g = tx.init(jnp.zeros(4)), jnp.zeros(4)
    with pytest.raises(ValueError, match=r"updates must have a leading axis of 4 chains"):
        tx.update(jnp.zeros(()), state, value=g)
    with pytest.raises(TypeError, match="update needs value=losses"):
        tx.update(g, state)
    for bad in (jnp.zeros(3), jnp.zeros(()), jnp.zeros((4, 1))):
        with pytest.raises(ValueError, match="value must be the losses of the 4 chains, got"):
            tx.update(g, state, value=bad)
    for bad in (0.5, jnp.zeros(4), jnp.zeros((3, 3))):
        with pytest.raises(ValueError, match=r"covariance .* must have shape \(4, 4\), got"):
            tx.update(g, state, value=g, covariance=bad)


def test_temperatures_that_no_swap_would_reach_are_refused():
    injected = optax.inject_hyperparams(diffopt.sgld)
    with pytest.raises(TypeError, match="must not keep the temperature in its state"):
        diffopt.replica_exchange(injected, 0.1, [1.0, 2.0]).init(jnp.ones(2))


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (
            partial(diffopt.sgld, 0.1),
            "sampler must accept sampler.step_size, temperature, key=key.",
        ),
        (
            lambda h, T: diffopt.sgld(h, T),
            "sampler must accept sampler.step_size, temperature, key=key.",
        ),
        (lambda h, T, key: 3, "must return an Optax transformation, got 3"),
    ],
)
def test_what_is_no_sampler(sampler, message):
    with pytest.raises(TypeError, match=message):
        diffopt.replica_exchange(sampler, 0.1, [1.0, 2.0])


@pytest.mark.slow
def test_a_fresh_state_may_be_donated_and_a_sampler_may_fold_its_key():
    fold = lambda h, T, key: diffopt.sgld(h, T, key=jax.random.fold_in(key, 1))
    tx, params = diffopt.replica_exchange(fold, 0.1, [1.0, 2.0, 3.0]), jnp.ones(3)
    step = jax.jit(lambda s, p: tx.update(p, s, p, value=p)[1], donate_argnums=0)
    assert step(tx.init(params), params).phase == 1


@pytest.mark.slow
def test_a_negative_variance_is_none_and_two_infinite_losses_do_not_swap():
    sampler, params = partial(diffopt.sgld, noise=zeros), jnp.ones(2)
    tx = diffopt.replica_exchange(sampler, 0.1, [1.0, 2.0])
    swaps = lambda **kw: tx.update(params, tx.init(params), params, **kw)[1].swaps[0]
    impossible = jnp.array([[0.0, 1e3], [1e3, 0.0]])
    assert swaps(value=jnp.array([0.0, 50.0]), covariance=impossible) == 0
    with jax.debug_nans(True):
        assert swaps(value=jnp.array([jnp.inf, jnp.inf])) == 0


@pytest.mark.slow
def test_strict_promotion_in_64_bits():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        tx = diffopt.replica_exchange(diffopt.baoab, 0.1, [1.0, 2.0, 3.0])
        params = jnp.ones(3, "float32")
        updates, _ = jax.jit(tx.update)(params, tx.init(params), params, value=params)
        assert updates.dtype == "float32"
