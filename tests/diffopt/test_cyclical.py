"""The cyclical schedules: their values, and their place in a sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffopt
from tests.helpers import LAST_COUNT


def test_the_cycle_is_equation_1_of_the_paper():
    """With K iterations in M cycles, k from 1."""
    K, M, peak = 100, 4, 0.3
    length = -(-K // M)
    k = np.arange(1, K + 1)
    paper = peak / 2 * (np.cos(np.pi * np.mod(k - 1, length) / length) + 1)
    schedule = diffopt.cyclical_schedule(peak, length)
    np.testing.assert_allclose(schedule(jnp.arange(K)), paper, rtol=1e-4, atol=1e-7)
    assert schedule(0) == schedule(25) == np.float32(peak)
    assert np.all(np.asarray(schedule(k - 1)) > 0)


@pytest.mark.parametrize(
    "length,explore,sampling",
    [(4, 0.5, 2), (4, 0.0, 4), (10, 0.7, 3), (100, 0.07, 93), (3, 0.5, 1), (np.int64(10), 0.9, 1)],
)
def test_the_stage_explores_first_and_then_samples(length, explore, sampling):
    stage = np.asarray(diffopt.sampling_stage(length, explore)(np.arange(3 * length)))
    one = np.repeat([0.0, 1.0], [length - sampling, sampling])
    np.testing.assert_array_equal(stage, np.tile(one, 3))


def test_both_are_schedules_of_a_traced_count():
    values = jax.jit(
        lambda t: (diffopt.cyclical_schedule(0.1, 8)(t), diffopt.sampling_stage(8, 0.5)(t))
    )(jnp.int32(12))
    np.testing.assert_allclose(values, [0.05, 1.0], rtol=1e-5)


@pytest.mark.parametrize("make", [diffopt.sgld, diffopt.sghmc])
def test_a_cyclical_sampler_is_an_optimizer_while_it_explores(make):
    stage = diffopt.sampling_stage(10, 0.4)
    eta = diffopt.cyclical_schedule(0.1, 10)
    tx = make(eta, temperature=lambda t: 2.0 * stage(t))
    state = tx.init(jnp.zeros(50))
    moved = []
    for _ in range(20):
        updates, state = tx.update(jnp.zeros(50), state)
        if hasattr(state, "velocity"):
            state = state._replace(velocity=jnp.zeros(50))
        moved.append(bool(jnp.any(updates != 0)))
    assert moved == ([False] * 4 + [True] * 6) * 2


@pytest.mark.parametrize(
    "call,error,message",
    [
        (lambda: diffopt.cyclical_schedule(0.0, 10), ValueError, "peak .* got 0.0"),
        (lambda: diffopt.cyclical_schedule(float("nan"), 10), ValueError, "peak .* got nan"),
        (lambda: diffopt.cyclical_schedule(lambda t: 1, 10), TypeError, "peak must be a number"),
        (lambda: diffopt.cyclical_schedule(0.1, 0), ValueError, "cycle_length .* got 0"),
        (lambda: diffopt.cyclical_schedule(0.1, 1e3), TypeError, "cycle_length .* got 1000.0"),
        (lambda: diffopt.sampling_stage(True, 0.5), TypeError, "cycle_length .* got True"),
        (lambda: diffopt.sampling_stage(10, 1.0), ValueError, "explore must be < 1, got 1.0"),
        (lambda: diffopt.sampling_stage(10, 0.99), ValueError, "explore 0.99 .*cycle_length 10"),
        (lambda: diffopt.sampling_stage(10, -0.5), ValueError, "explore .* got -0.5"),
        (lambda: diffopt.sampling_stage(10, "0.5"), TypeError, "explore .* got '0.5'"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_cycle_stands_still_at_the_last_count():
    stage = diffopt.sampling_stage(100, 0.5)
    schedule = diffopt.cyclical_schedule(0.1, 100)
    phase = LAST_COUNT % 100
    assert phase == 47 and stage(jnp.int32(LAST_COUNT)) == 0
    np.testing.assert_allclose(schedule(jnp.int32(LAST_COUNT)), schedule(phase), rtol=1e-6)
    np.testing.assert_allclose(schedule(jnp.int32(LAST_COUNT - 1)), schedule(phase - 1), rtol=1e-6)
