"""What does noise cost? Steps with it and without it that take turns, in three networks.

In a user's program it is one line, the first of a chain: see `optimizers`. What it takes of memory
is counted from the compiled programs, beside the claim.

The claim is that noise costs little: a step without it is granted 10 % more of its time. The
article's step is `langevin` before SGD, diffopt's best `ivon` in the place of AdamW. The control is
a network of dense layers at a small batch, where drawing the noise is most of the work.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import diffopt

from ...lib import models, timing, training
from ..problems import digits
from ..protocol.cells import Keep, Result
from ..protocol.pairs import Entry, entry

LEARNING_RATE, TEMPERATURE = 0.01, 1e-5
LITTLE = 10.0  # percent
NOISES = ("gaussian", "gaussian16", "rademacher")
CONTROLS = ("dense layers, batch 16",)


class Work(NamedTuple):
    """A loss of `(params, *batch)`, its start, a batch, and how many steps are timed at once."""

    loss: Callable[..., jax.Array]
    params: Any
    batch: tuple[jax.Array, ...]
    steps: int


def article() -> Work:
    """The article's network at its batch of 100 images of CIFAR-10's shape."""
    graphdef, params = models.init_cnn(3, 0)
    images = jax.random.uniform(jax.random.key(0), (100, 32, 32, 3), minval=-1.0)
    return Work(partial(training.mean_loss, graphdef), params, (images, jnp.arange(100) % 10), 2)


def dense() -> Work:
    """Three dense layers at a batch of 16."""
    x = jax.random.normal(jax.random.key(0), (16, 64))
    params = digits.init_network(jax.random.key(1))
    return Work(digits.mean_loss, params, (x, jnp.arange(16) % 10), 100)


def block(params: dict[str, jax.Array], x: jax.Array, heads: int = 4) -> jax.Array:
    """A transformer block of `x`, `[batch, length, width]`, normed before each part."""

    def norm(x: jax.Array) -> jax.Array:
        x = x - x.mean(-1, keepdims=True)
        return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6)

    batch, length, width = x.shape
    qkv = (norm(x) @ params["qkv"]).reshape(batch, length, 3, heads, width // heads)
    q, k, v = jnp.unstack(qkv, axis=2)
    x = x + jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape) @ params["out"]
    return x + jax.nn.gelu(norm(x) @ params["up"]) @ params["down"]


def transformer() -> Work:
    """One block of width 128, eight sequences of 64 tokens."""
    width, keys = 128, jax.random.split(jax.random.key(0), 6)
    shapes = {"qkv": (width, 3 * width), "out": (width, width), "up": (width, 4 * width),
              "down": (4 * width, width)}  # fmt: skip
    params = {
        name: jax.random.normal(key, shape) * shape[0] ** -0.5
        for (name, shape), key in zip(shapes.items(), keys, strict=False)
    }
    x, target = (jax.random.normal(key, (8, 64, width)) for key in keys[4:])
    loss = lambda params, x, target: ((block(params, x) - target) ** 2).mean()
    return Work(loss, params, (x, target), 2)


WORKS: dict[str, Callable[[], Work]] = {
    "the article's network, batch 100": article,
    "a transformer block": transformer,
    CONTROLS[0]: dense,
}


class Size(NamedTuple):
    """Pairs of each network, the runs of which a turn is the median, networks and noises."""

    pairs: int
    repeats: int
    works: tuple[str, ...]
    noises: tuple[str, ...]


SIZES = {
    "quick": Size(12, 1, (CONTROLS[0],), NOISES[:1]),
    "default": Size(14, 1, ("the article's network, batch 100", CONTROLS[0]), NOISES[:1]),
    "full": Size(200, 3, tuple(WORKS), NOISES),
}
PLAIN = ("sgd", "adamw")  # without noise


def optimizers(noises: Sequence[str]) -> dict[str, optax.GradientTransformation]:
    """SGD, and SGD with each noise before it: one line more; `ivon` in the place of AdamW."""
    sgd = optax.sgd(LEARNING_RATE)
    noisy = {
        f"langevin, {noise}": optax.chain(
            diffopt.langevin(TEMPERATURE, learning_rate=LEARNING_RATE, noise=noise), sgd
        )
        for noise in noises
    }
    bayes = {"adamw": optax.adamw(1e-3), "ivon": diffopt.ivon(0.1, 50_000)}
    return {"sgd": sgd} | noisy | bayes


def without_noise(name: str) -> str:
    """What a method is set beside."""
    return "adamw" if name == "ivon" else "sgd"


def program(
    work: Work, tx: optax.GradientTransformation, *, perturbs: bool = False
) -> tuple[Any, Any]:
    """Some steps, compiled, and what they take."""

    @jax.jit
    def steps(carry: Any, batch: Any) -> Any:
        def step(carry: Any, _: None) -> tuple[Any, None]:
            params, state = carry
            point = diffopt.perturbed(params, state) if perturbs else params
            grads = jax.grad(work.loss)(point, *batch)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, carry, length=work.steps)[0]

    arguments = ((work.params, tx.init(work.params)), work.batch)
    return steps.lower(*arguments).compile(), arguments


def bytes_of(compiled: Any) -> int:
    """What a compiled program allocates beside its arguments."""
    sizes = compiled.memory_analysis()
    return sizes.temp_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes


def measure(name: str, size: Size) -> Result:
    """Of each optimizer the seconds of a step in each round, in which they take turns, and bytes.

    The bytes are those of the program that is timed.
    """
    work = WORKS[name]()
    programs = {
        name: program(work, tx, perturbs=name == "ivon")
        for name, tx in optimizers(size.noises).items()
    }
    runs = {
        name: timing.make_run(partial(steps, *args)) for name, (steps, args) in programs.items()
    }
    for run in runs.values():
        run()
    seconds = timing.time_in_turn(runs, size.pairs, untimed=True, repeats=size.repeats)
    return {
        "values": {name: [each / work.steps for each in times] for name, times in seconds.items()},
        "seconds": sum(map(sum, seconds.values())),
        "bytes": {name: bytes_of(steps) for name, (steps, _) in programs.items()},
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(work.params)),
    }


def memory(size: str, keep: Keep) -> list[dict[str, Any]]:
    """The bytes that a step allocates with each noise, and without it, in each network.

    They have no pairs and no p: a program that is compiled again takes as many.
    """
    chosen = SIZES[size]
    rows = []
    for name in chosen.works:
        result = keep(name, chosen, partial(measure, name, chosen))
        rows += [
            {
                "setting": setting_of(name, noisy),
                "parameters": result["parameters"],
                "bytes": result["bytes"][noisy],
                "rival": without_noise(noisy),
                "rival_bytes": result["bytes"][without_noise(noisy)],
            }
            for noisy in result["bytes"]
            if noisy not in PLAIN
        ]
    return rows


def setting_of(name: str, noisy: str) -> str:
    """A network and a noise."""
    return f"{name}, {noisy if noisy == 'ivon' else noisy.split(', ')[1] + ' noise'}"


def run(size: str, keep: Keep) -> list[Entry]:
    """The entries of the claim."""
    chosen = SIZES[size]
    entries = []
    for name in chosen.works:
        seconds = keep(name, chosen, partial(measure, name, chosen))["values"]
        for noisy, times in seconds.items():
            if noisy in PLAIN:
                continue
            rival = without_noise(noisy)
            plain = seconds[rival]
            percent = [100 * t / s for t, s in zip(times, plain, strict=True)]
            entries.append(
                entry(
                    "cost", "best" if noisy == "ivon" else "article", setting_of(name, noisy),
                    f"time of a step, % of {rival}'s",
                    (noisy, percent, sum(times)),
                    (f"{rival} and {LITTLE:g} % more", [100 + LITTLE] * len(plain), sum(plain)),
                    lower_is_better=True,
                    control=name in CONTROLS,
                )
            )  # fmt: skip
    return entries
