"""Small networks on digits, many seeds at a time: what several claims train.

Each seed has its own split of the training set, wrong labels, initial weights, order of the data
and noise; all methods share them. The validation split is as noisy as the training data, the test
set is clean. One program a method does all: its hyperparameters are traced, the number of epochs
too.
"""

import itertools
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffopt

from .cells import Keep, Result, Settings, measured

LAYERS = (64, 128, 128, 10)
TRAIN, VALIDATION = 1152, 285
BATCH = 32
STEPS = TRAIN // BATCH  # an epoch
PREDICTORS = ("last", "average", "mean weights", "stopped early")
DEFAULTS = {"weight_decay": 0.0, "temperature": 0.0, "cool": 0.0, "cycles": 1, "members": 1}


@lru_cache
def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Digits as 64 numbers of mean 0 and variance 1 in all: train and test as in `lib.data`."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans = load_digits()
    x = ((scans.data - scans.data.mean()) / scans.data.std()).astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(
        x, scans.target.astype(np.int32), test_size=360, random_state=0, stratify=scans.target
    )
    return train_x, train_y, test_x, test_y


def with_wrong_labels(seeds: range, share: float) -> tuple[np.ndarray, np.ndarray]:
    """For each seed an order of the training set, train before validation, and its labels.

    A label is replaced with probability `share` by one of the ten at random.
    """
    _, labels, _, _ = load()
    orders, noisy = [], []
    for seed in seeds:
        rng = np.random.default_rng([seed, 12])
        orders.append(rng.permutation(len(labels)))
        random = rng.integers(0, 10, len(labels))
        noisy.append(np.where(rng.random(len(labels)) < share, random, labels)[orders[-1]])
    return np.array(orders), np.array(noisy, np.int32)


def init_network(key: jax.Array, layers: tuple[int, ...] = LAYERS) -> list[dict[str, jax.Array]]:
    """He's initial weights of a network of dense layers."""
    keys = jax.random.split(key, len(layers) - 1)
    shapes = itertools.pairwise(layers)
    return [
        {"kernel": jax.random.normal(k, shape) * (2 / shape[0]) ** 0.5, "bias": jnp.zeros(shape[1])}
        for k, shape in zip(keys, shapes, strict=True)
    ]


def network(params: list[dict[str, jax.Array]], x: jax.Array) -> jax.Array:
    """Logits of a network of dense layers with ReLU."""
    *hidden, last = params
    for layer in hidden:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ last["kernel"] + last["bias"]


def mean_loss(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(network(params, x), labels).mean()


def learning_rate(hp: Settings) -> Callable[[jax.Array], jax.Array]:
    """The step size: constant, or in cosine cycles."""
    length = hp["epochs"] * STEPS / hp["cycles"]
    wave = lambda t: 0.5 * (1 + jnp.cos(jnp.pi * jnp.mod(t, length) / length))
    return lambda t: hp["learning_rate"] * jnp.where(hp["cycles"] > 1, wave(t), 1)


def temperature(hp: Settings) -> Callable[[jax.Array], jax.Array]:
    """The temperature: constant, or falling linearly to 0."""
    return lambda t: hp["temperature"] * (1 - hp["cool"] * t / (hp["epochs"] * STEPS))


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


@partial(jax.jit, static_argnames="method")
def train(
    x: jax.Array, tests: jax.Array, orders: jax.Array, labels: jax.Array, keys: jax.Array,
    hp: Settings, *, method: str,
) -> dict[str, jax.Array]:  # fmt: skip
    """What networks predict after training, by each of `PREDICTORS`: `[seeds, examples, 10]`.

    The examples are those of the training set in the seed's order (train, then validation), then
    the test set. The average is that of the predictions after every other epoch of the second half,
    or after each cycle, or of the members of an ensemble that shares the epochs; mean weights are
    those of the same epochs. `stopped early` is the epoch of the least NLL of the noisy validation
    labels.
    """
    period = hp["epochs"] // jnp.maximum(hp["cycles"], hp["members"])
    second_half = lambda epoch: (2 * epoch >= hp["epochs"]) & (epoch % 2 == 1)
    held_out = slice(TRAIN, TRAIN + VALIDATION)

    def kept(epoch: jax.Array) -> jax.Array:
        end_of_period = (epoch + 1) % period == 0
        return jnp.where(period == hp["epochs"], second_half(epoch), end_of_period)

    def of_seed(order: jax.Array, labels: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        mine = x[order]
        everything = jnp.concatenate([mine, tests])
        tx = OPTIMIZERS[method](hp, jax.random.fold_in(key, 0))
        probs_of = lambda params: jax.nn.softmax(network(params, everything))

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
            anew = lambda _: (init_network(jax.random.fold_in(epoch_key, 1)), state)
            trained = jax.lax.cond(again, anew, lambda old: old, trained)
            batches = jax.random.permutation(epoch_key, TRAIN).reshape(STEPS, BATCH)
            trained, _ = jax.lax.scan(step, trained, batches)
            sums = jax.lax.cond(kept(number), add, lambda sums, _: sums, sums, trained[0])
            nll = mean_loss(trained[0], mine[held_out], labels[held_out])
            stopped = jax.tree.map(partial(jnp.where, nll < least), trained[0], stopped)
            return trained, sums, (stopped, jnp.fmin(nll, least))

        params = init_network(jax.random.fold_in(key, 1))
        state = tx.init(params)
        zeros = jnp.zeros((len(everything), LAYERS[-1])), jax.tree.map(jnp.zeros_like, params), 0.0
        start = (params, state), zeros, (params, jnp.inf)
        trained, sums, (stopped, _) = jax.lax.fori_loop(0, hp["epochs"], epoch, start)
        average, mean = jax.tree.map(lambda total: total / sums[2], sums[:2])
        found = probs_of(trained[0]), average, probs_of(mean), probs_of(stopped)
        return dict(zip(PREDICTORS, found, strict=True))

    return jax.vmap(of_seed)(orders, labels, keys)


class Run(NamedTuple):
    """What is trained: a method, its hyperparameters, the share of wrong labels, the seeds."""

    method: str
    hp: Settings
    wrong: float
    first_seed: int
    seeds: int


def predictions(run: Run) -> tuple[dict[str, np.ndarray], np.ndarray, float]:
    """What the networks of a run predict, the labels they were given, and the seconds.

    Where a network has diverged it predicts all classes alike.
    """
    x, _, tests, _ = load()
    seeds = range(run.first_seed, run.first_seed + run.seeds)
    orders, labels = with_wrong_labels(seeds, run.wrong)
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds.start, seeds.stop))
    hp = DEFAULTS | run.hp
    found, seconds = measured(
        train, x, tests, orders, labels, keys, hp, static={"method": run.method}
    )
    return jax.tree.map(lambda p: np.nan_to_num(p, nan=0.1), found), labels, seconds


def error_and_nll(probs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each seed, the error in percent and the NLL in nats."""
    error = 100 * (probs.argmax(-1) != labels).mean(-1)
    likelihood = np.take_along_axis(probs, labels[..., None], -1)[..., 0]
    return error, -np.log(np.maximum(likelihood, 1e-30)).mean(-1)


def validate(run: Run) -> dict[str, float]:
    """The mean NLL of the noisy validation labels, by each predictor; the test set stays unseen."""
    found, labels, _ = predictions(run)
    held_out = slice(TRAIN, TRAIN + VALIDATION)
    return {
        name: float(error_and_nll(probs[:, held_out], labels[:, held_out])[1].mean())
        for name, probs in found.items()
    }


def test(run: Run) -> Result:
    """Of each seed by each predictor test error, NLL and the share of wrong labels memorised."""
    found, labels, seconds = predictions(run)
    _, true, _, test_labels = load()
    orders, _ = with_wrong_labels(range(run.first_seed, run.first_seed + run.seeds), run.wrong)
    wrong = labels[:, :TRAIN] != true[orders][:, :TRAIN]
    values: dict[str, list[float]] = {}
    for name, probs in found.items():
        of_tests = probs[:, TRAIN + VALIDATION :]
        error, nll = error_and_nll(of_tests, np.broadcast_to(test_labels, of_tests.shape[:2]))
        memorised = (probs[:, :TRAIN].argmax(-1) == labels[:, :TRAIN]) & wrong
        share = 100 * memorised.sum(1) / np.maximum(wrong.sum(1), 1)
        values |= {
            f"error, {name}": error.tolist(),
            f"NLL, {name}": nll.tolist(),
            f"memorised, {name}": share.tolist(),
        }
    return {"values": values, "seconds": seconds}


def tested(keep: Keep, run: Run) -> Result:
    """The cell of a run."""
    return keep(f"digits, {run.method}", run, partial(test, run))


class Size(NamedTuple):
    """How long networks train, from how many seeds."""

    epochs: int
    seeds: int


SIZES = {"quick": Size(20, 12), "default": Size(60, 16), "full": Size(150, 32)}
