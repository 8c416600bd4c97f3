"""Networks of many seeds at a time: what several claims train.

A task is a network on a dataset: dense layers on digits; the article's CNN on digits, or on
CIFAR-10 where that is named. Each seed has its own split of the training set, wrong labels, initial
weights, order of the data and noise; all methods share them. The validation split is as noisy as
the training data, the test set is clean. One program a method does all: its hyperparameters are
traced, the number of epochs too.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import diffopt

from ...lib import data, models, training
from ..protocol.cells import Keep, Result, Settings, run_timed
from . import digits

PREDICTORS = ("last", "average", "mean weights", "stopped early")
DEFAULTS = {"weight_decay": 0.0, "temperature": 0.0, "cool": 0.0, "cycles": 1, "members": 1}


class Task(NamedTuple):
    """What is trained: a network, on how many examples of a dataset.

    `load()` gives the examples and labels of the training set and of the test set, `init(key)` the
    initial parameters, `logits(params, x)` those of a batch, and `probs(params, x)` the
    probabilities of any number of examples. Seeds are vmapped, or trained one after another.
    """

    name: str
    load: Callable[[], tuple[Any, Any, Any, Any]]
    init: Callable[[jax.Array], Any]
    logits: Callable[[Any, jax.Array], jax.Array]
    probs: Callable[[Any, jax.Array], jax.Array]
    train: int
    validation: int
    batch: int
    vmapped: bool

    @property
    def prefix(self) -> str:
        """How the names of its settings begin: of digits, as the names are."""
        return "" if self.name == "digits" else f"{self.name}, "


DIGITS = Task(
    "digits", digits.load, digits.init_network, digits.network,
    lambda params, x: jax.nn.softmax(digits.network(params, x)),
    train=1152, validation=285, batch=32, vmapped=True,
)  # fmt: skip


def with_cnn(
    name: str, dataset: data.Data, *, train: int, validation: int, tests: int, batch: int
) -> Task:
    """The article's CNN on a dataset, on the first of the tests.

    Vmapped, its convolutions would be batched products that outgrow the cache: a step of batch 100
    takes 12.8 ms of CPU a seed, of one seed after another 8.6.
    """
    channels = dataset.train_images.shape[-1]
    graphdef, _ = models.init_cnn(channels, 0)
    return Task(
        name,
        lambda: (*dataset[:2], dataset.test_images[:tests], dataset.test_labels[:tests]),
        lambda key: nnx.state(models.CNN(channels, rngs=nnx.Rngs(key))),
        lambda params, x: nnx.merge(graphdef, params)(x),
        lambda params, x: training.predict(graphdef, params, x, 20),
        train, validation, batch, vmapped=False,
    )  # fmt: skip


def cifar10(dataset: data.Data, size: str) -> Task:
    """The CNN on as many images of CIFAR-10 as a size has."""
    counts = {
        "quick": dict(train=400, validation=100, tests=500, batch=20),
        "default": dict(train=2_000, validation=500, tests=2_000, batch=20),
        "full": dict(train=45_000, validation=5_000, tests=10_000, batch=100),
    }
    return with_cnn("CIFAR-10", dataset, **counts[size])


@lru_cache
def digits_with_cnn() -> Task:
    """The CNN on digits of 32x32 pixels, split as those of `DIGITS`."""
    counts = {name: getattr(DIGITS, name) for name in ("train", "validation", "batch")}
    return with_cnn("digits, the CNN", data.digits(), tests=360, **counts)


def with_wrong_labels(task: Task, seeds: range, share: float) -> tuple[np.ndarray, np.ndarray]:
    """For each seed examples of the training set, train before validation, and their labels.

    A label is replaced with probability `share` by one of the ten at random.
    """
    labels = np.asarray(task.load()[1])
    kept = slice(task.train + task.validation)
    orders, noisy = [], []
    for seed in seeds:
        rng = np.random.default_rng([seed, 12])
        orders.append(rng.permutation(len(labels))[kept])
        random = rng.integers(0, 10, len(labels))
        noisy.append(np.where(rng.random(len(labels)) < share, random, labels)[orders[-1]])
    return np.array(orders), np.array(noisy, np.int32)


def learning_rate(hp: Settings) -> Callable[[jax.Array], jax.Array]:
    """The step size: constant, or in cosine cycles."""
    length = hp["steps"] / hp["cycles"]
    wave = lambda t: 0.5 * (1 + jnp.cos(jnp.pi * jnp.mod(t, length) / length))
    return lambda t: hp["learning_rate"] * jnp.where(hp["cycles"] > 1, wave(t), 1)


def temperature(hp: Settings) -> Callable[[jax.Array], jax.Array]:
    """The temperature: constant, or falling linearly to 0."""
    return lambda t: hp["temperature"] * (1 - hp["cool"] * t / hp["steps"])


OPTIMIZERS: dict[str, Callable[[Settings, jax.Array], optax.GradientTransformation]] = {
    "momentum": lambda hp, key: optax.chain(
        optax.add_decayed_weights(hp["weight_decay"]), optax.sgd(learning_rate(hp), momentum=0.9)
    ),
    "adamw": lambda hp, key: optax.adamw(learning_rate(hp), weight_decay=hp["weight_decay"]),
    "sghmc": lambda hp, key: optax.chain(
        optax.add_decayed_weights(hp["weight_decay"]),
        diffopt.sghmc(learning_rate(hp), temperature(hp), key=key, noise="rademacher"),
    ),
}


@partial(jax.jit, static_argnames=("task", "method"))
def train(
    x: jax.Array, tests: jax.Array, orders: jax.Array, labels: jax.Array, keys: jax.Array,
    hp: Settings, *, task: Task, method: str,
) -> dict[str, jax.Array]:  # fmt: skip
    """What networks predict after training, by each of `PREDICTORS`: `[seeds, examples, 10]`.

    The examples are those of the training set in the seed's order (train, then validation), then
    the test set. The average is that of the predictions after every other epoch of the second half,
    or after each cycle, or of the members of an ensemble that shares the epochs; mean weights are
    those of the same epochs. `stopped early` is the epoch of the least NLL of the noisy validation
    labels.
    """
    steps = task.train // task.batch  # an epoch
    hp = hp | {"steps": hp["epochs"] * steps}
    period = hp["epochs"] // jnp.maximum(hp["cycles"], hp["members"])
    second_half = lambda epoch: (2 * epoch >= hp["epochs"]) & (epoch % 2 == 1)
    held_out = slice(task.train, task.train + task.validation)

    def mean_loss(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        logits = task.logits(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def is_kept(epoch: jax.Array) -> jax.Array:
        end_of_period = (epoch + 1) % period == 0
        return jnp.where(period == hp["epochs"], second_half(epoch), end_of_period)

    def of_seed(order: jax.Array, labels: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        mine = x[order]
        everything = jnp.concatenate([mine, tests])
        tx = OPTIMIZERS[method](hp, jax.random.fold_in(key, 0))
        probs_of = lambda params: task.probs(params, everything)

        def step(carry: Any, batch: jax.Array) -> tuple[Any, None]:
            params, state = carry
            grads = jax.grad(mean_loss)(params, mine[batch], labels[batch])
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        def add(sums: Any, params: Any) -> Any:
            return jax.tree.map(jnp.add, sums, (probs_of(params), params, 1.0))

        def epoch(number: jax.Array, carry: Any) -> Any:
            trained, sums, (stopped, least) = carry
            epoch_key = jax.random.fold_in(key, 2 + number)
            again = (hp["members"] > 1) & (number > 0) & (number % period == 0)
            anew = lambda _: (task.init(jax.random.fold_in(epoch_key, 1)), state)
            trained = jax.lax.cond(again, anew, lambda old: old, trained)
            batches = jax.random.permutation(epoch_key, task.train).reshape(steps, task.batch)
            trained, _ = jax.lax.scan(step, trained, batches)
            sums = jax.lax.cond(is_kept(number), add, lambda sums, _: sums, sums, trained[0])
            nll = mean_loss(trained[0], mine[held_out], labels[held_out])
            stopped = jax.tree.map(partial(jnp.where, nll < least), trained[0], stopped)
            return trained, sums, (stopped, jnp.fmin(nll, least))

        params = task.init(jax.random.fold_in(key, 1))
        state = tx.init(params)
        zeros = jnp.zeros((len(everything), 10)), jax.tree.map(jnp.zeros_like, params), 0.0
        start = (params, state), zeros, (params, jnp.inf)
        trained, sums, (stopped, _) = jax.lax.fori_loop(0, hp["epochs"], epoch, start)
        average, mean = jax.tree.map(lambda total: total / sums[2], sums[:2])
        probs = probs_of(trained[0]), average, probs_of(mean), probs_of(stopped)
        return dict(zip(PREDICTORS, probs, strict=True))

    seeds = orders, labels, keys
    return jax.vmap(of_seed)(*seeds) if task.vmapped else jax.lax.map(lambda s: of_seed(*s), seeds)


class Run(NamedTuple):
    """How a task is learned: the method, its hyperparameters, the share of wrong labels, seeds."""

    method: str
    hp: Settings
    wrong: float
    first_seed: int
    seeds: int


def predictions(
    task: Task, run: Run, *, with_tests: bool = True
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, float]:
    """What the networks of a run predict, the examples and labels they were given, the seconds.

    Where a network has diverged it predicts all classes alike. Only `with_tests` they are given the
    test set.
    """
    x, _, tests, _ = task.load()
    seeds = range(run.first_seed, run.first_seed + run.seeds)
    orders, labels = with_wrong_labels(task, seeds, run.wrong)
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds.start, seeds.stop))
    hp = DEFAULTS | run.hp
    probs, seconds = run_timed(
        train, x, tests if with_tests else tests[:0], orders, labels, keys, hp,
        static={"task": task, "method": run.method},
    )  # fmt: skip
    probs = jax.tree.map(lambda p: np.nan_to_num(p, nan=0.1), probs)
    return probs, orders, labels, seconds


def error_and_nll(probs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each seed, the error in percent and the NLL in nats."""
    error = 100 * (probs.argmax(-1) != labels).mean(-1)
    likelihood = np.take_along_axis(probs, labels[..., None], -1)[..., 0]
    return error, -np.log(np.maximum(likelihood, 1e-30)).mean(-1)


def validate(task: Task, run: Run) -> dict[str, float]:
    """The mean NLL of the noisy validation labels, by each predictor; the test set stays unseen."""
    predicted, _, labels, _ = predictions(task, run, with_tests=False)
    held_out = slice(task.train, task.train + task.validation)
    return {
        name: float(error_and_nll(probs[:, held_out], labels[:, held_out])[1].mean())
        for name, probs in predicted.items()
    }


def test(task: Task, run: Run) -> Result:
    """Of each seed by each predictor test error, NLL and the share of wrong labels memorised."""
    predicted, orders, labels, seconds = predictions(task, run)
    _, true, _, test_labels = task.load()
    true, test_labels = np.asarray(true), np.asarray(test_labels)
    train = slice(task.train)
    wrong = labels[:, train] != true[orders][:, train]
    values: dict[str, list[float]] = {}
    for name, probs in predicted.items():
        of_tests = probs[:, task.train + task.validation :]
        error, nll = error_and_nll(of_tests, np.broadcast_to(test_labels, of_tests.shape[:2]))
        memorised = (probs[:, train].argmax(-1) == labels[:, train]) & wrong
        share = 100 * memorised.sum(1) / np.maximum(wrong.sum(1), 1)
        values |= {
            f"error, {name}": error.tolist(),
            f"NLL, {name}": nll.tolist(),
            f"memorised, {name}": share.tolist(),
        }
    return {"values": values, "seconds": seconds}


def test_once(keep: Keep, task: Task, run: Run) -> Result:
    """The cell of a run."""
    what = [task.name, task.train, task.batch, run]
    return keep(f"{task.name}, {run.method}", what, partial(test, task, run))


class Size(NamedTuple):
    """How long networks train, from how many seeds."""

    epochs: int
    seeds: int


SIZES = {
    "digits": {"quick": Size(20, 12), "default": Size(60, 16), "full": Size(150, 32)},
    "CIFAR-10": {"quick": Size(4, 12), "default": Size(12, 12), "full": Size(30, 12)},
    "digits, the CNN": {"default": Size(12, 16), "full": Size(12, 32)},
}
