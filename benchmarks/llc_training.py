"""The local learning coefficient along training: a transformer that groks, and the article's CNN.

    python -m benchmarks.llc_training [--out DIR]

A transformer of one layer learns addition modulo 31 from 60 % of all pairs, with AdamW. It
memorises its pairs long before it can add, and its training loss does not show when it learns to
add. The article's network learns scikit-learn's digits. The program estimates the local learning
coefficient along both. For the transformer the temperature is 0.001: at log(n)/n = 0.011, for its
576 pairs, chains leave the minimum and reach the loss of guessing.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

import diffopt

from .lib import cli, data, files, machine, models, plots, training
from .lib.plots import plt
from .lib.tables import Tables, load, markdown, origin

MODULUS, WIDTH, HEADS, SHARE = 31, 32, 4, 0.6
STEPS = (50, 100, 150, 200, 300, 500, 800, 1200, 1600, 1800, 2000, 2200, 2400, 2600, 3000)
EPOCHS = (1, 2, 4, 8, 16, 30)


def init_transformer(key: jax.Array) -> dict[str, jax.Array]:
    """Weights of one layer of attention and one of 4 x WIDTH units, without norms."""
    shapes = {
        "tokens": (MODULUS + 1, WIDTH),
        "positions": (3, WIDTH),
        "attend": (WIDTH, 3 * WIDTH),
        "mix": (WIDTH, WIDTH),
        "up": (WIDTH, 4 * WIDTH),
        "down": (4 * WIDTH, WIDTH),
        "out": (WIDTH, MODULUS),
    }
    fan_in = {name: shape[0] for name, shape in shapes.items()}
    fan_in |= {"tokens": WIDTH, "positions": WIDTH}
    keys = jax.random.split(key, len(shapes))
    weights = {
        name: jax.random.normal(k, shape) / fan_in[name] ** 0.5
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    return weights | {"bias": jnp.zeros(4 * WIDTH)}


def add(weights: dict[str, jax.Array], pairs: jax.Array) -> jax.Array:
    """Logits `[batch, MODULUS]` of the sums of pairs `[batch, 2]`, read off a third token."""
    batch = len(pairs)
    tokens = jnp.concatenate([pairs, jnp.full((batch, 1), MODULUS)], axis=1)
    x = weights["tokens"][tokens] + weights["positions"]
    heads = (x @ weights["attend"]).reshape(batch, 3, 3, HEADS, WIDTH // HEADS)
    query, key, value = heads[:, -1, 0], heads[:, :, 1], heads[:, :, 2]
    scores = jnp.einsum("bhd,bthd->bht", query, key) / (WIDTH / HEADS) ** 0.5
    attended = jnp.einsum("bht,bthd->bhd", jax.nn.softmax(scores), value)
    y = x[:, -1] + attended.reshape(batch, WIDTH) @ weights["mix"]
    y += jax.nn.relu(y @ weights["up"] + weights["bias"]) @ weights["down"]
    return y @ weights["out"]


def addition_loss(weights: dict[str, jax.Array], batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Mean cross-entropy."""
    pairs, sums = batch
    return optax.softmax_cross_entropy_with_integer_labels(add(weights, pairs), sums).mean()


def additions() -> tuple[Any, Any]:
    """All pairs with their sums: those to learn, and the others."""
    pairs = np.stack(np.meshgrid(np.arange(MODULUS), np.arange(MODULUS)), -1).reshape(-1, 2)
    pairs = np.random.default_rng(0).permutation(pairs)
    everything = jnp.asarray(pairs), jnp.asarray(pairs.sum(1) % MODULUS)
    n = int(SHARE * len(pairs))
    return tuple(x[:n] for x in everything), tuple(x[n:] for x in everything)


@jax.jit
def addition_error(weights: dict[str, jax.Array], batch: Any) -> jax.Array:
    """The fraction of wrong sums."""
    return (add(weights, batch[0]).argmax(1) != batch[1]).mean()


def grokking(steps: tuple[int, ...], chains: int, length: int) -> list[dict[str, float]]:
    """Losses, errors and λ̂ of the transformer after so many steps of AdamW."""
    train_set, test_set = additions()
    tx = optax.adamw(3e-3, b2=0.98, weight_decay=1.0)

    @partial(jax.jit, static_argnames="number")
    def train(weights: Any, state: Any, number: int) -> Any:
        def step(carry: Any, _: None) -> Any:
            weights, state = carry
            updates, state = tx.update(jax.grad(addition_loss)(weights, train_set), state, weights)
            return (optax.apply_updates(weights, updates), state), None

        return jax.lax.scan(step, (weights, state), length=number)[0]

    weights = init_transformer(jax.random.key(0))
    state, rows, done = tx.init(weights), [], 0
    for at in steps:
        for _ in range((at - done) // 50):
            weights, state = train(weights, state, 50)
        done = at
        estimate = diffopt.local_learning_coefficient(
            addition_loss, weights, train_set, temperature=1e-3, localization=100.0,
            sampler=diffopt.baoab, step_size=0.1, num_steps=length, burn_in=length // 2,
            num_chains=chains, key=at,
        )  # fmt: skip
        rows.append(
            row(at, estimate)
            | {
                "train_loss": float(addition_loss(weights, train_set)),
                "train_error": float(addition_error(weights, train_set)),
                "test_error": float(addition_error(weights, test_set)),
            }
        )
    return rows


def network(epochs: tuple[int, ...], chains: int, length: int) -> list[dict[str, float]]:
    """Likewise of the article's network after so many epochs of Adam on digits."""
    digits = data.load("digits")
    train_set = digits.train_images, digits.train_labels
    graphdef, params = models.init_cnn(1, 0)
    tx = optax.adam(1e-3)

    def loss(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        return training.mean_loss(graphdef, params, *batch)

    def error(images: jax.Array, labels: jax.Array) -> float:
        return float((training.predict(graphdef, params, images).argmax(1) != labels).mean())

    rows = []
    for epoch in training.train(
        training.make_epoch(graphdef, tx, 100), params, tx.init(params), jax.random.key(0),
        train_set, range(1, max(epochs) + 1),
    ):  # fmt: skip
        params = epoch.params
        if epoch.number not in epochs:
            continue
        estimate = diffopt.local_learning_coefficient(
            loss, params, train_set, localization=100.0, step_size=0.01, num_steps=length,
            burn_in=length // 2, num_chains=chains, batch_size=100, key=epoch.number,
        )  # fmt: skip
        rows.append(
            row(epoch.number, estimate)
            | {
                "train_loss": float(jax.jit(loss)(params, train_set)),
                "train_error": error(*train_set),
                "test_error": error(digits.test_images, digits.test_labels),
            }
        )
    return rows


def row(at: int, estimate: diffopt.Estimate) -> dict[str, float]:
    """An estimate, and how much of the rise of the loss its last quarter still brought."""
    excess = np.asarray(estimate.losses).mean(0) - float(estimate.losses[0, 0])
    quarter = len(excess) // 4
    third, last = excess[-2 * quarter : -quarter].mean(), excess[-quarter:].mean()
    return {
        "at": at,
        "llc": float(estimate.mean),
        "standard_error": float(estimate.standard_error),
        "last_over_third_quarter": float(last / third),
    }


def plot(rows: list[dict[str, float]], title: str, xlabel: str, path: Path) -> None:
    """λ̂ above, errors and loss below, along training."""
    at = [r["at"] for r in rows]
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(plots.WIDTH, 6), sharex=True, layout="constrained"
    )
    errors = [2 * r["standard_error"] for r in rows]
    above.errorbar(at, [r["llc"] for r in rows], errors, fmt="o-", color=plots.RED, capsize=3)
    above.set(title=title, ylabel="λ̂ ± 2 standard errors")
    below.plot(at, [100 * r["test_error"] for r in rows], "o-", color=plots.BLUE, label="test")
    below.plot(at, [100 * r["train_error"] for r in rows], "o-", color=plots.GRAY, label="train")
    below.set(xlabel=xlabel, ylabel="error, %", xscale="log")
    below.legend()
    for ax in (above, below):
        ax.grid(**plots.GRID)
    plots.save(figure, path)


def tables() -> Tables:
    """λ̂ of the transformer along training."""
    return {
        "llc_training": addition_table,
    }


def addition_table() -> str:
    """λ̂ of a transformer that learns to add, along training."""
    result = load("llc_training.json")
    rows = (
        [
            f"{row['at']:,}", f"{row['llc']:.1f} ± {row['standard_error']:.1f}",
            f"{row['train_loss']:.1e}", f"{100 * row['test_error']:.1f}",
        ]
        for row in result["addition"]
    )  # fmt: skip
    head = ["steps", "λ̂", "training loss", "test error, %"]
    config = result["config"]
    command = f"--chains {config['chains']} --steps {config['steps']}"
    below = origin(
        "llc_training.json", result["machine"], f"python -m benchmarks.llc_training {command}"
    )
    return markdown(head, rows) + below


@cli.program("llc_training")
def main(argv: list[str] | None = None) -> None:
    """Parse the command line, train, estimate, report."""
    args = parse_args(argv)
    out = cli.make_folder(args.out)
    quick = args.quick
    with Console().status("a transformer learns to add"):
        addition = grokking(STEPS[:2] if quick else STEPS, args.chains, args.steps)
    show("addition modulo 31, steps of AdamW", addition)
    with Console().status("the article's network learns digits"):
        digits = network(EPOCHS[:1] if quick else EPOCHS, args.chains, args.steps)
    show("the article's network on digits, epochs of Adam", digits)
    config = {name: value for name, value in vars(args).items() if name != "out"}
    result = {
        "config": config,
        "machine": machine.describe(),
        "addition": addition,
        "digits": digits,
    }
    files.write_json(out / "llc_training.json", result, indent=1)
    plot(
        addition, "A transformer learns to add modulo 31", "steps of AdamW",
        out / "llc_grokking.png",
    )  # fmt: skip
    plot(digits, "The article's network learns digits", "epochs of Adam", out / "llc_digits.png")
    print(f"Wrote {out}/llc_training.json, llc_grokking.png and llc_digits.png")


def show(title: str, rows: list[dict[str, float]]) -> None:
    """The rows as a table."""
    print(title)
    print(f"{'at':>6} {'λ̂':>8} {'±':>6} {'train loss':>11} {'train err':>10} {'test err':>9}")
    for r in rows:
        print(
            f"{r['at']:6.0f} {r['llc']:8.2f} {r['standard_error']:6.2f} {r['train_loss']:11.2e}"
            f" {r['train_error']:10.3f} {r['test_error']:9.3f}"
        )


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read and check the command line."""
    parser = cli.parser("llc_training", __doc__)
    parser.add_argument("--chains", type=cli.at_least(2), default=8)
    parser.add_argument("--steps", type=cli.at_least(4), default=400, help="steps of each chain")
    parser.add_argument("--quick", action="store_true", help="few points, to see that it works")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
