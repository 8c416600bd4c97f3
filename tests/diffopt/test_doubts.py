"""What `sample` doubts aloud: losses that are no means, hot chains, equal chains, strange data."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt

pytestmark = pytest.mark.slow

N = 442
X = jax.random.normal(jax.random.key(0), (N, 3))
Y = X @ jnp.ones(3) + jax.random.normal(jax.random.key(1), (N,))


def mean_loss(w, batch):
    x, y = batch
    return jnp.mean((x @ w - y) ** 2) / 2


def run(loss=mean_loss, T=1 / N, data=(X, Y), step=0.01, **kw):
    tx = diffopt.sghmc(step, T)
    return diffopt.sample(tx, loss, jnp.zeros(3), data, **{"num_steps": 400, "burn_in": 200} | kw)


@pytest.mark.parametrize("batch_size", [None, 64, 400])
def test_a_posterior_is_not_doubted(batch_size):
    run(batch_size=batch_size, num_chains=2)


def test_the_temperature_of_the_learning_coefficient_is_not_doubted():
    run(T=np.log(N) / N, num_chains=2)


@pytest.mark.filterwarnings("ignore:the chains read the temperature")
def test_a_summed_loss_with_batches_is_told_with_its_cure():
    with pytest.warns(UserWarning, match="it sums over the examples of a batch. Take their mean"):
        run(lambda w, b: len(b[1]) * mean_loss(w, b), T=1.0, step=1e-5, batch_size=64)


def test_a_loss_divided_by_what_differs_between_batches_is_told():
    weights = jnp.where(Y > 0, 1.0, 9.0)

    def weighted(w, batch):
        x, y, c = batch
        return jnp.sum(c * (x @ w - y) ** 2) / jnp.sum(c)

    with pytest.warns(UserWarning, match="it is not a mean over examples"):
        run(weighted, data=(X, Y, weights), batch_size=64)


def test_a_temperature_far_above_that_of_a_posterior_is_told_with_n():
    with pytest.warns(
        UserWarning, match="which with 442 examples is [45].. times that of the poster"
    ):
        run(T=1.0, num_chains=4)


def test_equal_chains_are_told():
    with pytest.warns(UserWarning, match="two chains are equal to the bit"):
        diffopt.sample(
            optax.sgd(0.1), lambda p: jnp.sum(p**2), jnp.ones(3), num_steps=3, num_chains=2
        )


def test_a_raw_key_in_the_state_is_told():
    def update(updates, state, params=None):
        key, subkey = jax.random.split(state)
        noise = lambda g: -0.1 * g + jax.random.normal(subkey, g.shape)
        return jax.tree.map(noise, updates), key

    tx = optax.GradientTransformation(lambda params: jax.random.PRNGKey(0), update)
    with pytest.warns(UserWarning, match="its key is no typed PRNG key"):
        diffopt.sample(tx, lambda p: jnp.sum(p**2), jnp.ones(3), num_steps=3, num_chains=3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.array(["a", "b"]), r"data must be an array of numbers, got numpy.ndarray of <U1"),
        ({"x": np.array([None, 1])}, r"data\['x'\] must be an array of numbers"),
        (np.ma.masked_array([1.0, 2.0], [0, 1]), "drop the masked entries"),
    ],
)
def test_data_that_are_no_numbers_are_named(data, message):
    with pytest.raises(TypeError, match=message):
        diffopt.sample(diffopt.sgld(0.1, 1.0), mean_loss, jnp.zeros(3), data, num_steps=2)


def test_a_list_of_rows_is_told_in_a_line():
    rows = [[1.0, 2.0]] * 20_000
    with pytest.raises(ValueError, match="np.asarray makes it one array") as caught:
        diffopt.sample(diffopt.sgld(0.1, 1.0), mean_loss, jnp.zeros(3), rows, num_steps=2)
    assert len(str(caught.value)) < 500


def test_a_model_with_functions_is_told_how_to_be_split():
    model = {"w": jnp.ones(3), "act": jnp.tanh, "steps": 3}
    with pytest.raises(TypeError, match=r"params\['act'\] is .*eqx.partition"):
        diffopt.sample(diffopt.sgld(0.1, 1.0), lambda p: 0.0, model, num_steps=2)
