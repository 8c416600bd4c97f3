"""What a diffusion in bfloat16 does: lost, heated, or under low_precision as in float32.

Each element of a leaf is a chain. Laws are those of θ = p + r, the parameter and its residual;
bounds are 4.5 standard errors. SPACING is bfloat16's at 1.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt
from benchmarks.bfloat16 import SPACING, nearest, stochastic

pytestmark = pytest.mark.slow

kept = diffopt.low_precision


def run(method, tx, start, steps, k=0.0, centre=0.0):
    """The parameters θ, and the p that are seen, after `steps` steps on k(p - centre)²/2."""
    init, update = method(tx)

    @jax.jit
    def simulate(params):
        def step(carry, _):
            params, state = carry
            grads = (k * (params.astype(jnp.float32) - centre)).astype(params.dtype)
            updates, state = update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, init(params)), length=steps)[0]

    params, state = simulate(start.astype("bfloat16"))
    seen = np.asarray(params, np.float64)
    if method is not kept:
        return seen, seen
    _, exponent = np.frexp(seen)
    spacing = np.where(seen == 0, 0, 2.0 ** (exponent - 1)) * SPACING
    return seen + np.asarray(state.residual) * spacing / 2**14, seen


def spread(method, fraction, steps, chains):
    """Mean and mean square of θ - 1 in a free diffusion, against the exact variance."""
    noise = SPACING * fraction
    x, _ = run(method, diffopt.sgld(1.0, noise**2 / 2), jnp.ones(chains), steps)
    variance = noise**2 * steps
    return np.mean(x - 1) / np.sqrt(variance / chains), np.mean((x - 1) ** 2) / variance


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "fraction,steps", [(1 / 8, 1_000), (1 / 2048, 500), slow(1 / 2, 200), slow(1 / 128, 1_000)]
)
def test_free_diffusion(fraction, steps):
    chains = 100_000
    mean, ratio = spread(kept, fraction, steps, chains)
    assert abs(mean) < 4.5
    assert abs(ratio - 1) < 4.5 * np.sqrt(2 / chains) < 0.03


@pytest.mark.slow
def test_free_diffusion_as_it_is_seen():
    """Once it has spread over several spacings, p itself has the variance of θ."""
    chains, noise, steps = 100_000, SPACING / 8, 2_000
    _, seen = run(kept, diffopt.sgld(1.0, noise**2 / 2), jnp.ones(chains), steps)
    rounding = SPACING**2 / 6 / (noise**2 * steps)
    ratio = np.mean((seen - 1) ** 2) / (noise**2 * steps)
    assert -4.5 * np.sqrt(2 / chains) < ratio - 1 < 4.5 * np.sqrt(2 / chains) + rounding


def test_rounding_to_the_nearest_loses_it():
    assert spread(nearest, 1 / 8, 1_000, 10_000)[1] < 0.7
    assert spread(nearest, 1 / 32, 1_000, 10_000)[1] == 0


def test_plain_stochastic_rounding_heats_it():
    assert spread(stochastic, 1 / 8, 1_000, 10_000)[1] > 4
    assert spread(stochastic, 1 / 128, 1_000, 10_000)[1] > 60


@pytest.mark.parametrize(
    "make,eta", [(diffopt.sghmc, 1.0), (diffopt.baoab, 1.0)], ids=["sghmc", "baoab"]
)
def test_free_diffusion_with_a_velocity(make, eta):
    """As in float32, whose law the tests of those samplers hold: a common key, a common path."""
    tx = make(eta, 2.0**-24)
    chains, steps = 20_000, 300
    x, _ = run(kept, tx, jnp.ones(chains), steps)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(0 * params, state, params)
        return (optax.apply_updates(params, updates), state), None

    zeros = jnp.zeros(chains)
    (expected, _), _ = jax.lax.scan(step, (zeros, tx.init(zeros)), length=steps)
    error = x - 1 - np.asarray(expected)
    assert error.std() < 1e-3 * np.asarray(expected).std()


def relax(method, eta, steps, start, chains):
    """Mean square of θ - 1 and of p - 1 on (θ - 1)²/2, what it should be, and its standard error.

    Var_n = V + (Var_0 - V)(1 - η)²ⁿ, in units of the stationary V, that is 8 spacings squared. A
    method that freezes keeps the variance that it started from, so it starts from another one.
    """
    deviation = 8 * SPACING
    normals = jax.random.normal(jax.random.key(99), (chains,))
    params = (1 + np.sqrt(start) * deviation * normals).astype("bfloat16")
    tx = diffopt.sgld(eta, deviation**2 * (1 - eta / 2))
    samples = run(method, tx, params, steps, 1.0, 1.0)
    first = np.mean((np.asarray(params, np.float64) - 1) ** 2) / deviation**2
    left = (1 - eta) ** (2 * steps)
    added = 1 - left  # the start is known: only what the noise has added is uncertain
    error = np.sqrt((2 * added**2 + 4 * added * first * left) / chains)
    exact, seen = (np.mean((x - 1) ** 2) / deviation**2 for x in samples)
    return exact, seen, 1 + (first - 1) * left, error


SPREADING, CONTRACTING = 0.0, 2.0


@pytest.mark.parametrize(
    "eta,start",
    [
        (1e-3, SPREADING),
        (1e-5, CONTRACTING),
        *(slow(*case) for case in ((1e-3, CONTRACTING), (1e-4, SPREADING))),
        *(slow(*case) for case in ((1e-4, CONTRACTING), (1e-5, SPREADING))),
    ],
)
def test_relaxation_to_the_stationary_variance(eta, start):
    exact, seen, expected, error = relax(kept, eta, 1_500, start, 125_000)
    assert abs(exact - expected) < 4.5 * error < 0.02
    assert -4.5 * error < seen - expected < 4.5 * error + 1 / 6 / 8**2


@pytest.mark.parametrize("eta", [1e-4, 1e-5])
def test_relaxation_without_a_residual(eta):
    """Noise per step is a ninth of the spacing at ηk = 1e-4, a twenty-eighth at 1e-5."""
    frozen, _, expected, _ = relax(nearest, eta, 1_500, 0.0, 10_000)
    assert frozen < 0.7 * expected
    heated, _, expected, _ = relax(stochastic, eta, 1_500, 0.0, 10_000)
    assert heated > 3 * expected


@pytest.mark.parametrize("centre", [1.0, 1.002])
def test_a_well_narrower_than_the_spacing(centre):
    """The rounding is noise of the gradient; rounded to the nearest it would be a bias."""
    eta, deviation, steps, chains = 1e-2, SPACING / 4, 700, 50_000
    normals = jax.random.normal(jax.random.key(99), (chains,))
    tx = diffopt.sgld(eta, deviation**2 * (1 - eta / 2))
    x, seen = run(kept, tx, centre + deviation * normals, steps, 1.0, centre)
    heat = eta * SPACING**2 / (8 * deviation**2)
    variance = np.mean((x - centre) ** 2) / deviation**2
    assert abs(x.mean() - centre) < 4.5 * deviation / np.sqrt(chains)
    assert -4.5 * np.sqrt(2 / chains) < variance - 1 < 4.5 * np.sqrt(2 / chains) + heat
    assert abs(seen.mean() - centre) < 4.5 * np.sqrt((deviation**2 + SPACING**2 / 4) / chains)

    cold, _ = run(nearest, tx, centre + deviation * normals[:2_000], steps, 1.0, centre)
    assert abs(cold.mean() - centre) > 0.2 * deviation


# A state in 16 bits


@pytest.mark.parametrize("steps", [30, 3000])
def test_moving_averages_in_16_bits_have_the_mean_of_those_in_float32(steps):
    """Of a constant g: (1 - βᵗ)g and (1 - βᵗ)g², though an update of v is below its spacing."""
    size, tx = 100_000, kept(optax.scale_by_adam(), state_dtype=jnp.bfloat16)
    params, grads = jnp.zeros(size, "bfloat16"), jnp.full(size, 0.3, "bfloat16")
    step = lambda state, _: (tx.update(grads, state, params)[1], None)
    state, _ = jax.jit(lambda state: jax.lax.scan(step, state, length=steps))(tx.init(params))
    g = float(grads[0])
    for found, exact in (
        (state.inner_state.mu, (1 - 0.9**steps) * g),
        (state.inner_state.nu, (1 - 0.999**steps) * g**2),
    ):
        assert found.dtype == jnp.bfloat16
        found = np.asarray(found, np.float64)
        error = max(found.std(), exact * 2.0**-16) / size**0.5
        assert abs(found.mean() - exact) < 4.5 * error + 2.0**-16 * exact


SAMPLERS = {
    "sghmc": (lambda: diffopt.sghmc(0.1, 0.5), 0.5 / (1 - 0.1 / 3.8)),
    "baoab": (lambda: diffopt.baoab(0.5, 0.5), 0.5),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_velocities_in_16_bits_keep_the_law(name):
    make, variance = SAMPLERS[name]
    tx = lambda tx: kept(tx, state_dtype=jnp.bfloat16)
    chains = 200_000
    params = jax.random.normal(jax.random.key(1), (chains,)).astype("bfloat16")
    init, update = tx(make())

    @jax.jit
    def simulate(params):
        def step(carry, _):
            params, state = carry
            updates, state = update(params, state, params)
            return (optax.apply_updates(params, updates), state), None

        params, state = jax.lax.scan(step, (params, init(params)), length=400)[0]
        return diffopt.exact_params(params, state), state

    theta, state = simulate(params)
    assert any(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(state.inner_state))
    ratio = np.mean(np.asarray(theta, np.float64) ** 2) / variance
    assert abs(ratio - 1) < 4.5 * np.sqrt(2 / chains)
