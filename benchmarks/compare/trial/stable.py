"""Does noise keep a network able to learn? A stream that never ends.

Every task shows digits once under a new permutation of their pixels, and what counts is how many
are classified right before they are learned from, late in the stream. The diffusion is `sgld` after
weight decay; its rivals are SGD, momentum, Adam, AdamW, SGD with weight decay, with decay towards
the initial weights, and with layer norm, each tuned. Decay and noise come apart: each is also there
alone. The control is a stream without change.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffopt

from . import digits, tuned
from .cells import Keep, Record, Result, Settings, grid, measured
from .statistics import Entry, entry

LAYERS = (64, 100, 100, 10)
BATCH = 32
STEPS = 1437 // BATCH  # a task
SCORED_BY = "mean online error of the last quarter of 30 tasks, 4 seeds"
CONTROLS = ("one task for ever",)
DEFAULTS = {"momentum": 0.0, "weight_decay": 0.0, "to_start": 0.0, "temperature": 0.0}
METRICS = {
    "late": "online accuracy, last quarter of the tasks, %",
    "change": "online accuracy, late less early, %",
}


class Method(NamedTuple):
    """An optimizer, and whether each layer is normed."""

    optimizer: str
    layer_norm: bool = False


DIFFUSION = "sgld with decay"
NOISE = "sgld without decay"
WITHOUT_DECAY = {
    NOISE: Method("sgld"),
    "sgd": Method("sgd"),
    "momentum": Method("sgd"),
    "adam": Method("adamw"),
}
RIVALS = {
    "sgd": Method("sgd"),
    "momentum": Method("sgd"),
    "adam": Method("adamw"),
    "adamw": Method("adamw"),
    "sgd with decay": Method("sgd"),
    "sgd with decay to the start": Method("sgd"),
    "sgd with decay, layer norm": Method("sgd", True),
}
METHODS = {DIFFUSION: Method("sgld"), **WITHOUT_DECAY, **RIVALS}

decays = grid(learning_rate=[0.1, 0.3], weight_decay=[1e-3, 3e-3, 1e-2])
GRIDS = {
    DIFFUSION: grid(learning_rate=[0.1], weight_decay=[1e-3, 3e-3], temperature=[1e-5, 3e-5, 1e-4]),
    NOISE: grid(learning_rate=[0.1, 0.3], temperature=[3e-6, 1e-5, 3e-5]),
    "sgd": grid(learning_rate=[0.02, 0.05, 0.1, 0.2, 0.3, 0.5]),
    "momentum": grid(learning_rate=[0.003, 0.01, 0.02, 0.03, 0.05, 0.1], momentum=[0.9]),
    "adam": grid(learning_rate=[3e-4, 1e-3, 2e-3, 4e-3, 7e-3, 1e-2]),
    "adamw": grid(learning_rate=[0.001, 0.003], weight_decay=[0.1, 0.3, 1.0]),
    "sgd with decay": decays,
    "sgd with decay to the start": [point | {"to_start": 1.0} for point in decays],
    "sgd with decay, layer norm": decays,
}


def decay(hp: Settings, start: Any) -> optax.GradientTransformation:
    """Weight decay towards 0, or, if `to_start` is 1, towards the initial weights."""

    def pull(grads: Any, params: Any) -> Any:
        towards = lambda g, p, p0: g + hp["weight_decay"] * (p - hp["to_start"] * p0)
        return jax.tree.map(towards, grads, params, start)

    return optax.stateless(pull)


OPTIMIZERS: dict[str, Callable[[Settings, Any, jax.Array], optax.GradientTransformation]] = {
    "sgd": lambda hp, start, key: optax.chain(
        decay(hp, start), optax.sgd(hp["learning_rate"], momentum=hp["momentum"])
    ),
    "adamw": lambda hp, start, key: optax.adamw(
        hp["learning_rate"], weight_decay=hp["weight_decay"]
    ),
    "sgld": lambda hp, start, key: optax.chain(
        decay(hp, start),
        diffopt.sgld(hp["learning_rate"], hp["temperature"], key=key, noise="rademacher"),
    ),
}


def logits(params: Any, x: jax.Array, layer_norm: bool) -> jax.Array:
    """The network, with layers normed before each ReLU or not."""
    *hidden, last = params
    for layer in hidden:
        x = x @ layer["kernel"] + layer["bias"]
        x = jax.nn.relu(jax.nn.standardize(x) if layer_norm else x)
    return x @ last["kernel"] + last["bias"]


@partial(jax.jit, static_argnames="method")
def stream(
    x: jax.Array, labels: jax.Array, keys: jax.Array, changes: jax.Array, tasks: jax.Array,
    hp: Settings, *, method: Method,
) -> jax.Array:  # fmt: skip
    """Online accuracy in each quarter of a stream, `[seeds, 4]`: of batches before their step.

    `changes` is 1 where each task has its own permutation, 0 where it is one task for ever.
    """

    def of_seed(key: jax.Array) -> jax.Array:
        start = digits.init_network(jax.random.fold_in(key, 0), LAYERS)
        tx = OPTIMIZERS[method.optimizer](hp, start, jax.random.fold_in(key, 1))

        def loss(params: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
            guess = logits(params, x, method.layer_norm)
            losses = optax.softmax_cross_entropy_with_integer_labels(guess, y)
            return losses.mean(), (guess.argmax(-1) == y).mean()

        def task(number: jax.Array, carry: Any) -> Any:
            task_key = jax.random.fold_in(key, 2 + changes * number)
            pixels = jax.random.permutation(task_key, x.shape[1])
            order = jax.random.permutation(jax.random.fold_in(key, 1_000_000 + number), len(x))

            def step(carry: Any, batch: jax.Array) -> tuple[Any, jax.Array]:
                params, state = carry
                shown = x[batch][:, pixels]
                grads, right = jax.grad(loss, has_aux=True)(params, shown, labels[batch])
                updates, state = tx.update(grads, state, params)
                return (optax.apply_updates(params, updates), state), right

            trained, quarters = carry
            batches = order[: STEPS * BATCH].reshape(STEPS, BATCH)
            trained, right = jax.lax.scan(step, trained, batches)
            return trained, quarters.at[4 * number // tasks].add(4 * right.mean() / tasks)

        carry = (start, tx.init(start)), jnp.zeros(4)
        return jax.lax.fori_loop(0, tasks, task, carry)[1]

    return jax.vmap(of_seed)(keys)


class Size(NamedTuple):
    """How many tasks a stream has, and how many seeds."""

    tasks: int
    seeds: int
    control: bool


SIZES = {
    "quick": Size(20, 12, control=False),
    "default": Size(100, 16, control=True),
    "full": Size(400, 24, control=True),
}


def follow(
    method: Method, hp: Settings, *, changes: bool, tasks: int, first_seed: int, seeds: int
) -> Result:
    """Online accuracy of each seed in percent, late and late less early."""
    x, labels, _, _ = digits.load()
    keys = jax.vmap(jax.random.key)(jnp.arange(first_seed, first_seed + seeds))
    quarters, seconds = measured(
        stream, x, labels, keys, int(changes), tasks, DEFAULTS | hp, static={"method": method}
    )
    quarters = 100 * quarters
    return {
        "values": {
            "late": quarters[:, -1].tolist(),
            "change": (quarters[:, -1] - quarters[:, 0]).tolist(),
        },
        "seconds": seconds,
    }


def run(size: str, keep: Keep) -> list[Entry]:
    """The entries of the claim."""
    chosen, frozen = SIZES[size], tuned.load("stable")["stream"]

    def against(
        setting: str, metric: str, diffusion: str, rivals: dict[str, Method], changes: bool
    ) -> list[Entry]:
        found = {}
        for name in (diffusion, *rivals):
            amount: dict[str, Any] = {
                "changes": changes, "tasks": chosen.tasks, "first_seed": 0, "seeds": chosen.seeds
            }  # fmt: skip
            result = keep(
                f"stream, {METHODS[name]}",
                [frozen[name], amount],
                partial(follow, METHODS[name], frozen[name], **amount),
            )
            found[name] = (name, result["values"][metric], result["seconds"])
        return [
            entry("stable", setting, METRICS[metric], found[diffusion], found[rival],
                  lower_is_better=False)
            for rival in rivals
        ]  # fmt: skip

    tasks = f"{chosen.tasks} tasks"
    alone = {name: method for name, method in WITHOUT_DECAY.items() if name != NOISE}
    plain = {name: method for name, method in RIVALS.items() if not method.layer_norm}
    if size == "quick":
        return against(f"{tasks}: late", "late", DIFFUSION, plain, True)
    entries = [
        *against(f"{tasks}: late", "late", DIFFUSION, RIVALS, True),
        *against(f"{tasks}: late less early", "change", DIFFUSION, RIVALS, True),
        *against(f"{tasks}, noise without decay: late", "late", NOISE, alone, True),
    ]
    few = {name: RIVALS[name] for name in ("sgd", "sgd with decay", "adam")}
    return entries + against(CONTROLS[0], "late", DIFFUSION, few, False)


def tune(record: Record) -> None:
    """Six trials of each method, on short streams that the trial does not have."""
    amount: dict[str, Any] = {"changes": True, "tasks": 30, "first_seed": 1000, "seeds": 4}
    for name, method in METHODS.items():
        late = [follow(method, hp, **amount)["values"]["late"] for hp in GRIDS[name]]
        scores = [100 - float(np.mean(values)) for values in late]
        record("stream", name, list(zip(GRIDS[name], scores, strict=True)))
