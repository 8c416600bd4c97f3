"""The recipes of the documentation: Optax pieces before a diffusion, on one small regression."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt
from tests.helpers import run

LR, T, N = 0.01, 1e-4, 100_000
X = jax.random.normal(jax.random.key(0), (64, 5))
Y = jnp.tanh(X @ jnp.arange(-2.0, 3.0))
PARAMS = {
    "hidden": 0.5 * jax.random.normal(jax.random.key(1), (5, 8)),
    "out": 0.5 * jax.random.normal(jax.random.key(2), (8,)),
}


def loss(params):
    return jnp.mean((jnp.tanh(X @ params["hidden"]) @ params["out"] - Y) ** 2)


def by_layer(T):
    return optax.partition(
        {"cold": optax.sgd(LR), "warm": diffopt.sgld(LR, T)}, {"hidden": "cold", "out": "warm"}
    )


def frozen(moves):
    return optax.partition(
        {"frozen": optax.set_to_zero(), "moves": moves}, {"hidden": "frozen", "out": "moves"}
    )


def cyclical(make, T):
    stage = diffopt.sampling_stage(100, 0.8)
    return make(diffopt.cyclical_schedule(0.1, 100), temperature=lambda t: T * stage(t))


# name: (the recipe at a temperature, what it is at temperature 0)
RECIPES = {
    "clipped SGLD": (
        lambda T: optax.chain(optax.clip_by_global_norm(1.0), diffopt.sgld(LR, T)),
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(LR)),
    ),
    "clipped Adam with Langevin noise": (
        lambda T: optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.scale_by_adam(),
            diffopt.langevin(T, learning_rate=LR),
            optax.scale_by_learning_rate(LR),
        ),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(LR)),
    ),
    "Lion with Langevin noise": (
        lambda T: optax.chain(
            optax.scale_by_lion(),
            diffopt.langevin(T, learning_rate=LR),
            optax.scale_by_learning_rate(LR),
        ),
        optax.lion(LR, weight_decay=0.0),
    ),
    "a Gaussian prior": (
        lambda T: optax.chain(optax.add_decayed_weights(1e-3), diffopt.sghmc(LR, T)),
        optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(LR, momentum=0.9)),
    ),
    "SGHMC from its parts": (
        lambda T: optax.chain(
            diffopt.langevin((1 - 0.9) * T, learning_rate=LR), optax.sgd(LR, momentum=0.9)
        ),
        optax.sgd(LR, momentum=0.9),
    ),
    "an annealed temperature": (
        lambda T: diffopt.sgld(LR, optax.linear_schedule(0.0, T, 100)),
        optax.sgd(LR),
    ),
    "noise on one layer": (by_layer, optax.sgd(LR)),
    "parts that do not move": (lambda T: frozen(diffopt.sgld(LR, T)), frozen(optax.sgd(LR))),
    "a thermostat for each group": (
        lambda T: optax.partition(
            {"a": diffopt.sgnht(LR, T, key=0), "b": diffopt.sgnht(LR, T, key=1)},
            {name: "b" if name == "out" else "a" for name in PARAMS},
        ),
        optax.sgd(LR, momentum=0.9),
    ),
    "cyclical SGLD": (
        lambda T: cyclical(diffopt.sgld, T),
        optax.sgd(diffopt.cyclical_schedule(0.1, 100)),
    ),
    "cyclical SGHMC": (lambda T: cyclical(diffopt.sghmc, T), None),
    "accumulated gradients": (
        lambda T: optax.MultiSteps(diffopt.sghmc(LR, T), 4),
        optax.MultiSteps(optax.sgd(LR, momentum=0.9), 4),
    ),
}


def train(tx):
    return run(tx, PARAMS, jax.grad(loss), 400)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_with_noise_and_without_it_is_the_optimizer(name):
    recipe, optimizer = RECIPES[name]
    both = jax.jit(jax.vmap(lambda T: train(recipe(T))))(jnp.array([0.0, T]))
    cold, warm = (jax.tree.map(lambda x: x[i], both) for i in range(2))
    assert loss(warm) < 0.8 * loss(PARAMS)
    assert jnp.abs(warm["out"] - cold["out"]).max() > 1e-4
    if optimizer is not None:
        reference = train(optimizer)
        for leaf in PARAMS:
            np.testing.assert_allclose(cold[leaf], reference[leaf], rtol=1e-3, atol=1e-4)


def stationary_variance(tx, curvature=0.0, steps=300):
    """Variance of N chains on a quadratic loss."""
    return float(run(tx, jnp.zeros(N), lambda theta: curvature * theta, steps)[0].var())


def assert_variance(measured, exact):
    assert abs(measured / exact - 1) < 4.5 * np.sqrt(2 / N)


@pytest.mark.parametrize("curvature", [pytest.param(0.0, marks=pytest.mark.slow), 1.5])
def test_weight_decay_is_a_gaussian_prior_of_variance_t_over_decay(curvature):
    """Without a loss the samples are those of the prior; with one, of the posterior."""
    eta, decay = 0.1, 0.5
    k = curvature + decay
    prior = optax.add_decayed_weights(decay)
    sgld = optax.chain(prior, diffopt.sgld(eta, 0.3))
    assert_variance(stationary_variance(sgld, curvature), 0.3 / (k * (1 - eta * k / 2)))
    baoab = optax.chain(prior, diffopt.baoab(0.5, 0.3))
    assert_variance(stationary_variance(baoab, curvature, 100), 0.3 / k)


def test_langevin_before_momentum_is_sghmc_with_its_factor():
    eta, m, k = 0.2, 0.8, 1.0
    parts = optax.chain(
        diffopt.langevin((1 - m) * 0.3, learning_rate=eta), optax.sgd(eta, momentum=m)
    )
    exact = 0.3 / (k * (1 - eta * k / (2 * (1 + m))))
    assert_variance(stationary_variance(parts, k, 100), exact)


@pytest.mark.parametrize("scale", [optax.scale_by_adam, optax.scale_by_lion])
def test_noise_after_preconditioning_has_the_variance_of_the_diffusion(scale):
    """Each step is the optimizer's plus N(0, 2Tη), whatever the preconditioner did."""
    eta = 0.01
    tx = optax.chain(
        scale(), diffopt.langevin(T, learning_rate=eta), optax.scale_by_learning_rate(eta)
    )
    grads = jnp.linspace(-1, 1, N)
    drift, _ = scale().update(grads, scale().init(grads))
    updates, _ = tx.update(grads, tx.init(grads))
    assert_variance(np.asarray(updates + eta * drift).var(), 2 * T * eta)


def test_rademacher_noise_serves_a_chain_as_well():
    tx = optax.chain(optax.add_decayed_weights(1.0), diffopt.sgld(0.1, 0.3, noise="rademacher"))
    assert_variance(stationary_variance(tx, steps=150), 0.3 / (1 - 0.1 / 2))
