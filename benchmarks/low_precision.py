"""Does AdamW train in bfloat16 as far as in float32, and in how many bytes?

    python -m benchmarks.low_precision [--out DIR]

A small transformer on the help pages of Python, byte by byte, and a student of ReLU units that
learns a teacher. Every method is `optax.adamw` with a cosine schedule and gets the same batches.
Storage alone differs: the network computes in float32 from what is stored, as a CPU has no
arithmetic in 16 bits. Rounding to nearest is at the best of five learning rates.
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

from .lib import cli, files, machine
from .lib.tables import Tables, load, markdown, origin

WIDTH, HEADS, DEPTH, LENGTH = 64, 4, 2, 32
INPUTS, TEACHER, STUDENT = 32, 16, 64
DECAY = 0.01
SCALES = (0.3, 1.0, 3.0, 10.0, 30.0)  # of the learning rate, for rounding to nearest


class Problem(NamedTuple):
    """`init(key)` gives float32 parameters, `loss(params, batch)` a mean, `batch(key)` a batch."""

    init: Callable[[jax.Array], Any]
    loss: Callable[[Any, Any], jax.Array]
    batch: Callable[[jax.Array], Any]
    learning_rate: float


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
    return Problem(init, loss, pick, 3e-3)


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
    return Problem(lambda key: draw(key, STUDENT), loss, batch, 1e-2)


PROBLEMS = {"transformer": transformer, "teacher and student": student}


# The methods


def round_alone(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Weights and moments rounded at random, and nothing kept of what that leaves out."""
    kept = diffopt.low_precision(tx, state_dtype=jnp.bfloat16)

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.int16), params)
        updates, state = kept.update(grads, state._replace(residual=zeros), params)
        return updates, state._replace(residual=())

    return optax.GradientTransformation(lambda p: kept.init(p)._replace(residual=()), update)


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
    "at random alone": (jnp.bfloat16, round_alone),
    "`low_precision`": (jnp.bfloat16, diffopt.low_precision),
    "`low_precision`, `state_dtype`": (
        jnp.bfloat16, partial(diffopt.low_precision, state_dtype=jnp.bfloat16),
    ),
}  # fmt: skip


def train(problem: Problem, method: str, steps: int) -> Callable[..., Any]:
    """A compiled `(key, learning rate) -> (loss at the end, parameters, state)`."""
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
        batches = jax.vmap(problem.batch)(jax.random.split(test_key, 40))
        return jax.lax.map(partial(loss, carry[0]), batches).mean(), *carry

    return run


def count_bytes(params: Any, state: Any) -> float:
    """Of the parameters and the state, for each parameter."""
    arrays = [x for x in jax.tree.leaves((params, state)) if jnp.ndim(x)]
    total = sum(x.size * x.dtype.itemsize for x in arrays)
    return total / sum(p.size for p in jax.tree.leaves(params))


def measure(problem: Problem, method: str, steps: int, seeds: int) -> dict[str, Any]:
    """The losses at the end, one a seed, at the best of the learning rates, and what it took."""
    run = train(problem, method, steps)
    scales = SCALES if method == "to nearest" else (1.0,)
    by_scale: dict[float, list[float]] = {}
    seconds = []
    for scale in scales:
        for seed in range(seeds):
            arguments = jax.random.key(seed), jnp.asarray(scale * problem.learning_rate)
            if not by_scale:
                jax.block_until_ready(run(*arguments))  # compiles
            clock = time.perf_counter()
            loss, params, state = jax.block_until_ready(run(*arguments))
            seconds.append(time.perf_counter() - clock)
            by_scale.setdefault(scale, []).append(float(loss))
    mean = lambda scale: np.nan_to_num(np.mean(by_scale[scale]), nan=np.inf)
    best = min(by_scale, key=mean)
    return {
        "losses": by_scale[best],
        "learning_rate": best * problem.learning_rate,
        "all_losses": {f"{s * problem.learning_rate:g}": v for s, v in by_scale.items()},
        "bytes": count_bytes(params, state),
        "milliseconds": 1e3 * statistics.median(seconds) / steps,
    }


# What a person sees

HEAD = ["problem", "AdamW in", "bytes a parameter", "loss at the end", "over float32's",
        "learning rate", "ms a step"]  # fmt: skip


def cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    """A line for each row."""
    float32 = {r["problem"]: np.array(r["losses"]) for r in rows if r["method"] == "float32"}
    lines = []
    for row in rows:
        losses = np.array(row["losses"])
        ratio = losses / float32[row["problem"]]
        lines.append([
            row["problem"], row["method"], f"{row['bytes']:.1f}", f"{losses.mean():.4g}",
            f"{ratio.mean():.3f} ± {ratio.std(ddof=1) / len(ratio) ** 0.5:.3f}",
            f"{row['learning_rate']:g}", f"{row['milliseconds']:.2f}",
        ])  # fmt: skip
    return lines


def tables() -> Tables:
    """How far AdamW trains in each storage."""
    return {"adamw_in_16_bits": storage_table}


def storage_table() -> str:
    """The rows of the committed run."""
    result = load("low_precision.json")
    below = origin("low_precision.json", result["machine"], "python -m benchmarks.low_precision")
    return markdown(HEAD, cells(result["rows"]), left=2) + below


@cli.program("low_precision")
def main(argv: list[str] | None = None) -> None:
    """Parse the command line, train, show."""
    parser = cli.parser("low_precision", __doc__)
    parser.add_argument("--steps", type=cli.at_least_one, default=1000, help="default %(default)s")
    parser.add_argument("--seeds", type=cli.at_least(2), default=3, help="default %(default)s")
    args = parser.parse_args(argv)
    out = cli.make_folder(args.out)
    console, rows = Console(), []
    config = {"steps": args.steps, "seeds": args.seeds}
    for name, make in PROBLEMS.items():
        problem = make()
        for method in METHODS:
            with console.status(f"{name}, {method}"):
                row = measure(problem, method, args.steps, args.seeds)
            rows.append({"problem": name, "method": method} | row)
            result = {"config": config, "machine": machine.describe(), "rows": rows}
            files.write_json(out / "low_precision.json", result)
    shown = Table(*HEAD)
    for line in cells(rows):
        shown.add_row(*line)
    console.print(shown)
    console.print(machine.line(machine.describe()))
    console.print(f"Wrote {out / 'low_precision.json'}")


if __name__ == "__main__":
    sys.exit(main())
