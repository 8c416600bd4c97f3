"""What one update of the parameters costs: SGD, its noisy peers and diffopt, in one run.

    python -m benchmarks.step_cost [--trees lenet resnet18 transformer] [--json FILE]

The gradient is an input, so that nothing but the update is timed; buffers are donated; the
updates take turns, and each begins its turn with a step that is not timed. A tree of a billion
parameters is for a GPU: `--trees billion`.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import diffopt

LEARNING_RATE, TEMPERATURE = 1e-3, 1e-5


def lenet() -> dict[str, Any]:
    """Shapes of the article's CNN: 62,006 parameters in 10 leaves."""
    dense = {f"dense{i}": (a, b) for i, (a, b) in enumerate([(400, 120), (120, 84), (84, 10)])}
    kernels = {"conv1": (5, 5, 3, 6), "conv2": (5, 5, 6, 16)} | dense
    return {name: {"kernel": shape, "bias": shape[-1:]} for name, shape in kernels.items()}


def resnet18() -> dict[str, Any]:
    """Shapes of ResNet-18 for CIFAR-10: 11,173,962 parameters in 62 leaves."""
    kernels: dict[str, tuple[int, ...]] = {"stem": (3, 3, 3, 64)}
    width = 64
    for stage, out in enumerate([64, 128, 256, 512]):
        for block in range(2):
            name = f"stage{stage}_block{block}"
            kernels[f"{name}_conv1"] = (3, 3, width, out)
            kernels[f"{name}_conv2"] = (3, 3, out, out)
            if width != out:
                kernels[f"{name}_shortcut"] = (1, 1, width, out)
            width = out
    layers: dict[str, Any] = {
        name: {"kernel": shape, "scale": shape[-1:], "bias": shape[-1:]}
        for name, shape in kernels.items()
    }
    return layers | {"head": {"kernel": (512, 10), "bias": (10,)}}


def transformer(width: int = 768, layers: int = 12, vocabulary: int = 16_384) -> dict[str, Any]:
    """Shapes of a GPT-2-like transformer: 98.4 million parameters in 148 leaves."""
    norm = {"scale": (width,), "bias": (width,)}
    matrices = {"qkv": (1, 3), "out": (1, 1), "up": (1, 4), "down": (4, 1)}
    block = {"norm1": norm, "norm2": norm} | {
        name: {"kernel": (a * width, b * width), "bias": (b * width,)}
        for name, (a, b) in matrices.items()
    }
    tables = {"tokens": (vocabulary, width), "positions": (1024, width), "norm": norm}
    return tables | {f"block{i}": block for i in range(layers)}


TREES: dict[str, Callable[[], dict[str, Any]]] = {
    "lenet": lenet,
    "resnet18": resnet18,
    "transformer": transformer,
    "billion": lambda: transformer(width=2048, layers=19),
}


def is_shape(x: Any) -> bool:
    """Whether `x` is the shape of a leaf."""
    return isinstance(x, tuple)


def filled(shapes: Any, value: float, dtype: Any = jnp.float32) -> Any:
    """The arrays of a tree of shapes."""
    return jax.tree.map(lambda s: jnp.full(s, value, dtype), shapes, is_leaf=is_shape)


def jax_step(update: Callable, init: Callable, params: Any, grads: Any) -> Callable[[], float]:
    """A function that takes one step on the parameters, which it donates, and returns its seconds.

    Its first call compiles.
    """
    state = init(params)
    step = jax.jit(update, donate_argnums=(0, 1))
    jax.block_until_ready((params, state, grads))

    def run() -> float:
        nonlocal params, state
        start = time.perf_counter()
        params, state = jax.block_until_ready(step(params, state, grads))
        return time.perf_counter() - start

    return run


def from_optax(tx: optax.GradientTransformation) -> tuple[Callable, Callable]:
    """The update and the initial state of an Optax transformation."""

    def update(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return update, tx.init


def blackjax_sgld() -> tuple[Callable, Callable]:
    """The integrator that `blackjax.sgld` runs, at our temperature, without the gradient."""
    from blackjax.sgmcmc.diffusions import overdamped_langevin

    one_step = overdamped_langevin()

    def update(params: Any, key: jax.Array, grads: Any) -> tuple[Any, jax.Array]:
        key, subkey = jax.random.split(key)
        ascent = jax.tree.map(jnp.negative, grads)
        return one_step(subkey, params, ascent, LEARNING_RATE, TEMPERATURE), key

    return update, lambda params: jax.random.key(0)


def posteriors_step(shapes: Any) -> Callable[[], float]:
    """The in-place update of PyTorch's `posteriors.sgmcmc.sgld` on a gradient that is given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from posteriors.sgmcmc import sgld

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    flat = jax.tree.leaves(shapes, is_leaf=is_shape)
    grads = [torch.full(shape, 1e-2, device=device) for shape in flat]

    class LogPosterior(torch.autograd.Function):
        """A function whose gradient is `grads`, at no cost."""

        @staticmethod
        def forward(*params: Any) -> Any:
            return torch.zeros((), device=device)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, weight: Any) -> Any:
            return tuple(grads)

    def log_posterior(params: Any, batch: Any) -> Any:
        return LogPosterior.apply(*params.values()), torch.zeros(0)

    transform = sgld.build(log_posterior, lr=LEARNING_RATE, temperature=TEMPERATURE)
    state = transform.init({str(i): torch.zeros(s, device=device) for i, s in enumerate(flat)})

    def run() -> float:
        nonlocal state
        start = time.perf_counter()
        state, _ = transform.update(state, None, inplace=True)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return run


PEERS = ("optax.noisy_sgd", "blackjax.sgld", "posteriors.sgld")


Start = Callable[[], Callable[[], float]]


def contestants(shapes: Any) -> dict[str, Start]:
    """What is measured: a name, and a function that allocates it and returns its step."""
    lr, T = LEARNING_RATE, TEMPERATURE
    grads = filled(shapes, 1e-2)

    def optax_row(make: Callable[[], optax.GradientTransformation]) -> Start:
        return lambda: jax_step(*from_optax(make()), filled(shapes, 0.0), grads)

    chain = lambda: optax.chain(diffopt.langevin(T, learning_rate=lr), optax.sgd(lr))
    return {
        "optax.sgd": optax_row(lambda: optax.sgd(lr)),
        "optax.adam": optax_row(lambda: optax.adam(lr)),
        "optax.noisy_sgd": optax_row(lambda: optax.noisy_sgd(lr, key=0)),
        "blackjax.sgld": lambda: jax_step(*blackjax_sgld(), filled(shapes, 0.0), grads),
        "posteriors.sgld": lambda: posteriors_step(shapes),
        "diffopt.sgld gaussian": optax_row(lambda: diffopt.sgld(lr, T)),
        "diffopt.sgld gaussian16": optax_row(lambda: diffopt.sgld(lr, T, noise="gaussian16")),
        "diffopt.sgld rademacher": optax_row(lambda: diffopt.sgld(lr, T, noise="rademacher")),
        "chain(langevin, sgd)": optax_row(chain),
    }


def copy_step(size: int) -> Callable[[], float]:
    """A step that adds 1 in place to so many floats that it moves the bytes of an SGD update.

    SGD reads two floats a parameter and writes one, this reads one and writes one.
    """

    def add(x: jax.Array, state: Any, grads: Any) -> tuple[jax.Array, Any]:
        return x + 1, state

    return jax_step(add, lambda x: (), filled((3 * size // 2,), 0.0), ())


def measure(name: str, repeats: int, progress: Progress) -> tuple[list[dict], list[str]]:
    """Rows for the tree called `name`, and what could not be measured and why."""
    shapes = TREES[name]()
    leaves = jax.tree.leaves(shapes, is_leaf=is_shape)
    size = sum(int(jnp.prod(jnp.array(shape))) for shape in leaves)
    rows = contestants(shapes)
    task = progress.add_task(name, total=len(rows) + repeats)
    copy = copy_step(size)
    running: dict[str, Callable[[], float]] = {}
    first, missing = {}, []
    for row, start in rows.items():
        progress.update(task, description=f"{name}: first call of {row}")
        try:
            running[row] = start()
            first[row] = running[row]()
        except ImportError as error:
            missing.append(f"{row} is not measured: {error}")
        progress.advance(task)
    turns = running | {"copy": copy}
    times: dict[str, list[float]] = {row: [] for row in turns}
    inner = max(1, 2_000_000 // size)
    for _ in range(repeats):
        progress.update(task, description=f"{name}: steps")
        for row, step in turns.items():
            step()  # in the caches and the memory that the update before it has left
            times[row].append(statistics.median(step() for _ in range(inner)))
        progress.advance(task)
    progress.update(task, description=name)

    median = {row: statistics.median(t) for row, t in times.items()}
    copy_seconds = median.pop("copy")
    peers = [row for row in PEERS if row in median]
    peer = min(peers, key=median.__getitem__) if peers else None
    table = [
        {
            "tree": name,
            "leaves": len(leaves),
            "parameters": size,
            "optimizer": row,
            "ns_per_parameter": seconds / size * 1e9,
            "ratio_to_sgd": seconds / median["optax.sgd"],
            "fastest_peer": peer,
            "ratio_to_fastest_peer": seconds / median[peer] if peer else None,
            "fraction_of_copy_bandwidth": copy_seconds / seconds,
            "copy_bandwidth_gb_per_s": 12 * size / copy_seconds / 1e9,
            "first_call_ms": first[row] * 1e3,
            "step_ms_quartiles": [q * 1e3 for q in statistics.quantiles(times[row], n=4)],
        }
        for row, seconds in median.items()
    ]
    return table, missing


def machine() -> dict[str, Any]:
    """What ran this, and when."""
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), cpu)
    versions = {"python": platform.python_version(), "diffopt": diffopt.__version__}
    for package in ("jax", "jaxlib", "optax", "blackjax", "torch", "posteriors"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "versions": versions,
    }


def render(rows: list[dict]) -> Table:
    """The rows of one tree as a table."""
    tree = rows[0]
    title = f"{tree['tree']}: {tree['parameters']:,} parameters in {tree['leaves']} leaves"
    table = Table(title=title, caption=f"peer: {tree['fastest_peer']}")
    table.add_column("update", no_wrap=True)
    for column in ("ns/param", "× sgd", "× peer", "of copy", "first call"):
        table.add_column(column, justify="right")
    for row in rows:
        ratio = row["ratio_to_fastest_peer"]
        table.add_row(
            row["optimizer"],
            f"{row['ns_per_parameter']:.2f}",
            f"{row['ratio_to_sgd']:.1f}",
            "" if ratio is None else f"{ratio:.3f}",
            f"{row['fraction_of_copy_bandwidth']:.0%}",
            f"{row['first_call_ms']:,.0f} ms",
        )
    return table


def writable(text: str) -> Path:
    """The type of an argument that names a file to write, tried before the work begins."""
    path = Path(text)
    try:
        path.open("a").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path} cannot be written: {error.strerror}") from error
    return path


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_cost", description=__doc__)
    default = ["lenet", "resnet18", "transformer"]
    parser.add_argument("--trees", nargs="+", choices=list(TREES), default=default)
    parser.add_argument("--repeats", type=int, default=15, help="steps of each, in turn")
    parser.add_argument("--json", type=writable, help="write the figures to this file")
    args = parser.parse_args(argv)
    if args.repeats < 2:
        parser.error(f"--repeats must be at least 2, got {args.repeats}")

    console = Console()
    about, missing = machine(), list[str]()
    rows: list[list[dict]] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for name in args.trees:
            table, missed = measure(name, args.repeats, progress)
            rows.append(table)
            missing += [line for line in missed if line not in missing]
    for table in rows:
        console.print(render(table))
    for line in missing:
        console.print(line)
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    console.print(f"{about['date']}, {about['device']}, {about['cpu']}, {about['cores']} cores")
    console.print(versions)
    if args.json:
        config = {"trees": args.trees, "repeats": args.repeats}
        config |= {"learning_rate": LEARNING_RATE, "temperature": TEMPERATURE, "donated": True}
        report_json = {
            "config": config,
            "machine": about,
            "missing": missing,
            "rows": [row for table in rows for row in table],
        }
        args.json.write_text(json.dumps(report_json, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
