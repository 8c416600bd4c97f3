"""The cost of `diffopt.sample` beside a bare loop, and of its progress bar.

    python -m benchmarks.sample_cost [--out DIR]

Chains of a network of 64-32-10 neurons on scikit-learn's digits, with batches of 32 and
`diffopt.sghmc`. The bare loop is a scan of vmapped gradients and updates on batches drawn with
replacement; it keeps nothing and measures nothing. `sample` keeps one draw in ten. A call of it
traces the functions it is given, however many steps follow, so a step is what five times the steps
take longer. The loops take turns; medians are reported.
"""

import contextlib
import io
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import diffopt

from .lib import cli, files, machine, timing
from .lib.tables import Tables, load, markdown, origin

BATCH_SIZE, LEARNING_RATE, TEMPERATURE = 32, 0.01, 1 / 1797
EVERY, LONGER = 10, 5
WAYS = ("bare loop", "sample", "sample with progress")


def mean_loss(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Mean cross-entropy of a batch."""
    images, labels = batch
    hidden = jax.nn.relu(images @ params["w1"] + params["b1"])
    logits = hidden @ params["w2"] + params["b2"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def initial() -> dict[str, jax.Array]:
    """The weights from which all chains start."""
    weights = lambda key, *shape: jax.random.normal(jax.random.key(key), shape) / shape[0] ** 0.5
    w1, w2 = weights(0, 64, 32), weights(1, 32, 10)
    return {"w1": w1, "b1": jnp.zeros(32), "w2": w2, "b2": jnp.zeros(10)}


def programs(num_chains: int, steps: int) -> dict[str, Callable[[], Any]]:
    """The three ways to take `steps` steps of `num_chains` chains."""
    digits = load_digits()
    data = jnp.asarray(digits.data / 16, jnp.float32), jnp.asarray(digits.target)
    params = initial()
    tx = diffopt.sghmc(LEARNING_RATE, TEMPERATURE)

    @jax.jit
    def loop(params: Any, states: Any, data: Any, keys: jax.Array) -> Any:
        def one(params: Any, state: Any, index: jax.Array) -> Any:
            batch = jax.tree.map(lambda x: x[index], data)
            updates, state = tx.update(jax.grad(mean_loss)(params, batch), state)
            return optax.apply_updates(params, updates), state

        def step(carry: Any, key: jax.Array) -> Any:
            index = jax.random.randint(key, (num_chains, BATCH_SIZE), 0, len(data[1]))
            return jax.vmap(one)(carry[0], carry[1], index), None

        return jax.lax.scan(step, (params, states), keys)[0]

    def bare() -> Any:
        chains = jax.tree.map(lambda p: jnp.broadcast_to(p, (num_chains, *p.shape)), params)
        states = diffopt.split_keys(tx.init(params), num_chains)
        return loop(chains, states, data, jax.random.split(jax.random.key(1), steps))

    def sample(progress: bool) -> Any:
        with contextlib.redirect_stderr(io.StringIO()):
            return diffopt.sample(
                tx, mean_loss, params, data,
                num_steps=steps, num_chains=num_chains, batch_size=BATCH_SIZE,
                every=EVERY, progress=progress,
            ).params  # fmt: skip

    return {
        "bare loop": bare,
        "sample": lambda: sample(False),
        "sample with progress": lambda: sample(True),
    }


def tables() -> Tables:
    """The cost of `sample`, by the number of chains."""
    return {
        "sampling": cost_table,
    }


def cost_table() -> str:
    """What `sample` costs beside a bare loop, and what its bar adds."""
    result = load("sample_cost.json")
    rows = []
    for row in result["microseconds_per_step"]:
        cells = [str(row["chains"]), *(f"{row[way]:.0f}" for way in WAYS)]
        ratios = [f"{row[name]:.2f}" for name in ("over_bare", "progress")]
        rows.append([*cells, *ratios, f"{row['seconds_of_a_call']:.1f}"])
    head = ["chains", *WAYS, "sample over bare", "progress over without", "seconds before, a call"]
    return markdown(head, rows) + origin("sample_cost.json", result["machine"], result["command"])


@cli.program("sample_cost")
def main(argv: list[str] | None = None) -> None:
    """Parse the command line, measure, show."""
    parser = cli.parser("sample_cost", __doc__)
    parser.add_argument(
        "--steps", type=cli.at_least_one, nargs="+", default=(10_000, 250), metavar="N",
        help="for each number of chains, default %(default)s",
    )  # fmt: skip
    parser.add_argument("--rounds", type=cli.at_least_one, default=7, help="default %(default)s")
    parser.add_argument("--chains", type=cli.at_least_one, nargs="+", default=(1, 64), metavar="N")
    args = parser.parse_args(argv)
    cli.require_unique("--chains", args.chains)
    if len(args.steps) != len(args.chains):
        parser.error(f"--steps: {len(args.steps)} numbers for {len(args.chains)} of chains")
    out = cli.make_folder(args.out)

    rows = []
    for num_chains, steps in zip(args.chains, args.steps, strict=True):
        runs = {
            (way, number): timing.make_run(program)
            for number in (steps, LONGER * steps)
            for way, program in programs(num_chains, number).items()
        }
        timing.time_in_turn(runs, 1)  # compiles
        times = {at: np.array(t) for at, t in timing.time_in_turn(runs, args.rounds).items()}
        scale = 1e6 / ((LONGER - 1) * steps)
        each = {w: scale * (times[w, LONGER * steps] - times[w, steps]) for w in WAYS}
        row = {way: float(np.median(values)) for way, values in each.items()}
        before = np.median(times["sample", steps]) - 1e-6 * steps * row["sample"]
        bare, quiet, shown = each.values()
        row |= {"over_bare": float(np.median(quiet / bare)), "seconds_of_a_call": float(before)}
        row |= {"progress": float(np.median(shown / quiet))}
        rows.append({"chains": num_chains} | row)
        print(
            f"{num_chains} chains, µs a step: "
            + ", ".join(f"{name} {value:.2f}" for name, value in row.items())
        )
    about = machine.describe()
    print(machine.line(about))
    config = {"steps": args.steps, "rounds": args.rounds, "batch_size": BATCH_SIZE, "every": EVERY}
    command = f"python -m benchmarks.sample_cost --rounds {args.rounds}"
    about_run = {"command": command, "config": config, "machine": about}
    result = about_run | {"microseconds_per_step": rows}
    files.write_json(out / "sample_cost.json", result)
    print(f"Wrote {out / 'sample_cost.json'}")


if __name__ == "__main__":
    sys.exit(main())
