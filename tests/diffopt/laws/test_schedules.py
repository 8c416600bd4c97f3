"""The law of every sampler whose step size jumps, stops and goes on, past the last step counted."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers import LAST_COUNT, SAMPLERS, of_name, run

CHAINS = 100_000


def assert_stationary(name, params, eta):
    ratio = float(jnp.mean(params**2)) / SAMPLERS[name].variance(eta)
    assert abs(ratio - 1) < 4.5 * np.sqrt(2 / CHAINS)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if SAMPLERS[name].variance])
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
