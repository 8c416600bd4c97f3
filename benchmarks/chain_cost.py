"""The cost of a chain: many in one program, one after another, and BlackJAX's SGLD.

    python -m benchmarks.chain_cost [--out DIR]

Every chain is a network of 64-32-10 neurons on scikit-learn's digits, with batches of 32. All
programs compute the same gradients on the same batches. They take turns, and the median is
reported. SGD without noise shows what the gradients alone cost.
"""

import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits

import diffopt

from .lib import cli, files, machine, plots, timing
from .lib.plots import plt
from .lib.tables import Tables, load, markdown, origin

CHAINS = (1, 2, 4, 8, 16, 32, 64)
BATCH_SIZE, LEARNING_RATE, TEMPERATURE = 32, 0.01, 1 / 1797
WAYS = {
    "vmap": "diffopt, vmapped",
    "gaussian16": "the same, gaussian16",
    "one after another": "diffopt, one after another",
    "blackjax": "BlackJAX SGLD, vmapped",
    "sgd": "SGD, no noise, vmapped",
}


def init_params(key: jax.Array) -> dict[str, jax.Array]:
    """A network of 64-32-10 neurons, 2,410 parameters."""
    key1, key2 = jax.random.split(key)
    return {
        "w1": jax.random.normal(key1, (64, 32)) / 8,
        "b1": jnp.zeros(32),
        "w2": jax.random.normal(key2, (32, 10)) / 32**0.5,
        "b2": jnp.zeros(10),
    }


def mean_loss(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Mean cross-entropy of a batch."""
    images, labels = batch
    hidden = jax.nn.relu(images @ params["w1"] + params["b1"])
    logits = hidden @ params["w2"] + params["b2"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def optax_chain(tx: optax.GradientTransformation, params: Any, state: Any, batches: Any) -> Any:
    """One chain of a transformation over all batches: its last parameters."""

    def step(carry: Any, batch: Any) -> Any:
        params, state = carry
        updates, state = tx.update(jax.grad(mean_loss)(params, batch), state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, state), batches)[0][0]


def blackjax_chain(params: Any, key: jax.Array, batches: Any) -> Any:
    """The same with `blackjax.sgld`, on the log posterior -L/T, at step size ηT."""
    sgld = blackjax.sgld(lambda p, b: jax.grad(lambda p: -mean_loss(p, b) / TEMPERATURE)(p))

    def step(carry: Any, batch: Any) -> Any:
        params, key = carry
        key, subkey = jax.random.split(key)
        return (sgld.step(subkey, params, batch, LEARNING_RATE * TEMPERATURE), key), None

    return jax.lax.scan(step, (params, key), batches)[0][0]


def programs(num_chains: int, batches: Any) -> dict[str, Callable[[], Any]]:
    """The ways to run `num_chains` chains, compiled."""
    params = jax.vmap(init_params)(jax.random.split(jax.random.key(0), num_chains))
    one = jax.tree.map(lambda p: p[0], params)
    gaussian = diffopt.sgld(LEARNING_RATE, TEMPERATURE)
    gaussian16 = diffopt.sgld(LEARNING_RATE, TEMPERATURE, noise="gaussian16")
    sgd = optax.sgd(LEARNING_RATE)
    states = diffopt.split_keys(gaussian.init(one), num_chains)
    keys = jax.random.split(jax.random.key(1), num_chains)
    singles = [jax.tree.map(lambda x, i=i: x[i], (params, states)) for i in range(num_chains)]

    def vmapped(chain: Callable[..., Any], state: Any) -> Callable[[], Any]:
        many = jax.jit(jax.vmap(chain, in_axes=(0, 0, None)))
        return partial(many.lower(params, state, batches).compile(), params, state, batches)

    single = jax.jit(partial(optax_chain, gaussian)).lower(*singles[0], batches).compile()
    return {
        "vmap": vmapped(partial(optax_chain, gaussian), states),
        "gaussian16": vmapped(
            partial(optax_chain, gaussian16), diffopt.split_keys(gaussian16.init(one), num_chains)
        ),
        "one after another": lambda: [single(p, s, batches) for p, s in singles],
        "blackjax": vmapped(blackjax_chain, keys),
        "sgd": vmapped(partial(optax_chain, sgd), jax.vmap(sgd.init)(params)),
    }


def measure(steps: int, rounds: int, chains: tuple[int, ...], console: Console) -> list[dict]:
    """Microseconds per step and chain, for each number of chains and each way."""
    digits = load_digits()
    index = jax.random.randint(jax.random.key(2), (steps, BATCH_SIZE), 0, len(digits.target))
    batches = jnp.asarray(digits.data / 16, jnp.float32)[index], jnp.asarray(digits.target)[index]
    rows = []
    for num_chains in track(chains, "chains", console=console, transient=True):
        ways = programs(num_chains, batches)
        runs = {way: timing.make_run(program) for way, program in ways.items()}
        timing.time_in_turn(runs, 1)  # a warm-up
        times = timing.time_in_turn(runs, rounds)
        rows.append(
            {"chains": num_chains}
            | {w: 1e6 * statistics.median(t) / steps / num_chains for w, t in times.items()}
        )
    return rows


def plot_cost(rows: list[dict], path: Path) -> None:
    """Cost per chain against the number of chains, as a figure."""
    figure, axes = plt.subplots(figsize=(plots.WIDTH, 5), layout="constrained")
    colors = (plots.RED, plots.ORANGE, plots.GRAY, plots.BLUE, "black")
    for (way, label), color in zip(WAYS.items(), colors, strict=True):
        axes.plot([r["chains"] for r in rows], [r[way] for r in rows], "o-", label=label, c=color)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks := [r["chains"] for r in rows], [str(t) for t in ticks])
    axes.set_ylim(bottom=0)
    axes.set(xlabel="chains", ylabel="µs per step and chain", title="Cost of one chain")
    axes.legend()
    plots.save(figure, path)


def tables() -> Tables:
    """The cost of a chain, by their number."""
    return {
        "chains": cost_table,
    }


def cost_table() -> str:
    """What a step of a chain costs, by the number of chains."""
    result = load("chain_cost.json")
    ways = ("vmap", "gaussian16", "one after another", "blackjax", "sgd")
    rows = (
        [str(row["chains"]), *(f"{row[way]:.1f}" for way in ways)]
        for row in result["microseconds_per_step_and_chain"]
    )
    head = [
        "chains", "diffopt, vmapped", "the same, `gaussian16`", "diffopt, one after another",
        "BlackJAX SGLD, vmapped", "SGD, no noise, vmapped",
    ]  # fmt: skip
    config = result["config"]
    command = (
        f"python -m benchmarks.chain_cost --rounds {config['rounds']} --steps {config['steps']}"
    )
    return markdown(head, rows) + origin("chain_cost.json", result["machine"], command)


@cli.program("chain_cost")
def main(argv: list[str] | None = None) -> None:
    """Parse the command line, measure, show."""
    parser = cli.parser("chain_cost", __doc__)
    parser.add_argument("--steps", type=cli.at_least_one, default=500, help="default %(default)s")
    parser.add_argument("--rounds", type=cli.at_least_one, default=7, help="default %(default)s")
    parser.add_argument(
        "--chains", type=cli.at_least_one, nargs="+", default=CHAINS, metavar="N",
        help=f"default {' '.join(map(str, CHAINS))}",
    )  # fmt: skip
    args = parser.parse_args(argv)
    cli.require_unique("--chains", args.chains)
    out = cli.make_folder(args.out)

    console = Console()
    rows = measure(args.steps, args.rounds, tuple(args.chains), console)
    table = Table(title="µs per step and chain", title_justify="left")
    table.add_column("chains", justify="right")
    for label in WAYS.values():
        table.add_column(label, justify="right")
    for row in rows:
        table.add_row(str(row["chains"]), *(f"{row[way]:.1f}" for way in WAYS))
    console.print(table)
    about = machine.describe()
    console.print(machine.line(about))
    config = {"steps": args.steps, "rounds": args.rounds, "batch_size": BATCH_SIZE}
    result = {"config": config, "machine": about, "microseconds_per_step_and_chain": rows}
    files.write_json(out / "chain_cost.json", result)
    plot_cost(rows, out / "chains.png")
    console.print(f"Wrote {out / 'chain_cost.json'}, {out / 'chains.png'}")


if __name__ == "__main__":
    sys.exit(main())
