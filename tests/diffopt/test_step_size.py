"""`find_step_size` on losses whose answer is known in closed form."""

import signal
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt
from benchmarks.lib import data, models, training
from tests.helpers import midpoint

pytestmark = pytest.mark.slow

CURVATURE = jnp.array([1.0] * 9 + [30.0])
HOT = 1 - 1 / 1.05  # ηk/2 at which 1/(1 - ηk/2) = 1.05


def bowl(params):
    return jnp.sum(CURVATURE * params**2) / 2


find = partial(diffopt.find_step_size, loss=bowl, params=jnp.zeros(10), temperature=0.1)


def test_sgld_is_limited_by_its_stiffest_direction():
    """Exact: 2 (1 - 1/1.05)/k. The mean over ten directions is within 5 % at 4 times the step."""
    step_size, found = find(diffopt.sgld)
    assert step_size == pytest.approx(2 * HOT / 30, rel=0.1)
    np.testing.assert_allclose(found.curvatures, [30] + [1] * 9, rtol=1e-3)
    assert found.noise is None and found.gradients <= 5000
    row = np.flatnonzero(found.predicted.step_size == step_size)[0]
    near = slice(row - 5, row + 5)
    exact = 1 / (1 - found.predicted.step_size[near] * 30 / 2)
    np.testing.assert_allclose(found.predicted.stiffest[near], exact, atol=0.015)
    error = found.standard_error.stiffest[-1]
    assert abs(found.measured.stiffest[-1] - 1.05) < 4.5 * error < 1
    assert found.measured.step_size[-1] == step_size


@pytest.mark.slow
def test_sghmc_takes_steps_longer_by_one_plus_its_momentum():
    step_size, found = find(partial(diffopt.sghmc, momentum=0.5))
    assert step_size == pytest.approx(1.5 * 2 * HOT / 30, rel=0.1)
    assert found.measured.kinetic.shape == found.measured.step_size.shape


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [diffopt.baoab, midpoint])
def test_a_sampler_without_error_is_limited_by_stability_alone(sampler):
    limit = 2 / np.sqrt(30) if sampler is diffopt.baoab else 2 / 30
    step_size, _ = find(sampler)
    assert limit / 1.05 < step_size < limit


@pytest.mark.slow
def test_the_mean_may_judge():
    """The one stiff direction of 1,000 is stable to η = 2/30: half of that is used."""
    loss = lambda p: (jnp.sum(p**2) + 29 * p[0] ** 2) / 2
    step_size, found = diffopt.find_step_size(
        diffopt.sgld, loss, jnp.zeros(1000), temperature=0.1, judge="mean"
    )
    assert step_size == pytest.approx(1 / 30, rel=0.1)
    assert found.predicted.stiffest[0] == pytest.approx(2, rel=0.1)


@pytest.mark.slow
def test_curvatures_of_different_orders():
    loss = lambda p: 50 * jnp.sum(p["stiff"] ** 2) + 0.005 * jnp.sum(p["soft"] ** 2)
    params = {"stiff": jnp.zeros(3), "soft": jnp.zeros(3)}
    step_size, found = diffopt.find_step_size(diffopt.sgld, loss, params, temperature=0.1)
    assert step_size == pytest.approx(2 * HOT / 100, rel=0.1)
    np.testing.assert_allclose(found.curvatures, [100] * 3 + [0.01] * 3, rtol=0.1)


@pytest.mark.slow
def test_a_leaf_that_is_frozen_does_not_count():
    def sampler(step_size, temperature, key):
        moves = {"moving": diffopt.sgld(step_size, temperature, key=key)}
        return optax.partition(
            moves | {"frozen": optax.set_to_zero()}, {"a": "moving", "b": "frozen"}
        )

    loss = lambda p: jnp.sum(p["a"] ** 2) / 2 + 500 * jnp.sum(p["b"] ** 2)
    params = {"a": jnp.zeros(30), "b": jnp.zeros(5)}
    step_size, found = diffopt.find_step_size(sampler, loss, params, temperature=0.1)
    assert step_size == pytest.approx(2 * HOT, rel=0.15)
    assert found.curvatures[0] == pytest.approx(1, rel=1e-3)


@pytest.mark.slow
def test_leaves_with_rates_of_their_own():
    """The curvature 100 moves at a hundredth of the rate: both count as 1."""

    def sampler(step_size, temperature, key):
        part = lambda scale, i: diffopt.sgld(
            step_size * scale, temperature, key=jax.random.fold_in(key, i)
        )
        return optax.partition({"a": part(1.0, 0), "b": part(0.01, 1)}, {"a": "a", "b": "b"})

    loss = lambda p: jnp.sum(p["a"] ** 2) / 2 + 50 * jnp.sum(p["b"] ** 2)
    params = {"a": jnp.zeros(30), "b": jnp.zeros(30)}
    step_size, found = diffopt.find_step_size(sampler, loss, params, temperature=0.1)
    assert step_size == pytest.approx(2 * HOT, rel=0.15)
    assert found.curvatures[0] == pytest.approx(1, rel=1e-3)


@pytest.mark.slow
def test_constants_of_the_shape_of_the_parameters():
    """More parameters than the surrogate has, each with a rate of its own."""
    rates = jnp.linspace(0.5, 1, 3000)

    def sampler(step_size, temperature, key):
        def step(g, xi, state):
            eta = step_size * rates
            return -eta * g + jnp.sqrt(2 * temperature * eta) * xi, state

        return diffopt.sampler(step, key=key)

    loss = lambda p: jnp.sum(p**2 / rates) / 2
    step_size, _ = diffopt.find_step_size(sampler, loss, jnp.zeros(3000), temperature=1.0)
    assert step_size == pytest.approx(2 * HOT, rel=0.15)


@pytest.mark.slow
def test_a_thermostat_holds_the_mean():
    step_size, _ = diffopt.find_step_size(
        diffopt.sgnht, lambda p: jnp.sum(p**2) / 2, jnp.zeros(1000), temperature=0.1
    )
    assert 0.5 < step_size < 3.8


@pytest.mark.slow
@pytest.mark.parametrize(("curvature", "exact"), [([1, 30], 0.0157), ([1] * 9 + [30], 0.0076)])
def test_a_thermostat_of_few_parameters_is_limited_by_its_stiffest_direction(curvature, exact):
    """It is at 1.05 T at steps of 0.0157 and 0.0076, by 256 chains of 20,000 steps."""
    k = jnp.array(curvature, float)
    step_size, found = diffopt.find_step_size(
        diffopt.sgnht, lambda p: jnp.sum(k * p**2) / 2, jnp.zeros(len(k)), temperature=0.1
    )
    np.testing.assert_allclose(found.curvatures, sorted(curvature, reverse=True), rtol=1e-4)
    first = found.predicted.step_size[np.argmax(found.predicted.stiffest <= 1.05)]
    assert first == pytest.approx(exact, rel=0.2)
    assert step_size <= first


@pytest.mark.slow
def test_a_metric_that_follows_the_chain_is_hot_at_long_steps_and_at_short_ones():
    """A chain that forgets its state in τ steps is too hot by (1 - decay) τ/2 + 1/(2τ)."""
    k = jnp.array([1.0] * 9 + [30.0])
    loss = lambda p: jnp.sum(k * p**2) / 2
    start = jnp.sqrt(0.1 / k) * jax.random.normal(jax.random.key(3), (10,))
    find = partial(diffopt.find_step_size, loss=loss, params=start, temperature=0.1)
    with pytest.raises(ValueError, match="no step size is good: the sampler doesn't hold"):
        find(diffopt.psgld)
    _, found = find(partial(diffopt.psgld, decay=0.999), max_gradients=20_000)
    first = found.predicted.step_size[np.argmax(found.predicted.stiffest <= 1.05)]
    assert first == pytest.approx((0.1 / 30) ** 0.5 / 11.3, rel=0.25)


def test_noisy_gradients_shorten_the_step():
    """θ²/2 from batches of one of x = ±3: T̂/T = (1 + ησ²/2T)/(1 - η/2), σ² = 9."""
    pairs = jnp.tile(jnp.array([3.0, -3.0]), 500)
    loss = lambda p, x: jnp.mean((p - x) ** 2) / 2
    step_size, found = diffopt.find_step_size(
        diffopt.sgld, loss, jnp.zeros([]), pairs, temperature=1.0, batch_size=1, tolerance=0.05
    )
    assert step_size == pytest.approx(0.05 / (9 / 2 + 1.05 / 2), rel=0.2)
    assert found.noise.mean == pytest.approx(9, rel=0.05)


@pytest.fixture(scope="module")
def regression():
    """Linear regression whose noise is that of a Gaussian: σ² x xᵀ over the batch, and little else.

    Curvatures are 100 and nine times 1; the gradients of batches of b have the variance k σ²/b.
    """
    random = np.random.default_rng(0)
    x = random.standard_normal((20_000, 10)) * np.r_[10.0, np.ones(9)]
    y = x @ np.ones(10) + random.standard_normal(20_000)
    loss = lambda w, batch: jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2
    return loss, jnp.ones(10), (jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))


def test_the_mean_judges_where_there_are_batches(regression):
    """The mean is at 1 + η tr(C)/(2(1 - m)dT), and tr(C) = 109/b."""
    loss, params, examples = regression
    step_size, found = diffopt.find_step_size(
        diffopt.sghmc, loss, params, examples, temperature=1e-3, batch_size=100
    )
    assert found.noise.stiffest == pytest.approx(100 / 100, rel=0.5)
    exact = 2 * 0.1 * 0.1 * 1e-3 / found.noise.mean
    assert step_size == pytest.approx(exact, rel=0.25)
    row = np.flatnonzero(found.predicted.step_size == step_size)[0]
    stiffest = 1 + step_size * found.noise.stiffest / (2 * 0.1 * 1e-3)
    assert found.predicted.stiffest[row] == pytest.approx(stiffest, rel=0.05)


@pytest.mark.slow
def test_noise_beyond_the_tolerance_at_every_useful_step_is_a_warning(regression):
    with pytest.warns(UserWarning, match=r"batches of 2 heats .* Batches of \d+ would hold the st"):
        loss, params, examples = regression
        step_size, found = diffopt.find_step_size(
            diffopt.sgld, loss, params, examples,
            temperature=1e-5, batch_size=2, judge="stiffest",
        )  # fmt: skip
    assert step_size == found.predicted.step_size[-1]


@pytest.mark.parametrize(
    ("message", "bad"),
    {
        "temperature must be finite and > 0": dict(temperature=0),
        "tolerance must be finite and > 0": dict(tolerance=-1.0),
        'judge must be "stiffest" or "mean", got \'worst\'': dict(judge="worst"),
        "max_gradients must be ≥ 800": dict(max_gradients=10),
        "batch_size needs data": dict(batch_size=3),
        "real scalar": dict(loss=lambda p: p),
        "the Hessian of loss is 0": dict(loss=lambda p: 0.0),
        "curved upwards in no direction": dict(loss=lambda p: -jnp.sum(p**2)),
        "loss must be finite at params, got nan": dict(loss=lambda p: jnp.sum(p) * jnp.nan),
        "moves no parameter": dict(sampler=lambda h, T, key: optax.set_to_zero()),
        "the sampler doesn't hold the temperature": dict(sampler=lambda h, T, key: optax.sgd(h)),
    }.items(),
)
def test_bad_input(message, bad):
    with pytest.raises((TypeError, ValueError), match=message):
        find(**{"sampler": diffopt.sgld, **bad})


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (3, "accept .*key=key.*'int' object is not callable"),
        (diffopt.langevin, "sampler must accept .*key=key"),
        (lambda h, T, key: 0.5, "must return an Optax transformation, got 0.5"),
    ],
)
def test_what_is_no_sampler(sampler, message):
    with pytest.raises(TypeError, match=message):
        find(sampler)


@pytest.mark.slow
def test_a_loss_that_is_stiffer_elsewhere_shortens_the_step():
    """θ²/2 + 50 θ⁴ is flat at 0, but far stiffer where T = 1 holds the chain."""
    loss = lambda p: jnp.sum(p**2 / 2 + 50 * p**4)
    with pytest.raises(ValueError, match=r"all chains diverged, at step sizes .*nearer a minimum"):
        diffopt.find_step_size(diffopt.sgld, loss, jnp.zeros(100), temperature=1000.0)


def test_ctrl_c_gives_what_is_known(monkeypatch, capsys):
    seen = []

    def show(total):
        def write(done, text):
            seen.append((done, text))
            if "step" in text:
                signal.raise_signal(signal.SIGINT)

        return write

    monkeypatch.setattr(diffopt.estimate.step_size, "show_progress", show)
    with pytest.warns(UserWarning, match="interrupted: the step size .* not confirmed"):
        step_size, found = find(diffopt.sgld, progress=True)
    assert step_size == pytest.approx(2 * HOT / 30, rel=0.1)
    assert len(found.measured.step_size) == 0
    assert seen[-1][0] == found.gradients < 200


@pytest.mark.slow
def test_more_parameters_than_their_square_fits_into_32_bits():
    loss = lambda p: jnp.sum(p**2) / 2
    step_size, _ = diffopt.find_step_size(
        diffopt.baoab, loss, jnp.zeros(50_000), temperature=1.0, max_gradients=800
    )
    assert 2 / 1.05 < step_size < 2


@pytest.mark.slow
def test_a_complex_parameter_is_two():
    loss = lambda p: jnp.sum(p.real**2 + p.imag**2) * 30 / 2
    params = jnp.zeros(20, jnp.complex64)
    step_size, _ = diffopt.find_step_size(diffopt.sgld, loss, params, temperature=0.1)
    assert step_size == pytest.approx(2 * HOT / 30, rel=0.1)


T = 1 / 48


@pytest.mark.slow
def test_the_articles_network_is_at_its_temperature():
    """The article's CNN on 48 digits, with exact gradients and a Gaussian prior; a draw to start.

    With a prior of variance 0.01 flat directions are a bowl of curvature T/0.01 and settle soon.
    """
    digits = data.digits()
    batch = digits.train_images[:48], digits.train_labels[:48]
    graphdef, params = models.init_cnn(1, 0)

    def loss(params, batch):
        prior = T * optax.tree.norm(params, squared=True) / (2 * 0.01)
        return training.mean_loss(graphdef, params, *batch) + prior

    tx = diffopt.sghmc(0.002, T)
    last = diffopt.sample(tx, loss, params, batch, num_steps=300, burn_in=299).params
    params = jax.tree.map(lambda p: p[0], last)
    step_size, _ = diffopt.find_step_size(
        diffopt.sghmc, loss, params, batch, temperature=T, max_gradients=2000
    )
    tx = diffopt.sghmc(step_size, T)
    samples = diffopt.sample(tx, loss, params, batch, num_steps=600, burn_in=200)
    assert (samples.diverged < 0).all()
    for temperature in samples.temperatures:
        assert abs(temperature.mean() / T - 1) < 0.055  # the tolerance, and chance


@pytest.mark.slow
def test_a_sampler_may_fold_its_key():
    sampler = lambda h, T, key: diffopt.sgld(h, T, key=jax.random.fold_in(key, 1))
    assert find(sampler)[0] > 0
