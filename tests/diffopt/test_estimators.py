"""`control_variate` and `svrg`: unbiased, where the center is, what they cost, bad input."""

import os
import subprocess
import sys
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt
from tests.helpers import assert_close, assert_equal

N, BATCH = 8, 3
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, 2)).astype("float32"), RNG.normal(size=N).astype("float32")
PARAMS = {"w": np.float32([0.5, -1.0]), "b": np.float32(0.3)}
CENTER = {"w": np.float32([2.0, 1.0]), "b": np.float32(-1.0)}


def loss(params, batch):
    x, y = batch
    return jnp.mean(jnp.tanh(x @ params["w"] + params["b"] - y) ** 2)


GRAD = jax.jit(jax.grad(loss))
ESTIMATORS = {
    "control_variate": diffopt.control_variate(GRAD, CENTER, (X, Y)),
    "svrg": diffopt.svrg(GRAD, (X, Y), 5),
}
BATCHES = np.array(list(combinations(range(N), BATCH)))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_mean_over_all_minibatches_is_the_full_gradient(name):
    init, update = ESTIMATORS[name]

    @jax.jit
    def gradients(batches):
        state = init(CENTER)
        corrected = jax.vmap(lambda batch: update(PARAMS, batch, state)[0])(batches)
        return corrected, jax.vmap(lambda batch: GRAD(PARAMS, batch))(batches)

    corrected, plain = jax.tree.map(np.asarray, gradients((X[BATCHES], Y[BATCHES])))
    mean = jax.tree.map(lambda g: g.mean(0), corrected)
    assert_close(mean, GRAD(PARAMS, (X, Y)), rtol=1e-5, atol=1e-6)
    assert abs(corrected["w"] - plain["w"]).max() > 0.01
    assert abs(corrected["b"] - plain["b"]).max() > 0.01


@pytest.mark.parametrize("name", ESTIMATORS)
def test_at_the_center_a_minibatch_has_the_full_gradient(name):
    init, update = map(jax.jit, ESTIMATORS[name])
    state = init(CENTER)
    assert_equal(state.center, CENTER)
    grads, _ = update(CENTER, (X[:BATCH], Y[:BATCH]), state)
    assert_close(grads, GRAD(CENTER, (X, Y)), rtol=1e-5, atol=1e-6)


def test_the_center_of_svrg_is_taken_anew_every_so_many_steps():
    init, update = map(jax.jit, diffopt.svrg(GRAD, (X, Y), every=2))
    state = init(CENTER)
    where = lambda i: jax.tree.map(lambda p: p + np.float32(i), PARAMS)
    expected = CENTER
    for i in range(5):
        if i in (2, 4):
            expected = where(i)
        grads, state = update(where(i), (X[:BATCH], Y[:BATCH]), state)
        assert_equal(state.center, expected)
        assert_close(state.gradient, GRAD(expected, (X, Y)), rtol=1e-5, atol=1e-6)
        if i in (2, 4):
            assert_close(grads, state.gradient, rtol=1e-5, atol=1e-6)


def counted(calls):
    """The gradient, and a list that grows where it is that of all examples."""

    def grad(params, batch):
        if len(batch[1]) == N:
            jax.debug.callback(lambda _: calls.append(1), params["b"])
        return GRAD(params, batch)

    return grad


def test_all_examples_are_seen_once_in_so_many_steps_of_chains():
    """A plain `vmap` makes a `select` of a `cond`, and pays for both of its branches."""
    calls, chains = [], 3
    estimator = diffopt.svrg(counted(calls), (X, Y), every=4)
    starts = jax.tree.map(lambda p: np.stack([p, p + 1, p + 2]), PARAMS)

    @jax.jit
    def run(params):
        def step(state, index):
            batch = jnp.asarray(X)[index], jnp.asarray(Y)[index]
            grads, state = jax.vmap(estimator.update, (0, None, 0))(params, batch, state)
            return state, grads

        return jax.lax.scan(step, jax.vmap(estimator.init)(params), BATCHES[:9])

    _, grads = jax.block_until_ready(run(starts))
    jax.effects_barrier()
    assert len(calls) == chains * 3  # at the start and at steps 4 and 8
    one = jax.tree.map(lambda p: p[1], starts)
    last = jax.tree.map(lambda g: np.asarray(g)[-1, 1], grads)
    assert_close(last, GRAD(one, (X, Y)), rtol=1e-5, atol=1e-6)  # the chain stands at its center


def test_chains_out_of_step_take_their_centers_each_in_its_own():
    estimator = diffopt.svrg(GRAD, (X, Y), every=4)

    @jax.jit
    def step(ages):
        states = jax.vmap(lambda age: estimator.init(CENTER)._replace(age=age))(ages)
        update = jax.vmap(estimator.update, (None, None, 0))
        return update(PARAMS, (X[:BATCH], Y[:BATCH]), states)[1]

    states = step(np.array([3, 4, 0]))
    assert states.age.tolist() == [4, 1, 1]
    assert_equal(states.center, jax.tree.map(lambda c, p: np.stack([c, p, c]), CENTER, PARAMS))
    at_center, here = GRAD(CENTER, (X, Y)), GRAD(PARAMS, (X, Y))
    expected = jax.tree.map(lambda c, p: np.stack([c, p, c]), at_center, here)
    assert_close(states.gradient, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [3, 4])
def test_the_full_gradient_in_pieces(batch_size):
    estimator = diffopt.control_variate(GRAD, CENTER, (X, Y), batch_size=batch_size)
    gradient = jax.jit(estimator.init)(PARAMS).gradient
    assert_close(gradient, GRAD(CENTER, (X, Y)), rtol=1e-5, atol=1e-6)


def test_16_bits_keep_their_dtype_and_are_summed_in_32():
    """The mean of 4,096 ones, which sums in bfloat16 leave at 256."""
    data, zero = np.ones(4096, "float32"), jnp.zeros([], jnp.bfloat16)
    grad = lambda p, batch: jnp.mean(batch).astype(p.dtype)
    estimator = diffopt.svrg(grad, data, 2, batch_size=1)
    with jax.numpy_dtype_promotion("strict"):
        state = jax.jit(estimator.init)(zero)
        grads, after = jax.eval_shape(estimator.update, zero, data[:2], state)
    assert state.gradient == 1
    assert grads.dtype == after.gradient.dtype == after.center.dtype == jnp.bfloat16


def test_weak_types_do_not_stay():
    estimator = diffopt.svrg(lambda p, batch: p * jnp.mean(batch), np.ones(4, "float32"), 2)
    state = jax.eval_shape(estimator.init, 1.0)
    after = jax.eval_shape(lambda s: estimator.update(1.0, np.ones(2, "float32"), s)[1], state)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((state, after)))


@pytest.mark.parametrize("name", ["control_variate", "svrg"])
def test_data_are_arguments_and_no_constants_of_a_program(name):
    data = X[:, 0]
    grad = lambda p, batch: p * jnp.mean(batch)
    estimator = {
        "control_variate": lambda: diffopt.control_variate(grad, jnp.ones([]), data),
        "svrg": lambda: diffopt.svrg(grad, data, 2),
    }[name]()
    step = lambda estimator, p, batch: estimator.update(p, batch, estimator.init(p))
    consts = jax.make_jaxpr(step)(estimator, jnp.ones([]), data[:2]).consts
    assert not [c for c in consts if np.size(c) == N]


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "grad must be a function.*3.0", lambda: diffopt.svrg(3.0, X, 2)),
        (TypeError, "grad must be a function", lambda: diffopt.control_variate(None, CENTER, X)),
        (ValueError, "svrg needs data, got None", lambda: diffopt.svrg(GRAD, None, 2)),
        (
            ValueError,
            "control_variate needs data, got None",
            lambda: diffopt.control_variate(GRAD, CENTER, None),
        ),
        (ValueError, "every must be ≥ 1, got 0", lambda: diffopt.svrg(GRAD, (X, Y), 0)),
        (ValueError, "every must be < 2147483648", lambda: diffopt.svrg(GRAD, (X, Y), 2**31)),
        (TypeError, "every must be an int, got 1.5", lambda: diffopt.svrg(GRAD, (X, Y), 1.5)),
        (ValueError, "batch_size must be ≥ 1", lambda: diffopt.svrg(GRAD, X, 2, batch_size=0)),
        (ValueError, "batch_size must be ≤ the 8", lambda: diffopt.svrg(GRAD, X, 2, batch_size=9)),
        (
            ValueError,
            r"one leading axis.*data\[1\] \(7,\)",
            lambda: diffopt.control_variate(GRAD, CENTER, (X, Y[:7])),
        ),
        (
            ValueError,
            r"center\['b'\] must be finite, got .*nan",
            lambda: diffopt.control_variate(GRAD, CENTER | {"b": np.nan}, (X, Y)),
        ),
        (
            ValueError,
            r"the result of grad at center\['b'\] must be finite, got .*nan",
            lambda: diffopt.control_variate(GRAD, CENTER, (X, np.nan * Y)),
        ),
        (
            TypeError,
            "the result of grad must have the structure",
            lambda: diffopt.control_variate(jax.value_and_grad(loss), CENTER, (X, Y)),
        ),
        (
            TypeError,
            "the result of grad must have the structure",
            lambda: diffopt.svrg(loss, (X, Y), 2).init(PARAMS),
        ),
        (
            TypeError,
            "center must have the structure",
            lambda: ESTIMATORS["control_variate"].init(PARAMS["w"]),
        ),
        (
            TypeError,
            r"center\['w'\] must have the shape \(3,\), got \(2,\)",
            lambda: ESTIMATORS["control_variate"].init(PARAMS | {"w": jnp.ones(3)}),
        ),
        (
            TypeError,
            "estimator must be a GradientEstimator.*function",
            lambda: diffopt.sample(SGHMC, loss, PARAMS, (X, Y), num_steps=2, estimator=GRAD),
        ),
        (
            ValueError,
            "estimator needs data, got data=None",
            lambda: diffopt.sample(
                SGHMC, loss, PARAMS, num_steps=2, estimator=ESTIMATORS["svrg"]
            ),
        ),
    ],
)  # fmt: skip
def test_bad_input_is_named(error, message, call):
    with pytest.raises(error, match=message):
        call()


SGHMC = diffopt.sghmc(0.05, temperature=1 / N)


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
def test_under_sample_going_on_is_bit_for_bit_one_run(name):
    run = lambda params, **k: diffopt.sample(
        SGHMC, loss, params, (X, Y), batch_size=BATCH, num_chains=4, estimator=ESTIMATORS[name], **k
    )
    whole = run(CENTER, num_steps=23)
    part = run(CENTER, num_steps=9)
    rest = run(part.params, num_steps=14, state=part.state)
    joined = jax.tree.map(lambda a, b: np.concatenate([a, b], 1), part.draws, rest.draws)
    assert_equal(joined, whole.draws)
    assert_equal(rest.state, whole.state)
    if name == "svrg":  # each chain its own center, that of step 20
        centers = jax.tree.map(lambda d: d[:, 20], whole.draws)
        assert_equal(whole.state.estimator_state.center, centers)
    without = diffopt.sample(
        SGHMC, loss, CENTER, (X, Y), batch_size=BATCH, num_steps=2, num_chains=4
    )
    with pytest.raises(
        TypeError,
        match=r"state.estimator_state.*, got PyTreeDef\(None\): .* is missing; go on",
    ):
        run(without.params, num_steps=2, state=without.state)
    with pytest.raises(
        TypeError, match=r"state.estimator_state must have the structure PyTreeDef\(None"
    ):
        diffopt.sample(
            SGHMC, loss, part.params, (X, Y),
            batch_size=BATCH, num_steps=2, state=part.state,
        )  # fmt: skip


@pytest.mark.slow
def test_under_sample_the_losses_are_those_of_the_loss_and_the_steps_those_of_the_estimator():
    """With all examples in a batch the estimator has the exact gradient."""
    run = lambda **k: diffopt.sample(SGHMC, loss, PARAMS, (X, Y), num_steps=12, **k)
    plain, corrected = run(), run(estimator=ESTIMATORS["control_variate"])
    assert_close(corrected.draws, plain.draws, rtol=1e-4, atol=1e-5)
    assert_close(corrected.losses, plain.losses, rtol=1e-4)
    noisy = run(batch_size=BATCH, estimator=ESTIMATORS["svrg"])
    other = diffopt.sample(
        SGHMC, lambda p, b: 7 + 0 * loss(p, b), PARAMS, (X, Y), num_steps=12, batch_size=BATCH,
        estimator=ESTIMATORS["svrg"],
    )  # fmt: skip
    assert_equal(noisy.draws, other.draws)
    assert (other.losses == 7).all()


@pytest.mark.slow
def test_under_sample_all_examples_are_seen_once_in_so_many_steps():
    calls = []
    estimator = diffopt.svrg(counted(calls), (X, Y), every=4)
    samples = diffopt.sample(
        SGHMC,
        loss,
        PARAMS,
        (X, Y),
        batch_size=BATCH,
        num_chains=3,
        num_steps=41,
        estimator=estimator,
    )
    jax.block_until_ready(samples.params)
    jax.effects_barrier()
    assert len(calls) == 3 * (1 + 10)  # at the start and at steps 4, 8, ..., 40


@pytest.mark.slow
def test_an_estimator_of_ones_own():
    clipped = diffopt.GradientEstimator(
        lambda params: jnp.zeros([], jnp.int32),
        lambda params, batch, count: (
            jax.tree.map(lambda g: jnp.clip(g, -0.01, 0.01), GRAD(params, batch)),
            count + 1,
        ),
    )
    samples = diffopt.sample(
        optax.sgd(1.0), loss, PARAMS, (X, Y), num_steps=3, batch_size=BATCH, estimator=clipped
    )
    assert samples.state.estimator_state.tolist() == [3]
    steps = np.diff(samples.draws["w"], axis=1)
    assert np.abs(steps).max() < 0.0101


DEVICES = """
import jax, jax.numpy as jnp, numpy as np
import diffopt

x = jax.random.normal(jax.random.key(1), (50, 3))
loss = lambda p, x: jnp.mean((x @ p - 1) ** 2) / 2
tx = diffopt.sghmc(0.05, 1 / 50)
svrg = diffopt.svrg(jax.grad(loss), x, 6, batch_size=20)
run = lambda params, **k: diffopt.sample(
    tx, loss, params, x, batch_size=7, num_chains=16, estimator=svrg, **k
)
many = run(jnp.zeros(3), num_steps=40)
assert len(many.state.estimator_state.center.sharding.device_set) == 8
with jax.default_device(jax.devices()[0]):
    one = run(jnp.zeros(3), num_steps=40)
np.testing.assert_allclose(many.draws, one.draws, rtol=1e-4, atol=1e-5)
part = run(jnp.zeros(3), num_steps=15)
rest = run(part.params, num_steps=25, state=part.state)
np.testing.assert_array_equal(np.concatenate([part.draws, rest.draws], 1), many.draws)
"""


@pytest.mark.slow
def test_eight_devices_share_the_chains():
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    env |= {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", DEVICES], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (
            lambda p, batch, s: (p[:1], s),
            r"the gradients of estimator must have the shape \(3,\)",
        ),
        (lambda p, batch, s: p, r"estimator.update\(params, batch, state\) must return"),
        (optax.sgd(0.1).update, "the new state of estimator must have the structure"),
    ],
)
def test_what_is_no_estimator_is_refused(update, message):
    loss = lambda p, x: jnp.sum(p**2) + x.mean()
    grad = diffopt.GradientEstimator(lambda p: (), update)
    with pytest.raises(TypeError, match=message):
        diffopt.sample(
            optax.sgd(0.1),
            loss,
            jnp.ones(3),
            jnp.ones(4),
            estimator=grad,
            num_steps=2,
            batch_size=2,
        )


def test_a_loop_may_donate_the_state():
    grad, params, data = jax.grad(lambda p, x: jnp.sum(p * x.mean())), jnp.ones(3), jnp.ones(4)
    for estimator in (
        diffopt.control_variate(grad, params, data),
        diffopt.svrg(grad, data, every=2),
    ):
        step = jax.jit(lambda p, s, e=estimator: e.update(p, data, s), donate_argnums=(0, 1))
        for _ in range(2):
            step(jnp.copy(params), estimator.init(params))
