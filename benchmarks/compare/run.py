"""The runs of a comparison: what they need, and one from its seed to its record."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..lib import checkpoint, cli, data, files, machine, models, training
from ..lib.scores import evaluate, ood_auroc
from ..trial.run import check_packages
from . import distributed
from .options import Optimizer, Options, build, fingerprint

SWEEP = (0.1, 1 / 3, 3.0, 10.0)


class Predictions(NamedTuple):
    """Probabilities `[test images, classes]` of the last iterate, and their average over epochs."""

    last: np.ndarray
    average: np.ndarray


def prepare(options: Options, console: Console) -> tuple[data.Data, jax.Array]:
    """The data and the images of no class. Nothing is written.

    Raises:
      UsageError: they, the devices, or the packages are not what a run needs.
    """
    check_packages(options.claims, options.size, options.dataset)
    devices = jax.device_count()
    if options.distributed and options.batch_size % devices:
        raise cli.UsageError(
            f"--batch-size {options.batch_size}: must be a multiple of the {devices} devices"
        )
    with console.status(f"reading {options.dataset}"):
        dataset = data.load(options.dataset, options.data_dir)
        ood_images = data.out_of_distribution(options.dataset)
    examples = len(dataset.train_labels)
    if not 1 <= options.batch_size <= examples:
        raise cli.UsageError(f"--batch-size {options.batch_size}: must be from 1 to {examples}")
    return dataset, ood_images


def arguments(options: Options, dataset: data.Data) -> dict[str, Any]:
    """What has to be the same in all processes that train together."""
    if not options.distributed:
        return {}
    digest = checkpoint.digest(dataset, None)[:8]
    return fingerprint(options) | {"--checkpoint": options.checkpoint, "data": digest}


def lock_folders(options: Options, held: ExitStack) -> None:
    """Make the folders that are written into, in the first process, and lock them in `held`.

    Raises:
      UsageError: a folder cannot be written, or holds other settings or another run.
    """
    if jax.process_index():
        return
    cli.make_folder(options.out)
    held.enter_context(files.lock(options.out, "--out"))
    if options.checkpoint:
        cli.make_folder(options.checkpoint, "--checkpoint")
        held.enter_context(files.lock(options.checkpoint, "--checkpoint"))
        devices = f"{machine.device()} of {jax.process_count()} processes"
        checkpoint.match_settings(options.checkpoint, fingerprint(options), devices)


def train_all(
    options: Options, dataset: data.Data, ood_images: jax.Array, console: Console
) -> Iterator[tuple[dict[str, Any], Predictions]]:
    """Train every optimizer from every seed, and at every learning rate of the sweep."""
    jobs = [(optimizer, options.seeds) for optimizer in options.optimizers]
    if options.sweep:
        jobs += [
            (optimizer._replace(learning_rate=scale * optimizer.learning_rate), 1)
            for optimizer in options.optimizers
            for scale in SWEEP
        ]
    columns = (
        TextColumn("{task.description}", justify="left"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs{task.fields[scores]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        total = options.epochs * sum(seeds for _, seeds in jobs)
        bar = progress.add_task("", total=total, scores="")

        def show(entry: dict[str, Any]) -> None:
            scores = f"  loss {entry['loss']:.3f}  test {entry['test_accuracy']:.1%} "
            progress.update(bar, advance=1, scores=scores)

        for optimizer, seeds in jobs:
            name, lr, _ = optimizer
            program = compile_epoch(optimizer, options.batch_size, dataset)
            for seed in range(seeds):
                progress.update(bar, description=f"{name} {lr:.2g}, seed {seed}")
                yield train(program, seed, options, dataset, ood_images, show)


class Program(NamedTuple):
    """A compiled epoch of the CNN with one optimizer, for every seed."""

    optimizer: Optimizer
    graphdef: Any
    start: Callable[[int], tuple[Any, Any, jax.Array]]
    replicate: Callable[[Any], Any]
    epoch: Any
    train_set: tuple[jax.Array, jax.Array]
    compile_time: float


def compile_epoch(optimizer: Optimizer, batch_size: int, dataset: data.Data) -> Program:
    """Compile an epoch in which all devices share every batch.

    `start` gives the parameters, the optimizer's state and the key of the order of the data, and
    `replicate` puts such arrays on all devices.
    """
    mesh = training.make_mesh(batch_size)
    everywhere = NamedSharding(mesh, PartitionSpec())
    replicate = partial(jax.make_array_from_process_local_data, everywhere)
    channels = dataset.train_images.shape[-1]

    def start(seed: int) -> tuple[Any, Any, jax.Array]:
        key = jax.random.key(seed)
        _, params = models.init_cnn(channels, seed)
        opt_state = build(optimizer, jax.random.fold_in(key, 0)).init(params)
        return replicate((params, opt_state, key))

    graphdef, _ = models.init_cnn(channels, 0)
    train_set = replicate((dataset.train_images, dataset.train_labels))
    clock = time.perf_counter()
    epoch = training.make_epoch(graphdef, build(optimizer, 0), batch_size, mesh)
    compiled = epoch.lower(*start(0), *train_set).compile()
    compile_time = time.perf_counter() - clock
    return Program(optimizer, graphdef, start, replicate, compiled, train_set, compile_time)


def train(
    program: Program,
    seed: int,
    options: Options,
    dataset: data.Data,
    ood_images: jax.Array,
    show: Callable[[dict[str, Any]], None],
) -> tuple[dict[str, Any], Predictions]:
    """Train from a seed; the run's record, and its predictions of the test set.

    The seed gives the initial weights, the order of the data, and the noise. The predictions of
    the epochs of the second half are averaged, whatever the optimizer: for a sampler that is the
    posterior predictive distribution, for the others an ensemble along the path. On `ood_images`,
    of no class, a prediction ought to be unsure. With a folder for checkpoints each epoch ends
    with one, and a run goes on from its last. `show` is given the history's entry of each epoch.
    """
    name, lr, temperature = program.optimizer

    def classify(params: Any, images: jax.Array) -> jax.Array:
        here = jax.tree.map(lambda p: p.addressable_data(0), params)
        return training.predict(program.graphdef, here, images)

    def evaluate_both(probs: jax.Array, ood_probs: jax.Array) -> dict[str, float]:
        scores = evaluate(probs, dataset.test_labels)
        return {
            "test_accuracy": scores.accuracy,
            "test_nll": scores.nll,
            "brier": scores.brier,
            "ece": scores.ece,
            "ood_auroc": ood_auroc(probs, ood_probs),
        }

    params, opt_state, key = program.start(seed)
    images = dataset.test_images, ood_images
    sums = [jnp.zeros((len(x), 10)) for x in images]
    history: list[dict[str, Any]] = []
    losses: list[float] = []  # those after the last mean of 200
    checkpoints = None
    if options.checkpoint:
        if jax.process_index() == 0:
            checkpoints = checkpoint.open_manager(options.checkpoint / f"{name} {lr} seed {seed}")
        start = params, opt_state, sums

        def restore() -> Any:
            restored = checkpoint.restore(checkpoints, start)
            return restored and (jax.tree.leaves(restored[0]), restored[1])

        restored = distributed.broadcast_first(restore)
        if restored:
            leaves, log = restored
            state = jax.tree.unflatten(jax.tree.structure(start), leaves)
            params, opt_state, sums = checkpoint.restore_keys(state, start)
            params, opt_state = program.replicate((params, opt_state))
            sums = jax.device_put(sums)
            history, losses = log["history"], log["losses"]
            for entry in history:
                show(entry)

    averaged = training.second_half(options.epochs)
    numbers = range(len(history) + 1, options.epochs + 1)
    for epoch in training.train(program.epoch, params, opt_state, key, program.train_set, numbers):
        params = epoch.params
        probs = [classify(params, x) for x in images]
        if epoch.number in averaged:
            sums = [total + p for total, p in zip(sums, probs, strict=True)]
        test_scores = evaluate(probs[0], dataset.test_labels)
        step = epoch.number * len(epoch.losses)
        means, losses = means_of_200(losses + epoch.losses.tolist(), step)
        history.append(
            {
                "epoch": epoch.number,
                "step": step,
                "loss": float(epoch.losses.mean()),
                "loss_every_200": means,
                "test_accuracy": test_scores.accuracy,
                "test_nll": test_scores.nll,
                "step_time": epoch.seconds / len(epoch.losses),
            }
        )
        show(history[-1])
        if checkpoints:
            log = {"history": history, "losses": losses}
            checkpoint.save(checkpoints, epoch.number, (params, epoch.opt_state, sums), log)

    last = [classify(params, x) for x in images]
    on_train = evaluate(classify(params, dataset.train_images), dataset.train_labels)
    average = [total / len(averaged) for total in sums]
    record = {
        "optimizer": name,
        "seed": seed,
        "learning_rate": lr,
        "temperature": temperature,
        **evaluate_both(*last),
        "train_accuracy": on_train.accuracy,
        "average": evaluate_both(*average),
        "step_time": min(h["step_time"] for h in history),  # that nothing else disturbed
        "compile_time": program.compile_time,
        "history": history,
    }
    return record, Predictions(np.asarray(last[0]), np.asarray(average[0]))


def means_of_200(losses: list[float], step: int) -> tuple[list[list[float]], list[float]]:
    """`[step, mean loss]` of every whole 200 of the losses that end at `step`, and the rest."""
    ends = range(200, len(losses) + 1, 200)
    means = [[step - len(losses) + end, float(np.mean(losses[end - 200 : end]))] for end in ends]
    return means, losses[200 * len(means) :]
