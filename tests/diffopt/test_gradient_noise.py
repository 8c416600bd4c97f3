"""`gradient_noise_temperature` against known covariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffopt

B, ETA, M = 500, 0.1, 0.8
HEAT = ETA / (2 * (1 - M))
DEVIATIONS = {"a": np.array([1.0, 2.0, 3.0]), "b": np.array([[4.0], [0.5]])}


def noisy(deviations, B, seed=0):
    keys = dict(
        zip(deviations, jax.random.split(jax.random.key(seed), len(deviations)), strict=True)
    )
    return {
        name: 10 + s * jax.random.normal(keys[name], (B, *s.shape))
        for name, s in deviations.items()
    }


@pytest.fixture(scope="module")
def noise():
    grads = noisy(DEVIATIONS, B)
    # stiffest along the last of "a", mixed a little with the first of "b"
    hvp = lambda v: {"a": v["a"] * jnp.array([1.0, 1.0, -5.0]), "b": v["b"] * 2}
    return diffopt.gradient_noise_temperature(grads, ETA, momentum=M, hvp=hvp)


def error(variances):
    """4.5 standard errors of the mean of independent estimates of variances."""
    variances = np.concatenate([np.ravel(v) for v in variances])
    return 4.5 * np.sqrt(np.sum(2 * variances**2 / (B - 1))) / variances.size


def test_the_means_are_those_of_the_variances(noise):
    variances = {name: s**2 for name, s in DEVIATIONS.items()}
    everything = list(variances.values())
    mean = np.concatenate([v.ravel() for v in everything]).mean()
    assert abs(noise.overall / HEAT - mean) < error(everything)
    for name, v in variances.items():
        assert abs(noise.per_leaf[name] / HEAT - v.mean()) < error([v])


def test_the_noisiest_and_the_stiffest_direction_are_found(noise):
    relative = 4.5 * np.sqrt(2 / (B - 1))
    assert abs(noise.noisiest / HEAT / 16 - 1) < relative
    assert abs(noise.stiffest / HEAT / 9 - 1) < relative
    np.testing.assert_allclose(noise.curvature, -5, rtol=1e-5)


def test_noise_alike_in_every_direction_is_not_overstated_by_chance():
    few, d, seeds = 8, 5_000, 16
    found = [
        diffopt.gradient_noise_temperature(noisy({"w": np.ones(d)}, few, seed), 2.0).noisiest
        for seed in range(seeds)
    ]  # the largest eigenvalue of the sample covariance is above d / few = 625
    assert abs(np.mean(found) - 1) < 4.5 * np.sqrt(2 / (few - 2) / seeds)


@pytest.mark.slow
def test_one_noisy_direction_in_many_is_found():
    d, few = 5_000, 64
    u = jax.random.normal(jax.random.key(1), (d,)) / np.sqrt(d)
    strength = 50 * jax.random.normal(jax.random.key(2), (few, 1))
    grads = noisy({"w": np.ones(d)}, few)["w"] + strength * u
    found = diffopt.gradient_noise_temperature({"w": grads}, 2.0).noisiest
    halves = [float(jnp.var(strength[i::2], ddof=1) * jnp.sum(u**2)) for i in (0, 1)]
    ratio = d / (few / 2 - 1)
    # The squared cosine of a sample's leading direction and the true one: Paul 2007, theorem 4.
    cosine = [(1 - ratio / spike**2) / (1 + ratio / spike) for spike in halves]
    expected = 1 + (cosine[0] * halves[1] + cosine[1] * halves[0]) / 2
    one_error = 2 / np.sqrt(min(halves) * few)  # of the product of strengths and noise
    assert abs(found / expected - 1) < 4.5 * one_error


@pytest.mark.slow
def test_complex_and_16_bit_gradients_and_missing_leaves():
    keys = jax.random.split(jax.random.key(3), 2)
    parts = jax.random.normal(keys[0], (2, B, 5))
    grads = {"c": parts[0] + 1j * parts[1], "h": jax.random.normal(keys[1], (B, 3), jnp.bfloat16)}
    grads["none"] = None
    hvp = lambda v: {"c": 3 * v["c"], "h": v["h"], "none": None}
    noise = jax.jit(lambda g: diffopt.gradient_noise_temperature(g, 2.0, hvp=hvp))(grads)
    assert abs(noise.overall - 1) < 4.5 * np.sqrt(2 / 13 / B) + 0.01  # bfloat16's variance is 0.993
    np.testing.assert_allclose(noise.curvature, 3, rtol=1e-2)
    assert abs(noise.stiffest - 1) < 4.5 * np.sqrt(2 / B) + 0.01
    assert noise.per_leaf["none"] is None


def test_gradients_without_noise_or_curvature_add_nothing():
    grads = {"w": jnp.ones((4, 3))}
    noise = diffopt.gradient_noise_temperature(grads, 0.1, hvp=lambda v: {"w": 0 * v["w"]})
    assert [float(x) for x in (noise.overall, noise.noisiest, noise.stiffest)] == [0, 0, 0]
    assert noise.curvature == 0
    assert diffopt.gradient_noise_temperature(grads, 0.1).stiffest is None


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("grads must hold 4 minibatches", lambda f: f({"w": jnp.ones((3, 2))}, 0.1)),
        ("grads must have one", lambda f: f({"w": jnp.ones((4, 2)), "b": jnp.ones(5)}, 0.1)),
        ("grads must have one", lambda f: f({"w": jnp.ones(())}, 0.1)),
        ("grads must have one", lambda f: f({}, 0.1)),
        ("learning_rate", lambda f: f({"w": jnp.ones((4, 2))}, 0.0)),
        ("learning_rate", lambda f: f({"w": jnp.ones((4, 2))}, lambda t: 0.1)),
        ("momentum", lambda f: f({"w": jnp.ones((4, 2))}, 0.1, momentum=1.0)),
        ("'w'", lambda f: f({"w": jnp.ones((4, 2), int)}, 0.1)),
    ],
)
def test_bad_input_is_named(message, call):
    with pytest.raises((ValueError, TypeError), match=message):
        call(diffopt.gradient_noise_temperature)
