"""The local learning coefficient of one network, estimated by diffopt and by devinterp.

    pip install -e ".[bench,torch]" devinterp
    python -m benchmarks.llc_against_devinterp [--out DIR]

Both run SGLD with the same network, images, temperature, localization, step size, batch and number
of chains. `diffopt.local_learning_coefficient` runs all chains in one program, devinterp
(https://pypi.org/project/devinterp) one after another. devinterp returns the mean loss of each
step; burn-in is left out in the same way for both. devinterp expects rows of tokens, so a row is
the number of an image. Without devinterp the program runs diffopt alone.
"""

import argparse
import importlib.util
import math
import os
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

import diffopt

from .lib import cli, data, files, machine, models, training

PEER = "devinterp"


def train(images: jax.Array, labels: jax.Array, epochs: int) -> tuple[Any, Any]:
    """The graph and the parameters of the article's network, trained by Adam."""
    graphdef, params = models.init_cnn(images.shape[-1], 0)
    tx = optax.adam(optax.cosine_decay_schedule(1e-3, epochs * (len(images) // 100)))
    epoch = training.make_epoch(graphdef, tx, 100)
    runs = training.train(
        epoch, params, tx.init(params), jax.random.key(0), (images, labels), range(1, epochs + 1)
    )
    *_, last = runs
    return graphdef, last.params


def loss(graphdef: Any, params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Mean cross-entropy of a batch."""
    return training.mean_loss(graphdef, params, *batch)


def run_diffopt(
    graphdef: Any, params: Any, train_set: Any, args: argparse.Namespace
) -> dict[str, Any]:
    """λ̂ by diffopt, and its seconds with and without compilation."""
    estimate = partial(
        diffopt.local_learning_coefficient,
        partial(loss, graphdef),
        params,
        train_set,
        localization=args.localization,
        step_size=args.step_size,
        num_steps=args.steps,
        burn_in=args.burn_in,
        num_chains=args.chains,
        batch_size=args.batch,
    )
    first, seconds_of_first = run_timed(partial(estimate, key=0))
    second, seconds = run_timed(partial(estimate, key=1))
    del first
    return summary(np.asarray(second.per_chain), seconds) | {
        "first_call_seconds": seconds_of_first,
        "losses": np.asarray(second.losses).mean(0).tolist(),
    }


def run_timed(fn: Any) -> tuple[Any, float]:
    """What `fn()` gives, and its seconds."""
    clock = time.perf_counter()
    result = jax.block_until_ready(fn())
    return result, time.perf_counter() - clock


def summary(per_chain: np.ndarray, seconds: float) -> dict[str, Any]:
    """λ̂, its standard error over chains, and the seconds they took."""
    error = per_chain.std(ddof=1) / math.sqrt(len(per_chain))
    return {
        "mean": float(per_chain.mean()),
        "standard_error": float(error),
        "per_chain": per_chain.tolist(),
        "seconds": seconds,
    }


def torch_network(params: Any, channels: int) -> Any:
    """The same network in PyTorch, with the same weights, on images `[batch, 32, 32, channels]`."""
    import torch
    from torch import nn

    class Channels(nn.Module):
        def __init__(self, *order: int):
            super().__init__()
            self.order = order

        def forward(self, x: Any) -> Any:
            return x.permute(*self.order)

    model = nn.Sequential(
        *(Channels(0, 3, 1, 2), nn.Conv2d(channels, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), Channels(0, 2, 3, 1), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )
    layers = [layer for layer in model if isinstance(layer, nn.Conv2d | nn.Linear)]
    weights: Any = nnx.to_pure_dict(params)
    names = ("conv1", "conv2", "dense1", "dense2", "dense3")
    for layer, name in zip(layers, names, strict=True):
        kernel = np.asarray(weights[name]["kernel"])
        kernel = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
        layer.weight.data = torch.tensor(kernel)
        layer.bias.data = torch.tensor(np.asarray(weights[name]["bias"]))
    return model


def run_devinterp(params: Any, train_set: Any, args: argparse.Namespace) -> dict[str, Any]:
    """λ̂ by devinterp, with the same settings, and its seconds."""
    os.environ["TQDM_DISABLE"] = "1"
    import torch
    from datasets import Dataset
    from devinterp.slt.sampling import sample

    images, labels = (torch.tensor(np.asarray(x)) for x in train_set)
    labels, n = labels.long(), len(images)
    model = torch_network(params, images.shape[-1])

    def loss_of_rows(model: Any, rows: Any) -> Any:
        index = rows[:, 0]
        losses = torch.nn.functional.cross_entropy(
            model(images[index]), labels[index], reduction="none"
        )
        return losses[:, None]

    rows = Dataset.from_dict({"input_ids": [[i, i] for i in range(n)]}).with_format("torch")
    temperature = math.log(n) / n
    clock = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = sample(
            model,
            rows,
            {},
            # its step is lr/2 times the gradient of L/T, and its noise √lr
            lr=2 * args.step_size * temperature,
            n_beta=1 / temperature,
            localization=args.localization,
            num_chains=args.chains,
            num_draws=args.steps,
            batch_size=args.batch,
            num_init_loss_batches=n // args.batch,
            match_sampling_input_ids_across_chains=False,
            loss_fn=loss_of_rows,
            output_path=Path(folder, "samples.zarr"),
            device="cpu",
        )
        tree = samples.dataset
        losses = tree.sampling_loss_micro.mean(dim=["batch_sampling", "token_pos"]).values
        start = float(tree.init_loss.values.mean())
    seconds = time.perf_counter() - clock
    per_chain = (losses[:, args.burn_in :].mean(1) - start) / temperature
    return summary(per_chain, seconds) | {"losses": losses.mean(0).tolist(), "init_loss": start}


@cli.program("llc_against_devinterp")
def main(argv: list[str] | None = None) -> None:
    """Parse the command line, train, estimate, report."""
    args = parse_args(argv)
    digits = data.load("digits")
    train_set = digits.train_images, digits.train_labels
    if args.batch > len(train_set[0]):
        raise cli.UsageError(f"--batch {args.batch}: must be from 1 to {len(train_set[0])}")
    out = cli.make_folder(args.out)
    graphdef, params = train(*train_set, args.epochs)
    print(f"the article's network on {len(train_set[0]):,} digits, {args.chains} chains")

    results = {"diffopt": run_diffopt(graphdef, params, train_set, args)}
    show("diffopt", results["diffopt"])
    if importlib.util.find_spec(PEER) is None:
        print(f"{PEER} is not installed: compared with nothing")
    else:
        results[PEER] = run_devinterp(params, train_set, args)
        show(PEER, results[PEER])
    print(f"diffopt's first call, which compiles: {results['diffopt']['first_call_seconds']:.1f} s")
    comparison = None
    if PEER in results:
        one, other = results["diffopt"], results[PEER]
        error = math.hypot(one["standard_error"], other["standard_error"])
        comparison = {
            "difference": one["mean"] - other["mean"],
            "standard_error": error,
            "seconds_ratio": one["seconds"] / other["seconds"],
        }
        print(
            f"difference {comparison['difference']:.2f} ± {error:.2f};"
            f" {comparison['seconds_ratio']:.3f} of the time"
        )
    config = {name: value for name, value in vars(args).items() if name != "out"}
    described = machine.describe()
    described["versions"] |= machine.versions([PEER])
    result = {
        "config": config,
        "machine": described,
        "results": results,
        "comparison": comparison,
    }
    files.write_json(out / "llc_against_devinterp.json", result, indent=1)
    print(f"Wrote {out / 'llc_against_devinterp.json'}")


def show(name: str, result: dict[str, Any]) -> None:
    """One line of one library."""
    mean, error, seconds = (result[field] for field in ("mean", "standard_error", "seconds"))
    print(f"{name:10} λ̂ = {mean:.2f} ± {error:.2f}, {seconds:.1f} s", flush=True)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read and check the command line."""
    parser = cli.parser("llc_against_devinterp", __doc__)
    whole = cli.at_least_one
    parser.add_argument("--epochs", type=whole, default=30, help="epochs of training")
    parser.add_argument("--chains", type=whole, default=8)
    parser.add_argument("--steps", type=whole, default=400, help="steps of each chain")
    parser.add_argument("--burn-in", type=cli.at_least(0), default=200, help="steps left out")
    parser.add_argument("--batch", type=whole, default=100, help="examples per step")
    parser.add_argument("--step-size", type=cli.positive, default=0.01)
    parser.add_argument("--localization", type=cli.positive, default=100.0)
    args = parser.parse_args(argv)
    if args.burn_in >= args.steps:
        parser.error("--burn-in must be below --steps")
    if args.chains < 2:
        parser.error("--chains must be at least 2, for a standard error")
    return args


if __name__ == "__main__":
    sys.exit(main())
