"""Map where the noise pays: the article's CNN over batch size, step size and temperature.

    python -m benchmarks.noise_map --data-dir DIR     # CIFAR-10: hours on a CPU
    python -m benchmarks.noise_map --quick            # digits: a minute, to see that it works

Each run trains the network with weight decay 5e-4 and records the last iterate, and the average
of the predictions after each epoch of the second half (of a cyclical sampler: after each epoch
that samples). T = 0 is the optimizer without noise; the kinetic temperature says how hot the
minibatches make it. Finished runs are kept in `noise_map.jsonl`, one a line, and not run again;
with `--part 1/2` and `--part 2/2` two processes share the work, best with a core each.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.progress import track
from rich.table import Table

import diffopt

from . import data
from .compare import at_least_one, versions
from .models import CNN
from .training import make_epoch, predict, scores

WEIGHT_DECAY, CYCLES, EXPLORE = 5e-4, 4, 0.8
MICROBATCH = 100  # gradients of a larger batch are accumulated, so that each part stays in cache
TEMPERATURES = (0.0, 1 / 200_000, 1 / 50_000)


class Setting(NamedTuple):
    """One place of the map."""

    sampler: str
    batch_size: int
    step_size: float
    temperature: float
    epochs: int


# What the map holds: sampler, batch size, step size (of a cycle: its peak), temperatures, epochs.
MAP: tuple[tuple[str, int, float, tuple[float, ...], int], ...] = (
    ("sghmc", 2000, 0.1, TEMPERATURES, 60),
    ("sghmc", 100, 0.03, TEMPERATURES, 30),
    ("sghmc", 100, 0.01, TEMPERATURES, 30),
    ("cyclical sghmc", 2000, 0.2, TEMPERATURES[::2], 60),
    ("sghmc", 2000, 0.03, TEMPERATURES[::2], 60),
    ("psgld", 2000, 0.001, TEMPERATURES[::2], 60),
)
QUICK = (
    ("sghmc", 200, 0.03, TEMPERATURES[:2], 4),
    ("cyclical sghmc", 100, 0.03, TEMPERATURES[1:2], 20),
)


def transformation(setting: Setting, seed: int, epoch_steps: int) -> optax.GradientTransformation:
    """The setting's sampler with its prior."""
    eta, T = setting.step_size, setting.temperature
    key = jax.random.fold_in(jax.random.key(seed), 0)
    cycle = setting.epochs * epoch_steps // CYCLES
    stage = diffopt.sampling_stage(cycle, EXPLORE)
    tx = {
        "sghmc": lambda: diffopt.sghmc(eta, T, key=key),
        "psgld": lambda: diffopt.psgld(eta, T, key=key),
        "cyclical sghmc": lambda: diffopt.sghmc(
            diffopt.cyclical_schedule(eta, cycle), lambda t: T * stage(t), key=key
        ),
    }[setting.sampler]()
    return optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), tx)


def sampled(setting: Setting, epoch: int) -> bool:
    """Whether the average takes the prediction made after `epoch`, counted from 1."""
    if setting.sampler != "cyclical sghmc":
        return epoch > setting.epochs // 2
    length = setting.epochs // CYCLES
    return bool(diffopt.sampling_stage(length, EXPLORE)((epoch - 1) % length))


def train(setting: Setting, seed: int, dataset: data.Data, epochs: Iterable[int]) -> dict[str, Any]:
    """Train at one place of the map for the `epochs`, 1, 2, ..."""
    size = min(setting.batch_size, MICROBATCH)
    accumulated = setting.batch_size // size
    tx = transformation(setting, seed, len(dataset.train_labels) // setting.batch_size)
    tx = optax.MultiSteps(tx, accumulated).gradient_transformation()
    graphdef, params = nnx.split(CNN(dataset.train_images.shape[-1], rngs=nnx.Rngs(seed)))
    run_epoch, opt_state = make_epoch(graphdef, tx, size), tx.init(params)
    train_set = dataset.train_images, dataset.train_labels

    kept: list[jax.Array] = []
    kinetic: list[float] = []
    for epoch in epochs:
        params, opt_state, _ = run_epoch(
            params, opt_state, jax.random.fold_in(jax.random.key(seed), epoch), *train_set
        )
        if sampled(setting, epoch):
            kept.append(predict(graphdef, params, dataset.test_images))
            if setting.sampler == "sghmc":  # in a cycle the velocity lags behind the step size
                kinetic.append(float(diffopt.kinetic_temperature(opt_state).overall))
    sums = np.cumsum(np.asarray(kept)[::-1], axis=0)
    numbers = [n for n in (1, 2, 4, 8, 16, 32) if n < len(kept)] + [len(kept)]
    averages = {n: scores(jax.numpy.asarray(sums[n - 1] / n), dataset.test_labels) for n in numbers}
    last = predict(graphdef, params, dataset.test_images)
    return {
        **setting._asdict(),
        "seed": seed,
        "train": scores(predict(graphdef, params, train_set[0]), train_set[1]),
        "last": scores(last, dataset.test_labels),
        "average": averages[len(kept)],
        "averages_of_the_last": averages,
        "kinetic_temperature": float(np.mean(kinetic)) if kinetic else None,
        "versions": versions(),
    }


def read(path: Path) -> dict[tuple[Setting, int], dict[str, Any]]:
    """The finished runs, by setting and seed; a line that a kill cut off counts as none."""
    records = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return {(Setting(*(r[f] for f in Setting._fields)), r["seed"]): r for r in records}


def temperature_name(T: float) -> str:
    """`0`, or as a fraction: `1/50,000`."""
    return f"1/{1 / T:,.0f}" if T else "0"


def mean_spread(records: list[dict[str, Any]], part: str, score: str) -> tuple[float, float]:
    """Mean and standard deviation of a score over the seeds."""
    values = [record[part][score] for record in records]
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def by_setting(records: list[dict[str, Any]]) -> dict[Setting, list[dict[str, Any]]]:
    """The records of each setting, one a seed, in the order of the map."""
    settings: dict[Setting, list[dict[str, Any]]] = {}
    for r in records:
        settings.setdefault(Setting(*(r[field] for field in Setting._fields)), []).append(r)
    return settings


def show(console: Console, records: list[dict[str, Any]]) -> None:
    """The map as a table."""
    table = Table(title="last iterate, and average of predictions", title_justify="left")
    scored = [(p, s) for p in ("last", "average") for s in ("accuracy", "nll", "ece")]
    columns = ("batch", "step", "T", "kinetic T", "train, %")
    table.add_column("sampler")
    for column in (*columns, "last, %", "NLL", "ECE, %", "average, %", "NLL", "ECE, %"):
        table.add_column(column, justify="right")

    def cell(runs: list[dict[str, Any]], part: str, score: str) -> str:
        scale, digits = (1, 3) if score == "nll" else (100, 1)
        mean, spread = mean_spread(runs, part, score)
        plus_minus = f" ± {scale * spread:.{digits}f}" if len(runs) > 1 else ""
        return f"{scale * mean:.{digits}f}{plus_minus}"

    def kinetic(runs: list[dict[str, Any]]) -> str:
        found = [r["kinetic_temperature"] for r in runs]
        return temperature_name(float(np.mean(found))) if all(found) else ""

    for setting, runs in by_setting(records).items():
        table.add_row(
            setting.sampler,
            f"{setting.batch_size:,}",
            f"{setting.step_size:g}",
            temperature_name(setting.temperature),
            kinetic(runs),
            cell(runs, "train", "accuracy"),
            *(cell(runs, part, score) for part, score in scored),
        )
    console.print(table)


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Accuracy and NLL against temperature, a column for each batch size."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    settings = by_setting(records)
    batch_sizes = sorted({setting.batch_size for setting in settings})
    temperatures = sorted({setting.temperature for setting in settings})
    curves = sorted({(setting.sampler, setting.step_size) for setting in settings})
    fig, axes = plt.subplots(
        2, len(batch_sizes), figsize=(5.2 * len(batch_sizes), 7), layout="constrained",
        sharex=True, sharey="row", squeeze=False,
    )  # fmt: skip
    for column, batch_size in enumerate(batch_sizes):
        for number, (sampler, step_size) in enumerate(curves):
            points = sorted(
                (temperatures.index(setting.temperature), runs)
                for setting, runs in settings.items()
                if setting[:3] == (sampler, batch_size, step_size)
            )
            for ax, score, scale in zip(
                axes[:, column], ("accuracy", "nll"), (100, 1), strict=True
            ):
                for part, line in (("average", "-"), ("last", ":")):
                    stats = [mean_spread(runs, part, score) for _, runs in points]
                    ax.errorbar(
                        [x for x, _ in points], [scale * mean for mean, _ in stats],
                        [scale * spread for _, spread in stats], fmt=f"o{line}", markersize=4,
                        color=f"C{number}",
                        label=f"{sampler}, step {step_size:g}" if points and line == "-" else None,
                    )  # fmt: skip
        axes[0, column].set_title(f"batch {batch_size:,}")
        axes[0, column].legend(frameon=False, fontsize=9)
        axes[1, column].set_xticks(range(len(temperatures)), map(temperature_name, temperatures))
        axes[1, column].set_xlabel("temperature")
    axes[0, 0].set_ylabel("test accuracy, %")
    axes[1, 0].set_ylabel("test NLL, nats")
    fig.suptitle("solid: average of predictions; dotted: last iterate")
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="#eceef2")
    fig.savefig(path, dpi=130)
    plt.close(fig)


def main() -> int:
    """Parse the command line, train what is missing, show the map."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.noise_map", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--data-dir", help="TensorFlow Datasets folder that holds cifar10")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/noise_map"), help="default %(default)s"
    )
    parser.add_argument("--seeds", type=at_least_one, default=1, help="how many (default 1)")
    parser.add_argument("--part", type=part, default=(1, 1), metavar="I/N", help="default 1/1")
    parser.add_argument("--quick", action="store_true", help="a small map of digits")
    args = parser.parse_args()
    path = args.out / "noise_map.jsonl"
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        parser.error(f"--out {args.out} cannot be written: {error.strerror}")
    try:
        dataset = data.load("digits" if args.quick else "cifar10", args.data_dir)
    except data.DataError as error:
        parser.error(str(error))

    console = Console()
    cells = [
        (Setting(sampler, batch_size, step_size, T, epochs), seed)
        for seed in range(args.seeds)
        for sampler, batch_size, step_size, temperatures, epochs in (QUICK if args.quick else MAP)
        for T in temperatures
    ]
    number, parts = args.part
    for setting, seed in cells[number - 1 :: parts]:
        if (setting, seed) in read(path):
            continue
        title = ", ".join(f"{field} {value}" for field, value in setting._asdict().items())
        epochs = track(range(1, setting.epochs + 1), title, console=console)
        record = train(setting, seed, dataset, epochs)
        whole = path.read_text()[-1:] in ("", "\n")
        with path.open("a") as file:
            file.write(("" if whole else "\n") + json.dumps(record) + "\n")
    finished = read(path)
    records = [finished[cell] for cell in cells if cell in finished]
    show(console, records)
    draw(records, args.out / "noise_map.png")
    console.print(f"Wrote {path}, {args.out / 'noise_map.png'}")
    return 0


def part(text: str) -> tuple[int, int]:
    """`I/N`, the I-th of N parts, counted from 1."""
    number, _, parts = text.partition("/")
    if not (number.isdigit() and parts.isdigit() and 1 <= int(number) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N")
    return int(number), int(parts)


if __name__ == "__main__":
    sys.exit(main())
