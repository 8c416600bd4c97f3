"""25 Gaussians in the plane: SGLD stays where it starts, cyclical SGLD finds all modes, replica
exchange finds them with the right weights.

    python -m benchmarks.mixture [--out DIR]

After figure 2 of Zhang et al., Cyclical Stochastic Gradient MCMC for Bayesian Deep Learning
(https://arxiv.org/abs/1902.03932). As in the authors' code are the mixture, the standard normal
noise added to every gradient, SGLD's schedule (0.043 for 500 steps, then 0.043 t^-0.55) and the
random start. Their cyclical chain has a peak of 0.07 and 30 cycles in 50,000 steps, with noise
throughout: `--peak 0.07 --cycles 30 --steps 50000 --explore 0`.

Replica exchange takes as many gradients: each of its five chains runs a fifth of the steps. The
coldest chain is scored. A mode's weight is the share of the samples nearest to it, over all chains;
the distance is half the sum of |weight - 1/25|.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

import diffopt

from .lib import cli, files, machine, plots
from .lib.plots import plt
from .lib.problems import CENTRES, VARIANCE, mixture_energy
from .lib.tables import Tables, load, markdown, origin

LADDER = (1.0, 2.0, 4.0, 8.0, 16.0)  # of temperatures
RADIUS, ENOUGH = 0.25, 100  # a mode is found when so many samples are so near


def decaying(count: jax.Array) -> jax.Array:
    """The step size of plain SGLD: constant, then falling as Welling and Teh ask."""
    return 0.043 * jnp.maximum(count - 499.0, 1.0) ** -0.55


def sample(tx: optax.GradientTransformation, steps: int, key: jax.Array) -> jax.Array:
    """The path `[steps, 2]` of one chain under noisy gradients, from a random place."""
    start_key, key = jax.random.split(key)
    theta = jax.random.uniform(start_key, (2,), minval=-5.0, maxval=5.0)

    def step(carry: tuple[jax.Array, Any], key: jax.Array) -> tuple[tuple[jax.Array, Any], Any]:
        theta, state = carry
        grads = jax.grad(mixture_energy)(theta) + jax.random.normal(key, (2,))
        updates, state = tx.update(grads, state, theta)
        theta = optax.apply_updates(theta, updates)
        return (theta, state), theta

    carry = (theta, tx.init(theta))
    return jax.lax.scan(step, carry, jax.random.split(key, steps))[1]


def modes_found(samples: np.ndarray) -> int:
    """How many of the 25 modes have enough of the samples `[n, 2]` around them."""
    near = np.linalg.norm(samples[:, None] - CENTRES, axis=-1) < RADIUS
    return int((near.sum(axis=0) >= ENOUGH).sum())


def chains(
    steps: int, cycles: int, peak: float, explore: float, seeds: int
) -> dict[str, np.ndarray]:
    """Samples `[seeds, kept, 2]` of plain and of cyclical SGLD, at temperature 1."""
    length = -(-steps // cycles)
    stage = diffopt.sampling_stage(length, explore)

    def sgld(key: jax.Array) -> jax.Array:
        key, noise_key = jax.random.split(key)
        return sample(diffopt.sgld(decaying, 1.0, key=noise_key), steps, key)

    def cyclical_sgld(key: jax.Array) -> jax.Array:
        key, noise_key = jax.random.split(key)
        eta = diffopt.cyclical_schedule(peak, length)
        return sample(diffopt.sgld(eta, temperature=stage, key=noise_key), steps, key)

    keep = np.asarray(stage(np.arange(steps))) == 1
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    return {
        "SGLD": np.asarray(jax.jit(jax.vmap(sgld))(keys)),
        "cyclical SGLD": np.asarray(jax.jit(jax.vmap(cyclical_sgld))(keys))[:, keep],
    }


def replicas(steps: int, seeds: int) -> np.ndarray:
    """Samples `[seeds, kept, 2]` of the coldest of five chains, as many gradients in all."""
    tx = diffopt.replica_exchange(diffopt.sgld, 0.004, LADDER)

    def cold(params: jax.Array, state: Any, key: jax.Array) -> jax.Array:
        def step(carry: tuple[jax.Array, Any], key: jax.Array) -> tuple[tuple[jax.Array, Any], Any]:
            params, state = carry
            losses, grads = jax.vmap(jax.value_and_grad(mixture_energy))(params)
            grads += jax.random.normal(key, grads.shape)
            updates, state = tx.update(grads, state, params, value=losses)
            params = optax.apply_updates(params, updates)
            return (params, state), params[jnp.argmin(state.rung)]

        keys = jax.random.split(key, max(1, steps // len(LADDER)))
        return jax.lax.scan(step, (params, state), keys)[1]

    start_key, key = jax.random.split(jax.random.key(0))
    params = jax.random.uniform(start_key, (seeds, len(LADDER), 2), minval=-5.0, maxval=5.0)
    states = diffopt.split_keys(tx.init(params[0]), seeds)
    return np.asarray(jax.jit(jax.vmap(cold))(params, states, jax.random.split(key, seeds)))


def distance(samples: np.ndarray) -> float:
    """Total variation between the weights of the modes in the samples `[..., 2]` and 1/25."""
    nearest = np.clip(np.rint(samples.reshape(-1, 2) / 2), -2, 2) @ [5, 1] + 12
    weights = np.bincount(nearest.astype(int), minlength=25) / len(nearest)
    return float(np.abs(weights - 1 / 25).sum() / 2)


def plot_chains(samples: dict[str, np.ndarray], path: Path) -> None:
    """The mixture and the first chain of each of three samplers."""
    rng = np.random.default_rng(0)
    exact = CENTRES[rng.integers(25, size=20_000)] + rng.normal(0, VARIANCE**0.5, (20_000, 2))
    panels = {"the mixture: 25 modes": exact}
    for name, chain in samples.items():
        panels[f"{name}: finds {modes_found(chain[0])}"] = chain[0]
    size = (plots.WIDTH, plots.WIDTH)
    fig, axes = plt.subplots(2, 2, figsize=size, layout="constrained", sharex=True, sharey=True)
    for ax, (title, points) in zip(axes.flat, panels.items(), strict=True):
        ax.hist2d(
            *points.T, bins=150, range=[(-5.5, 5.5)] * 2, cmap="magma", density=True, vmax=0.3
        )
        ax.plot(*CENTRES.T, "+", color="white", alpha=0.35, markersize=5, markeredgewidth=0.7)
        ax.set(title=title, aspect="equal", xticks=[-4, 0, 4], yticks=[-4, 0, 4])
    plots.save(fig, path)


def tables() -> Tables:
    """The modes that chains find."""
    return {
        "mixture": modes_table,
    }


def modes_table() -> str:
    """Modes of 25 Gaussians that chains find, and how evenly they weigh them."""
    result = load("mixture.json")
    rows = (
        [
            name, f"{min(modes)} to {max(modes)}" if min(modes) < max(modes) else f"{modes[0]}",
            f"{result['distances'][name]:.3f}",
        ]
        for name, modes in result["modes"].items()
    )  # fmt: skip
    head = ["", "modes found by a chain, of 25", "distance of the weights from even ones"]
    return markdown(head, rows) + origin(
        "mixture.json", result["machine"], "python -m benchmarks.mixture"
    )


@cli.program("mixture")
def main(argv: list[str] | None = None) -> None:
    """Parse the command line, run the chains, report."""
    args = parse_args(argv)
    out = cli.make_folder(args.out)

    with Console().status(f"{args.steps:,} steps of {args.seeds} chains of each sampler"):
        samples = chains(args.steps, args.cycles, args.peak, args.explore, args.seeds)
        samples["replica exchange"] = replicas(args.steps, args.seeds)
    modes = {name: [modes_found(chain) for chain in runs] for name, runs in samples.items()}
    distances = {name: distance(runs) for name, runs in samples.items()}
    for name, numbers in modes.items():
        print(
            f"{name:16} modes found by each chain: {' '.join(map(str, numbers))};"
            f" distance of the weights {distances[name]:.3f}"
        )
    config = {name: value for name, value in vars(args).items() if name != "out"}
    result = {
        "config": config, "machine": machine.describe(), "modes": modes, "distances": distances
    }  # fmt: skip
    files.write_json(out / "mixture.json", result)
    plot_chains(samples, out / "mixture.png")
    print(f"Wrote {out / 'mixture.json'}, {out / 'mixture.png'}")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read and check the command line."""
    parser = cli.parser("mixture", __doc__)
    whole = cli.at_least_one
    parser.add_argument("--steps", type=whole, default=100_000, help="steps of each chain")
    parser.add_argument("--cycles", type=whole, default=400, help="cycles of the cyclical chain")
    parser.add_argument(
        "--peak", type=cli.positive, default=0.1, help="largest step size of a cycle"
    )
    parser.add_argument("--explore", type=float, default=0.25, help="part of a cycle without noise")
    parser.add_argument("--seeds", type=whole, default=8, help="independent chains of each sampler")
    args = parser.parse_args(argv)
    if args.cycles > args.steps:
        parser.error("--cycles must be at most --steps")
    if not 0 <= args.explore < 1:
        parser.error("--explore must be from 0 to below 1")
    try:
        diffopt.sampling_stage(-(-args.steps // args.cycles), args.explore)
    except ValueError as error:
        parser.error(str(error))
    return args


if __name__ == "__main__":
    sys.exit(main())
