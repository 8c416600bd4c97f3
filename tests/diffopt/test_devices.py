"""Any number of devices gives the same numbers: checked in a process of 8 virtual CPU devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import diffopt
from tests.helpers import ROOT, SAMPLERS, on_devices, report

CASES = [
    *((name, "gaussian" if row.takes_noise else "its own") for name, row in SAMPLERS.items()),
    *(("sgld", "gaussian16"), ("sgld", "rademacher")),
]
STEPS = 3
PAGE = (ROOT / "docs" / "tutorials" / "devices.md").read_text()


def sampler(name, noise):
    """One that moves the network well within STEPS steps."""
    if name == "psgld":
        return diffopt.psgld(0.05, 1e-3, eps=0.1, noise=noise)
    step_size = 0.1 if name in ("baoab", "ubu") else 0.05
    return SAMPLERS[name].make_noisy(step_size, 1e-3, noise=noise)


# A network of one large leaf, whose noise is drawn by itself, and two small ones, drawn together


def network():
    rng = np.random.default_rng(0)
    shapes = {"w": (512, 136), "b": (136,), "a": (136,)}
    return {k: np.float32(rng.normal(size=s) / np.sqrt(s[0])) for k, s in shapes.items()}


def loss(params, batch):
    x, y = batch
    params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    return ((jnp.tanh(x @ params["w"] + params["b"]) @ params["a"] - y) ** 2).mean()


def step(tx, params, state, batch, scale):
    grads = jax.grad(lambda params: scale * loss(params, batch))(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def train(tx, program, start=None, share=np.asarray, dtype=np.float32):
    """The parameters after a few steps of `program` from `start(tx, params)`."""
    params = {k: p.astype(dtype) for k, p in network().items()}
    params, state = start(tx, params) if start else (params, tx.init(params))
    rng = np.random.default_rng(1)
    for _ in range(STEPS):
        batch = np.float32(rng.normal(size=(32, 512))), np.float32(rng.normal(size=32))
        params, state = program(params, state, jax.tree.map(share, batch))
    return params, state


def exact(params, state):
    """The parameters, and with `low_precision` what they leave out as well."""
    if isinstance(state, diffopt.LowPrecisionState):
        params = diffopt.exact_params(params, state)
    return jax.device_get(params)


def farthest(a, b):
    return max(np.abs(a[k] - b[k]).max() for k in a)


# Placements on 8 devices


def make_mesh(kind=AxisType.Auto):
    return jax.make_mesh((8,), ("data",), axis_types=(kind,))


def place(mesh, *spec):
    return lambda x: jax.device_put(x, NamedSharding(mesh, P(*spec)))


def cut(mesh):
    """Along the first axis, where 8 divides it."""
    return lambda x: place(mesh, *(["data"] if x.ndim and len(x) % 8 == 0 else []))(x)


def starting(put):
    def start(tx, params):
        params = jax.tree.map(put, params)
        return params, jax.tree.map(put, tx.init(params))

    return start


def collectives(compiled):
    """What the devices exchange, as (shape, operation)."""
    names = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    return re.findall(rf"= (\S+?)(?:{{\S*)? ((?:{names})\S*?)\(", compiled.as_text())


def generators(compiled):
    """The shapes of the 32-bit words that one device computes."""
    found = re.findall(r"= u32\[([\d,]*)\]\S* xor\(", compiled.as_text())
    return {tuple(int(n) for n in shape.split(",") if n) for shape in found}


# What runs on 8 devices


def same_parameters(name, noise):
    """Data parallel and fully sharded training is that of one device."""
    tx, mesh = sampler(name, noise), make_mesh()
    dtype = SAMPLERS[name].dtype
    program = jax.jit(functools.partial(step, tx))
    shared = place(mesh, "data")
    placements = {"data parallel": place(mesh), "fully sharded": cut(mesh)}
    for scale in (1.0, 0.0):
        steps = functools.partial(program, scale=scale)
        expected = exact(*train(tx, steps, dtype=dtype))
        moved = farthest(expected, network())
        assert moved > 0.01, moved
        for placement, put in placements.items():
            found = exact(*train(tx, steps, starting(put), shared, dtype))
            error = farthest(found, expected) / moved
            if scale > 0:  # rounding, which in 16 bits can round a parameter up instead of down
                assert error < (1e-3 if name == "low_precision" else 1e-5), (placement, error)
            elif SAMPLERS[name].sums:  # taken in another order
                assert error < 1e-6, (placement, error)
            else:
                assert error == 0, (placement, error)


def shard_by_shard(name, noise, kind=AxisType.Auto):
    """An update is that of one device, exchanges nothing, and draws on each what it holds."""
    mesh = make_mesh(kind)
    specs = {"rows": ["data"], "columns": [None, "data"], "conv": [None, None, "data"]}
    shapes = {"rows": (1024, 96), "columns": (128, 1024), "conv": (3, 3, 256, 64)}
    shares = [(128, 96), (128, 128), (3, 3, 32, 64)]
    for i in range(3):  # small leaves, drawn together
        specs[f"small{i}"], shapes[f"small{i}"] = (
            [[], ["data"], [None, "data"]][i],
            (16, 8 + 8 * i),
        )
    dtype = SAMPLERS[name].dtype
    params = {k: place(mesh, *specs[k])(np.ones(s, dtype)) for k, s in shapes.items()}
    tx = sampler(name, noise)
    state = tx.init(params)
    with jax.set_mesh(mesh):
        compiled = jax.jit(tx.update).lower(params, state, params).compile()
    allowed = {"f32[]", "()"} if SAMPLERS[name].sums else set()
    assert {shape for shape, _ in collectives(compiled)} <= allowed, collectives(compiled)
    drawn = generators(compiled)
    assert not drawn & {shapes[k] for k in ("rows", "columns", "conv")}, drawn
    if noise == "gaussian":
        assert drawn >= set(shares), drawn
    updates, _ = compiled(params, state, params)
    alone = {k: jnp.ones(s, dtype) for k, s in shapes.items()}
    expected, _ = jax.jit(tx.update)(alone, tx.init(alone), alone)
    for k, update in updates.items():
        assert update.sharding.is_equivalent_to(params[k].sharding, update.ndim), k
        found, one = np.float32(update), np.float32(expected[k])
        # ubu's two increments are added in one instruction or in two, as XLA sees fit
        atol = 1e-6 if SAMPLERS[name].sums else 2e-9 if name == "ubu" else 0
        np.testing.assert_allclose(found, one, rtol=0, atol=atol)


def pmap_replicas():
    """`jax.pmap` with the mean of the gradients: replicas bit for bit, and those of one device."""
    tx = diffopt.sghmc(0.05, 1e-3)

    @functools.partial(jax.pmap, axis_name="data")
    def program(params, state, batch):
        grads = jax.lax.pmean(jax.grad(loss)(params, batch), "data")
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    copy = lambda x: jnp.broadcast_to(x, (8, *x.shape))
    start = lambda tx, params: jax.tree.map(copy, (params, tx.init(params)))
    found, _ = train(tx, program, start, lambda x: x.reshape(8, 4, *x.shape[1:]))
    found = jax.device_get(found)
    for replicas in found.values():
        np.testing.assert_array_equal(replicas, np.broadcast_to(replicas[:1], replicas.shape))
    expected = exact(*train(tx, jax.jit(functools.partial(step, tx, scale=1.0))))
    error = farthest({k: v[0] for k, v in found.items()}, expected)
    assert error < 1e-5 * farthest(expected, network()), error


def shard_map_replicas():
    """`jax.shard_map` with the mean of the losses: replicas bit for bit, those of one device."""
    tx, mesh = diffopt.sghmc(0.05, 1e-3), make_mesh()

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=P())
    def program(params, state, batch):
        mean_loss = lambda params: jax.lax.pmean(loss(params, batch), "data")
        updates, state = tx.update(jax.grad(mean_loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    found, _ = train(tx, program, starting(place(mesh)), place(mesh, "data"))
    for leaf in found.values():
        replicas = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(replicas) == 8
        np.testing.assert_array_equal(replicas, [replicas[0]] * 8)
    expected = exact(*train(tx, jax.jit(functools.partial(step, tx, scale=1.0))))
    error = farthest(jax.device_get(found), expected)
    assert error < 1e-5 * farthest(expected, network()), error


def independent_chains():
    """One chain on each device by `jax.shard_map`: unlike each other, and those of `jax.vmap`."""
    tx = diffopt.sgld(0.1, 0.5)
    mesh = make_mesh()
    params = {"w": jnp.zeros((8, 1 << 17)), "b": jnp.zeros((8, 100)), "c": jnp.zeros((8, 30))}
    state = diffopt.split_keys(tx.init(jax.tree.map(lambda p: p[0], params)), 8)

    def chain(params, state):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state)
        return optax.apply_updates(params, updates)

    sharded = jax.shard_map(jax.vmap(chain), mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    program = jax.jit(sharded).lower(params, state).compile()
    assert not collectives(program), collectives(program)
    found = program(*jax.tree.map(place(mesh, "data"), (params, state)))
    expected = jax.jit(jax.vmap(chain))(params, state)
    for k in params:
        np.testing.assert_array_equal(found[k], expected[k])
    chains = np.asarray(expected["w"])
    correlation = np.corrcoef(chains)[np.triu_indices(8, 1)]
    assert np.abs(correlation).max() < 4.5 / np.sqrt(chains.shape[1])
    variance = 2 * 0.5 * 0.1
    np.testing.assert_allclose(chains.var(1), variance, rtol=4.5 * np.sqrt(2 / chains.shape[1]))


def collected_samples():
    """Samples lie where the parameters do, and are written without an exchange."""
    mesh = make_mesh()
    params = place(mesh, "data")(jnp.arange(32.0))
    keep = diffopt.collect(3)
    state = keep.init(params)
    expected = NamedSharding(mesh, P(None, "data"))
    assert state.samples.sharding.is_equivalent_to(expected, 2)
    update = jax.jit(keep.update, donate_argnums=1).lower(params, state).compile()
    assert "all-gather" not in update.as_text()
    state = update(params, state)
    assert state.samples.sharding.is_equivalent_to(expected, 2)
    assert jnp.array_equal(state.samples[0], params)


def page():
    """The recipes of the page: one device's parameters, three times, and a chain on each device."""
    _, *recipes = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    tx = diffopt.sghmc(0.05, 1e-3)
    rng = np.random.default_rng(1)
    sizes = (32, 512), (32,)
    batches = [tuple(np.float32(rng.normal(size=n)) for n in sizes) for _ in range(STEPS)]
    names = {"jax": jax, "jnp": jnp, "optax": optax, "diffopt": diffopt}
    names |= {"tx": tx, "loss": loss, "batches": batches, "network": network}
    expected = exact(*train(tx, jax.jit(functools.partial(step, tx, scale=1.0))))
    moved = farthest(expected, network())
    for recipe in recipes[:3]:
        exec(recipe, names)
        assert farthest(exact(names["params"], names["state"]), expected) < 1e-5 * moved, recipe
    exec(recipes[3], names)
    chains = names["params"]["w"]
    assert chains.sharding.is_equivalent_to(NamedSharding(names["mesh"], P("data")), chains.ndim)
    cold = diffopt.sghmc(0.05, 0.0)
    path = exact(*train(cold, jax.jit(functools.partial(step, cold, scale=1.0))))["w"]
    correlation = np.corrcoef((np.asarray(chains) - path).reshape(8, -1))[np.triu_indices(8, 1)]
    assert np.abs(correlation).max() < 4.5 / np.sqrt(path.size), correlation


CHECKS = {f"same_parameters-{n}-{x}": functools.partial(same_parameters, n, x) for n, x in CASES}
CHECKS |= {
    f"shard_by_shard-{name}-{noise}": functools.partial(shard_by_shard, name, noise)
    for name, noise in (("sgld", "gaussian"), ("sgld", "rademacher"), ("sgnht", "gaussian"))
}
CHECKS |= {
    f"shard_by_shard-{name}-{noise}-explicit": functools.partial(
        shard_by_shard, name, noise, AxisType.Explicit
    )
    for name, noise in CASES
}
CHECKS |= {
    check.__name__: check
    for check in (pmap_replicas, shard_map_replicas, independent_chains, collected_samples, page)
}


@pytest.fixture(scope="module")
def failures():
    """The traceback of each check that fails in a process of 8 devices."""
    return on_devices("tests.diffopt.test_devices")


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_on_eight_devices(check, failures):
    assert check not in failures, failures[check]


if __name__ == "__main__":
    report(CHECKS)
