"""The law of every sampler whose step size jumps, falls in cycles, stops and goes on.

Also past the last step counted.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt
from tests.diffopt.contract.helpers import QUICK
from tests.helpers import LAST_COUNT, SAMPLERS, of_name, run

CHAINS = 100_000
KNOWN = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK))
        for name in SAMPLERS
        if SAMPLERS[name].variance
    ],
)


def assert_stationary(name, params, eta):
    ratio = float(jnp.mean(params**2)) / SAMPLERS[name].variance(eta)
    assert abs(ratio - 1) < 4.5 * np.sqrt(2 / CHAINS)


@KNOWN
def test_after_a_jump_a_stop_and_the_last_count_it_is_that_of_the_last_step_size(name):
    """The count stands still at its last value, where the schedule has one of its own."""
    jumps = optax.join_schedules(
        [optax.constant_schedule(x) for x in (0.8, 0.0, 0.2)], [LAST_COUNT - 20, LAST_COUNT]
    )
    tx, params = SAMPLERS[name].make(jumps, 1.0), jnp.zeros(CHAINS)
    state = optax.tree.set(tx.init(params), count=jnp.int32(LAST_COUNT - 50))
    params, state, _ = run(tx, params, lambda p: p, 30, state=state)
    assert set(map(int, of_name(state, "count"))) == {LAST_COUNT - 20}
    params, state, _ = run(tx, params, lambda p: p, 270, state=state)
    assert set(map(int, of_name(state, "count"))) == {LAST_COUNT}
    assert_stationary(name, params, 0.2)


def in_its_units(name, eta):
    """The step size of a sampler that has steps of √η in time."""
    return np.sqrt(eta) if name in ("baoab", "ubu") else eta


@KNOWN
def test_a_step_size_that_falls_to_a_hundredth_leaves_the_law_between_those_of_the_two(name):
    """From step to step, with nothing left of the old velocities' units."""
    before, after = (in_its_units(name, eta) for eta in (0.1, 0.001))
    tx = SAMPLERS[name].make(lambda count: jnp.where(count < 300, before, after), 1.0)
    start = jnp.asarray(np.random.default_rng(0).normal(size=CHAINS), jnp.float32)
    squares = run(tx, start, lambda p: p, 900, keep=lambda p, state: jnp.mean(p**2))[2]
    ends = [SAMPLERS[name].variance(step) for step in (before, after)]
    margin = 4.5 * np.sqrt(2 / CHAINS)
    found = np.asarray(squares)[[299, 301, 305, 310, 320, 340, 370, 400, 500, 899]]
    assert abs(found[0] / ends[0] - 1) < margin
    assert (found > min(ends) * (1 - margin)).all(), found
    assert (found < max(ends) * (1 + margin)).all(), found
    assert abs(found[-1] / ends[1] - 1) < margin


CYCLES = {name: (SAMPLERS[name].make, 0.1, SAMPLERS[name].variance) for name in SAMPLERS} | {
    "sghmc with 0.99": (
        lambda eta, T: diffopt.sghmc(eta, T, momentum=0.99), 0.2, lambda eta: 1 / (1 - eta / 3.98)
    )
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CYCLES if CYCLES[name][2]])
def test_the_sampling_stage_of_every_cycle_has_the_law_of_its_steps(name):
    """On average over the stage and at the last step of each cycle, where steps are shortest."""
    make, peak, variance = CYCLES[name]
    chains, length, cycles = 20_000, 2_000, 3
    schedule = diffopt.cyclical_schedule(in_its_units(name, peak), length)
    stage = diffopt.sampling_stage(length, 0.5)
    tx = make(schedule, 1.0)

    @jax.jit
    def simulate(params, state):
        def step(carry, count):
            params, state, kept, last = carry
            updates, state = tx.update(params, state, params)
            params = params + updates
            kept += stage(count) * params**2
            last += jnp.where(count % length == length - 1, params**2, 0)
            return (params, state, kept, last), None

        zero = jnp.zeros(chains)
        start = params, state, zero, zero
        return jax.lax.scan(step, start, jnp.arange(cycles * length))[0][2:]

    start = jnp.asarray(np.random.default_rng(0).normal(size=chains), jnp.float32)
    kept, last = (np.asarray(x, np.float64) / cycles for x in simulate(start, tx.init(start)))
    steps = np.arange(length // 2, length)
    laws = np.array([variance(float(eta)) for eta in schedule(steps)])
    for found, exact in ((kept / len(steps), laws.mean()), (last, laws[-1])):
        error = found.std(ddof=1) / np.sqrt(chains)
        assert abs(found.mean() - exact) < 4.5 * error, (found.mean(), exact, error)
