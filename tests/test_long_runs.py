"""Past 2³¹ steps and past 10⁶ in one scan: laws, keys and memory stay as they were."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt

LAST = np.iinfo(np.int32).max


def eta(count):
    """A schedule whose value at the last count that an int32 holds is its own."""
    return jnp.where(count < LAST, 0.4, 0.2)


SAMPLERS = {
    "langevin": lambda eta: optax.chain(
        diffopt.langevin(1.0, eta), optax.scale_by_learning_rate(eta)
    ),
    "sgld": lambda eta: diffopt.sgld(eta, 1.0),
    "psgld": lambda eta: diffopt.psgld(eta, 1.0),
    "sghmc": lambda eta: diffopt.sghmc(eta, 1.0),
    "baoab": lambda eta: diffopt.baoab(eta, 1.0),
    "sgnht": lambda eta: diffopt.sgnht(eta, 1.0),
    "low_precision": lambda eta: diffopt.low_precision(diffopt.sgld(eta, 1.0)),
}
# stationary variance on θ²/2 at step size 0.2 and temperature 1
VARIANCE = {
    "langevin": 1 / (1 - 0.2 / 2),
    "sgld": 1 / (1 - 0.2 / 2),
    "sghmc": 1 / (1 - 0.2 / (2 * 1.9)),
    "baoab": 1.0,
    "sgnht": 1.0,
}


def counts(state):
    return [int(count) for _, count in optax.tree.get_all_with_path(state, "count")]


def path(tx, state, params, steps):
    """All the parameters of a run on θ²/2, all its keys, and its last state."""

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
        keys = [jax.random.key_data(k) for _, k in optax.tree.get_all_with_path(state, "key")]
        return (params, state), (params, jnp.concatenate(keys))

    (_, state), (params, keys) = jax.lax.scan(step, (params, state), length=steps)
    return params, keys, state


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_count_stays_at_its_last_value_and_the_noise_keeps_coming(name):
    params = jnp.ones(20, "bfloat16" if name == "low_precision" else "float32")
    tx, reference = SAMPLERS[name](eta), SAMPLERS[name](0.2)
    state = optax.tree.set(tx.init(params), count=jnp.int32(LAST))
    steps = jax.jit(lambda: path(tx, state, params, 5))
    moved, keys, state = steps()
    assert set(counts(state)) == {LAST}
    assert len(np.unique(keys, axis=0)) == 5
    expected, *_ = jax.jit(lambda: path(reference, reference.init(params), params, 5))()
    np.testing.assert_allclose(moved.astype("float32"), expected.astype("float32"), atol=1e-6)
    noise = np.diff(moved.astype("float32"), axis=0)
    assert (np.std(noise, axis=1) > 0.05).all()


@pytest.mark.parametrize("name", VARIANCE)
def test_the_law_past_the_last_count_is_that_of_the_end_of_the_schedule(name):
    chains = 100_000
    params, tx = jnp.zeros(chains), SAMPLERS[name](eta)
    state = optax.tree.set(tx.init(params), count=jnp.int32(LAST - 20))

    @jax.jit
    def run(params, state):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(params, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), length=300)[0]

    params, state = run(params, state)
    assert set(counts(state)) == {LAST}
    ratio = float(jnp.mean(params**2)) / VARIANCE[name]
    assert abs(ratio - 1) < 4.5 * np.sqrt(2 / chains)


def test_a_cycle_stands_still_at_the_last_count():
    stage = diffopt.sampling_stage(100, 0.5)
    schedule = diffopt.cyclical_schedule(0.1, 100)
    phase = LAST % 100
    assert phase == 47 and stage(jnp.int32(LAST)) == 0
    np.testing.assert_allclose(schedule(jnp.int32(LAST)), schedule(phase), rtol=1e-6)
    np.testing.assert_allclose(schedule(jnp.int32(LAST - 1)), schedule(phase - 1), rtol=1e-6)


def test_the_key_stream_of_a_million_steps():
    """θ ← aθ + ξ with a = 1/2: no key comes twice, and ξ is white at all lags."""
    steps, chains, a = 10**6, 4, 0.5
    tx, start = diffopt.sgld(a, 1.0), jnp.zeros(4)
    x, keys, _ = jax.jit(lambda: path(tx, tx.init(start), start, steps))()
    assert len(np.unique(np.asarray(keys).view(np.uint64))) == steps

    x = np.asarray(x, np.float64)
    xi = x[1:] - a * x[:-1]
    n = xi.size
    assert abs(xi.mean()) < 4.5 / np.sqrt(n)
    assert abs((xi**2).mean() - 1) < 4.5 * np.sqrt(2 / n)
    assert abs((xi**4).mean() - 3) < 4.5 * np.sqrt(96 / n)
    for lag in [*range(1, 33), *(2**i for i in range(6, 20))]:
        assert abs((xi[lag:] * xi[:-lag]).mean()) < 4.5 / np.sqrt(n - lag * chains), lag

    x = x[100:]
    variance, n = 1 / (1 - a / 2), x.size
    error = variance * np.sqrt(2 / n * (1 + a**2) / (1 - a**2))
    assert abs((x**2).mean() - variance) < 4.5 * error
    for lag in (1, 2, 5, 10, 1_000):
        bartlett = (1 + a**2) * (1 - a ** (2 * lag)) / (1 - a**2) - 2 * lag * a ** (2 * lag)
        r = (x[lag:] * x[:-lag]).mean() / (x**2).mean()
        assert abs(r - a**lag) < 4.5 * np.sqrt(bartlett / n), lag


def simulation(tx, params, steps):
    """The compiled program of a run that also keeps ten samples."""
    keep = diffopt.collect(10, every=steps // 10)

    @jax.jit
    def run(params, state, kept):
        def step(carry, _):
            params, state, kept = carry
            updates, state = tx.update(params, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state, keep.update(params, kept)), None

        return jax.lax.scan(step, (params, state, kept), length=steps)[0]

    arguments = params, tx.init(params), keep.init(params)
    return run.lower(*arguments).compile(), arguments


@pytest.mark.parametrize("name", ["sgld", "sgnht", "low_precision"])
def test_memory_of_a_million_steps_is_that_of_a_thousand(name):
    params = jnp.zeros(1_000, "bfloat16" if name == "low_precision" else "float32")
    sizes = []
    for steps in (10**3, 10**6):
        program, _ = simulation(SAMPLERS[name](0.2), params, steps)
        m = program.memory_analysis()
        sizes.append((m.temp_size_in_bytes, m.output_size_in_bytes, m.argument_size_in_bytes))
    assert sizes[0] == sizes[1]
    assert sizes[0][0] > 0


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_the_process_does_not_grow_in_a_million_steps():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    program, arguments = simulation(diffopt.sghmc(0.2, 1.0), jnp.zeros(4), 10**6)
    jax.block_until_ready(program(*arguments))
    before = resident()
    *_, kept = jax.block_until_ready(program(*arguments))
    assert kept.count == 10
    assert resident() - before < 10**6  # a key that stayed behind at each step would be 8 MB
