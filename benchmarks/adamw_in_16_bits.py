"""Does AdamW train in bfloat16 as far as in float32, and in how many bytes?

    python -m benchmarks.adamw_in_16_bits [--out DIR]

A small transformer on the help pages of Python, byte by byte, and a student of ReLU units that
learns a teacher. Every method is `optax.adamw` with a cosine schedule and gets the same batches.
Storage alone differs: the network computes in float32 from what is stored, as a CPU has no
arithmetic in 16 bits. Every method is at the best of the same five learning rates.
"""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import diffopt

from .lib import cli, files, machine, scores
from .lib.tables import Tables, load, markdown, origin

WIDTH, HEADS, DEPTH, LENGTH = 64, 4, 2, 32
INPUTS, TEACHER, STUDENT = 32, 16, 64
DECAY = 0.01


class Problem(NamedTuple):
    """`init(key)` gives float32 parameters, `loss(params, batch)` a mean, `batch(key)` a batch."""

    init: Callable[[jax.Array], Any]
    loss: Callable[[Any, Any], jax.Array]
    batch: Callable[[jax.Array], Any]
    learning_rates: tuple[float, ...]
    steps: int


# The problems


def transformer() -> Problem:
    """Two blocks of width 64 that foretell the next of 32 bytes."""
    text = np.frombuffer("\n".join(topics.values()).encode("ascii", "ignore"), np.uint8)
    windows = jnp.asarray(text[: len(text) // (LENGTH + 1) * (LENGTH + 1)].reshape(-1, LENGTH + 1))

    def init(key: jax.Array) -> Any:
        shapes = {
            "qkv": (WIDTH, 3 * WIDTH), "out": (WIDTH, WIDTH),
            "up": (WIDTH, 4 * WIDTH), "down": (4 * WIDTH, WIDTH),
        }  # fmt: skip
        fan_in = lambda key, shape: jax.random.normal(key, shape) * shape[0] ** -0.5
        embed, head, places, *keys = jax.random.split(key, 3 + DEPTH)
        return {
            "embed": 0.1 * jax.random.normal(embed, (256, WIDTH)),
            "places": 0.1 * jax.random.normal(places, (LENGTH, WIDTH)),
            "head": fan_in(head, (WIDTH, 256)),
            "blocks": [
                {n: fan_in(jax.random.fold_in(k, i), s) for i, (n, s) in enumerate(shapes.items())}
                for k in keys
            ],
        }

    def norm(x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5)

    def loss(params: Any, batch: jax.Array) -> jax.Array:
        tokens = batch[:, :-1]
        x = params["embed"][tokens] + params["places"]
        for p in params["blocks"]:
            q, k, v = jnp.split(norm(x) @ p["qkv"], 3, axis=-1)
            q, k, v = (a.reshape(*a.shape[:2], HEADS, -1) for a in (q, k, v))
            heads = jax.nn.dot_product_attention(q, k, v, is_causal=True)
            x = x + heads.reshape(x.shape) @ p["out"]
            x = x + jax.nn.gelu(norm(x) @ p["up"]) @ p["down"]
        found = norm(x) @ params["head"]
        return optax.softmax_cross_entropy_with_integer_labels(found, batch[:, 1:]).mean()

    pick = lambda key: windows[jax.random.randint(key, (16,), 0, len(windows))]
    return Problem(init, loss, pick, (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), 400)


def student() -> Problem:
    """64 ReLU units that learn 16, from Gaussian inputs."""

    def network(params: Any, x: jax.Array) -> jax.Array:
        return jax.nn.relu(x @ params["in"]) @ params["out"]

    def draw(key: jax.Array, units: int) -> Any:
        one, two = jax.random.split(key)
        return {
            "in": jax.random.normal(one, (INPUTS, units)) * INPUTS**-0.5,
            "out": jax.random.normal(two, (units,)) * (2 / units) ** 0.5,
        }

    teacher = draw(jax.random.key(100), TEACHER)

    def batch(key: jax.Array) -> Any:
        x = jax.random.normal(key, (128, INPUTS))
        return x, network(teacher, x)

    loss = lambda params, batch: jnp.mean((network(params, batch[0]) - batch[1]) ** 2) / 2
    rates = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    return Problem(lambda key: draw(key, STUDENT), loss, batch, rates, 2000)


PROBLEMS = {"transformer": transformer, "teacher and student": student}


# The methods


def compensate(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Kahan summation: what a sum to nearest leaves out is in bfloat16, as the moments are."""

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        inner, rest = state
        updates, inner = tx.update(grads, inner, params)

        def add(p: jax.Array, u: jax.Array, r: jax.Array) -> tuple[jax.Array, jax.Array]:
            y = u.astype(jnp.float32) + r.astype(jnp.float32)
            total = (p.astype(jnp.float32) + y).astype(p.dtype)
            moved = total.astype(jnp.float32) - p.astype(jnp.float32)
            return moved.astype(p.dtype), (y - moved).astype(p.dtype)

        pairs = jax.tree.map(add, params, updates, rest)
        one, two = (jax.tree.map(lambda _, pair, i=i: pair[i], params, pairs) for i in (0, 1))
        return one, (inner, two)

    zeros = partial(jax.tree.map, jnp.zeros_like)
    return optax.GradientTransformation(lambda params: (tx.init(params), zeros(params)), update)


Wrap = Callable[[optax.GradientTransformation], Any]
METHODS: dict[str, tuple[Any, Wrap]] = {
    "float32": (jnp.float32, lambda tx: tx),
    "to nearest": (jnp.bfloat16, lambda tx: tx),
    "Kahan, moments to nearest": (jnp.bfloat16, compensate),
    "at random alone": (
        jnp.bfloat16,
        partial(diffopt.low_precision, residual=False, state_dtype=jnp.bfloat16),
    ),
    "`low_precision`": (jnp.bfloat16, diffopt.low_precision),
    "`low_precision`, `state_dtype`": (
        jnp.bfloat16, partial(diffopt.low_precision, state_dtype=jnp.bfloat16),
    ),
}  # fmt: skip


def train(problem: Problem, method: str, steps: int) -> Callable[..., Any]:
    """A compiled `(key, learning rate) -> (loss at the end, exact loss, parameters, state)`.

    The loss is that of the parameters which the network computes with, and the exact loss that of
    what `low_precision` keeps of them, the same where nothing is kept.
    """
    dtype, wrap = METHODS[method]

    def loss(params: Any, batch: Any) -> jax.Array:
        return problem.loss(jax.tree.map(lambda p: p.astype(jnp.float32), params), batch)

    @jax.jit
    def run(key: jax.Array, learning_rate: jax.Array) -> Any:
        init_key, batch_key, test_key = jax.random.split(key, 3)
        schedule = lambda t: learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * t / steps))
        tx = wrap(optax.adamw(schedule, weight_decay=DECAY))
        params = jax.tree.map(lambda p: p.astype(dtype), problem.init(init_key))

        def step(carry: Any, t: jax.Array) -> Any:
            params, state = carry
            grads = jax.grad(loss)(params, problem.batch(jax.random.fold_in(batch_key, t)))
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        carry, _ = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))
        exact = diffopt.exact_params(*carry) if "low_precision" in method else carry[0]
        batches = jax.vmap(problem.batch)(jax.random.split(test_key, 40))
        seen, kept = (jax.lax.map(partial(loss, p), batches).mean() for p in (carry[0], exact))
        return seen, kept, *carry

    return run


def count_bytes(params: Any, state: Any) -> float:
    """Of the parameters and the state, for each parameter."""
    arrays = [x for x in jax.tree.leaves((params, state)) if x.ndim]
    total = sum(x.size * x.dtype.itemsize for x in arrays)
    return total / sum(p.size for p in jax.tree.leaves(params))


def measure(problem: Problem, method: str, steps: int, seeds: int) -> dict[str, Any]:
    """The losses at the end, one a seed, at the best of the learning rates, and what it took."""
    run = train(problem, method, steps)
    losses: dict[float, list[float]] = {}
    exact: dict[float, list[float]] = {}
    seconds = []
    jax.block_until_ready(run(jax.random.key(0), jnp.zeros(())))  # compiles
    for rate in problem.learning_rates:
        for seed in range(seeds):
            clock = time.perf_counter()
            found = jax.block_until_ready(run(jax.random.key(seed), jnp.asarray(rate)))
            seconds.append(time.perf_counter() - clock)
            loss, kept, params, state = found
            losses.setdefault(rate, []).append(float(loss))
            exact.setdefault(rate, []).append(float(kept))
    best = min(losses, key=lambda rate: np.nan_to_num(np.mean(losses[rate]), nan=np.inf))
    return {
        "losses": losses[best],
        "exact_losses": exact[best],
        "learning_rate": best,
        "all_losses": {f"{rate:g}": each for rate, each in losses.items()},
        "bytes": count_bytes(params, state),
        "milliseconds": 1e3 * statistics.median(seconds) / steps,
    }


# What a person sees

HEAD = ["problem", "AdamW in", "bytes a parameter", "best learning rate", "loss at the end",
        "over float32's", "of the exact parameters", "ms a step"]  # fmt: skip


def cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    """A line for each row: ratios are over float32's from the same seed."""
    float32 = {r["problem"]: np.array(r["losses"]) for r in rows if r["method"] == "float32"}
    lines = []
    for row in rows:
        ratios = [
            np.array(row[key]) / float32[row["problem"]] for key in ("losses", "exact_losses")
        ]
        lines.append([
            row["problem"], row["method"], f"{row['bytes']:.0f}", f"{row['learning_rate']:g}",
            f"{np.mean(row['losses']):.4g}", *(scores.plus_minus(list(r), 3) for r in ratios),
            f"{row['milliseconds']:.2f}",
        ])  # fmt: skip
    return lines


def tables() -> Tables:
    """How far AdamW trains in each storage."""
    return {"adamw_in_16_bits": training_table, "bytes_in_16_bits": bytes_table}


def training_table() -> str:
    """The rows of the committed run."""
    result = load("adamw_in_16_bits.json")
    body, command = cells(result["rows"]), "python -m benchmarks.adamw_in_16_bits"
    return markdown(HEAD, body, left=2) + origin(
        "adamw_in_16_bits.json", result["machine"], command
    )


OPTIMIZERS: dict[str, optax.GradientTransformation] = {
    "SGD": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "AdamW": optax.adamw(0.1),
    "SGHMC": diffopt.sghmc(0.1, 0.1),
}


def bytes_table() -> str:
    """Bytes a parameter of all weights and all state; gradients and activations come on top."""
    wide, narrow = (jax.ShapeDtypeStruct((8, 8), dtype) for dtype in (jnp.float32, jnp.bfloat16))

    def count(tx: optax.GradientTransformation, params: Any, *copies: Any) -> str:
        return f"{count_bytes(params, (copies, jax.eval_shape(tx.init, params))):.0f}"

    rows = (
        [
            name, count(tx, wide), count(tx, wide, narrow),
            count(diffopt.low_precision(tx), narrow),
            count(diffopt.low_precision(tx, state_dtype=jnp.bfloat16), narrow),
            count(diffopt.low_precision(tx, residual=False, state_dtype=jnp.bfloat16), narrow),
        ]
        for name, tx in OPTIMIZERS.items()
    )  # fmt: skip
    head = ["bytes a parameter", "float32", "float32 with a copy in bfloat16", "`low_precision`",
            "with `state_dtype`", "and `residual=False`"]  # fmt: skip
    return markdown(head, rows)


@cli.program("adamw_in_16_bits")
def main(argv: list[str] | None = None) -> None:
    """Parse the command line, train, show."""
    parser = cli.parser("adamw_in_16_bits", __doc__)
    parser.add_argument("--steps", type=cli.at_least_one, help="default 400 and 2,000")
    parser.add_argument("--seeds", type=cli.at_least(2), default=3, help="default %(default)s")
    args = parser.parse_args(argv)
    out = cli.make_folder(args.out)
    console, rows = Console(), []
    config, about = {"steps": args.steps, "seeds": args.seeds}, machine.describe()
    for name, make in PROBLEMS.items():
        problem = make()
        for method in METHODS:
            with console.status(f"{name}, {method}"):
                row = measure(problem, method, args.steps or problem.steps, args.seeds)
            rows.append({"problem": name, "method": method} | row)
            result = {"config": config, "machine": about, "rows": rows}
            files.write_json(out / "adamw_in_16_bits.json", result)
    shown = Table(*HEAD)
    for line in cells(rows):
        shown.add_row(*line)
    console.print(shown)
    console.print(machine.line(about))
    console.print(f"Wrote {out / 'adamw_in_16_bits.json'}")


if __name__ == "__main__":
    sys.exit(main())
