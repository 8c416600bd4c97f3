"""collect, draws and predictive; and that ArviZ agrees with what they give."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt
from diffopt.run import program
from tests.helpers import normals

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import arviz


def run(keep, path):
    """The state of `keep` after the parameters `path[0]`, `path[1]`, ... in a compiled scan."""

    @jax.jit
    def scan(path):
        state = keep.init(jax.tree.map(lambda p: p[0], path))
        return jax.lax.scan(lambda s, p: (keep.update(p, s), None), state, path)[0]

    return scan(path)


@pytest.mark.parametrize(
    ("capacity", "start", "every", "kept"),
    [
        (3, 0, 1, [0, 1, 2]),
        (3, 4, 1, [4, 5, 6]),
        (3, 2, 3, [2, 5, 8]),
        (5, 9, 4, [9]),
        (2, 10, 1, []),
    ],
)
def test_sample_i_is_update_start_plus_i_every(capacity, start, every, kept):
    state = run(diffopt.collect(capacity, burn_in=start, every=every), {"w": jnp.arange(10.0)})
    assert state.samples["w"].shape == (capacity,)
    assert state.samples["w"][: len(kept)].tolist() == kept
    assert jnp.isnan(state.samples["w"][len(kept) :]).all()
    assert (int(state.count), int(state.step), int(state.diverged)) == (len(kept), 10, -1)


def test_dtypes_shapes_and_none_are_kept():
    params = {
        "bf16": jnp.full((2, 3), 1.5, jnp.bfloat16),
        "complex": jnp.array(1 + 2j),
        "int": jnp.arange(4),
        "none": None,
    }
    keep = diffopt.collect(2)
    state = keep.update(params, keep.init(params))
    assert jax.tree.structure(state.samples) == jax.tree.structure(params)
    for name in ("bf16", "complex", "int"):
        sample = state.samples[name]
        assert sample.shape == (2, *params[name].shape) and sample.dtype == params[name].dtype
        assert jnp.array_equal(sample[0], params[name])
        if name != "int":
            assert jnp.isnan(sample[1]).all()


@pytest.mark.parametrize("arguments", [(0, 0, 1), (-1, 0, 1), (1, -1, 1), (1, 0, 0)])
def test_impossible_plans(arguments):
    capacity, start, every = arguments
    with pytest.raises(ValueError, match="capacity ≥ 1, burn_in ≥ 0, every ≥ 1"):
        diffopt.collect(capacity, burn_in=start, every=every)


def test_chains_under_vmap_equal_each_chain_alone():
    keep = diffopt.collect(4, burn_in=1, every=2)
    path = normals(0, 3, 9, 5)
    chains = jax.vmap(partial(run, keep))(path)
    for i in range(3):
        alone = run(keep, path[i])
        for one, all_ in zip(jax.tree.leaves(alone), jax.tree.leaves(chains), strict=True):
            assert jnp.array_equal(one, all_[i], equal_nan=True)


@pytest.mark.slow
def test_nested_vmap_and_chains_at_different_steps():
    """One `lax.cond` answers for all chains; each still keeps by its own clock."""
    keep = diffopt.collect(4, every=2)
    path = normals(0, 2, 3, 5)
    assert jnp.array_equal(
        jax.vmap(jax.vmap(partial(run, keep)))(path).samples[..., :3],
        path[:, :, ::2],
        equal_nan=True,
    )
    states = jax.vmap(keep.init)(jnp.zeros(3))._replace(step=jnp.array([0, 1, 2]))
    samples = jax.vmap(keep.update)(jnp.arange(3.0), states).samples[:, 0]
    assert jnp.array_equal(samples, jnp.array([0, jnp.nan, 2]), equal_nan=True)


@pytest.mark.parametrize("chains", [None, 4])
def test_the_buffer_is_written_in_place(chains):
    """No temporary of the buffer's size, in a donated step or in a scan; none allocated anew."""
    keep = diffopt.collect(100, every=10)
    update, init = (keep.update, keep.init)
    params = jnp.zeros(1000)
    if chains:
        update, init = jax.vmap(update), jax.vmap(init)
        params = jnp.zeros((chains, 1000))
    state = init(params)
    size = state.samples.nbytes

    def loop(params, state):
        def step(carry, _):
            params, state = carry
            return (params * 0.9, update(params, state)), None

        return jax.lax.scan(step, (params, state), length=50)[0]

    for fn in (update, loop):
        compiled = jax.jit(fn, donate_argnums=1).lower(params, state).compile()
        memory = compiled.memory_analysis()
        assert memory.temp_size_in_bytes < size / 10
        assert memory.alias_size_in_bytes >= size


@pytest.mark.parametrize("chains", [None, 4])
def test_the_buffer_is_not_touched_between_samples(chains):
    """The write stays behind a branch, for many chains too (where a `select` would write all)."""
    keep = diffopt.collect(100, every=10)
    update, init = (
        (keep.update, keep.init) if chains is None else (jax.vmap(keep.update), jax.vmap(keep.init))
    )
    params = jnp.zeros(1000 if chains is None else (chains, 1000))
    jaxpr = jax.make_jaxpr(update)(params, init(params))
    shape = init(params).samples.shape
    outside = [e for e in jaxpr.eqns if any(v.aval.shape == shape for v in e.outvars)]
    assert [e.primitive.name for e in outside] == ["cond"]


# Divergence


@pytest.fixture(scope="module")
def diverged():
    """Five chains of 3 parameters, 8 updates, of which chain 1 and 3 stop being finite."""
    path = np.random.default_rng(0).normal(size=(5, 8, 3))
    path[1, 4:, 2] = np.inf
    path[3, 6:, :] = np.nan
    keep = diffopt.collect(4, burn_in=1, every=2)
    return path, jax.vmap(partial(run, keep))(jnp.asarray(path, jnp.float32))


def test_a_diverged_chain_is_named_with_its_step(diverged):
    _, state = diverged
    assert state.diverged.tolist() == [-1, 4, -1, 6, -1]
    assert state.count.tolist() == [4, 2, 4, 3, 4]
    with pytest.warns(UserWarning) as record:
        diffopt.draws(state)
    assert [str(w.message) for w in record] == [
        "2 chains (1, 3) were not finite at step 4 to 6 and are left out",
    ]


@pytest.mark.filterwarnings("ignore:2 chains")
def test_the_other_chains_make_the_average(diverged):
    path, state = diverged
    samples = diffopt.draws(state)
    good = path[[0, 2, 4], 1::2].astype(np.float32)
    assert jnp.array_equal(samples, good)
    mean = diffopt.predictive(jnp.exp, jnp.concatenate(samples))
    np.testing.assert_allclose(mean, np.exp(good).mean((0, 1)), rtol=1e-5)


def test_nothing_is_kept_after_the_first_step_that_was_not_finite():
    path = jnp.array([1.0, jnp.inf, 3.0, jnp.nan, 5.0])
    state = run(diffopt.collect(5), path)
    assert (int(state.diverged), int(state.count)) == (1, 1)
    with pytest.warns(UserWarning, match="chain 0"), pytest.raises(ValueError, match="no samples"):
        diffopt.draws(state)


def test_a_sampler_with_too_long_a_step_is_caught():
    """Chains that share a program: step size 3 on |θ|²/2 overflows, 0.1 samples on."""

    def step(carry, _):
        params, state, kept, eta = carry
        updates, state = diffopt.sgld(eta, 1.0).update(params, state)
        params = optax.apply_updates(params, updates)
        return (params, state, keep.update(params, kept), eta), None

    keep = diffopt.collect(20, burn_in=100, every=10)
    params = jnp.ones((3, 2))
    state = diffopt.split_keys(diffopt.sgld(0.1, 1.0).init(params[0]), 3)
    carry = params, state, jax.vmap(keep.init)(params), jnp.array([0.1, 3.0, 0.1])
    (_, _, kept, _), _ = jax.jit(
        lambda c: jax.lax.scan(lambda c, _: jax.vmap(lambda c: step(c, None))(c), c, length=300)
    )(carry)
    assert kept.diverged[1] > 100  # θ doubles at every step: 2^128 overflows
    assert kept.diverged[0] == kept.diverged[2] == -1
    with pytest.warns(UserWarning, match="chain 1 was not finite"):
        assert diffopt.draws(kept).shape == (2, 20, 2)


def test_draws_leaves_empty_slots_out():
    state = run(diffopt.collect(10), jnp.arange(4.0))
    assert diffopt.draws(state).tolist() == [[0, 1, 2, 3]]
    with pytest.raises(ValueError, match="no samples"):
        diffopt.draws(diffopt.collect(10).init(jnp.zeros(2)))


# predictive


def network(params, x):
    return {"probs": jax.nn.softmax(x @ params["w"]), "logits": x @ params["w"]}


@pytest.mark.parametrize(
    "batch_size", [None, 3, 10, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 4, 99))]
)
def test_the_mean_for_every_batch_size(batch_size):
    samples = {"w": normals(0, 10, 4, 3), "none": None}
    x = normals(1, 6, 4)
    mean = diffopt.predictive(network, samples, x, batch_size=batch_size)
    for name, value in jax.vmap(network, in_axes=(0, None))(samples, x).items():
        assert mean[name].shape == (6, 3)
        np.testing.assert_allclose(mean[name], value.mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_samples_that_are_not_finite_are_left_out(batch_size):
    samples = jnp.arange(10.0).at[jnp.array([2, 5, 9])].set(jnp.array([jnp.nan, jnp.inf, -jnp.inf]))
    mean = diffopt.predictive(jnp.square, samples, batch_size=batch_size)
    good = np.array([0, 1, 3, 4, 6, 7, 8])
    assert mean == pytest.approx((good**2).mean())


def test_empty_slots_are_left_out():
    state = run(diffopt.collect(10), jnp.array([1.0, 2.0, 6.0]))
    assert diffopt.predictive(jnp.square, state.samples, batch_size=4) == pytest.approx(41 / 3)
    empty = diffopt.collect(10).init(jnp.zeros([]))
    assert jnp.isnan(diffopt.predictive(jnp.square, empty.samples))


@pytest.mark.slow
def test_a_half_precision_mean_is_summed_in_single():
    """300 predictions of 1 + 2⁻⁷ in bfloat16: their sum in bfloat16 would stop at 256."""
    samples = jnp.full(300, 1 + 2**-7, jnp.bfloat16)
    mean = diffopt.predictive(lambda s: s, samples, batch_size=7)
    assert mean.dtype == jnp.float32 and mean == pytest.approx(1 + 2**-7, rel=1e-6)
    assert diffopt.predictive(lambda s: s > 0, samples) == 1


def test_memory_is_that_of_one_batch():
    samples = jax.ShapeDtypeStruct((64, 10), jnp.float32)
    x = jax.ShapeDtypeStruct((100_000, 10), jnp.float32)

    def memory(batch_size):
        mean = jax.jit(lambda s, x: diffopt.predictive(linear, s, x, batch_size=batch_size))
        return mean.lower(samples, x).compile().memory_analysis().temp_size_in_bytes

    def linear(sample, x):
        return x @ sample

    one_prediction = 4 * 100_000
    assert memory(None) < 4 * one_prediction
    assert memory(64) > memory(None)


def test_functions_that_compute_the_same_compile_once():
    for average in (diffopt.predictive, diffopt.predictions):
        average(lambda sample, x: sample * x, jnp.ones(4), jnp.asarray(1.0))
        programs = set(map(id, program._programs.values()))
        average(lambda sample, x: sample * x, jnp.ones(4), jnp.asarray(2.0))
        assert set(map(id, program._programs.values())) == programs


@pytest.mark.parametrize(
    "samples", [{}, jnp.zeros([]), jnp.zeros([0, 2]), {"a": jnp.zeros(2), "b": jnp.zeros(3)}]
)
def test_samples_without_a_common_axis(samples):
    with pytest.raises(ValueError, match="samples"):
        diffopt.predictive(lambda s: 0.0, samples)


def test_batch_size_is_positive():
    with pytest.raises(ValueError, match="batch_size"):
        diffopt.predictive(jnp.square, jnp.ones(3), batch_size=0)


@pytest.mark.slow
def test_a_running_average_without_samples_is_the_same_mean():
    """The recipe of the pages: `optax.incremental_update` with step size 1/n."""
    path = normals(0, 7, 4, 3)
    x = normals(1, 6, 4)

    def predict(w):
        return jax.nn.softmax(x @ w)

    mean = jnp.zeros((6, 3))
    for n, w in enumerate(path, start=1):
        mean = optax.incremental_update(predict(w), mean, 1 / n)
    np.testing.assert_allclose(mean, diffopt.predictive(predict, path), rtol=1e-5)


def test_a_diverged_chain_has_a_running_average_of_nan():
    path = jnp.ones((2, 5)).at[0, 3].set(jnp.inf)  # [chain, step]
    mean = jnp.zeros(2)
    for n in range(5):
        mean = optax.incremental_update(jax.nn.sigmoid(path[:, n] - path[:, n]), mean, 1 / (n + 1))
    assert jnp.isnan(mean[0]) and jnp.nanmean(mean) == 0.5


# ArviZ

ETA, DRAWS = 0.1, 4000


@pytest.fixture(scope="module")
def gaussian():
    """ArviZ's view of 4 chains of SGLD on L = kθ²/2 at T = 1, for k = 1 and k = 4."""
    tx = diffopt.sgld(ETA, temperature=1.0)
    keep = diffopt.collect(DRAWS, burn_in=200)
    params = {"a": jnp.zeros(4), "b": {"c": jnp.zeros((4, 20))}}
    first = jax.tree.map(lambda p: p[0], params)

    def step(carry, _):
        params, opt_state, kept = carry
        grads = {"a": params["a"], "b": {"c": 4 * params["b"]["c"]}}
        updates, opt_state = tx.update(grads, opt_state)
        params = optax.apply_updates(params, updates)
        return (params, opt_state, keep.update(params, kept)), None

    @jax.jit
    def chains():
        carry = params, diffopt.split_keys(tx.init(first), 4), jax.vmap(keep.init)(params)
        return jax.lax.scan(
            lambda c, _: jax.vmap(lambda c: step(c, None))(c), carry, length=200 + DRAWS
        )[0][2]

    leaves = jax.tree_util.tree_leaves_with_path(diffopt.draws(chains()))
    named = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    return arviz.from_dict({"posterior": named})


def values(dataset):
    """All numbers of an ArviZ result, in the order of its variables."""
    dataset = getattr(dataset, "dataset", dataset)
    return np.concatenate([np.ravel(v) for v in dataset.data_vars.values()])


def test_split_r_hat_is_one(gaussian):
    """Of 21 independent quantities, at well over 400 effective draws each."""
    assert values(arviz.rhat(gaussian)).shape == (21,)
    assert values(arviz.rhat(gaussian)).max() < 1.02


def test_effective_sample_size_is_that_of_an_autoregression(gaussian):
    """θ ← (1 - ηk) θ + noise has ESS = n (1 - ρ)/(1 + ρ), ρ = 1 - ηk.

    The 20 quantities with k = 4 give the estimate its own standard error.
    """
    ess = np.sort(values(arviz.ess(gaussian, method="mean")))
    rho = 1 - 4 * ETA
    expected = 4 * DRAWS * (1 - rho) / (1 + rho)
    measured = ess[1:]
    error = measured.std(ddof=1) / np.sqrt(len(measured))
    assert abs(measured.mean() - expected) < 4.5 * error
    assert error < 0.05 * expected


def test_a_chain_that_is_elsewhere_shows_in_r_hat(gaussian):
    group = gaussian.posterior
    name = next(iter(group.data_vars))
    moved = np.array(group[name])
    moved[0] += 3
    assert values(arviz.rhat(arviz.from_dict({"posterior": {"x": moved}}))).max() > 1.1
