"""Time one training step of the article's network, with and without diffusion, against PyTorch.

Ours is `training.make_epoch` over images in memory: plain SGD, and SGD with `diffopt.langevin`.
PyTorch is the same network and SGD, once with the images in memory and once as in the article: a
shuffling DataLoader that converts and normalizes one image at a time in two worker processes.

The diffusion costs a few percent, and a machine's speed drifts by more. So its overhead comes from
short epochs with and without it that take turns: the median of the ratios of neighbours.
"""

import argparse
import importlib.util
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import optax
from flax import nnx

import diffopt

from .models import CNN
from .step_cost import writable
from .training import make_epoch

BATCH, LEARNING_RATE, DIFFUSION, WORKERS = 100, 0.01, 1 / 50_000, 2
PAIRED_STEPS = 10


def optimizers() -> dict[str, optax.GradientTransformation]:
    """SGD, and SGD with each noise before it."""
    sgd = optax.sgd(LEARNING_RATE)

    def with_noise(noise: str) -> optax.GradientTransformation:
        return optax.chain(
            diffopt.langevin(DIFFUSION, learning_rate=LEARNING_RATE, noise=noise), sgd
        )

    return {
        "diffopt, no diffusion": sgd,
        "diffopt, gaussian": with_noise("gaussian"),
        "diffopt, rademacher": with_noise("rademacher"),
    }


def ours(
    tx: optax.GradientTransformation, images: np.ndarray, labels: np.ndarray
) -> tuple[Callable[[], Any], float]:
    """A program that trains for one epoch, and the seconds that its first call took."""
    graphdef, params = nnx.split(CNN(images.shape[-1], rngs=nnx.Rngs(0)))
    epoch = make_epoch(graphdef, tx, BATCH)
    data = jax.device_put((images.astype(np.float32) / 127.5 - 1, labels))
    carry = params, tx.init(params)

    def run() -> None:
        nonlocal carry
        params, opt_state, losses = epoch(*carry, jax.random.key(0), *data)
        carry = params, opt_state
        losses.block_until_ready()

    start = time.perf_counter()
    run()
    return run, time.perf_counter() - start


class Dataset:
    """Images as torchvision's ToTensor and Normalize((0.5,) * 3, (0.5,) * 3) give them."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        """Keep uint8 images `[n, 32, 32, 3]` and their labels."""
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        """One image `[3, 32, 32]` between -1 and 1, and its label."""
        import torch

        image = torch.from_numpy(self.images[i]).permute(2, 0, 1).contiguous().float().div(255)
        half = torch.full((3, 1, 1), 0.5)
        return image.sub_(half).div_(half), int(self.labels[i])


def torch_programs(images: np.ndarray, labels: np.ndarray, device: str) -> dict[str, Callable]:
    """The two PyTorch programs, each a function that trains for one epoch."""
    import torch
    from torch import nn

    def make_step() -> Callable[[Any, Any], None]:
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
        ).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)

        def step(x: Any, y: Any) -> None:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            loss.item()

        return step

    in_memory, from_loader = make_step(), make_step()
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()
    x, y = x.to(device), torch.from_numpy(labels).long().to(device)
    loader: Any = torch.utils.data.DataLoader(
        Dataset(images, labels),  # type: ignore[arg-type]
        BATCH,
        shuffle=True,
        num_workers=WORKERS,
        multiprocessing_context="forkserver",  # forking a process that runs JAX can hang
        persistent_workers=True,
    )

    def memory_epoch() -> None:
        for index in torch.randperm(len(x), device=device).split(BATCH):
            in_memory(x[index], y[index])

    def loader_epoch() -> None:
        for batch, target in loader:
            from_loader(batch.to(device), target.to(device))

    return {"torch, in memory": memory_epoch, "torch, DataLoader": loader_epoch}


def interleave(programs: dict[str, Callable], rounds: int, steps: int) -> dict[str, Any]:
    """Median, quartiles and minimum of the milliseconds of one step of each program."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for i in range(rounds):
        for name, run in programs.items():
            print(f"\rround {i + 1} of {rounds}: {name:24}", end="", file=sys.stderr, flush=True)
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start) / steps)
    print(f"\r{'':50}\r", end="", file=sys.stderr)
    rows = {}
    for name, ms in times.items():
        low, median, high = statistics.quantiles(ms, n=4, method="inclusive")
        rows[name] = {"median_ms": median, "quartiles_ms": [low, high], "min_ms": min(ms)}
    return rows


def compare(one: Callable, two: Callable, pairs: int) -> dict[str, Any]:
    """The time of `two` over that of `one`: median, its standard error, quartiles.

    Each ratio is of two runs that follow each other, in either order by turns. The standard error
    is that of the median of a normal sample with these quartiles, √(π/2) σ / √pairs.
    """

    def seconds(run: Callable) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    ratios = []
    for i in range(pairs):
        print(f"\rpair {i + 1} of {pairs}", end="", file=sys.stderr, flush=True)
        if i % 2:
            above, below = seconds(two), seconds(one)
        else:
            below, above = seconds(one), seconds(two)
        ratios.append(above / below)
    print(f"\r{'':50}\r", end="", file=sys.stderr)
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    sigma = (high - low) / 1.349
    error = math.sqrt(math.pi / 2 / pairs) * sigma
    return {"median": median, "standard_error": error, "quartiles": [low, high], "pairs": pairs}


def report(
    rows: dict[str, Any],
    overhead: dict[str, Any],
    first_call: dict[str, float],
    rounds: int,
    steps: int,
) -> dict:
    """Everything that goes into the JSON file; ratios to PyTorch are of medians, with diffusion."""
    import torch

    def ratio(over: str, under: str) -> float:
        return rows[over]["median_ms"] / rows[under]["median_ms"]

    return {
        "ratio_to_torch_in_memory": ratio("diffopt, gaussian", "torch, in memory"),
        "ratio_to_torch_dataloader": ratio("diffopt, gaussian", "torch, DataLoader"),
        "diffusion_overhead": overhead["diffopt, gaussian"]["median"],
        "overhead": overhead,
        "step": rows,
        "first_call_s": first_call,
        "config": {
            "batch": BATCH, "learning_rate": LEARNING_RATE, "diffusion": DIFFUSION,
            "loader_workers": WORKERS, "steps": steps, "rounds": rounds,
            "steps_of_a_paired_epoch": min(steps, PAIRED_STEPS),
        },
        "versions": {"python": platform.python_version(), "jax": jax.__version__,
                     "flax": flax.__version__, "optax": optax.__version__,
                     "torch": torch.__version__},
        "machine": {"device": jax.devices()[0].device_kind, "processor": processor(),
                    "torch_threads": torch.get_num_threads(), "cores": cores()},
    }  # fmt: skip


def cores() -> int:
    """CPU cores that this process may use: both libraries start that many threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The model name of the CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, write the JSON file; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_cost", description=__doc__)
    parser.add_argument("--json", type=writable, metavar="FILE", help="also write the figures here")
    parser.add_argument("--steps", type=int, default=60, help="steps an epoch (default 60)")
    parser.add_argument("--rounds", type=int, default=15, help="epochs of each (default 15)")
    parser.add_argument("--pairs", type=int, default=100, help="ratios to an epoch without noise")
    args = parser.parse_args(argv)
    if args.steps < 1 or args.rounds < 2 or args.pairs < 2:
        parser.error("--steps must be at least 1, --rounds and --pairs at least 2")
    if importlib.util.find_spec("torch") is None:
        print("train_cost compares with PyTorch: pip install torch==2.13.0", file=sys.stderr)
        return 2
    import torch

    on_gpu = jax.default_backend() == "gpu"
    if on_gpu and not torch.cuda.is_available():
        print("JAX has a GPU and this PyTorch has none: set JAX_PLATFORMS=cpu", file=sys.stderr)
        return 2
    torch.set_num_threads(cores())
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (args.steps * BATCH, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, len(images), np.int32)

    programs, first_call = {}, {}
    for name, tx in optimizers().items():
        programs[name], first_call[name] = ours(tx, images, labels)
    programs |= torch_programs(images, labels, "cuda" if on_gpu else "cpu")
    for run in programs.values():  # worker processes start here
        run()
    rows = interleave(programs, args.rounds, args.steps)
    few = images[: PAIRED_STEPS * BATCH], labels[: PAIRED_STEPS * BATCH]
    without, *withs = [(name, ours(tx, *few)[0]) for name, tx in optimizers().items()]
    overhead = {name: compare(without[1], run, args.pairs) for name, run in withs}

    result = report(rows, overhead, first_call, args.rounds, args.steps)
    print(f"{'one step, batch 100':24}{'median':>9}{'quartiles':>17}{'first call':>12}")
    for name, row in rows.items():
        low, high = row["quartiles_ms"]
        first = f"{first_call[name]:.1f} s" if name in first_call else ""
        print(f"{name:24}{row['median_ms']:6.2f} ms{low:8.2f}-{high:5.2f} ms{first:>12}")
    for name in ("ratio_to_torch_in_memory", "ratio_to_torch_dataloader"):
        print(f"{name:28}{result[name]:.3f}")
    for name, row in overhead.items():
        median, error = row["median"], row["standard_error"]
        print(f"{name} over without: {median:.3f} ± {error:.3f} ({args.pairs} pairs)")
    print(*(f"{k} {v}" for k, v in (result["versions"] | result["machine"]).items()), sep=", ")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
