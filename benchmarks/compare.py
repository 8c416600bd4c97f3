"""Train one network from the same initial weights with several optimizers, and report on them.

    python -m benchmarks.compare                                  # digits, no download
    python -m benchmarks.compare --dataset cifar10 --data-dir DIR
    python -m benchmarks.compare --checkpoint DIR                 # killed, it goes on from there
    srun python -m benchmarks.compare --distributed               # on many hosts

The network is the article's CNN, in Flax NNX. An epoch is one compiled program, and all devices
share its batches, those of other hosts too.
"""

import argparse
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import diffopt

from . import checkpoint, data, report
from .calibration import ood_auroc
from .models import CNN
from .training import make_epoch, make_mesh, predict, scores

# name: (learning rate, temperature, PRNG key) -> transformation
OPTIMIZERS: dict[str, Callable[[float, float, Any], optax.GradientTransformation]] = {
    "sgd": lambda lr, T, key: optax.sgd(lr),
    "momentum": lambda lr, T, key: optax.sgd(lr, momentum=0.9),
    "adam": lambda lr, T, key: optax.adam(lr),
    "langevin": lambda lr, T, key: optax.chain(
        diffopt.langevin(T, learning_rate=lr, key=key), optax.sgd(lr)
    ),
    "psgld": lambda lr, T, key: diffopt.psgld(lr, T, key=key),
    "sghmc": lambda lr, T, key: diffopt.sghmc(lr, T, key=key),
    "baoab": lambda lr, T, key: diffopt.baoab(lr, T, key=key),
    "sgnht": lambda lr, T, key: diffopt.sgnht(lr, T, key=key),
    # The article's listing adds N(0, 0.01²) to every weight at every step of size 0.001. That is
    # Langevin dynamics at temperature 0.01² / (2 · 0.001) = 0.05.
    "article": lambda lr, T, key: diffopt.sgld(lr, T, key=key),
}

# what a run trains unless told otherwise: the article's own comparison
ARTICLE = ("sgd", "momentum", "adam", "langevin", "article")

# dataset: epochs, batch size, and (learning rate, temperature) of each optimizer
DEFAULTS: dict[str, tuple[int, int, dict[str, tuple[float, float]]]] = {
    "digits": (
        12,
        32,
        {
            "sgd": (0.05, 0.0),
            "momentum": (0.01, 0.0),
            "adam": (0.001, 0.0),
            "langevin": (0.05, 1e-5),
            "psgld": (0.0003, 1e-6),
            "sghmc": (0.01, 1e-5),
            "baoab": (0.1, 1e-5),
            "sgnht": (0.01, 1e-5),
            "article": (0.001, 0.05),
        },
    ),
    "cifar10": (
        10,
        100,
        {
            "sgd": (0.1, 0.0),
            "momentum": (0.01, 0.0),
            "adam": (0.001, 0.0),
            "langevin": (0.1, 5e-6),
            "psgld": (0.0003, 5e-6),
            "sghmc": (0.01, 5e-6),
            "baoab": (0.1, 5e-6),
            "sgnht": (0.01, 5e-6),
            "article": (0.001, 0.05),
        },
    ),
}
SWEEP = (0.1, 1 / 3, 3.0, 10.0)
PATIENCE = 300  # seconds that a process waits for the others
HOW_TO_CONNECT = (
    "Start every process with srun, mpirun or on a TPU pod, or give each JAX_COORDINATOR_ADDRESS"
    " (HOST:PORT of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID"
)
PACKAGES = ("diffopt", "jax", "jaxlib", "optax", "flax", "numpy")


def main() -> int:
    """Parse the command line, train, report."""
    args = parse_args()
    if args.distributed:
        try:
            connect()
        except Exception as error:  # each launcher has errors of its own
            reason = (str(error) or repr(error)).splitlines()[0].rstrip(".")
            return fail(f"--distributed: {reason}. {HOW_TO_CONNECT}")
    first = jax.process_index() == 0
    console = Console(quiet=not first)
    metrics: dict[str, Any] = {"config": config(args), "versions": versions(), "runs": []}
    predictions: dict[str, report.Predictions] = {}  # of each optimizer's first run
    status = 0
    prepared, problem = None, "another process cannot start, and says why"
    try:
        try:
            prepared = prepare(args, metrics, console)
        except (Refusal, checkpoint.CheckpointError, data.DataError) as error:
            problem = str(error)
        everywhere = multihost_utils.process_allgather(np.array(prepared is not None)).all()
        if prepared is None or not everywhere:
            return fail(problem)
        dataset, strange = prepared
        for run, predicted in runs(args, dataset, strange, console):
            predictions.setdefault(run["optimizer"], predicted)
            metrics["runs"].append(run)
            if first:
                report.save_metrics(args.out, metrics)
    except KeyboardInterrupt:
        console.print(f"[yellow]Interrupted: keeping the {len(metrics['runs'])} finished runs.")
        status = 130
    if first and metrics["runs"]:
        report.write(args.out, metrics, predictions, dataset)
        report.show(console, metrics)
        console.print(f"Wrote {', '.join(str(args.out / f) for f in report.FILES)}")
    return status


class Refusal(Exception):
    """What cannot be done, told in one sentence."""


def connect() -> None:
    """Make the devices of all processes those of one JAX, which must not have started yet.

    JAX knows by itself where it is under SLURM, Open MPI and Kubernetes and on a TPU pod; for
    other launchers three variables tell, of which it reads the address of process 0 itself.
    """

    def give_up() -> None:
        fail(f"--distributed: not all processes came within {PATIENCE} s. {HOW_TO_CONNECT}")
        os._exit(2)

    count, index = (os.environ.get(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID"))
    deadline = threading.Timer(PATIENCE, give_up)  # JAX itself would abort with a stack trace
    deadline.daemon = True
    deadline.start()
    try:
        jax.distributed.initialize(
            num_processes=int(count) if count else None,
            process_id=int(index) if index else None,
            initialization_timeout=PATIENCE + 60,
        )
    finally:
        deadline.cancel()


def prepare(
    args: argparse.Namespace, metrics: dict[str, Any], console: Console
) -> tuple[data.Data, jax.Array]:
    """The data and the images of no class, once all else that a run needs is there too.

    Raises:
      Refusal, CheckpointError, DataError: it is not.
    """
    devices = jax.device_count()
    if args.distributed and args.batch_size % devices:
        raise Refusal(
            f"--batch-size {args.batch_size}: must be a multiple of the {devices} devices"
        )
    if args.checkpoint:
        checkpoint.claim(args.checkpoint, settings(args))
    try:
        if jax.process_index() == 0:
            args.out.mkdir(parents=True, exist_ok=True)
            report.save_metrics(args.out, metrics)
    except OSError as error:
        raise Refusal(f"--out {args.out} cannot be written: {error.strerror}") from error
    with console.status(f"reading {args.dataset}"):
        dataset = data.load(args.dataset, args.data_dir)
        strange = data.out_of_distribution(args.dataset)
    examples = len(dataset.train_labels)
    if not 1 <= args.batch_size <= examples:
        raise Refusal(f"--batch-size {args.batch_size}: must be from 1 to {examples}")
    return dataset, strange


def runs(
    args: argparse.Namespace, dataset: data.Data, strange: jax.Array, console: Console
) -> Iterator[tuple[dict[str, Any], report.Predictions]]:
    """Train every optimizer from every seed, and at every learning rate of the sweep."""
    jobs = [(name, 1.0, args.seeds) for name in args.optimizers]
    if args.sweep:
        jobs += [(name, scale, 1) for name in args.optimizers for scale in SWEEP]
    columns = (
        TextColumn("{task.description}", justify="left"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs{task.fields[scores]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        total = args.epochs * sum(seeds for _, _, seeds in jobs)
        bar = progress.add_task("", total=total, scores="")

        def show(loss: float, accuracy: float) -> None:
            progress.update(bar, advance=1, scores=f"  loss {loss:.3f}  test {accuracy:.1%} ")

        for name, scale, seeds in jobs:
            lr, temperature = scale * args.learning_rate[name], args.temperature[name]
            run = trainer(
                name, lr, temperature, dataset, strange, args.epochs, args.batch_size, show,
                args.checkpoint,
            )  # fmt: skip
            for seed in range(seeds):
                progress.update(bar, description=f"{name} {lr:.2g}, seed {seed}")
                yield run(seed)


def trainer(
    name: str,
    lr: float,
    temperature: float,
    dataset: data.Data,
    strange: jax.Array,
    epochs: int,
    batch_size: int,
    show: Callable[[float, float], None],
    folder: Path | None = None,
) -> Callable[[int], tuple[dict[str, Any], report.Predictions]]:
    """Compile an epoch of the CNN with one optimizer; return the function that trains from a seed.

    It returns the run's record and its predictions of the test set. The seed gives the initial
    weights, the order of the data, and the noise. The predictions of the epochs of the second
    half are averaged, whatever the optimizer: for a sampler that is the posterior predictive
    distribution, for the others an ensemble along the path. `strange` are images of no class, on
    which a prediction ought to be unsure. With a `folder`, each epoch ends with a checkpoint in it,
    and a run goes on from its last one.
    """

    mesh = make_mesh(batch_size)
    everywhere = NamedSharding(mesh, PartitionSpec())
    replicate = partial(jax.make_array_from_process_local_data, everywhere)

    def start(seed: int) -> tuple[Any, Any, Any, Any, jax.Array]:
        key = jax.random.key(seed)
        graphdef, params = nnx.split(CNN(dataset.train_images.shape[-1], rngs=nnx.Rngs(seed)))
        tx = OPTIMIZERS[name](lr, temperature, jax.random.fold_in(key, 0))
        params, opt_state, key = replicate((params, tx.init(params), key))
        return graphdef, tx, params, opt_state, key

    train_set = replicate((dataset.train_images, dataset.train_labels))
    graphdef, tx, params, opt_state, key = start(0)
    clock = time.perf_counter()
    program = make_epoch(graphdef, tx, batch_size, mesh).lower(params, opt_state, key, *train_set)
    epoch = program.compile()
    compile_time = time.perf_counter() - clock

    def classify(params: Any, images: jax.Array) -> jax.Array:
        here = jax.tree.map(lambda p: p.addressable_data(0), params)
        return predict(graphdef, here, images)

    def judge(probs: jax.Array, strange_probs: jax.Array) -> dict[str, float]:
        got = scores(probs, dataset.test_labels)
        return {
            "test_accuracy": got["accuracy"],
            "test_nll": got["nll"],
            "brier": got["brier"],
            "ece": got["ece"],
            "ood_auroc": ood_auroc(probs, strange_probs),
        }

    def run(seed: int) -> tuple[dict[str, Any], report.Predictions]:
        _, _, params, opt_state, key = start(seed)
        images = dataset.test_images, strange
        total = [jnp.zeros((len(x), 10)) for x in images]
        state = params, opt_state, total
        log: dict[str, Any] = {"history": [], "losses": []}
        if folder:
            checkpoints = checkpoint.manager(folder / f"{name} {lr} seed {seed}")
            state, log = checkpoint.restore(checkpoints, state, log)
        (params, opt_state, total), history, losses = state, log["history"], log["losses"]
        for entry in history:
            show(entry["loss"], entry["test_accuracy"])

        for number in range(len(history) + 1, epochs + 1):
            clock = time.perf_counter()
            params, opt_state, epoch_losses = epoch(
                params, opt_state, jax.random.fold_in(key, number), *train_set
            )
            epoch_losses = np.asarray(epoch_losses)
            step_time = (time.perf_counter() - clock) / len(epoch_losses)

            train_probs = classify(params, dataset.train_images)
            train_scores = scores(train_probs, dataset.train_labels)
            probs = [classify(params, x) for x in images]
            test_scores = scores(probs[0], dataset.test_labels)
            if number > epochs // 2:
                total = [t + p for t, p in zip(total, probs, strict=True)]
            step = number * len(epoch_losses)
            losses += epoch_losses.tolist()
            means = [
                [step - len(losses) + end, float(np.mean(losses[end - 200 : end]))]
                for end in range(200, len(losses) + 1, 200)
            ]
            losses = losses[200 * len(means) :]
            history.append(
                {
                    "epoch": number,
                    "step": step,
                    "loss": float(epoch_losses.mean()),
                    "loss_every_200": means,
                    "train_accuracy": train_scores["accuracy"],
                    "test_accuracy": test_scores["accuracy"],
                    "test_nll": test_scores["nll"],
                    "step_time": step_time,
                }
            )
            show(history[-1]["loss"], test_scores["accuracy"])
            if folder:
                log = {"history": history, "losses": losses}
                checkpoint.save(checkpoints, number, (params, opt_state, total), log)

        last = [classify(params, x) for x in images]
        average = [t / (epochs - epochs // 2) for t in total]
        record = {
            "optimizer": name,
            "seed": seed,
            "learning_rate": lr,
            "temperature": temperature,
            **judge(*last),
            "train_accuracy": history[-1]["train_accuracy"],
            "average": judge(*average),
            "step_time": min(h["step_time"] for h in history),  # that nothing else disturbed
            "compile_time": compile_time,
            "history": history,
        }
        return record, report.Predictions(np.asarray(last[0]), np.asarray(average[0]))

    return run


def parse_args() -> argparse.Namespace:
    """The command line, with the dataset's defaults filled in."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--dataset", default="digits", help="digits (default) or cifar10")
    parser.add_argument("--data-dir", help="TensorFlow Datasets folder that holds cifar10")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/compare"), help="default %(default)s"
    )
    parser.add_argument(
        "--optimizers", nargs="+", default=list(ARTICLE), choices=OPTIMIZERS, metavar="NAME",
        help=f"any of {' '.join(OPTIMIZERS)} (default: {' '.join(ARTICLE)})",
    )  # fmt: skip
    parser.add_argument("--epochs", type=at_least_one, help="default: 12 on digits, 10 on cifar10")
    parser.add_argument("--batch-size", type=int, help="default: 32 on digits, 100 on cifar10")
    parser.add_argument("--seeds", type=at_least_one, default=3, help="how many (default 3)")
    for option, what in (("--learning-rate", "step size"), ("--temperature", "temperature")):
        parser.add_argument(
            option, nargs="+", default=[], type=setting, metavar="NAME=VALUE",
            help=f"{what} of an optimizer, for example langevin=0.0001",
        )  # fmt: skip
    parser.add_argument(
        "--sweep", action="store_true",
        help="also train at a tenth, a third, three and ten times each learning rate",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint", type=Path, metavar="DIR",
        help="save every epoch in this folder, and go on from what it holds",
    )  # fmt: skip
    parser.add_argument(
        "--distributed", action="store_true",
        help="train with the devices of all processes that a launcher started, on all hosts",
    )  # fmt: skip
    args = parser.parse_args()
    if args.distributed and args.checkpoint:
        parser.error("--checkpoint with --distributed: only a run of one process can be saved")
    if args.dataset not in DEFAULTS:
        parser.error(f"unknown dataset {args.dataset!r}: choose one of {', '.join(DEFAULTS)}")
    epochs, batch_size, settings = DEFAULTS[args.dataset]
    args.epochs = args.epochs or epochs
    args.batch_size = batch_size if args.batch_size is None else args.batch_size
    for name, _ in args.learning_rate + args.temperature:
        if name not in args.optimizers:
            parser.error(f"a setting for {name}, which is not among --optimizers")
    for name, temperature in args.temperature:
        if name in ("sgd", "momentum", "adam"):
            parser.error(f"--temperature {name}={temperature:g}: {name} has no temperature")
    args.learning_rate = {k: v[0] for k, v in settings.items()} | dict(args.learning_rate)
    args.temperature = {k: v[1] for k, v in settings.items()} | dict(args.temperature)
    for name in args.optimizers:
        try:
            diffopt.sgld(args.learning_rate[name], args.temperature[name])
        except ValueError as error:
            parser.error(f"{name}: {error}")
    return args


def setting(text: str) -> tuple[str, float]:
    """`NAME=VALUE` of an optimizer."""
    name, _, value = text.partition("=")
    if name not in OPTIMIZERS:
        raise argparse.ArgumentTypeError(f"{text!r}: no optimizer is called {name!r}")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: {value!r} is not a number") from None


def at_least_one(text: str) -> int:
    """A whole number from 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def config(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked for."""
    return {
        "command": f"python -m benchmarks.compare {shlex.join(sys.argv[1:])}",
        "dataset": args.dataset,
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "seeds": args.seeds,
        "sweep": args.sweep,
        "optimizers": {
            name: {"learning_rate": args.learning_rate[name], "temperature": args.temperature[name]}
            for name in args.optimizers
        },
    }


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What decides the parameters that come out, by the name that the user knows it by."""
    each = lambda values: " ".join(f"{name}={values[name]}" for name in args.optimizers)
    return {
        "--dataset": args.dataset,
        "--optimizers": " ".join(args.optimizers),
        "--epochs": args.epochs,
        "--batch-size": args.batch_size,
        "--seeds": args.seeds,
        "--sweep": args.sweep,
        "--learning-rate": each(args.learning_rate),
        "--temperature": each(args.temperature),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        **{package: version(package) for package in PACKAGES},
    }


def versions() -> dict[str, str]:
    """What it ran on."""
    return {
        "python": sys.version.split()[0],
        **{package: version(package) for package in PACKAGES},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "date": time.strftime("%Y-%m-%d"),
    }


def fail(sentence: str) -> int:
    """Say what is wrong; the exit status."""
    print(f"compare: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
