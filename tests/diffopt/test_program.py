"""A call answers for what its functions see now, compiles once, and keeps nothing of the user's."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffopt
from diffopt.run import program
from diffopt.run.program import compile_program

TX = diffopt.baoab(0.3, 1 / 50)


def squared(fold):
    return lambda m: jnp.mean((fold - m) ** 2) / 2


def count_compilations(monkeypatch):
    """A list with an entry for each program that is compiled from here on."""
    compiled = []
    lowered = jax.stages.Lowered
    compile_one = lowered.compile
    monkeypatch.setattr(
        lowered, "compile", lambda self, *a, **k: compiled.append(1) or compile_one(self, *a, **k)
    )
    return compiled


def test_a_fold_that_changes_changes_the_posterior_and_compiles_once(monkeypatch):
    compiled, means = count_compilations(monkeypatch), []

    def loss(m):
        return jnp.mean((fold - m) ** 2) / 2

    for value in (1.0, 5.0, 9.0):
        fold = jnp.full(50, value)
        samples = diffopt.sample(TX, loss, jnp.zeros([]), num_steps=3000, burn_in=500, num_chains=8)
        per_chain = samples.draws.mean(1)
        error = per_chain.std(ddof=1) / 8**0.5
        means.append(abs(per_chain.mean() - value) / error)
        compiled.append(None)
    assert max(means) < 4.5
    first = compiled.index(None)
    assert first > 0 and compiled[first:] == [None] * 3


@pytest.mark.slow
def test_a_bound_method_sees_its_buffer_grow():
    class Bandit:
        rewards = jnp.ones(3)

        def loss(self, m):
            return jnp.mean((self.rewards - m) ** 2) / 2

    bandit = Bandit()
    run = lambda: diffopt.sample(TX, bandit.loss, jnp.zeros([]), num_steps=500, burn_in=100)
    before = run().draws.mean()
    bandit.rewards = jnp.concatenate([bandit.rewards, jnp.full(9, 5.0)])
    assert abs(before - 1) < 0.3 and abs(run().draws.mean() - 4) < 0.3


@pytest.mark.slow
def test_a_grid_of_temperatures_in_arrays_compiles_once(monkeypatch):
    compiled = count_compilations(monkeypatch)
    loss, variances = squared(jnp.zeros(200)), []
    for T in (0.01, 0.1):
        tx = diffopt.baoab(0.5, jnp.asarray(T))
        samples = diffopt.sample(
            tx, loss, jnp.zeros(200), num_steps=1000, burn_in=100, num_chains=4
        )
        variances.append(samples.draws.var() / T)
        compiled.append(None)
    assert compiled[compiled.index(None) :] == [None, None]
    np.testing.assert_allclose(variances, variances[0], rtol=1e-3)  # the same noise, scaled


@pytest.mark.slow
def test_the_step_size_is_that_of_the_curvature_now():
    def loss(p):
        return curvature * jnp.sum(p**2) / 2

    for value in (1.0, 100.0):
        curvature = jnp.asarray(value)
        size, _ = diffopt.find_step_size(diffopt.sgld, loss, jnp.zeros(50), temperature=0.1)
        assert 0.8 < size * value / 0.095 < 1.2


@pytest.mark.slow
def test_the_learning_coefficient_is_that_of_the_loss_now():
    def loss(w):
        return jnp.sum(jnp.abs(w) ** power)

    for exact in (1.0, 0.5):  # w² has 1/2 and w⁴ 1/4 in each direction
        power = 2 / exact
        estimate = diffopt.local_learning_coefficient(
            loss, jnp.zeros(2), temperature=1e-3, localization=0.0, sampler=diffopt.baoab,
            step_size=0.1, num_steps=3000, burn_in=500, num_chains=32,
        )  # fmt: skip
        assert abs(estimate.mean - exact) < 4.5 * estimate.standard_error


def test_predictions_are_those_of_the_function_now():
    scales = []

    def predict(w):
        return w * scales[-1]

    for average in (diffopt.predictive, lambda *args: diffopt.predictions(*args).mean()):
        for scale in (1.0, jnp.asarray(7.0), jnp.asarray(9.0)):
            scales.append(scale)
            assert average(predict, jnp.ones(3)) == scale


def test_nothing_that_is_dropped_stays_alive():
    alive = []

    def predict_once(seed):
        weights = jax.random.normal(jax.random.key(seed), (256, 256))
        function = lambda w: jnp.sum(weights) * w
        alive.extend([weakref.ref(weights), weakref.ref(function)])
        return diffopt.predictive(function, jnp.ones(3))

    def sample_once(seed):
        fold = jax.random.normal(jax.random.key(seed), (256, 256))
        loss = squared(fold)
        alive.extend([weakref.ref(fold), weakref.ref(loss)])
        return diffopt.sample(TX, loss, jnp.zeros([]), num_steps=2).draws

    for seed in range(3):
        predict_once(seed), sample_once(seed)
    gc.collect()
    assert [ref() for ref in alive] == [None] * 12


def test_no_more_than_so_many_programs_are_kept(monkeypatch):
    monkeypatch.setattr(program, "KEPT", 2)
    monkeypatch.setattr(program, "_programs", program.OrderedDict())
    for factor in (1.0, 2.0, 3.0):
        double = compile_program(lambda x, factor=factor: factor * x, jnp.ones(2))
        assert double(jnp.ones(2)).tolist() == [factor, factor]
    assert len(program._programs) == 2


def test_a_program_that_calls_back_is_not_mistaken_for_another():
    heard = []
    for name in ("one", "two"):

        def call(x, name=name):
            return jax.pure_callback(lambda x: heard.append(name) or x, jax.typeof(x), x)

        compile_program(call, jnp.ones(2))(jnp.ones(2))
    assert heard == ["one", "two"]


def test_inside_another_program_it_is_the_function():
    def mean(scale, samples):
        return diffopt.predictive(lambda w: scale * w, samples)

    assert jax.jit(mean)(2.0, jnp.array([1.0, 3.0])) == 4.0
    assert jax.grad(mean)(2.0, jnp.array([1.0, 3.0])) == 2.0


def test_an_argument_that_is_not_used_may_have_another_shape():
    loss = lambda w, batch: jnp.mean((w - batch) ** 2) / 2
    for number in (20, 30):  # the program before the first step is the same, text for text
        samples = diffopt.sample(
            diffopt.sgld(0.1, 0.1), loss, jnp.zeros([]), jnp.ones(number), num_steps=2
        )
        assert samples.losses.shape == (1, 2)
