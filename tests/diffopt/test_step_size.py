"""`find_step_size` on losses whose answer is known in closed form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt
from benchmarks.lib import data, models, training

pytestmark = pytest.mark.slow

CURVATURE = jnp.array([1.0] * 9 + [30.0])
HOT = 1 - 1 / 1.05  # ηk/2 at which 1/(1 - ηk/2) = 1.05


def bowl(params):
    return jnp.sum(CURVATURE * params**2) / 2


find = partial(diffopt.find_step_size, loss=bowl, params=jnp.zeros(10), temperature=0.1)


def test_sgld_is_limited_by_its_stiffest_direction():
    """Exact: 2 (1 - 1/1.05)/k. The mean over ten directions is within 5 % at 4 times the step."""
    step_size, table = find(diffopt.sgld)
    assert step_size == pytest.approx(2 * HOT / 30, rel=0.25)
    row = np.flatnonzero(table.step_size == step_size)[0]
    assert table.good[row] and abs(table.stiffest[row] - 1) < 0.1
    hot = (table.step_size > 3 * step_size) & np.isfinite(table.stiffest)
    assert hot.any() and not table.good[hot].any()
    finite = np.isfinite(table.stiffest) & (table.step_size > step_size / 4)
    exact = 1 / (1 - table.step_size[finite] * 30 / 2)
    error = table.standard_error.stiffest[finite]
    assert (np.abs(table.stiffest[finite] - exact) < 4.5 * error).all()


def test_sghmc_takes_steps_longer_by_one_plus_its_momentum():
    step_size, table = find(partial(diffopt.sghmc, momentum=0.5))
    assert step_size == pytest.approx(1.5 * 2 * HOT / 30, rel=0.25)
    assert table.kinetic is not None and table.kinetic.shape == table.step_size.shape


def test_baoab_is_limited_by_stability_alone():
    step_size, _ = find(diffopt.baoab)
    limit = 2 / np.sqrt(30)
    assert limit / 1.13 < step_size < limit


def test_a_leaf_that_has_not_settled_is_named():
    """A curvature 10,000 times below the other: it has no time to spread."""
    loss = lambda p: 50 * jnp.sum(p["stiff"] ** 2) + 0.005 * jnp.sum(p["soft"] ** 2)
    params = {"stiff": jnp.zeros(3), "soft": jnp.zeros(3)}
    with pytest.warns(UserWarning, match=r"not settled in 4000 steps.*params\['soft'\] at"):
        step_size, table = diffopt.find_step_size(diffopt.sgld, loss, params, temperature=0.1)
    assert step_size == pytest.approx(2 * HOT / 100, rel=0.25)
    assert set(table.per_leaf) == {"stiff", "soft"}


def test_noisy_gradients_shorten_the_step():
    """θ²/2 from batches of one of x = ±3: T̂/T = (1 + ησ²/2T)/(1 - η/2), σ² = 9."""
    pairs = jnp.tile(jnp.array([3.0, -3.0]), 500)
    loss = lambda p, x: jnp.mean((p - x) ** 2) / 2
    step_size, _ = diffopt.find_step_size(
        diffopt.sgld, loss, jnp.zeros([]), pairs, temperature=1.0, batch_size=1, num_steps=20_000
    )
    exact = 0.05 / (9 / 2 + 1.05 / 2)
    assert step_size == pytest.approx(exact, rel=0.5)


@pytest.mark.parametrize(
    ("message", "bad"),
    {
        "temperature must be finite and > 0": dict(temperature=0),
        "tolerance must be finite and > 0": dict(tolerance=-1.0),
        "num_steps must be ≥ 100": dict(num_steps=10),
        "num_chains must be an int": dict(num_chains=1.5),
        "batch_size needs data": dict(batch_size=3),
        "real scalar": dict(loss=lambda p: p),
        "the Hessian of loss is 0": dict(loss=lambda p: 0.0),
    }.items(),
)
def test_bad_input(message, bad):
    with pytest.raises((TypeError, ValueError), match=message):
        find(diffopt.sgld, **bad)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (3, "called as .*key=key.*'int' object is not callable"),
        (diffopt.langevin, "sampler must be called as .*key=key"),
        (lambda h, T, key: 0.5, "must give an Optax transformation, got 0.5"),
    ],
)
def test_what_is_no_sampler(sampler, message):
    with pytest.raises(TypeError, match=message):
        find(sampler)


def test_no_size_is_good_where_nothing_settles():
    with pytest.raises(ValueError, match="no step size is good: the stiffest direction is at"):
        find(lambda step_size, temperature, key: optax.sgd(step_size), num_steps=100, num_chains=2)


def test_more_parameters_than_their_square_fits_into_32_bits():
    loss = lambda p: jnp.sum(p**2) / 2
    step_size, _ = diffopt.find_step_size(
        diffopt.baoab, loss, jnp.zeros(50_000), temperature=1.0, num_steps=200, num_chains=2
    )
    assert 2 / 1.5 < step_size < 2


def test_what_is_not_measured_is_not_good():
    """θ²/2 from batches of one of x = ±100: ten standard deviations of noise are no temperature."""
    pairs = jnp.tile(jnp.array([100.0, -100.0]), 500)
    loss = lambda p, x: jnp.mean((p - x) ** 2) / 2
    with pytest.raises(ValueError, match="no step size is good: .* ± .*more steps"):
        diffopt.find_step_size(
            diffopt.sgld, loss, jnp.zeros([]), pairs, temperature=1.0, batch_size=1, num_steps=200
        )


T = 1 / 48


@pytest.fixture(scope="module")
def network():
    """The article's CNN on 48 digits, with exact gradients and a Gaussian prior; a draw to start.

    With a prior of variance 0.01 flat directions are a bowl of curvature T/0.01 and settle soon.
    """
    digits = data.digits()
    batch = digits.train_images[:48], digits.train_labels[:48]
    graphdef, params = models.init_cnn(1, 0)

    def loss(variance, params, batch):
        prior = T * optax.tree.norm(params, squared=True) / (2 * variance)
        return training.mean_loss(graphdef, params, *batch) + prior

    tx = diffopt.sghmc(0.002, T)
    last = diffopt.sample(tx, partial(loss, 0.01), params, batch, num_steps=300, burn_in=299).params
    return loss, jax.tree.map(lambda p: p[0], last), batch


@pytest.mark.slow
def test_the_articles_network_is_at_its_temperature(network):
    loss, params, batch = network
    loss = partial(loss, 0.01)
    step_size, table = diffopt.find_step_size(
        diffopt.sghmc, loss, params, batch, temperature=T, num_steps=400, num_chains=1
    )
    assert step_size == pytest.approx(1.9 * 2 * HOT * 0.01 / T, rel=0.25)  # of the prior alone
    overall = table.overall[table.step_size == step_size]
    assert (abs(overall - 1) < 0.055).all()
    tx = diffopt.sghmc(step_size, T)
    samples = diffopt.sample(tx, loss, params, batch, num_steps=600, burn_in=200)
    assert (samples.diverged < 0).all()
    for temperature in samples.temperatures:
        assert abs(temperature.mean() / T - 1) < 0.055  # the tolerance, and chance
    first = loss(params, batch)
    assert abs(samples.losses.mean() / first - 1) < 0.1  # stays where it began


@pytest.mark.slow
def test_a_network_without_a_prior_has_not_settled(network):
    loss, params, batch = network
    with pytest.warns(UserWarning, match="not settled in 200 steps"):
        diffopt.find_step_size(
            diffopt.sghmc, partial(loss, 1e6), params, batch,
            temperature=T, num_steps=200, num_chains=1,
        )  # fmt: skip


def test_a_sampler_may_fold_its_key():
    sampler = lambda h, T, key: diffopt.sgld(h, T, key=jax.random.fold_in(key, 1))
    assert find(sampler)[0] > 0
