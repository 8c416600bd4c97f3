"""What becomes of a diffusion and of a network whose parameters are bfloat16.

    python -m benchmarks.low_precision [laws training cost] [--json FILE]

Each element of a vector is a chain of its own. Beside float32, parameters are rounded to nearest,
as JAX does; rounded at random, with the right mean; or wrapped in `diffopt.low_precision`.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import diffopt

from . import data
from .models import CNN
from .step_cost import filled, from_optax, is_shape, jax_step, machine, resnet18, writable
from .training import make_epoch, predict, scores

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
    x = params.astype(jnp.float32) - 1
    if method == "low_precision":
        spacing = jnp.where(x < 0, SPACING / 2, SPACING)  # of numbers from 1/2 to 2
        x += state.residual * spacing / 2**14
    return jnp.mean(x**2)


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


def trainer(
    optimizer: str, precision: str, scale: float, dataset: data.Data, epochs: int, batch_size: int
) -> Callable[[int], dict[str, float]]:
    """Compile an epoch of the CNN; return the function from a seed to the scores at the end.

    Parameters, images and gradients have the dtype of `precision`. Predictions are made in float32.
    """
    dtype, wrap = PRECISIONS[precision]

    def start(seed: int) -> tuple[Any, Any, optax.GradientTransformation, jax.Array]:
        key = jax.random.key(seed)
        graphdef, params = nnx.split(CNN(dataset.train_images.shape[-1], rngs=nnx.Rngs(seed)))
        params = jax.tree.map(lambda p: p.astype(dtype), params)
        return graphdef, params, wrap(OPTIMIZERS[optimizer](scale, jax.random.fold_in(key, 0))), key

    graphdef, _, tx, _ = start(0)
    epoch = make_epoch(graphdef, tx, batch_size)
    images = dataset.train_images.astype(dtype)

    def run(seed: int) -> dict[str, float]:
        _, params, tx, key = start(seed)
        opt_state = tx.init(params)
        total = jnp.zeros(())
        for number in range(1, epochs + 1):
            params, opt_state, _ = epoch(
                params, opt_state, jax.random.fold_in(key, number), images, dataset.train_labels
            )
            if number > epochs // 2:
                probs = predict(graphdef, params, dataset.test_images)
                total += probs
        last = scores(probs, dataset.test_labels)
        average = scores(total / (epochs - epochs // 2), dataset.test_labels)
        return {
            "accuracy": last["accuracy"],
            "nll": last["nll"],
            "average_accuracy": average["accuracy"],
            "average_nll": average["nll"],
        }

    return run


def training(
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
            run = trainer(optimizer, precision, scale, dataset, epochs, batch_size)
            runs = []
            for seed in range(seeds):
                runs.append(run(seed))
                progress.advance(bar)
            rows.append({"optimizer": optimizer, "precision": precision, "runs": runs})
    return rows


def cost(repeats: int, progress: Progress) -> list[dict[str, Any]]:
    """Nanoseconds a parameter of one update of a ResNet-18 tree, medians of steps in turn."""
    shapes = resnet18()
    size = sum(int(np.prod(s)) for s in jax.tree.leaves(shapes, is_leaf=is_shape))
    sgld = diffopt.sgld(1e-3, 1e-5)
    contestants = {
        "sgld, float32": (jnp.float32, sgld),
        "sgld, bfloat16": (jnp.bfloat16, sgld),
        "low_precision(sgld), bfloat16": (jnp.bfloat16, diffopt.low_precision(sgld)),
    }

    bar = progress.add_task("cost", total=repeats)
    steps = {
        name: jax_step(*from_optax(tx), filled(shapes, 1.0, dtype), filled(shapes, 1e-2, dtype))
        for name, (dtype, tx) in contestants.items()
    }
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            times[name].append(step() / size * 1e9)
        progress.advance(bar)
    return [
        {"update": name, "ns_per_parameter": statistics.median(t), "quartiles": quartiles(t)}
        for name, t in times.items()
    ]


def quartiles(values: list[float]) -> list[float]:
    """The first and the third."""
    first, _, third = statistics.quantiles(values, n=4)
    return [first, third]


def show(console: Console, found: dict[str, Any]) -> None:
    """The results as tables."""
    if "laws" in found:
        table = Table("law", *METHODS, title="variance over the exact one")
        for row in found["laws"]:
            what = "noise per step / spacing" if row["law"] == "free" else "well, ηk"
            ratios = [f"{row[method]:.3f}" for method in METHODS]
            table.add_row(f"{what} {row['size']:.2g}", *ratios)
        console.print(table)
    if "training" in found:
        columns = {
            "accuracy, %": lambda r: 100 * r["accuracy"],
            "NLL": lambda r: r["nll"],
            "average, %": lambda r: 100 * r["average_accuracy"],
            "average NLL": lambda r: r["average_nll"],
        }
        table = Table("optimizer", "precision", *columns, title="mean ± standard deviation")
        for row in found["training"]:
            cells = []
            for column, value in columns.items():
                values = [value(r) for r in row["runs"]]
                spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
                digits = 1 if "%" in column else 3
                cells.append(f"{np.mean(values):.{digits}f} ± {spread:.{digits}f}")
            table.add_row(row["optimizer"], row["precision"], *cells)
        console.print(table)
    if "cost" in found:
        table = Table("update", "ns per parameter", "quartiles", title="one update, ResNet-18")
        for row in found["cost"]:
            low, high = row["quartiles"]
            table.add_row(row["update"], f"{row['ns_per_parameter']:.2f}", f"{low:.2f}-{high:.2f}")
        console.print(table)


def main() -> int:
    """Parse the command line, measure, report."""
    args = parse_args()
    console = Console()
    found: dict[str, Any] = {}
    try:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            if "laws" in args.parts:
                found["laws"] = laws(args.chains, progress)
            if "training" in args.parts:
                dataset = data.load(args.dataset, args.data_dir)
                found["training"] = training(
                    args.scale, dataset, args.epochs, args.batch_size, args.seeds, progress
                )
            if "cost" in args.parts:
                found["cost"] = cost(args.repeats, progress)
    except data.DataError as error:
        return fail(str(error))
    show(console, found)
    if args.json:
        config = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        result = {"config": config, "machine": machine(), **found}
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def parse_args() -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.low_precision", description=(__doc__ or "").splitlines()[0]
    )
    parts = ("laws", "training", "cost")
    parser.add_argument(
        "parts", nargs="*", default=list(parts), help=f"any of {' '.join(parts)} (default: all)"
    )
    parser.add_argument("--chains", type=int, default=10_000, help="default %(default)s")
    parser.add_argument("--dataset", default="digits", help="digits (default) or cifar10")
    parser.add_argument("--data-dir", help="TensorFlow Datasets folder that holds cifar10")
    parser.add_argument(
        "--scale", type=float, default=0.1,
        help="of the learning rates, those of benchmarks.compare being 1 (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--epochs", type=int, default=30, help="default %(default)s")
    parser.add_argument("--batch-size", type=int, default=32, help="default %(default)s")
    parser.add_argument("--seeds", type=int, default=5, help="how many (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="timed updates of each")
    parser.add_argument("--json", type=writable, help="also write the figures to this file")
    args = parser.parse_args()
    for part in args.parts:
        if part not in parts:
            parser.error(f"no part {part!r}: choose from {', '.join(parts)}")
    if not 0 < args.scale < float("inf"):
        parser.error("--scale must be above 0 and finite")
    for name, least in (
        ("chains", 1), ("epochs", 1), ("batch_size", 1), ("seeds", 1), ("repeats", 2)
    ):  # fmt: skip
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}")
    return args


def fail(sentence: str) -> int:
    """Say what is wrong; the exit status."""
    print(f"low_precision: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
