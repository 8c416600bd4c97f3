"""The hook `perturbed`: where it finds the noise, and that the update finds the same."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import diffopt
from tests.helpers import assert_close, assert_equal, assert_like, on_devices, report

pytestmark = pytest.mark.slow

METHODS = {
    "ivon": lambda **options: diffopt.ivon(0.1, 100, hess_decay=0.9, **options),
    "weight_noise": lambda **options: optax.chain(
        diffopt.weight_noise(0.1, **options), optax.sgd(0.1)
    ),
    "relative": lambda **options: optax.chain(
        diffopt.weight_noise(0.1, relative=True, **options), optax.sgd(0.1)
    ),
}
PARAMS = {"w": jnp.linspace(-1, 1, 12).reshape(4, 3), "b": jnp.ones(3), "none": None}


def take_step(tx, params, state):
    """One step on Σθ⁴/4, its gradient where the method wants it."""
    gradient = jax.tree.map(lambda p: p**3, diffopt.perturbed(params, state))
    updates, state = tx.update(gradient, state, params)
    return optax.apply_updates(params, updates), state


def take_steps(tx, params, steps=3, step=take_step):
    state = tx.init(params)
    for _ in range(steps):
        params, state = step(tx, params, state)
    return params, state


def noise_of(params, state, **options):
    return jax.tree.map(jnp.subtract, diffopt.perturbed(params, state, **options), params)


methods = pytest.mark.parametrize("method", METHODS)


@methods
def test_it_is_a_function_of_the_state_alone_and_new_at_every_step(method):
    tx = METHODS[method]()
    state = tx.init(PARAMS)
    first = noise_of(PARAMS, state)
    assert_equal(first, noise_of(PARAMS, state))
    assert_like(diffopt.perturbed(PARAMS, state), PARAMS)
    _, state = take_step(tx, PARAMS, state)
    second = noise_of(PARAMS, state)
    assert all((a != b).all() for a, b in zip(*map(jax.tree.leaves, (first, second)), strict=True))
    other = noise_of(PARAMS, METHODS[method](key=1).init(PARAMS))
    assert (other["w"] != first["w"]).all()


@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize("noise", ["gaussian", "gaussian16", "rademacher"])
def test_ivon_computes_from_the_key_the_noise_that_the_gradient_had(noise, draws):
    """The invariant: h moves by the product of the gradient with ε of `perturbed` itself."""
    tx = optax.MultiSteps(METHODS["ivon"](noise=noise, draws=draws, weight_decay=0.5), draws)
    state = tx.init(PARAMS)
    total, gradients = jax.tree.map(jnp.zeros_like, PARAMS), jax.tree.map(jnp.zeros_like, PARAMS)
    for _ in range(draws):
        epsilon = noise_of(PARAMS, state)
        total = jax.tree.map(jnp.add, total, epsilon)
        gradient = jax.tree.map(lambda e: 0.1 + e, epsilon)
        gradients = jax.tree.map(lambda a, g: a + g / draws, gradients, gradient)
        _, state = tx.update(gradient, state, PARAMS)

    def expected(e, g):
        f, h, slow = 150 * e * g, 1.0, 0.1
        return 100 * (0.5 + 0.9 * h + slow * f + slow**2 * (h - f) ** 2 / (2 * 1.5))

    assert_close(
        state.inner_opt_state.precision, jax.tree.map(expected, total, gradients), rtol=1e-4
    )


@methods
def test_the_wrappers_of_optax_do_not_hide_it(method):
    tx = METHODS[method]()
    plain = take_steps(tx, PARAMS)[0]
    identity = optax.identity()
    wrapped = [
        optax.chain(identity, optax.chain(identity, tx), identity),
        optax.MultiSteps(tx, 1),
        optax.apply_if_finite(tx, 3),
        optax.partition({"all": tx}, jax.tree.map(lambda _: "all", PARAMS)),
        optax.masked(tx, jax.tree.map(lambda _: True, PARAMS)),
    ]
    for other in wrapped:
        assert_close(take_steps(other, PARAMS)[0], plain, rtol=1e-6)
        state = other.init(PARAMS)
        assert_close(diffopt.perturbed(PARAMS, state), diffopt.perturbed(PARAMS, tx.init(PARAMS)))


@methods
def test_what_is_left_out_stays_as_it_is(method):
    tx = METHODS[method]()
    mask = {"w": True, "b": False, "none": False}
    for masked in (
        optax.masked(tx, mask),
        optax.partition(
            {"noisy": tx, "plain": optax.sgd(0.1)}, {"w": "noisy", "b": "plain", "none": "plain"}
        ),
    ):
        state = masked.init(PARAMS)
        point = diffopt.perturbed(PARAMS, state)
        assert (point["w"] != PARAMS["w"]).all() and point["b"] is PARAMS["b"]
        assert (diffopt.perturbed(PARAMS, state, key=1)["b"] == PARAMS["b"]).all()
        assert jnp.isfinite(take_steps(masked, PARAMS)[0]["w"]).all()
    tree = {"layer": {"w": jnp.ones(3), "b": jnp.ones(2)}, "head": jnp.ones(4)}
    prefix = optax.masked(tx, {"layer": False, "head": True})
    point = diffopt.perturbed(tree, prefix.init(tree))
    assert_equal(point["layer"], tree["layer"])
    assert (point["head"] != 1).all()


def test_several_methods_perturb_each_its_own_part():
    tx = optax.partition(
        {
            "a": METHODS["ivon"](key=1),
            "b": METHODS["weight_noise"](key=2, noise="rademacher"),
        },
        {"w": "a", "b": "b", "none": "b"},
    )
    noise = noise_of(PARAMS, tx.init(PARAMS))
    np.testing.assert_allclose(abs(noise["b"]), 0.1, rtol=1e-5)
    assert len(np.unique(noise["w"])) == 12
    assert jnp.isfinite(take_steps(tx, PARAMS)[0]["w"]).all()


@pytest.mark.parametrize(("method", "draws"), [("ivon", 1), ("ivon", 3), ("weight_noise", None)])
def test_every_part_of_an_accumulation_has_its_noise(method, draws):
    tx = optax.MultiSteps(METHODS[method](**({"draws": draws} if draws else {})), 3)
    params, state, seen = PARAMS, tx.init(PARAMS), []
    for _ in range(6):
        seen.append(np.asarray(noise_of(params, state)["w"]))
        params, state = take_step(tx, params, state)
    different = len(np.unique(np.stack(seen)[:, 0, 0].round(5)))
    assert different == (2 if draws == 1 else 6)


@methods
def test_injected_hyperparameters_are_found(method):
    if method == "ivon":
        make = optax.inject_hyperparams(diffopt.ivon, static_args=("noise", "draws"))
        tx, plain = make(0.1, 100, hess_decay=0.9), METHODS[method]()
    else:
        make = optax.inject_hyperparams(diffopt.weight_noise, static_args=("relative", "noise"))
        noise = make(std=0.1, relative=method == "relative")
        tx, plain = optax.chain(noise, optax.sgd(0.1)), METHODS[method]()
    step = jax.jit(lambda tx, p, s: take_step(tx, p, s), static_argnums=0)
    injected, plain = (take_steps(t, PARAMS, step=step)[0] for t in (tx, plain))
    assert_close(injected, plain, rtol=1e-5)


@methods
def test_it_is_the_same_under_jit_and_scan(method):
    tx = METHODS[method]()
    state = tx.init(PARAMS)
    step = lambda carry, _: (take_step(tx, *carry), None)
    (scanned, last), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=3))((PARAMS, state))
    params, expected = take_steps(tx, PARAMS)
    assert_close(scanned, params, rtol=1e-5)
    assert_like(last, expected)


@methods
def test_chains_have_their_own_noise_under_vmap(method):
    tx = METHODS[method]()
    states = diffopt.split_keys(tx.init(PARAMS), 3)
    many = jax.tree.map(lambda p: jnp.stack([p] * 3), PARAMS)
    points = jax.vmap(diffopt.perturbed)(many, states)
    assert len(np.unique(points["w"][:, 0, 0])) == 3
    one = jax.tree.map(lambda x: x[1], states)
    assert_close(jax.tree.map(lambda x: x[1], points), diffopt.perturbed(PARAMS, one), rtol=1e-6)
    after, _ = jax.vmap(lambda p, s: take_step(tx, p, s))(many, states)
    assert_close(
        jax.tree.map(lambda x: x[1], after), take_step(tx, PARAMS, one)[0], rtol=1e-5, atol=1e-6
    )


@methods
def test_a_key_gives_a_draw(method):
    tx = METHODS[method]()
    state = tx.init(PARAMS)
    draw = noise_of(PARAMS, state, key=3)
    assert (draw["w"] != noise_of(PARAMS, state)["w"]).all()
    for same in (jax.random.key(3), jax.random.PRNGKey(3)):
        assert_equal(noise_of(PARAMS, state, key=same), draw)
    keys = jax.random.split(jax.random.key(0), 20_000)
    draws = jax.vmap(lambda key: noise_of(PARAMS, state, key=key)["w"])(keys)
    scale = {"ivon": (100 * 1.0001) ** -0.5, "weight_noise": 0.1}.get(
        method, 0.1 * np.linalg.norm(PARAMS["w"], axis=0)
    )
    ratio = np.square(draws / scale).mean(0)
    assert (abs(ratio - 1) < 4.5 * np.sqrt(2 / 20_000)).all()


def test_draws_are_samples_for_predictive():
    tx = METHODS["ivon"]()
    state = tx.init(PARAMS)
    keys = jax.random.split(jax.random.key(0), 50)
    samples = jax.vmap(lambda key: diffopt.perturbed(PARAMS, state, key))(keys)
    mean = diffopt.predictive(lambda p: p["w"], samples)
    np.testing.assert_allclose(mean, samples["w"].mean(0), rtol=1e-5, atol=1e-6)


@methods
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("exact", [True, False])
def test_16_bits_lose_no_noise(method, dtype, exact):
    """ε of a thousandth of a spacing still has the mean and the correlation that it should."""
    n, std = 200_000, 1e-5
    params = jnp.ones(n, dtype)
    tx = diffopt.ivon(0.1, 1 / std**2, weight_decay=0.0) if method == "ivon" else METHODS[method]()
    if method != "ivon":
        tx = diffopt.weight_noise(
            std / (n**0.5 if method == "relative" else 1), relative=method == "relative"
        )
    tx = diffopt.low_precision(tx) if exact else tx
    state = tx.init(params)
    point = diffopt.perturbed(params, state)
    assert point.dtype == params.dtype
    moved = np.asarray(point, np.float64) - 1
    epsilon = np.asarray(noise_of(jnp.ones(n), state), np.float64)
    spacing = float(jnp.finfo(dtype).eps)
    assert abs(np.std(epsilon) / std - 1) < 0.02
    assert abs(moved.mean()) < 4.5 * moved.std() / np.sqrt(n)
    assert set(np.unique(moved)) <= {-spacing / 2, 0, spacing}
    slope = (moved * epsilon).mean() / std**2
    assert abs(slope - 1) < 4.5 * (moved * epsilon).std() / std**2 / np.sqrt(n)
    updates, after = tx.update(params, state, params)
    assert_like(updates, params)
    assert_like(after, state)


@methods
def test_nnx_and_equinox_trees(method):
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model, nnx.Param)
    tx = METHODS[method]()
    state = tx.init(params)
    loss = lambda p: jnp.mean(nnx.merge(graph, p)(jnp.ones((4, 3))) ** 2)
    grads = jax.grad(loss)(diffopt.perturbed(params, state))
    updates, state = tx.update(grads, state, params)
    after = optax.apply_updates(params, updates)
    assert jax.tree.structure(after) == jax.tree.structure(params)
    array, _ = eqx.partition(eqx.nn.Linear(3, 2, key=jax.random.key(0)), eqx.is_inexact_array)
    point = diffopt.perturbed(array, tx.init(array))
    assert (point.weight != array.weight).all()


@methods
def test_a_complex_leaf_is_two_real_ones(method):
    params = jnp.full(50_000, 1 + 2j)
    tx = METHODS[method]()
    state = tx.init(params)
    noise = np.asarray(noise_of(params, state))
    scale = {"ivon": 100.01**-0.5, "weight_noise": 0.1, "relative": 0.1 * (2.5 * 50_000) ** 0.5}
    for part in (noise.real, noise.imag):
        assert abs(np.square(part / scale[method]).mean() - 1) < 4.5 * np.sqrt(2 / 50_000)
    updates, _ = tx.update(params + noise, state, params)
    assert updates.dtype == params.dtype


def test_ivon_learns_one_curvature_for_both_parts_of_a_complex_element():
    """Of 2|θ|²/2; f from the precision, where (1 - β₂)f is small."""
    tx, params = (
        diffopt.ivon(0.1, 100, hess_decay=0.999, weight_decay=0.5),
        jnp.full(50_000, 1 + 2j),
    )
    state = tx.init(params)
    _, after = tx.update(2 * diffopt.perturbed(params, state), state, params)
    f = 1 + 1500 * (np.sqrt(2 * np.float64(after.precision) / 150 - 1) - 1)
    assert abs(f.mean() - 2) < 4.5 * f.std() / np.sqrt(50_000)


@methods
def test_it_counts_as_a_constant_for_gradients(method):
    tx, params = METHODS[method](), jnp.arange(1.0, 4.0)
    state = tx.init(params)
    gradient = jax.grad(lambda p: jnp.sum(diffopt.perturbed(p, state) ** 3))(params)
    np.testing.assert_allclose(gradient, 3 * diffopt.perturbed(params, state) ** 2, rtol=1e-6)


@methods
def test_key_reuse_and_strict_promotion_are_no_hindrance(method):
    tx = METHODS[method]()
    state = tx.init(PARAMS)
    with jax.debug_key_reuse(True), jax.numpy_dtype_promotion("strict"):
        updates, _ = jax.jit(lambda s: tx.update(diffopt.perturbed(PARAMS, s), s, PARAMS))(state)
    assert_like(updates, PARAMS)


@methods
def test_a_checkpoint_goes_on_with_the_same_noise(method, tmp_path):
    tx = optax.MultiSteps(METHODS[method](), 2)
    params, state = take_steps(tx, PARAMS)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(0, args=ocp.args.StandardSave(state))
        manager.wait_until_finished()
        restored = manager.restore(0, args=ocp.args.StandardRestore(tx.init(PARAMS)))
    assert_equal(restored, state)
    assert_equal(take_step(tx, params, restored), take_step(tx, params, state))


@methods
def test_map_params_finds_what_is_like_the_parameters(method):
    tx = METHODS[method]()
    state = tx.init(PARAMS)
    doubled = optax.tree.map_params(tx, lambda x: 2 * x, state)
    assert_like(doubled, state)


def test_a_state_without_a_method_is_refused():
    with pytest.raises(ValueError, match="opt_state must hold a state of ivon or weight_noise"):
        diffopt.perturbed(PARAMS, optax.adam(0.1).init(PARAMS))
    with pytest.raises(TypeError, match="key must be an int or a single PRNG key, got 'a'"):
        diffopt.perturbed(PARAMS, METHODS["ivon"]().init(PARAMS), key="a")


def test_params_of_another_structure_are_told_apart():
    masked = optax.masked(diffopt.ivon(0.1, 10), {"w": True, "b": False})
    for tx in (masked, optax.chain(diffopt.weight_noise(0.1), optax.sgd(0.1))):
        state = tx.init({"w": jnp.ones(3), "b": jnp.ones(2)})
        with pytest.raises(TypeError, match=r"params must have the structure .*'b'. is missing$"):
            diffopt.perturbed({"w": jnp.ones(3)}, state)
        with pytest.raises(TypeError, match=r"params must have the structure .*'c'. is too many$"):
            diffopt.perturbed({"w": jnp.ones(3), "b": jnp.ones(2), "c": jnp.ones(2)}, state)


def test_params_of_another_shape_than_at_init_of_ivon_are_named():
    tx = optax.masked(diffopt.ivon(0.1, 10), {"w": True, "b": False})
    state = tx.init({"w": jnp.ones(1), "b": jnp.ones(2)})
    with pytest.raises(TypeError, match=r"^params\['w'\] must have the shape \(1,\), got \(3,\)$"):
        diffopt.perturbed({"w": jnp.ones(3), "b": jnp.ones(2)}, state)


def same_on_all_devices(method):
    """8 devices share a batch by `shard_map`: the parameters are those of one device."""
    tx = METHODS[method]()
    params = {"w": jnp.linspace(-1, 1, 40_000).reshape(200, 200), "b": jnp.ones(200)}
    x = jax.random.normal(jax.random.key(0), (16, 200))
    loss = lambda p, x: jnp.mean((x @ p["w"] + p["b"]) ** 2)

    def step(params, state, x, mean):
        gradient = mean(jax.grad(loss)(diffopt.perturbed(params, state), x))
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    shared = jax.shard_map(
        lambda p, s, x: step(p, s, x, lambda g: jax.lax.pmean(g, "data")),
        mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=P(), check_vma=False,
    )  # fmt: skip
    one, many = (params, tx.init(params)), (params, tx.init(params))
    for _ in range(3):
        one = jax.jit(lambda p, s: step(p, s, x, lambda g: g))(*one)
        many = jax.jit(lambda p, s: shared(p, s, x))(*many)
    assert_close(many[0], one[0], rtol=2e-4, atol=2e-5)


def test_devices_share_a_batch():
    failures = on_devices("tests.diffopt.perturb.test_perturbed")
    assert not failures, "\n".join(failures.values())


if __name__ == "__main__":
    report({name: lambda name=name: same_on_all_devices(name) for name in METHODS})
