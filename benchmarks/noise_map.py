"""Where noise helps: the article's CNN over batch size, step size and temperature.

    python -m benchmarks.noise_map --data-dir DIR     # CIFAR-10: hours on a CPU
    python -m benchmarks.noise_map --quick            # digits: a minute, to see that it works

Each run trains the network with weight decay 5e-4. It records the last iterate, and the average of
the predictions after each epoch of the second half (for a cyclical sampler: after each epoch that
samples). T = 0 is the optimizer without noise; its kinetic temperature shows how hot the
minibatches make it. Finished runs are kept in `noise_map.jsonl`, one per line, and are not run
again. With `--part 1/2` and `--part 2/2` two processes share the work; give each its own core.

The claim `tuning` of `benchmarks.compare` asks how much of a grid of step sizes and weight decays
is good at one temperature and with wrong labels. This program varies temperature, batch and sampler
with clean labels, and measures the real temperature. It suggests where to look and tests nothing.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from rich.console import Console
from rich.progress import track
from rich.table import Table

import diffopt

from .lib import cli, data, machine, models, plots, training
from .lib.plots import plt
from .lib.scores import evaluate, mean_and_deviation, plus_minus
from .lib.tables import Tables, load, markdown

WEIGHT_DECAY, CYCLES, EXPLORE = 5e-4, 4, 0.8
MICROBATCH = 100  # gradients of a larger batch are accumulated, so that each part stays in cache
TEMPERATURES = (0.0, 1 / 200_000, 1 / 50_000)


class Place(NamedTuple):
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


def transformation(place: Place, seed: int, epoch_steps: int) -> optax.GradientTransformation:
    """The sampler of a place with its prior."""
    eta, T = place.step_size, place.temperature
    key = jax.random.fold_in(jax.random.key(seed), 0)
    if place.sampler == "cyclical sghmc":
        cycle = place.epochs * epoch_steps // CYCLES
        stage = diffopt.sampling_stage(cycle, EXPLORE)
        schedule = diffopt.cyclical_schedule(eta, cycle)
        tx = diffopt.sghmc(schedule, lambda t: T * stage(t), key=key)
    elif place.sampler == "sghmc":
        tx = diffopt.sghmc(eta, T, key=key)
    else:
        tx = diffopt.psgld(eta, T, key=key)
    return optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), tx)


def is_averaged(place: Place, epoch: int) -> bool:
    """Whether the average takes the prediction made after `epoch`, counted from 1."""
    if place.sampler != "cyclical sghmc":
        return epoch in training.second_half(place.epochs)
    length = place.epochs // CYCLES
    return bool(diffopt.sampling_stage(length, EXPLORE)((epoch - 1) % length))


def train(place: Place, seed: int, dataset: data.Data, numbers: Iterable[int]) -> dict[str, Any]:
    """Train at one place of the map for the epochs `numbers`, 1, 2, ..."""
    size = min(place.batch_size, MICROBATCH)
    accumulated = place.batch_size // size
    tx = transformation(place, seed, len(dataset.train_labels) // place.batch_size)
    tx = optax.MultiSteps(tx, accumulated).gradient_transformation()
    graphdef, params = models.init_cnn(dataset.train_images.shape[-1], seed)
    train_set = dataset.train_images, dataset.train_labels

    kept: list[np.ndarray] = []
    kinetic: list[float] = []
    epochs = training.train(
        training.make_epoch(graphdef, tx, size),
        params,
        tx.init(params),
        jax.random.key(seed),
        train_set,
        numbers,
    )
    for epoch in epochs:
        params = epoch.params
        if is_averaged(place, epoch.number):
            kept.append(np.asarray(training.predict(graphdef, params, dataset.test_images)))
            if place.sampler == "sghmc":  # in a cycle the velocity lags behind the step size
                kinetic.append(float(diffopt.kinetic_temperature(epoch.opt_state).overall))

    def scores(probs: Any, labels: jax.Array) -> dict[str, float]:
        return evaluate(probs, labels)._asdict()

    sums = np.cumsum(kept[::-1], axis=0)
    counts = [n for n in (1, 2, 4, 8, 16, 32) if n < len(kept)] + [len(kept)]
    averages = {n: scores(sums[n - 1] / n, dataset.test_labels) for n in counts}
    last = training.predict(graphdef, params, dataset.test_images)
    return {
        **place._asdict(),
        "seed": seed,
        "train": scores(training.predict(graphdef, params, train_set[0]), train_set[1]),
        "last": scores(last, dataset.test_labels),
        "average": averages[len(kept)],
        "averages_of_the_last": averages,
        "kinetic_temperature": float(np.mean(kinetic)) if kinetic else None,
        "machine": machine.describe(),
    }


def read(path: Path) -> dict[tuple[Place, int], dict[str, Any]]:
    """The finished runs, by place and seed; a line that is no record counts as none."""
    records = {}
    for line in lines(path):
        if record := parse(line):
            place = Place(*(record[field] for field in Place._fields))
            records[place, record["seed"]] = record
    return records


def lines(path: Path) -> list[str]:
    """The lines of a file, whatever its bytes."""
    return path.read_text("utf-8", "replace").split("\n")


def parse(line: str) -> dict[str, Any] | None:
    """The record that a line holds; None if it was cut off, or is of something else."""
    try:
        record = json.loads(line)
        [record["kinetic_temperature"], *(hash(record[f]) for f in (*Place._fields, "seed"))]
        for part in ("train", "last", "average"):
            [float(record[part][score]) for score in ("accuracy", "nll", "ece")]
        return record
    except (ValueError, LookupError, TypeError):
        return None


def temperature_name(T: float) -> str:
    """`0`, or as a fraction: `1/50,000`."""
    return f"1/{1 / T:,.0f}" if T else "0"


def scores_of(records: list[dict[str, Any]], part: str, score: str) -> list[float]:
    """A score of every seed, in percent if it is a fraction."""
    return [record[part][score] * (1 if score == "nll" else 100) for record in records]


def by_place(records: list[dict[str, Any]]) -> dict[Place, list[dict[str, Any]]]:
    """The records of each place, one a seed, in the order of the map."""
    places: dict[Place, list[dict[str, Any]]] = {}
    for r in records:
        places.setdefault(Place(*(r[field] for field in Place._fields)), []).append(r)
    return places


def show(console: Console, records: list[dict[str, Any]]) -> None:
    """The map as a table."""
    table = Table(title="last iterate, and average of predictions", title_justify="left")
    scored = [(p, s) for p in ("last", "average") for s in ("accuracy", "nll", "ece")]
    columns = ("batch", "step", "T", "kinetic T", "train, %")
    table.add_column("sampler")
    for column in (*columns, "last, %", "NLL", "ECE, %", "average, %", "NLL", "ECE, %"):
        table.add_column(column, justify="right")

    def cell(runs: list[dict[str, Any]], part: str, score: str) -> str:
        return plus_minus(scores_of(runs, part, score), 3 if score == "nll" else 1)

    def kinetic(runs: list[dict[str, Any]]) -> str:
        temperatures = [r["kinetic_temperature"] for r in runs]
        return temperature_name(float(np.mean(temperatures))) if all(temperatures) else ""

    for place, runs in by_place(records).items():
        table.add_row(
            place.sampler,
            f"{place.batch_size:,}",
            f"{place.step_size:g}",
            temperature_name(place.temperature),
            kinetic(runs),
            cell(runs, "train", "accuracy"),
            *(cell(runs, part, score) for part, score in scored),
        )
    console.print(table)


def plot_map(records: list[dict[str, Any]], path: Path) -> None:
    """Accuracy and NLL against temperature, a column for each batch size."""
    places = by_place(records)
    batch_sizes = sorted({place.batch_size for place in places})
    temperatures = sorted({place.temperature for place in places})
    curves = sorted({(place.sampler, place.step_size) for place in places})
    fig, axes = plt.subplots(
        2, len(batch_sizes), figsize=(plots.WIDTH, 7), layout="constrained",
        sharex=True, sharey="row", squeeze=False,
    )  # fmt: skip
    for column, batch_size in enumerate(batch_sizes):
        for number, (sampler, step_size) in enumerate(curves):
            points = sorted(
                (temperatures.index(place.temperature), runs)
                for place, runs in places.items()
                if place[:3] == (sampler, batch_size, step_size)
            )
            for ax, score in zip(axes[:, column], ("accuracy", "nll"), strict=True):
                for part, line in (("average", "-"), ("last", ":")):
                    of_points = [scores_of(runs, part, score) for _, runs in points]
                    means, deviations = np.reshape(
                        [mean_and_deviation(f) for f in of_points], (-1, 2)
                    ).T
                    ax.errorbar(
                        [x for x, _ in points], means, np.nan_to_num(deviations), fmt=f"o{line}",
                        markersize=4, color=f"C{number}",
                        label=f"{sampler}, step {step_size:g}" if points and line == "-" else None,
                    )  # fmt: skip
        axes[0, column].set_title(f"batch {batch_size:,}")
        axes[1, column].set_xticks(range(len(temperatures)), map(temperature_name, temperatures))
        axes[1, column].set_xlabel("temperature")
    axes[0, 0].set_ylabel("test accuracy, %")
    axes[1, 0].set_ylabel("test NLL, nats")
    lines = {
        label: line
        for ax in axes[0]
        for line, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    fig.legend(
        lines.values(), lines, loc="outside lower center", ncols=2,
        title="solid: average of predictions; dotted: last iterate",
    )  # fmt: skip
    for ax in axes.flat:
        ax.grid(axis="y", **plots.GRID)
    plots.save(fig, path)


def tables() -> Tables:
    """The map of temperatures, batches and steps."""
    return {
        "noise_map": map_table,
    }


def map_table() -> str:
    """The map of temperatures, batches and steps."""

    def cell(runs: list[dict[str, Any]], part: str, score: str) -> str:
        return plus_minus(scores_of(runs, part, score), 3 if score == "nll" else 1)

    rows = []
    for place, runs in by_place(load("noise_map.jsonl")).items():
        kinetic = [run["kinetic_temperature"] for run in runs]
        rows.append([
            place.sampler, f"{place.batch_size:,}", f"{place.step_size:g}",
            temperature_name(place.temperature),
            temperature_name(float(np.mean(kinetic))) if all(kinetic) else "",
            cell(runs, "train", "accuracy"),
            *(cell(runs, p, s) for p in ("last", "average") for s in ("accuracy", "nll", "ece")),
        ])  # fmt: skip
    head = ["sampler", "batch", "step", "T", "kinetic T", "train, %"]
    return markdown([*head, *("last, %", "NLL", "ECE, %"), *("average, %", "NLL", "ECE, %")], rows)


@cli.program("noise_map")
def main(argv: list[str] | None = None) -> None:
    """Parse the command line, train what is missing, show the map."""
    parser = cli.parser("noise_map", __doc__)
    parser.add_argument("--data-dir", help="folder of cifar10: TensorFlow Datasets or parquet")
    parser.add_argument("--seeds", type=cli.at_least_one, default=1, help="how many (default 1)")
    parser.add_argument("--part", type=part, default=(1, 1), metavar="I/N", help="default 1/1")
    parser.add_argument("--quick", action="store_true", help="a small map on digits")
    args = parser.parse_args(argv)
    path = cli.make_folder(args.out) / "noise_map.jsonl"
    dataset = data.load("digits" if args.quick else "cifar10", args.data_dir)

    console = Console()
    runs = [
        (Place(sampler, batch_size, step_size, T, epochs), seed)
        for seed in range(args.seeds)
        for sampler, batch_size, step_size, temperatures, epochs in (QUICK if args.quick else MAP)
        for T in temperatures
    ]
    number, parts = args.part
    if number > len(runs):
        raise cli.UsageError(f"--part {number}/{parts}: the map has only {len(runs)} runs")
    path.touch()
    foreign = [i for i, line in enumerate(lines(path), 1) if line and not parse(line)]
    if foreign:
        print(f"{path}: no records in lines {', '.join(map(str, foreign))}", file=sys.stderr)
    for place, seed in runs[number - 1 :: parts]:
        if (place, seed) in read(path):
            continue
        title = ", ".join(f"{field} {value}" for field, value in place._asdict().items())
        numbers = track(range(1, place.epochs + 1), title, console=console)
        record = train(place, seed, dataset, numbers)
        append(path, json.dumps(record))
    finished = read(path)
    records = [finished[run] for run in runs if run in finished]
    show(console, records)
    plot_map(records, args.out / "noise_map.png")
    console.print(f"Wrote {path}, {args.out / 'noise_map.png'}")


def append(path: Path, line: str) -> None:
    """Write a line at the end of a file, after one that was cut off too.

    Raises:
      UsageError: it cannot be written.
    """
    whole = path.read_bytes()[-1:] in (b"", b"\n")
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(("" if whole else "\n") + line + "\n")
    except OSError as error:
        raise cli.UsageError(f"{path} cannot be written: {error.strerror}") from error


def part(text: str) -> tuple[int, int]:
    """`I/N`, the I-th of N parts, counted from 1."""
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N")
    return int(number), int(parts)


if __name__ == "__main__":
    sys.exit(main())
