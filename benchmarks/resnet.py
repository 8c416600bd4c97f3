"""ResNet-18 on CIFAR-10 in bfloat16: SGHMC and cyclical SGHMC beside momentum and AdamW.

    python -m benchmarks.resnet [--data-dir DIR] [--epochs 20] [--out DIR]

All train for the same epochs, without augmentation, because augmented data have no likelihood. The
step sizes of momentum and AdamW fall to 0 along half a cosine. SGHMC keeps its step size; step size
and temperature fall to 0 in the last quarter. The cyclical chain has cycles of five epochs and
samples in the second half of each. Every method is scored by its last network and by the average of
its predictions: over the last epoch of each cycle for the cyclical chain, over the second half of
the epochs for the others. For a GPU: an epoch is 3·10¹⁴ operations.

After Zhang et al., Cyclical Stochastic Gradient MCMC for Bayesian Deep Learning
(https://arxiv.org/abs/1902.03932), who have cycles of 50 epochs and augmentation.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx
from rich.console import Console
from rich.progress import track
from rich.table import Table

import diffopt

from .lib import cli, data, files, machine, models, scores, training

BATCH, DECAY = 128, 5e-4
CYCLE = 5  # epochs


class Method(NamedTuple):
    """An optimizer `make(steps of an epoch, epochs, temperature)`, and the epochs it averages."""

    make: Callable[[int, int, float], optax.GradientTransformation]
    averaged: Callable[[int], range] = training.second_half


def momentum(steps: int, epochs: int, temperature: float) -> optax.GradientTransformation:
    """SGD with momentum and weight decay, without noise."""
    rate = optax.cosine_decay_schedule(0.1, steps * epochs)
    return optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(rate, momentum=0.9))


def adamw(steps: int, epochs: int, temperature: float) -> optax.GradientTransformation:
    """AdamW, without noise."""
    return optax.adamw(optax.cosine_decay_schedule(1e-3, steps * epochs), weight_decay=0.05)


def sghmc(steps: int, epochs: int, temperature: float) -> optax.GradientTransformation:
    """SGHMC at a constant step and temperature, then cooled."""
    cooling = optax.linear_schedule(1.0, 0.0, steps * epochs // 4, steps * epochs * 3 // 4)
    sampler = diffopt.sghmc(
        lambda t: 0.05 * cooling(t), lambda t: temperature * cooling(t), noise="gaussian16"
    )
    return optax.chain(optax.add_decayed_weights(DECAY), sampler)


def cyclical_sghmc(steps: int, epochs: int, temperature: float) -> optax.GradientTransformation:
    """SGHMC whose step falls in cycles, with noise in the second half of each."""
    stage = diffopt.sampling_stage(CYCLE * steps, 0.5)
    sampler = diffopt.sghmc(
        diffopt.cyclical_schedule(0.1, CYCLE * steps),
        lambda t: temperature * stage(t),
        noise="gaussian16",
    )
    return optax.chain(optax.add_decayed_weights(DECAY), sampler)


METHODS = {
    "momentum": Method(momentum),
    "AdamW": Method(adamw),
    "SGHMC": Method(sghmc),
    "cyclical SGHMC": Method(
        cyclical_sghmc, lambda epochs: range(min(CYCLE, epochs), epochs + 1, CYCLE)
    ),
}


def run(name: str, images: data.Data, epochs: int, width: int, seed: int) -> dict[str, Any]:
    """Train by one method; its scores on the test set, and its seconds."""
    train_set = images.train_images, images.train_labels
    model = models.ResNet18(images.train_images.shape[-1], width=width, rngs=nnx.Rngs(seed))
    graphdef, params = nnx.split(model)
    number = len(images.train_labels)
    tx = METHODS[name].make(number // BATCH, epochs, 1 / number)
    averaged = METHODS[name].averaged(epochs)
    epoch = training.make_epoch(graphdef, tx, BATCH)
    numbers = track(range(1, epochs + 1), name, console=Console(stderr=True), transient=True)
    total: Any = 0.0
    last: Any = None
    seconds, losses = [], []
    for each in training.train(
        epoch, params, tx.init(params), jax.random.key(seed), train_set, numbers
    ):
        seconds.append(each.seconds)
        losses.append(float(each.losses.mean()))
        if each.number in averaged or each.number == epochs:
            last = training.predict(graphdef, each.params, images.test_images)
        if each.number in averaged:
            total = total + last / len(averaged)
    return {
        "method": name,
        "last": scores.evaluate(last, images.test_labels)._asdict(),
        "average": scores.evaluate(total, images.test_labels)._asdict(),
        "losses": losses,
        "first_epoch_s": seconds[0],
        "epoch_s": sorted(seconds)[len(seconds) // 2],
    }


@cli.program("resnet")
def main(argv: list[str] | None = None) -> None:
    """Parse the command line, train, report."""
    parser = cli.parser("resnet", __doc__)
    parser.add_argument("--dataset", choices=("cifar10", "digits"), default="cifar10")
    parser.add_argument("--data-dir", help="TensorFlow Datasets folder that holds cifar10")
    parser.add_argument("--epochs", type=cli.at_least_one, default=20, help="default %(default)s")
    parser.add_argument(
        "--width",
        type=cli.at_least(8),
        default=64,
        help="of the first stage, a multiple of 8",
    )
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    args = parser.parse_args(argv)
    if args.width % 8:
        parser.error(f"--width must be a multiple of 8, got {args.width}")
    out = cli.make_folder(args.out)
    images = data.load(args.dataset, args.data_dir)

    table = Table(title=f"ResNet-18, {args.dataset}, {args.epochs} epochs")
    table.add_column("method")
    for column in ("accuracy", "NLL", "ECE", "s an epoch"):
        table.add_column(column, justify="right")
    config = {name: value for name, value in vars(args).items() if name not in ("out", "data_dir")}
    rows: list[dict[str, Any]] = []
    for name in METHODS:
        rows.append(run(name, images, args.epochs, args.width, args.seed))
        result = {"config": config, "machine": machine.describe(), "rows": rows}
        files.write_json(out / "resnet.json", result)  # whatever comes after
        for which in ("last", "average"):
            score = scores.Scores(**rows[-1][which])
            table.add_row(
                f"{name}, {which}",
                f"{100 * score.accuracy:.1f} %",
                f"{score.nll:.3f}",
                f"{100 * score.ece:.1f} %",
                f"{rows[-1]['epoch_s']:.1f}",
            )
    console = Console()
    console.print(table)
    console.print(machine.line(machine.describe()))
    print(f"Wrote {out / 'resnet.json'}")


if __name__ == "__main__":
    sys.exit(main())
