"""Time one training step of the article's network, with and without diffusion, against PyTorch.

In JAX, `training.train` runs over images in memory: plain SGD, and SGD with `diffopt.langevin`. In
PyTorch, the same network and SGD run twice: with the images in memory, and as in the article, with
a shuffling DataLoader that converts and normalizes one image at a time in two worker processes.

The diffusion costs a few percent, and a machine's speed drifts by more. So short epochs with and
without the diffusion take turns, and its overhead is the median ratio of neighbours.
"""

import importlib.util
import itertools
import statistics
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from rich.console import Console
from rich.progress import Progress

import diffopt

from .lib import cli, files, machine, models, timing, training
from .lib.tables import Tables, load, markdown, origin

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
        "diffopt, gaussian16": with_noise("gaussian16"),
        "diffopt, rademacher": with_noise("rademacher"),
    }


def diffopt_run(
    tx: optax.GradientTransformation, images: np.ndarray, labels: np.ndarray
) -> timing.Run:
    """A run of one epoch of training; the first one compiles."""
    graphdef, params = models.init_cnn(images.shape[-1], 0)
    train_set = jax.device_put((images.astype(np.float32) / 127.5 - 1, labels))
    epochs = training.train(
        training.make_epoch(graphdef, tx, BATCH),
        params,
        tx.init(params),
        jax.random.key(0),
        train_set,
        itertools.count(1),
    )
    return lambda: next(epochs).seconds


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


def torch_runs(images: np.ndarray, labels: np.ndarray, device: str) -> dict[str, timing.Run]:
    """Runs of one epoch of the two PyTorch programs."""
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

    return {
        "torch, in memory": timing.make_run(memory_epoch),
        "torch, DataLoader": timing.make_run(loader_epoch),
    }


def report(
    times: dict[str, list[float]],
    overhead: dict[str, Any],
    first_call: dict[str, float],
    rounds: int,
    steps: int,
) -> dict[str, Any]:
    """Everything that goes into the JSON file; ratios to PyTorch are of medians, with diffusion.

    `times` are the seconds of epochs of `steps` steps.
    """
    import torch

    rows: dict[str, dict[str, Any]] = {}
    for name, seconds in times.items():
        ms = [1e3 * each / steps for each in seconds]
        rows[name] = {
            "median_ms": statistics.median(ms),
            "quartiles_ms": timing.quartiles(ms),
            "min_ms": min(ms),
        }

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
            "batch": BATCH,
            "learning_rate": LEARNING_RATE,
            "diffusion": DIFFUSION,
            "loader_workers": WORKERS,
            "steps": steps,
            "rounds": rounds,
            "steps_of_a_paired_epoch": min(steps, PAIRED_STEPS),
        },
        "machine": machine.describe() | {"torch_threads": torch.get_num_threads()},
    }


def tables() -> Tables:
    """A training step, by program."""
    return {
        "train_cost": step_table,
    }


def step_table() -> str:
    """One training step of the article's network, by program."""
    result = load("train_cost.json")
    quartiles = lambda step: "-".join(f"{end:.1f}" for end in step["quartiles_ms"])
    rows = (
        [name, f"{step['median_ms']:.1f}", quartiles(step)] for name, step in result["step"].items()
    )
    shares = "; ".join(
        f"{name.split(', ')[1]} noise {share['median']:.3f} ± {share['standard_error']:.3f}"
        for name, share in result["overhead"].items()
    )
    body = markdown(["program", "ms per step, median", "quartiles"], rows)
    below = origin("train_cost.json", result["machine"], "python -m benchmarks.train_cost")
    return f"{body}{below} A step with noise over one without, in paired epochs: {shares}."


@cli.program("train_cost")
def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, write the JSON file."""
    parser = cli.parser("train_cost", __doc__, out=False)
    parser.add_argument(
        "--json", type=cli.writable, metavar="FILE", help="also write the figures here"
    )
    parser.add_argument(
        "--steps", type=cli.at_least_one, default=60, help="steps per epoch (default 60)"
    )
    parser.add_argument(
        "--rounds", type=cli.at_least(2), default=15, help="epochs of each program (default 15)"
    )
    parser.add_argument(
        "--pairs", type=cli.at_least(2), default=100, help="pairs of epochs with and without noise"
    )
    args = parser.parse_args(argv)
    if importlib.util.find_spec("torch") is None:
        raise cli.UsageError("the comparison is with PyTorch: pip install torch==2.13.0")
    import torch

    on_gpu = jax.default_backend() == "gpu"
    if on_gpu and not torch.cuda.is_available():
        raise cli.UsageError("JAX has a GPU and this PyTorch has none: set JAX_PLATFORMS=cpu")
    torch.set_num_threads(machine.cores())
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (args.steps * BATCH, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, len(images), np.int32)

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("first calls", total=args.rounds + 2 * args.pairs)
        advance = lambda: progress.advance(task)
        runs = {name: diffopt_run(tx, images, labels) for name, tx in optimizers().items()}
        first_call = {name: run() for name, run in runs.items()}
        runs |= torch_runs(images, labels, "cuda" if on_gpu else "cpu")
        for run in runs.values():  # worker processes start here
            run()
        progress.update(task, description="epochs in turn")
        times = timing.time_in_turn(runs, args.rounds, done=advance)
        progress.update(task, description="pairs")
        few = images[: PAIRED_STEPS * BATCH], labels[: PAIRED_STEPS * BATCH]
        paired = {name: diffopt_run(tx, *few) for name, tx in optimizers().items()}
        for run in paired.values():
            run()
        without, *withs = paired
        overhead = {
            name: timing.compare_times(paired[without], paired[name], args.pairs, advance)
            for name in withs
        }

    result = report(times, overhead, first_call, args.rounds, args.steps)
    print(f"{'one step, batch 100':24}{'median':>9}{'quartiles':>17}{'first call':>12}")
    for name, row in result["step"].items():
        low, high = row["quartiles_ms"]
        first = f"{first_call[name]:.1f} s" if name in first_call else ""
        print(f"{name:24}{row['median_ms']:6.2f} ms{low:8.2f}-{high:5.2f} ms{first:>12}")
    for name in ("ratio_to_torch_in_memory", "ratio_to_torch_dataloader"):
        print(f"{name:28}{result[name]:.3f}")
    for name, row in overhead.items():
        median, error = row["median"], row["standard_error"]
        print(f"{name} over without: {median:.3f} ± {error:.3f} ({args.pairs} pairs)")
    print(machine.line(result["machine"]))
    if args.json:
        files.write_json(args.json, result)


if __name__ == "__main__":
    sys.exit(main())
