"""What influence returns and refuses, and parts of networks."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt

pytestmark = pytest.mark.slow

DATA = jnp.array([-1.0, 0.5, 0.5, 2.0])
OPTIONS = dict(temperature=0.1, step_size=0.3, num_steps=30, burn_in=10, num_chains=3)


def loss(w, batch):
    return jnp.mean((w - batch) ** 2) / 2


def influence(**arguments):
    given = dict(loss=loss, params=jnp.zeros([]), data=DATA, observable=lambda w: w)
    return diffopt.influence(**given | OPTIONS | arguments)


def test_a_repeated_example_has_the_influence_of_its_copy():
    found = influence()
    assert found.values.shape == found.standard_errors.shape == (4,)
    assert found.values[1] == found.values[2] != found.values[0]
    assert found.standard_errors[1] == found.standard_errors[2]


@pytest.mark.slow
def test_the_values_are_a_covariance_over_all_draws():
    take = lambda w: jnp.stack([w, w**2])
    found = influence(observable=take, perturbation=take, every=2)
    tx = diffopt.sgld(0.3, 0.1)
    pulled = optax.chain(diffopt.gaussian_prior(1.0, 0.1, center="init"), tx)
    samples = diffopt.sample(
        pulled, loss, jnp.zeros([]), DATA, num_steps=30, burn_in=10, every=2, num_chains=3
    )
    w = np.asarray(samples.draws, float)
    x = np.stack([w, w**2])
    within = np.einsum("act,bct->cab", x - x.mean(2)[:, :, None], x - x.mean(2)[:, :, None]) / 10
    means = x.mean(2) - x.mean((1, 2))[:, None]
    parts = within + np.einsum("ac,bc->cab", means, means) * 3 / 2
    np.testing.assert_allclose(found.values, -parts.mean(0) / 0.1, rtol=1e-4)
    errors = parts.std(0, ddof=1) / 3**0.5 / 0.1
    np.testing.assert_allclose(found.standard_errors, errors, rtol=1e-4)


@pytest.mark.slow
def test_a_chain_that_diverges_is_named_and_left_out():
    # a slope below w = -2 takes a chain away for good
    cliff = lambda w: jnp.where(w > -2, w**2 / 2, -jnp.exp(w**2))
    arguments = dict(
        loss=cliff, data=None, perturbation=lambda w: w, temperature=1.0, num_chains=20,
        num_steps=60, key=1,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="chains .* not finite at step"):
        found = influence(**arguments)
    assert np.isfinite(found.values) and found.values < 0
    with warnings.catch_warnings(), pytest.raises(ValueError, match="0 of 3 chains were finite"):
        warnings.simplefilter("ignore")
        influence(step_size=50.0, num_steps=500, burn_in=0)


def test_a_step_too_long_that_stays_finite_is_told():
    """Beyond 2/√k a loss of finite slope holds the chain, far above what a minimum would have."""
    bowl = lambda w, batch: jnp.mean(jnp.log(jnp.cosh(w))) + 0 * jnp.mean(batch)
    arguments = dict(
        loss=bowl, params=jnp.zeros(20), observable=None, sampler=diffopt.baoab,
        temperature=1e-3, localization=1.0, num_steps=200, num_chains=4,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="the chains are too hot: .* 20 parameters has at most 10"):
        influence(step_size=15.0, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        influence(step_size=2.0, **arguments)


@pytest.mark.slow
def test_under_64_bits():
    with jax.enable_x64(True):
        found = influence(params=jnp.zeros([], float), data=np.asarray(DATA, float))
    assert found.values.dtype == np.float64 and np.isfinite(found.values).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"step_size": 0.0}, ValueError, "step_size"),
        ({"temperature": 0.0}, ValueError, "temperature"),
        ({"temperature": "hot"}, TypeError, "temperature"),
        ({"localization": -1.0}, ValueError, "localization"),
        ({"num_steps": 0}, ValueError, "num_steps"),
        ({"burn_in": 30}, ValueError, "burn_in must be < num_steps = 30, got 30"),
        ({"every": 0}, ValueError, "every must be ≥ 1, got 0"),
        ({"num_chains": 1}, ValueError, "num_chains must be ≥ 2, got 1"),
        ({"batch_size": 5}, ValueError, "batch_size must be ≤ the 4 examples"),
        ({"key": 1.5}, TypeError, "key"),
        ({"params": jnp.zeros([], int)}, TypeError, "floating-point"),
        ({"loss": lambda w, batch: w - batch}, TypeError, "loss must return a real scalar"),
        ({"data": lambda i: DATA}, TypeError, "data must be a tree of arrays, .* got a loader"),
        ({"observable": 3}, TypeError, "observable must be a function, got 3"),
        ({"observable": lambda w: (w, w)}, TypeError, "observable must give an array of real"),
        ({"perturbation": lambda w: 1j * w}, TypeError, "perturbation must give an array of real"),
        (
            {"data": None, "loss": lambda w: w**2},
            ValueError,
            "influence needs data or a perturbation, got data=None",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        influence(**arguments)


def test_an_error_of_an_observable_tells_how_it_was_called():
    with pytest.raises(TypeError) as caught:
        influence(observable=lambda w, data: w)
    note = "influence called observable(params), here with params float32[]"
    assert caught.value.__notes__[-1] == note


# A part of a network

PARAMS = {"one": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}, "two": jnp.ones(2)}


def test_a_part_comes_back_into_its_place():
    mask = jnp.zeros((2, 3), bool).at[:, 1].set(True)
    part = {"one": {"kernel": mask, "bias": True}, "two": False}
    moving, merge = diffopt.take_part(PARAMS, part)
    np.testing.assert_array_equal(moving["one"]["kernel"], [1.0, 4.0])
    assert moving["two"] is None
    jax.tree.map(np.testing.assert_array_equal, merge(moving), PARAMS)
    twice = jax.jit(merge)(jax.tree.map(lambda x: 2 * x, moving))
    np.testing.assert_array_equal(twice["one"]["kernel"], [[0, 2, 2], [3, 8, 5]])
    np.testing.assert_array_equal(twice["one"]["bias"], 2 * np.ones(3))
    np.testing.assert_array_equal(twice["two"], np.ones(2))
    chains = jax.tree.map(lambda x: jnp.stack([x, x]), moving)
    assert jax.vmap(merge)(chains)["one"]["kernel"].shape == (2, 2, 3)


def test_a_merge_of_another_shape_is_refused():
    moving, merge = diffopt.take_part(PARAMS, {"one": True, "two": False})
    chains = jax.tree.map(lambda x: jnp.stack([x, x]), moving)
    with pytest.raises(ValueError, match=r"merge got one.bias of shape \(2, 3\), .* jax.vmap"):
        merge(chains)
    with pytest.raises(ValueError, match=r"merge needs moving in the structure .*\['one', 'two'\]"):
        merge({"one": moving["one"]})


def test_a_part_may_be_told_by_paths_or_by_the_top_of_the_tree():
    by_path, _ = diffopt.take_part(PARAMS, lambda path: path.startswith("one."))
    by_top, _ = diffopt.take_part(PARAMS, {"one": True, "two": False})
    assert jax.tree.structure(by_path) == jax.tree.structure(by_top)
    assert by_path["two"] is None and by_path["one"]["bias"].shape == (3,)


@pytest.mark.parametrize(
    ("part", "error", "message"),
    [
        ({"one": True}, TypeError, r"part must have the structure .*: part\['two'\] is missing"),
        ({"one": True, "two": True, "six": True}, TypeError, r"part\['six'\] is too many"),
        ({"one": False, "two": False}, ValueError, "part takes nothing of params, which has one"),
        (lambda path: None, TypeError, "bools or boolean arrays, got None for one.bias"),
        ({"one": False, "two": jnp.ones(2)}, TypeError, "got .* for two"),
        (
            {"one": False, "two": jnp.ones(3, bool)},
            ValueError,
            r"mask of shape \(3,\) for two, which is of \(2,\)",
        ),
    ],
)
def test_a_wrong_part_is_named(part, error, message):
    with pytest.raises(error, match=message):
        diffopt.take_part(PARAMS, part)
