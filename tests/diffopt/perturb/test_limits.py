"""Without noise each method is the optimizer without it; and what each refuses."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt
from tests.helpers import LAST_COUNT, assert_close, assert_equal

pytestmark = pytest.mark.slow

PARAMS = {"w": jnp.linspace(-1, 1, 12).reshape(4, 3), "b": jnp.ones(3), "none": None}


def train(tx, steps=20, perturbs=True):
    @jax.jit
    def step(params, state):
        point = diffopt.perturbed(params, state) if perturbs else params
        gradient = jax.tree.map(lambda p: p**3 - 0.3, point)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("after", [optax.sgd(0.1, momentum=0.9), optax.adamw(0.1)])
def test_weight_noise_of_0_is_the_optimizer_to_the_bit(after, relative):
    tx = optax.chain(diffopt.weight_noise(0.0, relative=relative), after)
    assert_equal(train(tx)[0], train(after, perturbs=False)[0])


def test_weight_noise_of_0_is_the_identity_in_16_bits():
    params = jnp.linspace(-3, 3, 1001).astype(jnp.bfloat16)
    tx = diffopt.low_precision(optax.chain(diffopt.weight_noise(0.0), optax.sgd(0.1)))
    assert_equal(diffopt.perturbed(params, tx.init(params)), params)


def test_a_schedule_is_read_at_the_step_of_the_gradient():
    std = optax.linear_schedule(0.4, 0.0, 4)
    tx = diffopt.weight_noise(std, noise="rademacher")
    state = tx.init(PARAMS)
    for step in range(6):
        noise = jax.tree.map(jnp.subtract, diffopt.perturbed(PARAMS, state), PARAMS)
        np.testing.assert_allclose(abs(noise["w"]), std(step), rtol=1e-5, atol=1e-6)
        _, state = tx.update(PARAMS, state)
    assert state.count == 6


def test_ivon_is_decayed_sgd_with_a_mean_gradient_where_nothing_is_uncertain():
    """N → ∞, and h stays h₀."""
    tx = diffopt.ivon(0.05, 1e30, hess_init=0.5, hess_decay=1.0, weight_decay=0.1)
    mean = optax.chain(optax.ema(0.9), optax.add_decayed_weights(0.1), optax.sgd(0.05))
    assert_close(train(tx)[0], train(mean, perturbs=False)[0], rtol=1e-5)


def test_ivon_is_the_equation():
    """Three steps beside NumPy in double precision, with a schedule and clipping."""
    lr, N, h0, b1, b2, delta, clip = (
        optax.linear_schedule(0.2, 0.0, 10),
        50,
        0.5,
        0.8,
        0.9,
        0.3,
        0.4,
    )
    tx = diffopt.ivon(
        lr, N, hess_init=h0, momentum=b1, hess_decay=b2, weight_decay=delta, clip=clip
    )
    params, state = jnp.linspace(-1, 1, 7), tx.init(jnp.zeros(7))
    m, M, h = np.linspace(-1, 1, 7), 0.0, h0
    clipped = 0
    for t in range(3):
        epsilon = np.asarray(diffopt.perturbed(jnp.zeros(7), state), np.float64)
        g = (m + epsilon) ** 3
        updates, state = tx.update(jnp.asarray(g, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
        M = b1 * M + (1 - b1) * g
        f = N * (h + delta) * epsilon * g
        h = b2 * h + (1 - b2) * f + (1 - b2) ** 2 * (h - f) ** 2 / (2 * (h + delta))
        move = (M / (1 - b1 ** (t + 1)) + delta * m) / (h + delta)
        clipped += (abs(move) > clip).sum()
        m = m - float(lr(t)) * (h0 + delta) * np.clip(move, -clip, clip)
        np.testing.assert_allclose(state.precision, N * (h + delta), rtol=1e-4)
        np.testing.assert_allclose(params, m, rtol=1e-4, atol=1e-5)
    assert clipped


def test_ivon_goes_on_at_the_last_count():
    tx = diffopt.ivon(0.1, 100)
    state = tx.init(PARAMS)._replace(count=jnp.asarray(LAST_COUNT))
    updates, after = tx.update(PARAMS, state, PARAMS)
    assert after.count == LAST_COUNT and jnp.isfinite(updates["w"]).all()


def test_label_noise_of_0_is_the_clean_target():
    labels = jnp.array([[0, 2], [1, 1]])
    assert_equal(diffopt.label_noise(0, labels, 0.0, 3), jax.nn.one_hot(labels, 3))
    y = jnp.array([1.5, -2.0], jnp.bfloat16)
    for cold in ({"std": 0.0}, {"temperature": 0.0, "learning_rate": 0.1},
                 {"temperature": 1.0, "learning_rate": 0.0}):  # fmt: skip
        assert_equal(diffopt.label_noise(0, y, **cold), y)


def test_label_noise_by_temperature_is_that_std():
    labels = jnp.arange(6).reshape(2, 3) % 4
    by_std = diffopt.label_noise(5, labels, math.sqrt(2 * 0.3 * 6 / 0.1), 4)
    options = {"temperature": 0.3, "learning_rate": 0.1}
    assert_close(diffopt.label_noise(5, labels, num_classes=4, **options), by_std, rtol=1e-5)
    y = jnp.ones((5, 2))
    by_std = diffopt.label_noise(5, y, math.sqrt(2 * 0.3 * 5 / 0.1))
    assert_close(diffopt.label_noise(5, y, **options), by_std, rtol=1e-5)
    assert diffopt.label_noise(5, jnp.array(2.0), 1.0).shape == ()


def test_label_noise_is_new_for_every_key_and_traces():
    labels = jnp.zeros(4, jnp.int32)
    draw = jax.jit(lambda key, std: diffopt.label_noise(key, labels, std, 3))
    a, b = (draw(jax.random.key(seed), 0.5) for seed in range(2))
    assert (a != b).all()
    assert_close(a, diffopt.label_noise(0, labels, 0.5, 3), rtol=1e-6)


IVON = (0.1, 100)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: diffopt.ivon(-1.0, 100), ValueError, "learning_rate must be .*-1.0"),
        (lambda: diffopt.ivon(0.1, 0), ValueError, "num_examples must be .* 0"),
        (lambda: diffopt.ivon(0.1, 1 / 100), ValueError, "num_examples must be N ≥ 1, .*got 0.01"),
        (lambda: diffopt.ivon(0.1, "a"), TypeError, "num_examples must be .*'a'"),
        (lambda: diffopt.ivon(*IVON, hess_init=0.0), ValueError, "hess_init must be .*0.0"),
        (lambda: diffopt.ivon(*IVON, momentum=1.0), ValueError, "momentum must be < 1, got 1.0"),
        (lambda: diffopt.ivon(*IVON, hess_decay=1.5), ValueError, "hess_decay must be ≤ 1, got 1"),
        (lambda: diffopt.ivon(*IVON, hess_decay=-1), ValueError, "hess_decay must be .*-1"),
        (lambda: diffopt.ivon(*IVON, weight_decay=-0.1), ValueError, "weight_decay must .*-0.1"),
        (lambda: diffopt.ivon(*IVON, weight_decay=math.nan), ValueError, "weight_decay .*nan"),
        (lambda: diffopt.ivon(*IVON, clip=0.0), ValueError, "clip must be .*0.0"),
        (lambda: diffopt.ivon(*IVON, clip=-math.inf), ValueError, "clip must be .*-inf"),
        (lambda: diffopt.ivon(*IVON, clip=None), TypeError, "clip must be .*None"),
        (lambda: diffopt.ivon(*IVON, draws=0), ValueError, "draws must be ≥ 1, got 0"),
        (lambda: diffopt.ivon(*IVON, draws=1.5), TypeError, "draws must be an int, got 1.5"),
        (lambda: diffopt.ivon(*IVON, key=0.5), TypeError, "key must be .*0.5"),
        (lambda: diffopt.ivon(*IVON, noise="x"), ValueError, "noise must be one of .*'x'"),
        (lambda: diffopt.ivon(*IVON, noise=max), ValueError, "noise must be one of .*max"),
        (lambda: diffopt.weight_noise(-0.1), ValueError, "std must be .*-0.1"),
        (lambda: diffopt.weight_noise(lambda t: t - 1.0), ValueError, "std at step 0 must be .*-1"),
        (lambda: diffopt.weight_noise(0.1, relative=1), TypeError, "relative must be .* 1"),
        (lambda: diffopt.weight_noise(0.1, key="k"), TypeError, "key must be .*'k'"),
        (lambda: diffopt.weight_noise(0.1, noise="x"), ValueError, "noise must be .*'x'"),
        (lambda: diffopt.label_noise(0.5, [0], 0.1, 2), TypeError, "key must be .*0.5"),
        (lambda: diffopt.label_noise(0, np.arange(3), -1.0, 3), ValueError, "std must be .*-1.0"),
        (lambda: diffopt.label_noise(0, np.arange(3), num_classes=3), ValueError, "std=None"),
        (
            lambda: diffopt.label_noise(0, np.arange(3), 0.1, 3, temperature=1.0),
            ValueError, "temperature=1.0",
        ),
        (
            lambda: diffopt.label_noise(0, np.arange(3), num_classes=3, temperature=1.0),
            ValueError, "learning_rate=None",
        ),
        (
            lambda: diffopt.label_noise(
                0, np.arange(3), num_classes=3, temperature=-1.0, learning_rate=0.1
            ),
            ValueError, "temperature must be .*-1.0",
        ),
        (lambda: diffopt.label_noise(0, np.arange(4), 0.1, 3), ValueError, "from 0 to 2, got 3"),
        (lambda: diffopt.label_noise(0, np.arange(-1, 1), 0.1, 3), ValueError, "got -1"),
        (lambda: diffopt.label_noise(0, np.ones(3), 0.1, 3), TypeError, "integer class numbers"),
        (lambda: diffopt.label_noise(0, np.arange(3), 0.1), TypeError, "give num_classes too"),
        (lambda: diffopt.label_noise(0, "abc", 0.1, 3), TypeError, "labels must be .*'abc'"),
        (lambda: diffopt.label_noise(0, [1, 2], 0.1, 3), TypeError, r"must be an array .*\[1, 2"),
        (lambda: diffopt.label_noise(0, np.arange(3), 0.1, 0), ValueError, "num_classes .* 0"),
        (lambda: diffopt.ivon(*IVON).init({"w": jnp.ones(2, int)}), TypeError, r"params\['w'\]"),
        (lambda: diffopt.weight_noise(0.1).init([jnp.ones(2, bool)]), TypeError, r"params\[0\]"),
        (
            lambda: (lambda tx: tx.update(PARAMS, tx.init(PARAMS)))(diffopt.ivon(*IVON)),
            ValueError, "ivon needs the parameters",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name_and_value(make, error, message):
    with pytest.raises(error, match=message):
        make()
