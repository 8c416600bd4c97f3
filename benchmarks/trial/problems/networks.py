"""Networks of many seeds at a time: what several claims train.

A task is a network on a dataset: dense layers on pairs of digits in 100 classes, or on digits; the
article's CNN on digits, or on CIFAR-10 where that is named. Each seed has its own split of the
training set, wrong labels, initial weights, order of the data and noise; all methods share them.
The validation split is as noisy as the training data, the test set is clean. One program a method
does all: its hyperparameters are traced.
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
DEFAULTS = {
    "weight_decay": 0.0, "temperature": 0.0, "cool": 0.0, "prior": 0.0, "weight_std": 0.0,
    "smoothing": 0.0, "radius": 0.1, "cycles": 0, "members": 1,
}  # fmt: skip


class Task(NamedTuple):
    """What is trained: a network, on how many examples of a dataset.

    `load()` gives the examples and labels of the training set and of the test set, `init(key)` the
    initial parameters, `logits(params, x)` those of a batch, and `probs(params, x)` the
    probabilities of any number of examples. Seeds are vmapped, or trained one after another. An
    epoch, after which a network predicts, is `passes` over the training set.
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
    classes: int = 10
    passes: int = 1

    @property
    def prefix(self) -> str:
        """How the names of its settings begin: of digits, as the names are."""
        return "" if self.name == "digits" else f"{self.name}, "


DIGITS = Task(
    "digits", digits.load, digits.init_network, digits.network,
    lambda params, x: jax.nn.softmax(digits.network(params, x)),
    train=1152, validation=285, batch=32, vmapped=True,
)  # fmt: skip


PAIRS = Task(
    "pairs", digits.load_pairs, lambda key: digits.init_network(key, (128, 64, 64, 100)),
    digits.network, lambda params, x: jax.nn.softmax(digits.network(params, x)),
    train=800, validation=200, batch=50, vmapped=True, classes=100, passes=4,
)  # fmt: skip


# as many steps, each of a batch in which there is little noise
LARGE_BATCHES = PAIRS._replace(name="pairs, batches of 400", batch=400, passes=32)


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
def few_images(task: Task) -> Task:
    """The CNN on 2,000 images of CIFAR-10 that are shown 128 times.

    The first 5,000 images, and the test set, are those on which its posterior was found; the test
    images here are the last of the training set.
    """

    def load() -> tuple[Any, Any, Any, Any]:
        x, y, *_ = task.load()
        drawn, tests = slice(5_000, -2_000), slice(-2_000, None)
        return x[drawn], y[drawn], x[tests], y[tests]

    return task._replace(
        name="CIFAR-10, 2,000 images", load=load,
        train=2_000, validation=500, batch=50, passes=4,
    )  # fmt: skip


@lru_cache
def digits_with_cnn() -> Task:
    """The CNN on digits of 32x32 pixels, split as those of `DIGITS`."""
    counts = {name: getattr(DIGITS, name) for name in ("train", "validation", "batch")}
    return with_cnn("digits, the CNN", data.digits(), tests=360, **counts)


def with_wrong_labels(task: Task, seeds: range, share: float) -> tuple[np.ndarray, np.ndarray]:
    """For each seed examples of the training set, train before validation, and their labels.

    A label is replaced with probability `share` by a class at random.
    """
    labels = np.asarray(task.load()[1])
    kept = slice(task.train + task.validation)
    orders, noisy = [], []
    for seed in seeds:
        rng = np.random.default_rng([seed, 12])
        orders.append(rng.permutation(len(labels))[kept])
        random = rng.integers(0, task.classes, len(labels))
        noisy.append(np.where(rng.random(len(labels)) < share, random, labels)[orders[-1]])
    return np.array(orders), np.array(noisy, np.int32)


def learning_rate(hp: Settings) -> Callable[[jax.Array], jax.Array]:
    """The step size: constant, or in so many cosine cycles."""
    length = hp["steps"] / jnp.maximum(hp["cycles"], 1)
    wave = lambda t: 0.5 * (1 + jnp.cos(jnp.pi * jnp.mod(t, length) / length))
    return lambda t: hp["learning_rate"] * jnp.where(hp["cycles"] > 0, wave(t), 1)


def temperature(hp: Settings) -> Callable[[jax.Array], jax.Array]:
    """The temperature: constant, or falling linearly to 0."""
    return lambda t: hp["temperature"] * (1 - hp["cool"] * t / hp["steps"])


def sghmc(hp: Settings, key: jax.Array) -> optax.GradientTransformation:
    """SGHMC after weight decay, which at T = 0 is momentum, under a prior by fan-in or none."""
    return optax.chain(
        diffopt.gaussian_prior("fan_in", hp["prior"]),
        optax.add_decayed_weights(hp["weight_decay"]),
        diffopt.sghmc(learning_rate(hp), temperature(hp), key=key, noise="rademacher"),
    )


def weight_noise(hp: Settings, key: jax.Array) -> optax.GradientTransformation:
    """Momentum whose gradients are taken at weights perturbed in units of each filter's norm."""
    noise = diffopt.weight_noise(hp["weight_std"], relative=True, key=jax.random.fold_in(key, 1))
    return optax.chain(noise, sghmc(hp, key))


def ivon(hp: Settings, key: jax.Array) -> optax.GradientTransformation:
    """The variational online Newton method, whose noise grows by e² over the run."""
    return diffopt.ivon(
        learning_rate(hp), hp["examples"], weight_decay=hp["weight_decay"],
        hess_decay=1 - 2 / hp["steps"], key=key,
    )  # fmt: skip


def sam(hp: Settings, _: jax.Array) -> optax.GradientTransformation:
    """Sharpness-aware minimization with momentum: of two gradients, one climbs and one descends."""
    steps = lambda t: learning_rate(hp)(2 * t)
    descent = optax.chain(
        optax.add_decayed_weights(hp["weight_decay"]), optax.sgd(steps, momentum=0.9)
    )
    climb = optax.chain(optax.contrib.normalize(), optax.sgd(hp["radius"]))
    return optax.contrib.sam(descent, climb, sync_period=2)


OPTIMIZERS: dict[str, Callable[[Settings, jax.Array], optax.GradientTransformation]] = {
    "sghmc": sghmc,
    "weight noise": weight_noise,
    "ivon": ivon,
    "sam": sam,
    "adamw": lambda hp, _: optax.adamw(learning_rate(hp), weight_decay=hp["weight_decay"]),
}
PERTURBS = ("weight noise", "ivon")  # their gradients are those at another point


@partial(jax.jit, static_argnames=("task", "members"))
def draw_starts(keys: jax.Array, *, task: Task, members: int) -> Any:
    """The initial parameters of each seed and member, `[seeds, members]` before their shapes."""
    of_seed = lambda key: jax.vmap(task.init)(jax.random.split(key, members))
    return jax.vmap(of_seed)(keys)


def draw_batches(task: Task, seeds: range, epochs: int) -> np.ndarray:
    """The order of the examples, `[seeds, epochs, steps, batch]`."""
    steps = task.train // task.batch  # of a pass
    orders = []
    for seed in seeds:
        rng = np.random.default_rng([seed, 13])
        passes = [rng.permutation(task.train) for _ in range(epochs * task.passes)]
        orders.append(np.array(passes, np.int32)[:, : steps * task.batch])
    return np.reshape(orders, (len(seeds), epochs, task.passes * steps, task.batch))


@partial(jax.jit, static_argnames=("task", "method"))
def train(
    x: jax.Array, tests: jax.Array, orders: jax.Array, labels: jax.Array, keys: jax.Array,
    starts: Any, batches: jax.Array, hp: Settings, *, task: Task, method: str,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Of each seed the probabilities after every epoch, of the weights and of their mean.

    The examples are those of the validation split, then the test set: `[seeds, epochs, examples,
    classes]`. Mean weights are those of the second half of the epochs so far. The members of an
    ensemble share the epochs.
    """
    epochs, steps = batches.shape[1:3]
    hp = hp | {"steps": epochs * steps, "examples": task.train}
    span = epochs // hp["members"]  # epochs of a member

    def of_seed(
        order: jax.Array, labels: jax.Array, key: jax.Array, starts: Any, batches: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        mine = x[order]
        shown = jnp.concatenate([mine[task.train :], tests])
        tx = optax.with_extra_args_support(OPTIMIZERS[method](hp, key))

        def loss(params: Any, batch: jax.Array) -> jax.Array:
            targets = jax.nn.one_hot(labels[batch], task.classes)
            targets = optax.smooth_labels(targets, hp["smoothing"])
            return optax.softmax_cross_entropy(task.logits(params, mine[batch]), targets).mean()

        def step(carry: Any, batch: jax.Array) -> tuple[Any, None]:
            params, state = carry
            point = diffopt.perturbed(params, state) if method in PERTURBS else params
            updates, state = tx.update(jax.grad(loss)(point, batch), state, params)
            return (optax.apply_updates(params, updates), state), None

        def epoch(carry: Any, what: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
            (params, state), total = carry
            number, batches = what
            begins = number % span == 0
            params = jax.tree.map(
                lambda p, start: jnp.where(begins & (number > 0), start[number // span], p),
                params, starts,
            )  # fmt: skip
            if method == "sam":  # both gradients of a step are of one batch
                batches = jnp.repeat(batches[::2], 2, axis=0)[:steps]
            (params, state), _ = jax.lax.scan(step, (params, state), batches)
            total = optax.tree.add(total, params)
            return ((params, state), total), (task.probs(params, shown), total)

        def of_mean(totals: Any, end: jax.Array) -> jax.Array:
            half = end // 2
            until = lambda total, end: jnp.where(end > 0, total[end - 1], 0)
            mean = lambda total: (until(total, end) - until(total, half)) / (end - half)
            return task.probs(jax.tree.map(mean, totals), shown)

        params = jax.tree.map(lambda start: start[0], starts)
        start = (params, tx.init(params)), jax.tree.map(jnp.zeros_like, params)
        _, (probs, totals) = jax.lax.scan(epoch, start, (jnp.arange(epochs), batches))
        return probs, jax.lax.map(partial(of_mean, totals), 1 + jnp.arange(epochs))

    seeds = orders, labels, keys, starts, batches
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
) -> tuple[dict[str, np.ndarray], np.ndarray, float]:
    """What each predictor says after every epoch, the labels of the seeds, the seconds.

    `[seeds, epochs, examples, classes]`, validation split before test set; of `stopped early` (the
    epoch of the least NLL of the noisy validation labels) there is but the last. The average is
    that of the second half of the epochs so far, or of the ends of cycles or members. Where a
    network has diverged it predicts all classes alike.
    """
    x, _, tests, _ = task.load()
    seeds = range(run.first_seed, run.first_seed + run.seeds)
    orders, labels = with_wrong_labels(task, seeds, run.wrong)
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds.start, seeds.stop))
    hp = DEFAULTS | run.hp
    epochs = int(hp.pop("epochs"))
    starts, _ = run_timed(draw_starts, keys, static={"task": task, "members": hp["members"]})
    batches = draw_batches(task, seeds, epochs)
    (last, mean), seconds = run_timed(
        train, x, tests if with_tests else tests[:0], orders, labels, keys, starts, batches, hp,
        static={"task": task, "method": run.method},
    )  # fmt: skip
    last, mean = (np.nan_to_num(p, nan=1 / task.classes) for p in (last, mean))
    if (parts := max(hp["members"], hp["cycles"])) > 1:
        average = last[:, epochs // parts - 1 :: epochs // parts].mean(1, keepdims=True)
    else:
        sums = np.concatenate([0 * last[:, :1], last.cumsum(1)], 1)
        ends = range(1, epochs + 1)
        average = np.stack([(sums[:, e] - sums[:, e // 2]) / (e - e // 2) for e in ends], 1)
    held_out = slice(task.train, task.train + task.validation)
    _, nll = error_and_nll(last[:, :, : task.validation], labels[:, None, held_out])
    stopped = last[np.arange(len(last)), nll.argmin(1)]
    found = last, average, mean, stopped[:, None]
    return dict(zip(PREDICTORS, found, strict=True)), labels, seconds


def error_and_nll(probs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The error in percent and the NLL in nats, over the examples before the last axis."""
    labels = np.broadcast_to(labels, probs.shape[:-1])
    error = 100 * (probs.argmax(-1) != labels).mean(-1)
    likelihood = np.take_along_axis(probs, labels[..., None], -1)[..., 0]
    return error, -np.log(np.maximum(likelihood, 1e-30)).mean(-1)


def validate(task: Task, run: Run) -> dict[str, float]:
    """The mean NLL of the noisy validation labels, by each predictor; the test set stays unseen."""
    predicted, labels, _ = predictions(task, run, with_tests=False)
    held_out = slice(task.train, task.train + task.validation)
    return {
        name: float(error_and_nll(probs[:, -1], labels[:, held_out])[1].mean())
        for name, probs in predicted.items()
    }


def test(task: Task, run: Run) -> Result:
    """Of each seed by each predictor test error, NLL, and the NLL after every epoch, its curve."""
    predicted, _, seconds = predictions(task, run)
    labels = np.asarray(task.load()[3])
    values: dict[str, Any] = {}
    for name, probs in predicted.items():
        error, nll = error_and_nll(probs[:, :, task.validation :], labels)
        values |= {
            f"error, {name}": error[:, -1].tolist(),
            f"NLL, {name}": nll[:, -1].tolist(),
            f"curve, {name}": nll.tolist(),
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
    "pairs": {"quick": Size(4, 12), "default": Size(20, 12), "full": Size(20, 24)},
    "pairs, batches of 400": {"default": Size(20, 12), "full": Size(20, 12)},
    "digits": {"quick": Size(20, 12), "default": Size(60, 16), "full": Size(60, 32)},
    "CIFAR-10": {"quick": Size(4, 12), "default": Size(12, 12), "full": Size(30, 12)},
    "digits, the CNN": {"default": Size(12, 16), "full": Size(12, 32)},
}
LONG = Size(32, 12)  # few images, at every size: 12 pairs can decide beside four rivals
