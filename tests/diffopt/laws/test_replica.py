"""replica_exchange: every rung keeps its law, also where losses are noisy, and weighs modes right.

Many ladders run side by side, each with swaps of its own, and are looked at once, at the end.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import chisquare

import diffopt
from benchmarks.lib.problems import CENTRES, VARIANCE
from tests.helpers import ubu_covariance

LADDER = np.array([0.08, 0.16, 0.35, 0.8])
GRID = np.linspace(-3.5, 3.5, 20_001)


def wells(x):
    """Two unequal wells, the left one deeper by 0.3."""
    return (x**2 - 1) ** 2 + 0.15 * x


def law(T):
    """The probabilities of the points of the grid at temperature T."""
    density = np.exp(-wells(GRID) / T)
    return density / density.sum()


def run(tx, start, steps, loss, *, seed=0, spread=None, states=lambda states: states, **extra):
    """The last params, `[ladder, rung, ...]` in the order of temperatures, and the last state.

    With a `spread` [chain, chain] the losses that swaps see have noise of that square root.
    """
    state = diffopt.split_keys(tx.init(start[0]), len(start))
    state = state._replace(states=states(state.states))

    @jax.jit
    def simulate(params, state, keys):
        def one(params, state, key):
            losses, grads = jax.vmap(jax.value_and_grad(loss))(params)
            if spread is not None:
                losses += spread @ jax.random.normal(key, losses.shape)
            updates, state = tx.update(grads, state, params, value=losses, **extra)
            return optax.apply_updates(params, updates), state

        def step(carry, key):
            return jax.vmap(one)(*carry, jax.random.split(key, len(start))), None

        return jax.lax.scan(step, (params, state), keys)[0]

    keys = jax.random.split(jax.random.key(seed), steps)
    params, state = simulate(start, state, keys)
    chain = np.argsort(state.rung, axis=1)
    return np.asarray(params)[np.arange(len(start))[:, None], chain], state


def deviations(params):
    """Of each rung's share in the deep well, mean and mean square, in standard errors."""
    found = []
    for r, T in enumerate(LADDER):
        for f in (lambda x: x < 0, lambda x: x, lambda x: x**2):
            mean = law(T) @ f(GRID)
            variance = law(T) @ f(GRID) ** 2 - mean**2
            found.append((f(params[:, r]).mean() - mean) / np.sqrt(variance / len(params)))
    return np.array(found).reshape(len(LADDER), 3)


def stationary(make, step_size, steps, every, ladders=10_000, **noise):
    """The deviations after steps from the exact law, and the rates of swaps."""
    rng = np.random.default_rng(0)
    start = [rng.choice(GRID, size=ladders, p=law(T)) for T in LADDER]
    start = jnp.asarray(np.stack(start, axis=1), jnp.float32)

    def velocities(states):  # of the exact law, half a kick behind
        if not hasattr(states, "velocity"):
            return states
        u = np.sqrt(LADDER) * rng.normal(size=start.shape)
        half = step_size / 2 * jax.vmap(jax.vmap(jax.grad(wells)))(start)
        return states._replace(
            velocity=jnp.asarray(u + half, jnp.float32),
            mass=jnp.ones_like(states.mass),
            half_kick=jnp.full_like(states.half_kick, step_size / 2),
        )

    tx = diffopt.replica_exchange(make, step_size, LADDER, every=every)
    params, state = run(tx, start, steps, wells, states=velocities, **noise)
    return deviations(params), state.swaps.sum(axis=0) / state.attempts.sum(axis=0)


SAMPLERS = {
    "sgld": (diffopt.sgld, 5e-4, 200, 1),
    "baoab": (diffopt.baoab, 0.1, 200, 1),
    "ubu": (diffopt.ubu, 0.1, 200, 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_rung_keeps_its_law(name):
    found, rates = stationary(*SAMPLERS[name])
    assert (rates > 0.4).all()
    assert np.abs(found).max() < 4.5, found


# the step size, and the variance on θ²/2 at T = 1; short where that is not 1, as swaps go by T
WITH_VELOCITIES = {
    "baoab": (diffopt.baoab, 0.3, 1.0),
    "ubu": (diffopt.ubu, 0.15, ubu_covariance(0.15, 1.0, 1.0, 1.0)[0, 0]),
    "sghmc": (diffopt.sghmc, 0.02, 1 / (1 - 0.02 / 3.8)),
    "sgnht": (diffopt.sgnht, 0.01, 1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize("name", WITH_VELOCITIES)
def test_swaps_of_velocities_keep_the_variance_of_a_gaussian_at_every_rung(name, every):
    """Ten dimensions, five rungs, 400 ladders and the mean over 3,600 steps of each."""
    make, step_size, variance = WITH_VELOCITIES[name]
    ladder, ladders, steps, burn_in = np.linspace(0.1, 0.5, 5), 400, 4_000, 400
    tx = diffopt.replica_exchange(make, step_size, ladder, every=every)

    @jax.jit
    def simulate(params, state):
        def step(carry, count):
            params, state, total = carry
            losses = (params**2).sum(-1) / 2
            updates, state = jax.vmap(lambda g, s, v: tx.update(g, s, value=v))(
                params, state, losses
            )
            params = params + updates
            squares = jnp.take_along_axis((params**2).mean(-1), jnp.argsort(state.rung, axis=1), 1)
            return (params, state, total + jnp.where(count < burn_in, 0, squares)), None

        start = params, state, jnp.zeros((ladders, 5))
        return jax.lax.scan(step, start, jnp.arange(steps))[0][1:]

    start = np.random.default_rng(0).normal(size=(ladders, 5, 10)) * np.sqrt(ladder)[:, None]
    start = jnp.asarray(start, jnp.float32)
    state, total = simulate(start, diffopt.split_keys(tx.init(start[0]), ladders))
    ratio = np.asarray(total, np.float64) / (steps - burn_in) / ladder / variance
    error = ratio.std(0, ddof=1) / np.sqrt(ladders)
    assert (state.swaps.sum(0) / state.attempts.sum(0) > 0.2).all()
    assert (error < 0.0015).all()
    assert (np.abs(ratio.mean(0) - 1) < 4.5 * error).all(), (ratio.mean(0), error)


# noise of the losses that chains have in common in part, as from one minibatch
SPREAD = 0.2 * np.array([[1, 0, 0, 0], [0.5, 0.9, 0, 0], [0.3, 0, 1, 0], [0, 0, -0.5, 1]])


@pytest.mark.slow
def test_every_rung_keeps_its_law_with_noisy_losses_of_known_covariance():
    noisy = partial(stationary, *SAMPLERS["sgld"], spread=SPREAD)
    found, rates = noisy(covariance=jnp.asarray(SPREAD @ SPREAD.T))
    assert (rates > 0.2).all()
    assert np.abs(found).max() < 4.5, found
    uncorrected, _ = noisy()
    assert np.abs(uncorrected).max() > 10


@pytest.mark.slow
def test_chains_that_start_in_the_shallow_well_weigh_the_wells_right():
    ladders, steps = 2_000, 1_500
    tx = diffopt.replica_exchange(diffopt.baoab, 0.2, LADDER)
    params, _ = run(tx, jnp.ones((ladders, 4)), steps, wells)
    assert np.abs(deviations(params)).max() < 4.5
    alone = diffopt.replica_exchange(diffopt.baoab, 0.2, LADDER, every=10 * steps)
    params, _ = run(alone, jnp.ones((ladders, 4)), steps, wells)
    assert (params[:, 0] > 0).mean() > 0.99


# 25 Gaussians of weights 1 to 4 to 1, in no order; all chains start in one of them
WEIGHTS = np.tile([1.0, 4.0, 2.0], 9)[:25] / np.tile([1.0, 4.0, 2.0], 9)[:25].sum()


def mixture(theta):
    distance = jnp.sum((theta - CENTRES) ** 2, axis=-1)
    return -jax.nn.logsumexp(jnp.log(WEIGHTS) - distance / (2 * VARIANCE))


def counts(samples):
    """How many of the samples `[n, 2]` are nearest to each centre."""
    nearest = np.linalg.norm(samples[:, None] - CENTRES, axis=-1).argmin(axis=1)
    return np.bincount(nearest, minlength=25)


@pytest.mark.slow
def test_it_weighs_25_gaussians_right_where_cyclical_sgld_finds_and_misweighs_them():
    """At as many gradients: 5 chains of 3,000 steps, or one of 60 cycles of 250."""
    chains, ladder = 1_000, [1.0, 2.0, 4.0, 8.0, 16.0]
    tx = diffopt.replica_exchange(diffopt.sgld, 0.004, ladder)
    params, _ = run(tx, jnp.zeros((chains, 5, 2)), 3_000, mixture)
    found = counts(params[:, 0])
    assert chisquare(found, chains * WEIGHTS).pvalue > 1e-5, found

    stage = diffopt.sampling_stage(250, 0.25)
    cyclical = diffopt.sgld(diffopt.cyclical_schedule(0.1, 250), stage)

    @jax.jit
    @jax.vmap
    def last(state):
        def step(carry, _):
            theta, state = carry
            updates, state = cyclical.update(jax.grad(mixture)(theta), state)
            return (theta + updates, state), None

        return jax.lax.scan(step, (jnp.zeros(2), state), length=15_000)[0][0]

    found = counts(last(diffopt.split_keys(cyclical.init(jnp.zeros(2)), chains)))
    assert (found > 0).all()
    assert chisquare(found, chains * WEIGHTS).pvalue < 1e-20, found


@pytest.mark.slow
def test_a_thermostat_finds_the_noise_at_every_rung():
    """θ²/2 with gradient noise 2: at every rung the variance is T, whatever the swaps."""
    ladder, ladders, d, steps = jnp.array([0.1, 0.14, 0.2, 0.28]), 64, 10, 20_000
    tx = diffopt.replica_exchange(diffopt.sgnht, 0.01, ladder, every=30)

    params = jnp.zeros((ladders, 4, d))
    state = diffopt.split_keys(tx.init(params[0]), ladders)

    def step(carry, key):
        params, state = carry
        grads = params + 2 * jax.random.normal(key, params.shape)
        losses = (params**2).sum(-1) / 2
        updates, state = jax.vmap(lambda g, s, p, v: tx.update(g, s, p, value=v))(
            grads, state, params, losses
        )
        params = params + updates
        order = jnp.argsort(state.rung, axis=1)
        at_rungs = jnp.take_along_axis(params, order[..., None], 1)
        return (params, state), (at_rungs**2).mean((0, 2))

    carry = (params, state)
    _, squares = jax.jit(lambda c, k: jax.lax.scan(step, c, k))(
        carry, jax.random.split(jax.random.key(1), steps)
    )
    blocks = (squares[2_000:].reshape(18, -1, 4).mean(1)) / ladder
    error = blocks.std(0, ddof=1) / 18**0.5
    assert jnp.all(error < 0.01)
    assert jnp.all(abs(blocks.mean(0) - 1) < 4.5 * error), (blocks.mean(0), error)
