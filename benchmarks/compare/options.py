"""What a comparison is asked for: its optimizers, and its command line as one value."""

import argparse
import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

import diffopt

from ..lib import cli, machine
from ..trial.run import CLAIMS, LONG_ON_CIFAR10, ON_CIFAR10

# name: (learning rate, temperature, PRNG key) -> transformation
BUILDERS: dict[str, Callable[[float, float, Any], optax.GradientTransformation]] = {
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
WITHOUT_TEMPERATURE = ("sgd", "momentum", "adam")
QUICK_EPOCHS = 3

# what is trained unless told otherwise: the article's own comparison
ARTICLE = ("sgd", "momentum", "adam", "langevin", "article")


class Defaults(NamedTuple):
    """How a dataset is trained; a learning rate and a temperature for each optimizer."""

    epochs: int
    batch_size: int
    optimizers: dict[str, tuple[float, float]]


DEFAULTS = {
    "digits": Defaults(
        epochs=12,
        batch_size=32,
        optimizers={
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
    "cifar10": Defaults(
        epochs=10,
        batch_size=100,
        optimizers={
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


class Optimizer(NamedTuple):
    """One of `BUILDERS` with its arguments."""

    name: str
    learning_rate: float
    temperature: float


class Options(NamedTuple):
    """What was asked for, with the dataset's defaults filled in."""

    command: str
    dataset: str
    data_dir: str | None
    out: Path
    optimizers: tuple[Optimizer, ...]
    epochs: int
    batch_size: int
    seeds: int
    sweep: bool
    checkpoint: Path | None
    distributed: bool
    claims: tuple[str, ...]
    size: str
    tune: bool


def build(optimizer: Optimizer, key: Any) -> optax.GradientTransformation:
    """The transformation.

    Raises:
      ValueError: an argument is out of its range.
    """
    if not 0 < optimizer.learning_rate < math.inf:  # which Optax takes as it is
        raise ValueError(f"learning_rate must be finite and > 0, got {optimizer.learning_rate}")
    return BUILDERS[optimizer.name](optimizer.learning_rate, optimizer.temperature, key)


def parse(argv: list[str] | None, doc: str | None) -> Options:
    """Read and check the command line, of the program that `doc` describes."""
    parser = cli.parser("compare", doc)
    parser.add_argument("--dataset", default="digits", help="digits (default) or cifar10")
    parser.add_argument("--data-dir", help="folder of cifar10: TensorFlow Datasets or parquet")
    parser.add_argument(
        "--optimizers", nargs="+", default=list(ARTICLE), choices=BUILDERS, metavar="NAME",
        help=f"any of {' '.join(BUILDERS)} (default: {' '.join(ARTICLE)})",
    )  # fmt: skip
    parser.add_argument(
        "--epochs", type=cli.at_least_one,
        help=f"default: 12 on digits, 10 on cifar10, {QUICK_EPOCHS} with --quick",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size", type=cli.at_least_one, help="default: 32 on digits, 100 on cifar10"
    )
    parser.add_argument(
        "--seeds", type=cli.at_least_one, help="how many (default 3, 1 with --quick)"
    )
    for option, what in (("--learning-rate", "step size"), ("--temperature", "temperature")):
        parser.add_argument(
            option, nargs="+", default=[], type=assignment, metavar="NAME=VALUE",
            help=f"{what} of an optimizer, for example langevin=0.0001",
        )  # fmt: skip
    parser.add_argument(
        "--sweep", action="store_true",
        help="also train at a tenth, a third, three and ten times each learning rate",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint", type=Path, metavar="DIR",
        help="save every epoch in this folder, and continue from the last one saved",
    )  # fmt: skip
    parser.add_argument(
        "--distributed", action="store_true",
        help="train on the devices of all processes that a launcher started, on all hosts",
    )  # fmt: skip
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="everything at its shortest: a minute")
    size.add_argument(
        "--full", action="store_true",
        help="every size, rival and seed of the trial: hours; after a kill it continues from --out",
    )  # fmt: skip
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--claims", nargs="+", choices=tuple(CLAIMS), metavar="NAME",
        help=f"claims to try after the runs: any of {' '.join(CLAIMS)} (default: all on digits;"
        f" none on cifar10, which has {' '.join(ON_CIFAR10)})",
    )  # fmt: skip
    which.add_argument("--no-claims", action="store_true", help="the runs alone, no trial")
    parser.add_argument(
        "--tune", action="store_true",
        help="only find the settings of the trial, on other seeds, and write them to its file",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.distributed and (args.claims or args.tune or args.full):
        parser.error(
            "--claims, --full and --tune with --distributed: the trial runs in one process"
        )
    if args.tune and (args.quick or args.full):
        parser.error("--tune with --quick or --full: tuning has one size")
    if args.tune and args.no_claims:
        parser.error("--tune with --no-claims: nothing to tune")
    if args.tune and not any(hasattr(CLAIMS[claim], "tune") for claim in args.claims or CLAIMS):
        parser.error(f"--tune with --claims {' '.join(args.claims)}: nothing is tuned for them")
    if args.full and (args.no_claims or (args.dataset == "cifar10" and not args.claims)):
        parser.error("--full without claims: --full sets the size of the trial; name --claims")
    cli.require_unique("--optimizers", args.optimizers)
    for option, values in (
        ("--learning-rate", args.learning_rate), ("--temperature", args.temperature)
    ):  # fmt: skip
        cli.require_unique(option, [name for name, _ in values])
    if args.dataset not in DEFAULTS:
        parser.error(f"unknown dataset {args.dataset!r}: choose one of {', '.join(DEFAULTS)}")
    if args.dataset == "cifar10":
        claims = args.claims or ()
        if others := [claim for claim in claims if claim not in ON_CIFAR10]:
            parser.error(
                f"--claims {' '.join(others)} with --dataset cifar10: only"
                f" {', '.join(ON_CIFAR10)} are tried there"
            )
        if args.quick and (long := [claim for claim in LONG_ON_CIFAR10 if claim in claims]):
            parser.error(
                f"--quick with --dataset cifar10 --claims {' '.join(long)}: their runs there are"
                " long at every size"
            )
        if args.tune and args.claims != ["overfits"]:
            parser.error(
                "--tune with --dataset cifar10: name --claims overfits, the one tuned there"
            )
    elif args.data_dir is not None:
        parser.error(f"--data-dir {args.data_dir} without --dataset cifar10: digits have no folder")
    for name, _ in args.learning_rate + args.temperature:
        if name not in args.optimizers:
            parser.error(f"a value for {name}, which is not among --optimizers")
    for name, temperature in args.temperature:
        if name in WITHOUT_TEMPERATURE:
            parser.error(f"--temperature {name}={temperature:g}: {name} has no temperature")

    defaults = DEFAULTS[args.dataset]
    learning_rate, temperature = dict(args.learning_rate), dict(args.temperature)
    optimizers = []
    for name in args.optimizers:
        usual = Optimizer(name, *defaults.optimizers[name])
        optimizer = Optimizer(
            name,
            learning_rate.get(name, usual.learning_rate),
            temperature.get(name, usual.temperature),
        )
        try:
            build(optimizer, 0)
        except ValueError as error:
            parser.error(f"{name}: {error}")
        optimizers.append(optimizer)
    claims = () if args.no_claims or args.distributed or args.dataset != "digits" else CLAIMS
    arguments = sys.argv[1:] if argv is None else argv
    return Options(
        command=f"python -m benchmarks.compare {shlex.join(arguments)}",
        dataset=args.dataset,
        data_dir=args.data_dir,
        out=args.out,
        optimizers=tuple(optimizers),
        epochs=args.epochs or (QUICK_EPOCHS if args.quick else defaults.epochs),
        batch_size=defaults.batch_size if args.batch_size is None else args.batch_size,
        seeds=args.seeds or (1 if args.quick else 3),
        sweep=args.sweep,
        checkpoint=args.checkpoint,
        distributed=args.distributed,
        claims=tuple(dict.fromkeys(args.claims or claims)),
        size="quick" if args.quick else "full" if args.full else "default",
        tune=args.tune,
    )


def assignment(text: str) -> tuple[str, float]:
    """The type of `NAME=VALUE` of an optimizer."""
    name, _, value = text.partition("=")
    if name not in BUILDERS:
        raise argparse.ArgumentTypeError(f"{text!r}: no optimizer is called {name!r}")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: {value!r} is not a number") from None


def config(options: Options) -> dict[str, Any]:
    """What was asked for, for `metrics.json`."""
    return {
        "command": options.command,
        "dataset": options.dataset,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "seeds": options.seeds,
        "sweep": options.sweep,
        "optimizers": {
            o.name: {"learning_rate": o.learning_rate, "temperature": o.temperature}
            for o in options.optimizers
        },
    }


def fingerprint(options: Options) -> dict[str, Any]:
    """What decides the parameters that come out, by the name that the user knows it by."""
    return {
        "--dataset": options.dataset,
        "--optimizers": " ".join(o.name for o in options.optimizers),
        "--epochs": options.epochs,
        "--batch-size": options.batch_size,
        "--seeds": options.seeds,
        "--sweep": options.sweep,
        "--learning-rate": " ".join(f"{o.name}={o.learning_rate}" for o in options.optimizers),
        "--temperature": " ".join(f"{o.name}={o.temperature}" for o in options.optimizers),
        "device": jax.devices()[0].device_kind,
        **machine.versions(machine.NUMERICS),
    }
