"""What bfloat16 parameters do to a diffusion and to a network in training.

    python -m benchmarks.bfloat16 [laws training cost] [--out DIR]

Each element of a vector is a chain. Four kinds of parameters run side by side: float32; bfloat16
rounded to nearest, as JAX does; bfloat16 rounded at random, with the right mean; and bfloat16 in
`diffopt.low_precision`.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import diffopt

from .lib import cli, data, files, machine, models, timing, training
from .lib.scores import evaluate, plus_minus
from .lib.tables import Tables, load, markdown, origin

PARTS = ("laws", "training", "cost")
SPACING = 2.0**-7  # of bfloat16 at 1
FREE = (1 / 2, 1 / 8, 1 / 32, 1 / 128, 1 / 2048)  # noise of a step, in spacings
WELLS = (1e-3, 1e-4, 1e-5)  # ηk


def nearest(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Every sum rounded to the nearest bfloat16: what Optax does."""
    return tx


def stochastic(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Every sum in float32, rounded at random to a neighbour, and nothing kept of the rest."""

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        key, inner = state
        key, subkey = jax.random.split(key)
        exact = params.astype(jnp.float32)
        u, inner = tx.update(grads.astype(jnp.float32), inner, exact)
        word = jax.lax.bitcast_convert_type(exact + u, jnp.uint32)
        word = (word + (jax.random.bits(subkey, u.shape) >> 16)) & np.uint32(0xFFFF0000)
        return jax.lax.bitcast_convert_type(word, jnp.float32) - exact, (key, inner)

    return optax.GradientTransformation(lambda params: (jax.random.key(7), tx.init(params)), update)


Wrap = Callable[[optax.GradientTransformation], optax.GradientTransformation]
METHODS: dict[str, tuple[Any, Wrap]] = {
    "float32": (jnp.float32, nearest),
    "nearest": (jnp.bfloat16, nearest),
    "stochastic": (jnp.bfloat16, stochastic),
    "low_precision": (jnp.bfloat16, diffopt.low_precision),
}


@partial(jax.jit, static_argnames=("method", "chains"))
def variance(
    method: str, eta: float, temperature: float, k: float, steps: Any, chains: int
) -> jax.Array:
    """Mean square distance of chains from 1, where they start, on k(θ - 1)²/2."""
    dtype, wrap = METHODS[method]
    tx = wrap(diffopt.sgld(eta, temperature))

    def step(_: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        params, state = carry
        grads = (k * (params.astype(jnp.float32) - 1)).astype(params.dtype)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = jnp.ones(chains, dtype)
    params, state = jax.lax.fori_loop(0, steps, step, (params, tx.init(params)))
    if method == "low_precision":
        params = diffopt.exact_params(params, state)
    return jnp.mean((params.astype(jnp.float32) - 1) ** 2)


def laws(chains: int, progress: Progress) -> list[dict[str, Any]]:
    """The variance over the exact one: of a free diffusion, and of wells after 2/ηk steps.

    The free diffusion takes 1,000 steps whose noise is a fraction of the spacing. The wells have
    a standard deviation of 8 spacings. All methods draw the same noise.
    """
    rows = []
    free = [("free", fraction, 1_000) for fraction in FREE]
    wells = [("well", eta, round(2 / eta)) for eta in WELLS]
    bar = progress.add_task("laws", total=len(METHODS) * len(free + wells))
    for kind, size, steps in free + wells:
        row: dict[str, Any] = {"law": kind, "size": size, "steps": steps}
        for method in METHODS:
            progress.update(bar, description=f"{kind} {size:g} {method}")
            if kind == "free":
                eta, T, k = 1.0, (SPACING * size) ** 2 / 2, 0.0
                exact = 2 * T * steps
            else:
                eta, T, k = size, (8 * SPACING) ** 2, 1.0
                exact = T / (1 - eta / 2) * (1 - (1 - eta) ** (2 * steps))
            row[method] = float(variance(method, eta, T, k, steps, chains)) / exact
            progress.advance(bar)
        rows.append(row)
    return rows


# name: (scale of the learning rates of benchmarks.compare, PRNG key) -> transformation
OPTIMIZERS: dict[str, Callable[[float, Any], optax.GradientTransformation]] = {
    "sgd": lambda scale, key: optax.sgd(0.05 * scale),
    "sgld": lambda scale, key: diffopt.sgld(0.05 * scale, 1e-5, key=key),
    "sghmc": lambda scale, key: diffopt.sghmc(0.01 * scale, 1e-5, key=key),
}
PRECISIONS: dict[str, tuple[Any, Wrap]] = {
    "float32": (jnp.float32, nearest),
    "bfloat16": (jnp.bfloat16, nearest),
    "low_precision": (jnp.bfloat16, diffopt.low_precision),
}


def train(
    optimizer: str,
    precision: str,
    scale: float,
    dataset: data.Data,
    epochs: int,
    batch_size: int,
    seeds: int,
) -> Iterator[dict[str, float]]:
    """Train the CNN from every seed; the scores of the last epoch, and of the average.

    Parameters, images and gradients have the dtype of `precision`. Predictions are made in float32.
    """
    dtype, wrap = PRECISIONS[precision]
    images, channels = dataset.train_images.astype(dtype), dataset.train_images.shape[-1]
    make_tx = lambda key: wrap(OPTIMIZERS[optimizer](scale, key))
    graphdef, _ = models.init_cnn(channels, 0)
    epoch = training.make_epoch(graphdef, make_tx(0), batch_size)
    averaged = training.second_half(epochs)
    for seed in range(seeds):
        key = jax.random.key(seed)
        _, params = models.init_cnn(channels, seed)
        params = jax.tree.map(lambda p: p.astype(dtype), params)
        opt_state = make_tx(jax.random.fold_in(key, 0)).init(params)
        total, train_set = jnp.zeros(()), (images, dataset.train_labels)
        for done in training.train(epoch, params, opt_state, key, train_set, range(1, epochs + 1)):
            if done.number in averaged:
                probs = training.predict(graphdef, done.params, dataset.test_images)
                total += probs
        last = evaluate(probs, dataset.test_labels)
        average = evaluate(total / len(averaged), dataset.test_labels)
        yield {
            "accuracy": last.accuracy,
            "nll": last.nll,
            "average_accuracy": average.accuracy,
            "average_nll": average.nll,
        }


def train_all(
    scale: float,
    dataset: data.Data,
    epochs: int,
    batch_size: int,
    seeds: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """The scores of every optimizer at every precision, from every seed."""
    rows = []
    bar = progress.add_task("training", total=len(OPTIMIZERS) * len(PRECISIONS) * seeds)
    for optimizer in OPTIMIZERS:
        for precision in PRECISIONS:
            progress.update(bar, description=f"{optimizer} {precision}")
            runs = []
            for scores in train(optimizer, precision, scale, dataset, epochs, batch_size, seeds):
                runs.append(scores)
                progress.advance(bar)
            rows.append({"optimizer": optimizer, "precision": precision, "runs": runs})
    return rows


def cost(repeats: int, progress: Progress) -> list[dict[str, Any]]:
    """Nanoseconds a parameter of one update of a ResNet-18 tree, medians of steps in turn."""
    shapes = models.resnet18()
    size = models.size(shapes)
    sgld = diffopt.sgld(1e-3, 1e-5)
    contestants = {
        "sgld, float32": (jnp.float32, sgld),
        "sgld, bfloat16": (jnp.bfloat16, sgld),
        "low_precision(sgld), bfloat16": (jnp.bfloat16, diffopt.low_precision(sgld)),
    }
    bar = progress.add_task("cost", total=repeats)
    arrays = partial(models.fill_tree, shapes)
    runs = {
        name: timing.optax_run(tx, arrays(1.0, dtype), arrays(1e-2, dtype))
        for name, (dtype, tx) in contestants.items()
    }
    for run in runs.values():
        run()
    times = timing.time_in_turn(runs, repeats, done=lambda: progress.advance(bar))
    rows = []
    for name, seconds in times.items():
        ns = [each / size * 1e9 for each in seconds]
        median, quartiles = statistics.median(ns), timing.quartiles(ns)
        rows.append({"update": name, "ns_per_parameter": median, "quartiles": quartiles})
    return rows


def show(console: Console, results: dict[str, Any]) -> None:
    """The results as tables."""
    if "laws" in results:
        table = Table("law", *METHODS, title="variance over the exact one")
        for row in results["laws"]:
            what = "noise per step / spacing" if row["law"] == "free" else "well, ηk"
            ratios = [f"{row[method]:.3f}" for method in METHODS]
            table.add_row(f"{what} {row['size']:.2g}", *ratios)
        console.print(table)
    if "training" in results:
        columns = {
            "accuracy, %": lambda r: 100 * r["accuracy"],
            "NLL": lambda r: r["nll"],
            "average, %": lambda r: 100 * r["average_accuracy"],
            "average NLL": lambda r: r["average_nll"],
        }
        table = Table("optimizer", "precision", *columns, title="mean ± standard deviation")
        for row in results["training"]:
            cells = [
                plus_minus([value(r) for r in row["runs"]], 1 if "%" in column else 3)
                for column, value in columns.items()
            ]
            table.add_row(row["optimizer"], row["precision"], *cells)
        console.print(table)
    if "cost" in results:
        table = Table("update", "ns per parameter", "quartiles", title="one update, ResNet-18")
        for row in results["cost"]:
            low, high = row["quartiles"]
            table.add_row(row["update"], f"{row['ns_per_parameter']:.2f}", f"{low:.2f}-{high:.2f}")
        console.print(table)


def tables() -> Tables:
    """The laws, the training and the cost."""
    return {
        "rounding_laws": laws_table,
        "rounding_training": training_table,
        "rounding_cost": cost_table,
    }


def laws_table() -> str:
    """The variance of chains in bfloat16 over the exact one."""
    result = load("bfloat16.json")

    def name(law: dict[str, Any]) -> str:
        if law["law"] != "free":
            return f"well, ηk = {law['size']:.0e}"
        return f"free, noise of a step 1/{1 / law['size']:.0f} of the spacing"

    methods = ("float32", "nearest", "stochastic", "low_precision")
    head = ["law", "float32", "bfloat16, to nearest", "rounded at random", "`low_precision`"]
    body = markdown(
        head, ([name(law), *(f"{law[m]:,.3f}" for m in methods)] for law in result["laws"])
    )
    command = "python -m benchmarks.bfloat16 laws training"
    return body + origin("bfloat16.json", result["machine"], command)


def training_table() -> str:
    """The article's network in bfloat16."""
    fields = (
        ("accuracy", 100, 1),
        ("nll", 1, 3),
        ("average_accuracy", 100, 1),
        ("average_nll", 1, 3),
    )
    rows = (
        [
            each["optimizer"], each["precision"],
            *(plus_minus([s * run[f] for run in each["runs"]], d) for f, s, d in fields),
        ]
        for each in load("bfloat16.json")["training"]
    )  # fmt: skip
    head = ["optimizer", "parameters", "accuracy, %", "NLL", "average, %", "NLL"]
    return markdown(head, rows, left=2)


def cost_table() -> str:
    """One update of a ResNet-18 tree in bfloat16."""
    result = load("bfloat16_cost.json")
    head = ["update", "ns per parameter", "quartiles"]
    body = markdown(head, (
        [
            row["update"], f"{row['ns_per_parameter']:.1f}",
            "-".join(f"{end:.1f}" for end in row["quartiles"]),
        ]
        for row in result["cost"]
    ))  # fmt: skip
    command = f"python -m benchmarks.bfloat16 cost --repeats {result['config']['repeats']}"
    return body + origin("bfloat16_cost.json", result["machine"], command)


@cli.program("bfloat16")
def main(argv: list[str] | None = None) -> None:
    """Parse the command line, measure, report."""
    args = parse_args(argv)
    dataset = data.load(args.dataset, args.data_dir) if "training" in args.parts else None
    examples = len(dataset.train_labels) if dataset else args.batch_size
    if args.batch_size > examples:
        raise cli.UsageError(f"--batch-size {args.batch_size}: must be from 1 to {examples}")
    out = cli.make_folder(args.out)
    console = Console()
    config = {name: value for name, value in vars(args).items() if name != "out"}
    about, results = {"config": config, "machine": machine.describe()}, dict[str, Any]()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for part in PARTS:
            if part not in args.parts:
                continue
            if part == "laws":
                results[part] = laws(args.chains, progress)
            elif part == "cost":
                results[part] = cost(args.repeats, progress)
            elif dataset:
                results[part] = train_all(
                    args.scale, dataset, args.epochs, args.batch_size, args.seeds, progress
                )
            files.write_json(out / "bfloat16.json", about | results)  # whatever comes after
    show(console, results)
    console.print(f"Wrote {out / 'bfloat16.json'}")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read and check the command line."""
    parser = cli.parser("bfloat16", __doc__)
    whole = cli.at_least_one
    parser.add_argument(
        "parts", nargs="*", default=list(PARTS), help=f"any of {' '.join(PARTS)} (default: all)"
    )
    parser.add_argument("--chains", type=whole, default=10_000, help="default %(default)s")
    parser.add_argument("--dataset", default="digits", help="digits (default) or cifar10")
    parser.add_argument("--data-dir", help="folder of cifar10: TensorFlow Datasets or parquet")
    parser.add_argument(
        "--scale", type=cli.positive, default=0.1,
        help="factors on the learning rates of benchmarks.compare (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--epochs", type=whole, default=30, help="default %(default)s")
    parser.add_argument("--batch-size", type=whole, default=32, help="default %(default)s")
    parser.add_argument("--seeds", type=whole, default=5, help="how many (default %(default)s)")
    parser.add_argument("--repeats", type=cli.at_least(2), default=9, help="timed updates of each")
    args = parser.parse_args(argv)
    cli.require_unique("parts", args.parts)
    for part in args.parts:
        if part not in PARTS:
            parser.error(f"no part {part!r}: choose from {', '.join(PARTS)}")
    return args


if __name__ == "__main__":
    sys.exit(main())
