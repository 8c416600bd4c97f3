"""Streams of digits, permuted anew in every task, and a network that learns from them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import diffopt

from ..protocol.cells import Result, Settings, run_timed
from . import digits

LAYERS = (64, 100, 100, 10)
BATCH = 32
STEPS = 1437 // BATCH  # a task
DEFAULTS = {"momentum": 0.0, "weight_decay": 0.0, "to_start": 0.0, "temperature": 0.0}


class Method(NamedTuple):
    """An optimizer, and whether each layer is normed."""

    optimizer: str
    layer_norm: bool = False


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


def follow(
    method: Method, hp: Settings, *, changes: bool, tasks: int, first_seed: int, seeds: int
) -> Result:
    """Online accuracy of each seed in percent, late and late less early."""
    x, labels, _, _ = digits.load()
    keys = jax.vmap(jax.random.key)(jnp.arange(first_seed, first_seed + seeds))
    quarters, seconds = run_timed(
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
