"""Noise that trains beside momentum and AdamW: wrong labels; many classes with few examples.

    python -m benchmarks.training_noise [--tasks NAME...] [--out DIR]

Networks 128 wide on scikit-learn's digits. `labels`: 1,000 digits, 40 % with a wrong label.
`pairs`: 2,000 of two digits, 100 classes; of eight settings a method the one with the best NLL
on a validation split. `averaged`: predictions averaged over the second half of training. `draws`:
over draws of IVON's Gaussian, after training.
"""

import itertools
import sys
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import diffopt

from .lib import cli, files, machine, scores
from .lib.tables import Tables, load, markdown, origin

BATCH_SIZE, HIDDEN, DRAWS, WRONG = 50, 128, 20, 0.4
SCORES = {"error": 1, "nll": 3}  # and their digits
DECAYS, PAIR_DECAYS = (0.0, 1e-3, 3e-3, 1e-2, 3e-2), (1e-4, 5e-4, 2e-3, 4e-3)
METHODS: dict[str, dict[str, Any]] = {  # tuples are grids
    "labels": {
        "momentum": {"lr": (0.01,), "decay": DECAYS},
        "label noise": {"lr": (0.01,), "decay": DECAYS, "label_std": (1.0,)},
        "weight noise": {"lr": (0.01,), "decay": DECAYS, "weight_std": (0.03,)},
        "ivon": {"lr": (0.1,), "decay": DECAYS, "hess_init": (0.1,), "hess_decay": (0.9995,)},
    },
    "pairs": {
        "momentum": {"lr": (0.1, 0.2), "decay": PAIR_DECAYS},
        "adamw": {"lr": (3e-3, 1e-2), "adam_decay": (0.1, 0.25, 0.5, 2.0)},
        "label noise": {"lr": (0.1,), "decay": PAIR_DECAYS, "label_std": (0.03, 0.1)},
        "weight noise": {
            "lr": (0.1,),
            "decay": (5e-4, 2e-3),
            "weight_std": (0.015, 0.02, 0.03, 0.04),
        },
        "ivon": {
            "lr": (0.3, 1.0),
            "decay": (1e-3, 2e-3),
            "hess_init": (1.0,),
            "hess_decay": (0.998, 0.999),
        },
    },
}


def split(task: str, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of a task in three splits that share no digit."""
    rng, (images, labels) = np.random.default_rng(seed), load_digits(return_X_y=True)
    order, data = rng.permutation(len(labels)), {}
    for name, (a, b) in {"train": (0, 1000), "valid": (1000, 1400), "test": (1400, 1797)}.items():
        x, y = images[order[a:b]].astype(np.float32) / 16, labels[order[a:b]]
        if task == "pairs":
            i, j = rng.integers(len(y), size=(2, 2000))
            x, y = np.concatenate([x[i], x[j]], axis=1), 10 * y[i] + y[j]
        elif name != "test":
            wrong = rng.random(len(y)) < WRONG
            y = np.where(wrong, (y + rng.integers(1, 10, size=len(y))) % 10, y)
        data[name] = x, y
    return data


def means(each: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The means over the leading axis."""
    return {name: probs.mean(0) for name, probs in each.items()}


def optimizer(hp: dict[str, Any], num_examples: int, steps: int) -> Any:
    """The optimizer that a setting names, its learning rate on a cosine."""
    lr = lambda count: hp["lr"] * (1 + jnp.cos(jnp.pi * count / steps)) / 2
    if "adam_decay" in hp:
        return optax.adamw(lr, weight_decay=hp["adam_decay"])
    if "hess_init" in hp:
        curvature: Any = {"hess_init": hp["hess_init"], "hess_decay": hp["hess_decay"]}
        return diffopt.ivon(lr, num_examples, weight_decay=hp["decay"], **curvature)
    noise = [diffopt.weight_noise(hp["weight_std"], relative=True)] if "weight_std" in hp else []
    return optax.chain(*noise, optax.add_decayed_weights(hp["decay"]), optax.sgd(lr, 0.9))


@partial(jax.jit, static_argnums=3)
@partial(jax.vmap, in_axes=(None, 0, 0, None))
def train(hp: dict[str, Any], key: jax.Array, data: Any, steps: int) -> dict[str, jax.Array]:
    """Class probabilities on the validation and test splits after training."""
    x, y = data["train"]
    sizes = (x.shape[1], HIDDEN, HIDDEN, 10 if x.shape[1] == 64 else 100)
    *starts, key_loop, key_draws = jax.random.split(key, 5)
    pairs = zip(starts, itertools.pairwise(sizes), strict=True)
    start = [(jax.random.normal(k, s) * (2 / s[0]) ** 0.5, jnp.zeros(s[1])) for k, s in pairs]
    tx, perturbs = optimizer(hp, len(x), steps), hp.keys() & {"hess_init", "weight_std"}

    def mlp(params: Any, x: jax.Array) -> jax.Array:
        (w1, b1), (w2, b2), (w3, b3) = params
        return jax.nn.relu(jax.nn.relu(x @ w1 + b1) @ w2 + b2) @ w3 + b3

    def loss(params: Any, index: jax.Array, key: jax.Array) -> jax.Array:
        targets = diffopt.label_noise(key, y[index], hp.get("label_std", 0.0), sizes[-1])
        return optax.softmax_cross_entropy(mlp(params, x[index]), targets).mean()

    def step(carry: Any, key: jax.Array) -> Any:
        params, state = carry
        index = jax.random.randint(key, (BATCH_SIZE,), 0, len(x))
        point = diffopt.perturbed(params, state) if perturbs else params
        updates, state = tx.update(jax.grad(loss)(point, index, key), state, params)
        return (optax.apply_updates(params, updates), state), None

    def predict(params: Any) -> dict[str, jax.Array]:
        return {s: jax.nn.softmax(mlp(params, data[s][0])) for s in ("valid", "test")}

    def stretch(carry: Any, keys: jax.Array) -> Any:
        carry, _ = jax.lax.scan(step, carry, keys)
        return carry, predict(carry[0])

    length = steps // (2 * DRAWS)  # of a stretch of the second half
    early, late = jnp.split(jax.random.split(key_loop, steps), [steps - DRAWS * length])
    carry, _ = jax.lax.scan(step, (start, tx.init(start)), early)
    (params, state), averaged = jax.lax.scan(stretch, carry, late.reshape(DRAWS, length))
    parts = {"": predict(params), " averaged": means(averaged)}
    if "hess_init" in hp:
        draw = lambda key: predict(diffopt.perturbed(params, state, key))
        parts[" draws"] = means(jax.lax.map(draw, jax.random.split(key_draws, DRAWS)))
    return {name + part: probs for part, found in parts.items() for name, probs in found.items()}


def score(task: str, hp: dict[str, float], seeds: range, steps: int) -> dict[str, dict]:
    """Error in percent and NLL of each seed, on each split."""
    splits, found = [split(task, seed) for seed in seeds], {}
    keys = jax.random.split(jax.random.key(0), len(seeds))
    data = jax.tree.map(lambda *x: np.stack(x), *splits)
    for part, probs in train(hp, keys, data, steps).items():
        each = list(map(scores.evaluate, probs, [data[part.split()[0]][1] for data in splits]))
        errors = [100 - 100 * e.accuracy for e in each]
        found[part] = {"error": errors, "nll": [e.nll for e in each]}
    return found


def tables() -> Tables:
    """Noise that trains, on each of the two tasks."""
    return {"noise_on_wrong_labels": labels_table, "noise_on_pairs": pairs_table}


def labels_table() -> str:
    """Errors and NLLs under wrong labels, over the decays."""
    file = "training_noise_labels.json"
    result = load(file)
    rows: dict[str, list[dict]] = {}
    for row in result["rows"]:
        if "averaged" not in row["method"]:
            rows.setdefault(row["method"], []).append(row)
    mean = lambda row, score: float(np.mean(row[score]))
    both = lambda row: f"{mean(row, 'error'):.1f}, {mean(row, 'nll'):.3f}"
    cells = (
        [name, both(each[0]), *(both(min(each, key=partial(mean, score=x))) for x in SCORES)]
        for name, each in rows.items()
    )
    head = ["method", "without decay", "at its best error", "at its best NLL"]
    return markdown(head, cells) + origin(file, result["machine"], result["command"])


def pairs_table() -> str:
    """Errors and NLLs on the pairs, at the setting that the validation chose."""
    file = "training_noise_pairs.json"
    result = load(file)
    cells = (
        [
            row["method"],
            *(scores.plus_minus(row[score], digits) for score, digits in SCORES.items()),
            ", ".join(f"{name} {value:g}" for name, value in row["setting"].items()),
        ]
        for row in result["rows"]
    )
    return markdown(["method", "error, %", "NLL", "setting"], cells) + origin(
        file, result["machine"], result["command"]
    )


def tune(task: str, settings: list[dict], steps: int) -> list[tuple[dict, str]]:
    """For each part of the test scores the setting with the best NLL of its validation."""
    tried = [score(task, hp, range(100, 102), steps) for hp in settings]
    parts = [part.removeprefix("valid") for part in tried[0] if part.startswith("valid")]
    nlls = [[np.mean(t["valid" + part]["nll"]) for t in tried] for part in parts]
    return [(settings[np.nanargmin(x)], "test" + part) for x, part in zip(nlls, parts, strict=True)]


def measure(task: str, method: str, grid: dict, seeds: range, steps: int) -> list[dict]:
    """A row for each setting, or of the pairs for that which the validation chose."""
    settings = [dict(zip(grid, x, strict=True)) for x in itertools.product(*grid.values())]
    every = [(hp, None) for hp in settings]
    rows = []
    for hp, part in tune(task, settings, steps) if task == "pairs" else every:
        found = score(task, hp, seeds, steps)
        for name in [name for name in found if "test" in name and part in (None, name)]:
            rows.append({"method": method + name.removeprefix("test"), "setting": hp} | found[name])
            shown = (scores.plus_minus(x, 3) for x in found[name].values())
            print(task, rows[-1]["method"], hp, *shown, flush=True)
    return rows


@cli.program("training_noise")
def main(argv: list[str] | None = None) -> None:
    """Parse the command line, measure, show."""
    parser = cli.parser("training_noise", __doc__)
    parser.add_argument("--tasks", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--steps", type=cli.at_least_one, default=2000, help="default %(default)s")
    parser.add_argument("--seeds", type=cli.at_least_one, default=6, help="default %(default)s")
    args = parser.parse_args(argv)
    cli.require_unique("--tasks", args.tasks)
    out = cli.make_folder(args.out)
    for task in args.tasks:
        command = f"python -m benchmarks.training_noise --tasks {task}"
        command += f" --steps {args.steps} --seeds {args.seeds}"
        about = {"command": command, "machine": machine.describe()}
        file, rows = out / f"training_noise_{task}.json", list[dict]()
        for method, grid in METHODS[task].items():
            rows += measure(task, method, grid, range(args.seeds), args.steps)
            spent = {"cpu_seconds": time.process_time()}
            files.write_json(file, about | spent | {"rows": rows})
        print(f"Wrote {file}")


if __name__ == "__main__":
    sys.exit(main())
