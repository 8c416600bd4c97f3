"""Learning coefficients and free energies, against closed forms, quadrature and exact values."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffopt

pytestmark = pytest.mark.slow

llc = diffopt.local_learning_coefficient
SLOW = pytest.mark.slow


def assert_agrees(estimate, exact):
    error = abs(estimate.mean - exact) / estimate.standard_error
    assert error < 4.5, f"{estimate.mean} ± {estimate.standard_error} for {exact}"


# Regular minima


@pytest.mark.parametrize(
    ("dimension", "sampler"),
    [
        (1, diffopt.baoab),
        (100, diffopt.sgld),
        pytest.param(1, diffopt.sgld, marks=SLOW),
        pytest.param(100, diffopt.baoab, marks=SLOW),
    ],
)
def test_of_a_quadratic_is_half_its_dimension(dimension, sampler):
    # every curvature k counts k / (k + T localization) / 2, times the heat of the sampler's step
    k, T, localization, step_size = jnp.linspace(1, 2, dimension), 0.05, 4.0, 0.2
    estimate = llc(
        lambda w: jnp.sum(k * w**2) / 2, jnp.zeros(dimension), temperature=T,
        localization=localization, sampler=sampler, step_size=step_size, num_steps=3000,
        burn_in=500, num_chains=64,
    )  # fmt: skip
    stiffness = k + T * localization
    heat = 1 / (1 - step_size * stiffness / 2) if sampler is diffopt.sgld else 1
    assert_agrees(estimate, jnp.sum(heat * k / stiffness) / 2)


def test_at_the_temperature_of_its_data_it_is_half_the_dimension():
    n, d = 1000, 5
    x = jax.random.normal(jax.random.key(0), (n, d))
    w = jnp.arange(1.0, 1 + d)
    y = x @ w + jax.random.normal(jax.random.key(1), (n,))
    data = {"x": x, "y": y}
    best = jnp.linalg.lstsq(x, y)[0]
    estimate = llc(
        lambda w, batch: jnp.mean((batch["x"] @ w - batch["y"]) ** 2) / 2, best, data,
        localization=10.0, sampler=diffopt.baoab, step_size=0.5, num_steps=3000, burn_in=200,
        num_chains=32,
    )  # fmt: skip
    k, T = jnp.linalg.eigvalsh(x.T @ x / n), math.log(n) / n
    assert_agrees(estimate, jnp.sum(k / (k + 10.0 * T)) / 2)


def test_what_batches_differ_by_everywhere_does_not_blur_it():
    offsets = 100 * jax.random.normal(jax.random.key(0), (1003,))
    loss = lambda w, batch: batch.mean() + jnp.sum(w**2) / 2
    estimate = llc(
        loss, jnp.zeros(4), offsets, localization=0.0, sampler=diffopt.baoab, step_size=0.5,
        num_steps=2000, burn_in=200, num_chains=16, batch_size=10,
    )  # fmt: skip
    assert estimate.standard_error < 0.03
    # float32 holds a difference of losses near 100 to 1e-5
    assert_agrees(estimate, 2.0)


# Singular minima in the plane

PLANE = {
    "w₁²w₂²": lambda w: w[0] ** 2 * w[1] ** 2,
    "w₁⁴ + w₂²": lambda w: w[0] ** 4 + w[1] ** 2,
    "w₁²w₂⁴": lambda w: w[0] ** 2 * w[1] ** 4,
    "(w₁² - w₂³)²": lambda w: (w[0] ** 2 - w[1] ** 3) ** 2,
}


def integrate(density, *functions, half=8.0, points=3001):
    """∫ density, and the means of `functions` under it, over a square of the plane."""
    axis = np.linspace(-half, half, points)
    w = np.meshgrid(axis, axis)
    weights = density(w)
    total = weights.sum()
    means = [(f(w) * weights).sum() / total for f in functions]
    return total * (axis[1] - axis[0]) ** 2, *means


@pytest.mark.parametrize(
    ("name", "temperature", "localization"),
    [
        ("w₁²w₂²", 0.05, 1.0),
        ("(w₁² - w₂³)²", 0.002, 3.0),
        *(pytest.param(name, 0.05, 1.0, marks=SLOW) for name in list(PLANE)[1:]),
        *(pytest.param(name, 0.002, 3.0, marks=SLOW) for name in list(PLANE)[:-1]),
    ],
)
def test_of_a_singular_minimum_is_that_of_quadrature(name, temperature, localization):
    loss = PLANE[name]
    density = lambda w: np.exp(-loss(w) / temperature - localization * (w[0] ** 2 + w[1] ** 2) / 2)
    _, mean = integrate(density, loss)
    estimate = llc(
        loss, jnp.zeros(2), temperature=temperature, localization=localization,
        sampler=partial(diffopt.baoab, friction=0.3), step_size=0.1, num_steps=10_000,
        burn_in=2000, num_chains=100,
    )  # fmt: skip
    assert_agrees(estimate, mean / temperature)


@SLOW
def test_without_localization_it_is_the_exponent_of_the_volume():
    # a quasi-homogeneous loss has E[L] = λT at every temperature: 1/4 + 1/2 here
    estimate = llc(
        PLANE["w₁⁴ + w₂²"], jnp.zeros(2), temperature=0.1, localization=0.0,
        sampler=diffopt.baoab, step_size=0.1, num_steps=5000, burn_in=500, num_chains=256,
    )  # fmt: skip
    assert_agrees(estimate, 3 / 4)


# Linear networks


def reduced_rank(inputs, hidden, outputs, rank):
    """(λ, m) of reduced-rank regression: Aoyagi & Watanabe 2005, main theorem."""
    N, H, M, r = inputs, hidden, outputs, rank
    if N + r <= M + H and M + r <= N + H and H + r <= M + N:
        odd = (M + H + N + r) % 2
        squares = (H + r) ** 2 + M**2 + N**2
        return (2 * (H + r) * (M + N) + 2 * M * N - squares + odd) / 8, 1 + odd
    if N + r > M + H:
        return (H * M - H * r + N * r) / 2, 1
    if M + r > N + H:
        return (H * N - H * r + M * r) / 2, 1
    return M * N / 2, 1


def deep_linear(widths, rank):
    """(λ, m) of a linear network with layers of `widths`: Aoyagi 2024, theorem 1.

    Aoyagi, Consideration on the Learning Efficiency of Multiple-Layered Neural Networks with
    Linear Units, Neural Networks 172; restated in Lau et al. 2023, https://arxiv.org/abs/2308.12108.
    """
    excess = [width - rank for width in widths]
    for count in range(2, len(widths) + 1):
        for inside in itertools.combinations(range(len(widths)), count):
            chosen = [excess[i] for i in inside]
            others = [excess[i] for i in range(len(widths)) if i not in inside]
            ell, total = count - 1, sum(chosen)
            if total < ell * max(chosen):
                continue
            if others and not (max(chosen) < min(others) and total < ell * min(others)):
                continue
            a = total - (math.ceil(total / ell) - 1) * ell
            pairs = sum(x * y for x, y in itertools.combinations(chosen, 2))
            exact = (rank * (widths[0] + widths[-1]) - rank**2) / 2 + a * (ell - a) / (4 * ell)
            return exact - ell * (ell - 1) / 4 * (total / ell) ** 2 + pairs / 2, a * (ell - a) + 1
    raise AssertionError("the theorem has a subset for every network")


def test_the_two_theorems_agree_on_one_hidden_layer():
    for N, H, M in itertools.product(range(1, 8), repeat=3):
        for rank in range(min(N, H, M) + 1):
            assert deep_linear((N, H, M), rank) == reduced_rank(N, H, M, rank)


def product(layers):
    out = layers[0]
    for layer in layers[1:]:
        out = layer @ out
    return out


def linear_network_loss(target, layers):
    """Squared error over inputs of unit covariance."""
    return jnp.sum((product(layers) - target) ** 2) / 2


def estimate_linear_network(widths, rank, **options):
    layers = [
        jnp.eye(m, n) * (jnp.arange(m) < rank)[:, None] for n, m in itertools.pairwise(widths)
    ]
    return llc(partial(linear_network_loss, product(layers)), layers, **options)


def assert_within_5_percent(estimate, widths, rank, temperature):
    exact, multiplicity = deep_linear(widths, rank)
    expected = exact - (multiplicity - 1) / math.log(1 / temperature)
    assert abs(estimate.mean / expected - 1) < 0.05, f"{estimate.mean} for {expected}"
    half_dimension = sum(m * n for n, m in itertools.pairwise(widths)) / 2
    assert expected < 0.9 * half_dimension  # else 5 % would not tell them apart


SHALLOW = [
    ((3, 1, 3), 0),
    ((6, 4, 5), 2),
    pytest.param((3, 1, 3), 1, marks=SLOW),
    pytest.param((4, 2, 4), 1, marks=SLOW),
    pytest.param((4, 2, 4), 0, marks=SLOW),
    pytest.param((3, 3, 3), 0, marks=SLOW),
    pytest.param((3, 3, 3), 1, marks=SLOW),
    pytest.param((5, 2, 3), 2, marks=SLOW),
]
DEEP = [((3, 3, 3, 3), 1), ((4, 2, 3, 4), 1), ((3, 3, 3, 3), 2), ((2, 2, 2, 2, 2), 1)]


@pytest.mark.parametrize(("widths", "rank"), SHALLOW)
def test_of_reduced_rank_regression_is_the_exact_one(widths, rank):
    estimate = estimate_linear_network(
        widths, rank, temperature=1e-4, sampler=partial(diffopt.baoab, friction=0.05),
        step_size=0.3, num_steps=6000, burn_in=1000, num_chains=64,
    )  # fmt: skip
    assert_within_5_percent(estimate, widths, rank, 1e-4)


@SLOW
@pytest.mark.parametrize(("widths", "rank"), DEEP)
def test_of_a_deep_linear_network_is_the_exact_one(widths, rank):
    estimate = estimate_linear_network(
        widths, rank, temperature=1e-5, localization=2.0,
        sampler=partial(diffopt.baoab, friction=0.03), step_size=0.07, num_steps=40_000,
        burn_in=10_000, num_chains=128,
    )  # fmt: skip
    assert_within_5_percent(estimate, widths, rank, 1e-5)


@SLOW
def test_does_not_depend_on_the_step_size():
    estimates = [
        estimate_linear_network(
            (3, 3, 3), 1, temperature=0.01, sampler=partial(diffopt.baoab, friction=0.3),
            step_size=step_size, num_steps=int(1000 / step_size), burn_in=int(200 / step_size),
            num_chains=256,
        )
        for step_size in (0.1, 0.2, 0.3)
    ]  # fmt: skip
    for one, other in itertools.combinations(estimates, 2):
        error = math.hypot(one.standard_error, other.standard_error)
        assert abs(one.mean - other.mean) < 4.5 * error
        assert error < 0.02 * one.mean


# Free energies


def test_wbic_of_linear_regression_is_its_free_energy():
    n, d, variance = 1000, 4, 2.0
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d))
    y = x @ np.array([0.5, -1.0, 0.2, 0.0]) + rng.normal(size=n)
    evidence = np.eye(n) + variance * x @ x.T
    constant = n / 2 * math.log(2 * math.pi)
    _, logdet = np.linalg.slogdet(evidence)
    free_energy = constant + logdet / 2 + y @ np.linalg.solve(evidence, y) / 2
    precision = x.T @ x / math.log(n) + np.eye(d) / variance
    mean = np.linalg.solve(precision, x.T @ y / math.log(n))
    spread = np.trace(np.linalg.solve(precision, x.T @ x))
    exact = constant + (np.sum((y - x @ mean) ** 2) + spread) / 2

    def loss(w, batch):
        return jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2 + math.log(2 * math.pi) / 2

    estimate = diffopt.wbic(
        loss, jnp.asarray(mean), (x, y), log_prior=lambda w: -jnp.sum(w**2) / (2 * variance),
        sampler=diffopt.baoab, step_size=0.5, num_steps=3000, burn_in=200, num_chains=64,
    )  # fmt: skip
    assert_agrees(estimate, exact)
    # Laplace's method: what WBIC leaves out of a regular model's free energy, with its prior
    best = np.linalg.lstsq(x, y)[0]
    left_out = best @ best / (2 * variance) + d / 2 * math.log(variance)
    left_out += np.linalg.slogdet(x.T @ x / n)[1] / 2
    assert left_out > 1
    assert abs(estimate.mean + left_out - free_energy) < 0.25


def test_wbic_of_a_singular_network_is_its_free_energy():
    # y = w₁ tanh(w₂x) + noise, where no relation is true
    n = 200
    rng = np.random.default_rng(0)
    x = rng.normal(size=n)
    y = rng.normal(size=n)
    axis = np.linspace(-6, 6, 601)
    hidden = np.tanh(axis[:, None] * x)
    xy, xx = hidden @ y, np.sum(hidden**2, axis=1)
    total = (np.sum(y**2) - 2 * axis[:, None] * xy + axis[:, None] ** 2 * xx) / 2  # [w₁, w₂]
    total += n / 2 * math.log(2 * math.pi)
    prior = np.exp(-(axis[:, None] ** 2 + axis**2) / 2) / (2 * np.pi) * (axis[1] - axis[0]) ** 2
    least = total.min()
    free_energy = least - math.log(np.sum(prior * np.exp(least - total)))
    tempered = prior * np.exp((least - total) / math.log(n))
    exact = np.sum(total * tempered) / np.sum(tempered)

    def loss(w, batch):
        x, y = batch
        return jnp.mean((w[0] * jnp.tanh(w[1] * x) - y) ** 2) / 2 + math.log(2 * math.pi) / 2

    estimate = diffopt.wbic(
        loss, jnp.zeros(2), (x, y), log_prior=lambda w: -jnp.sum(w**2) / 2,
        sampler=diffopt.baoab, step_size=0.3, num_steps=10_000, burn_in=1000, num_chains=64,
    )  # fmt: skip
    assert_agrees(estimate, exact)
    assert abs(estimate.mean - free_energy) < 1
