"""Data from loaders, iterables and functions of the batch's number."""

import signal
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt
from diffopt.run import program
from diffopt.run.streams import is_stream

pytestmark = pytest.mark.slow

N, SIZE = 70, 10
rng = np.random.default_rng(0)
X = rng.normal(size=(N, 2))
Y = X @ np.array([1.0, -1.0]) + rng.normal(size=N)
TX = diffopt.sgld(0.02, temperature=1 / N)


def loss(w, batch):
    x, y = batch
    return jnp.mean((x @ w - y) ** 2) / 2


def batch_of(i):
    """The batch of number i, in float64 as NumPy has it."""
    index = np.random.default_rng(i).permutation(N)[:SIZE]
    return X[index], Y[index]


class Tensor:
    """Stands for a tensor of PyTorch: no array, and NumPy takes it."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


class Loader:
    """Stands for a DataLoader of PyTorch: lists of tensors, epoch after epoch in a fresh order."""

    def __init__(self, number=N, size=SIZE):
        self.number, self.size, self.epochs = number, size, 0

    def __iter__(self):
        order = np.random.default_rng(self.epochs).permutation(self.number)
        self.epochs += 1
        for i in range(0, self.number, self.size):
            index = order[i : i + self.size]
            yield [Tensor(X[index]), Tensor(Y[index])]


run = partial(diffopt.sample, TX, loss, jnp.zeros(2))


def test_a_function_gives_the_batches_of_each_chain():
    """Without noise a chain is gradient descent on batches `step * num_chains + chain`."""
    asked = []

    def data(i):
        asked.append(i)
        return batch_of(i)

    samples = diffopt.sample(optax.sgd(0.1), loss, jnp.zeros(2), data, num_steps=30, num_chains=3)
    assert asked == list(range(90))
    for chain in range(3):
        w = np.zeros(2)
        for step in range(30):
            np.testing.assert_allclose(samples.draws[chain, step], w, rtol=1e-4, atol=1e-5)
            x, y = batch_of(3 * step + chain)
            w = w - 0.1 * x.T @ (x @ w - y) / SIZE


def test_a_loader_an_iterator_and_a_function_of_the_same_batches_are_one_chain():
    loader = Loader()
    listed = [batch for _ in range(8) for batch in Loader.__iter__(loader)]
    ways = Loader(), iter(listed), lambda i: tuple(listed[i])
    for number, data in enumerate(ways):
        samples = run(data, num_steps=40, every=3)
        if not number:
            first = samples
        np.testing.assert_array_equal(samples.draws, first.draws)
        np.testing.assert_array_equal(samples.losses, first.losses)
    assert first.draws.dtype == jnp.float32


def test_an_epoch_drops_its_short_last_batch_and_begins_anew():
    loader = Loader(N - 3)
    run(loader, num_steps=15)
    assert loader.epochs == 3  # of six whole batches


@pytest.mark.parametrize("chains", [1, 3])
def test_going_on_with_a_function_or_an_iterator_is_bit_for_bit_one_run(chains):
    whole = run(batch_of, num_steps=150, every=5, num_chains=chains)
    for make in (lambda: batch_of, lambda: map(batch_of, range(10**6))):
        data = make()
        one = run(data, num_steps=85, every=5, num_chains=chains)
        two = diffopt.sample(TX, loss, one.params, data, num_steps=65, every=5, state=one.state)
        draws = np.concatenate([one.draws, two.draws], axis=1)
        np.testing.assert_array_equal(draws, whole.draws)
        np.testing.assert_array_equal(two.params, whole.params)


def test_an_iterator_that_ends_ends_the_run():
    with pytest.warns(UserWarning, match="data ended after 11 of 100 steps"):
        samples = run(map(batch_of, range(23)), num_steps=100, num_chains=2)
    assert samples.draws.shape == (2, 11, 2) and int(samples.state.step) == 11
    with pytest.warns(UserWarning, match="data ended after 11 of 100 steps: no draw was kept"):
        samples = run(map(batch_of, range(23)), num_steps=100, num_chains=2, burn_in=50)
    assert samples.draws.shape == (2, 0, 2) and int(samples.state.step) == 11


def test_ctrl_c_loses_no_batch():
    read = []

    def batches():
        for i in range(10**9):
            read.append(i)
            yield batch_of(i)
            if i == 700:
                signal.raise_signal(signal.SIGINT)

    with pytest.warns(UserWarning, match="interrupted after"):
        samples = run(batches(), num_steps=10**6, every=10)
    assert len(read) == int(samples.state.step) > 700


def test_what_a_loader_raises_has_the_draws_until_then():
    def batches():
        yield from map(batch_of, range(20))
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone") as caught:
        run(batches(), num_steps=100)
    steps = int(caught.value.samples.state.step)
    assert 0 < steps <= 20 and caught.value.samples.draws.shape == (1, steps, 2)


def test_equal_batches_are_one_program():
    run(batch_of, num_steps=3)
    before = len(program._programs)
    run(batch_of, num_steps=3)
    run(lambda i: batch_of(i + 1), num_steps=3)
    assert len(program._programs) == before


def test_the_law_of_a_posterior_from_a_function():
    """One thousand chains of the mean of a batch: the drift has the batch's mean exactly."""
    tx = diffopt.sgld(0.1, temperature=0.5)
    values = np.float32([[-1.0], [3.0]])  # each batch is one value, their mean is 1
    data = lambda i: values[np.random.default_rng(i).integers(2)]
    away = lambda w, batch: jnp.mean((w - batch) ** 2) / 2
    samples = diffopt.sample(
        tx, away, jnp.ones(()), data, num_steps=60, burn_in=59, num_chains=1000
    )
    w = np.asarray(samples.draws[:, 0], float)
    # θ ← (1 - η)θ + η b + √(2Tη) ξ with b = 1 ± 2
    variance = (0.1**2 * 4 + 2 * 0.5 * 0.1) / (1 - 0.9**2)
    assert abs(w.mean() - 1) < 4.5 * np.sqrt(variance / 1000)
    assert abs(w.var() / variance - 1) < 4.5 * np.sqrt(2 / 1000)


@pytest.mark.parametrize(
    ("batch", "error"),
    [
        ((X[:10], Y[:10], Y[:10]), "data.7. must have the structure"),
        ((X[:10], Y[:10].astype(int)), r"data.7..1. must be float32 of shape .10,. .*got int32"),
        ((X[:10, :1], Y[:10]), r"data.7..0. must be float32 of shape .10, 2. .*shape .10, 1."),
        ((X[:20], Y[:20]), r"data.7..0. must be .* shape .20, 2."),
        ((X[:5], Y[:5]), r"data.7..0. must be .* of an epoch may be shorter"),
        (("a", Y[:10]), r"data.7..0. must be an array of numbers"),
        ((), "data.7. must be a tree of arrays"),
    ],
)  # fmt: skip
def test_a_batch_unlike_the_first_names_itself(batch, error):
    data = lambda i: batch if i == 7 else batch_of(i)
    with pytest.raises((TypeError, ValueError), match=error):
        run(data, num_steps=20)


def test_what_no_stream_can_have_is_refused():
    with pytest.raises(ValueError, match="batch_size is that of the batches .*batch_size=5"):
        run(Loader(), num_steps=3, batch_size=5)
    with pytest.raises(ValueError, match="estimator needs data as a tree of arrays.*got Loader"):
        estimator = diffopt.svrg(jax.grad(loss), (X, Y), 10)
        run(Loader(), num_steps=3, estimator=estimator)
    with pytest.raises(ValueError, match="batch 0 of data.0. has no examples: .* .0, 2."):
        run([(X[:0], Y[:0])].__iter__(), num_steps=3)
    with pytest.raises(ValueError, match="data gave no batch: list_iterator is empty"):
        run(iter([]), num_steps=3)
    with pytest.raises(ValueError, match="fewer batches than the 4 chains"):
        run(map(batch_of, range(3)), num_steps=3, num_chains=4)
    with pytest.raises(TypeError, match="data.0. must be a tree of what np.asarray makes"):
        run(lambda i: (jax.random.key(i),), num_steps=3)
    with pytest.warns(UserWarning, match="it sums over the examples of a batch"):
        total = lambda w, batch: jnp.sum((batch[0] @ w - batch[1]) ** 2) / 2
        diffopt.sample(TX, total, jnp.zeros(2), Loader(), num_steps=2)


def test_trees_of_arrays_are_no_streams():
    trees = None, X, jnp.asarray(X), [X, Y], {"x": X}, "text", 3.0, Tensor(X)
    assert not any(map(is_stream, trees))
    assert all(map(is_stream, (Loader(), iter([X]), batch_of, map(batch_of, [1]))))


@pytest.mark.slow
def test_find_step_size_takes_the_batches_of_a_loader():
    find = partial(diffopt.find_step_size, diffopt.sghmc, loss, jnp.zeros(2), temperature=1.0)
    taken = []

    def data(i):
        taken.append(i)
        return batch_of(i)

    step_size, found = find(data, max_gradients=1000)
    assert taken == list(range(32)) and found.noise is not None
    pool = [np.concatenate(x) for x in zip(*map(batch_of, range(32)), strict=True)]
    assert step_size == find(pool, max_gradients=1000, batch_size=SIZE)[0]
    with pytest.raises(ValueError, match="batch_size is that of the batches"):
        find(Loader(), batch_size=SIZE)
