"""Noise that trains beside momentum and AdamW: wrong labels; many classes with few examples.

    python -m benchmarks.training_noise [--out DIR]

Networks 128 wide on scikit-learn's digits. `wrong labels`: 1,000 digits, 40 % with a wrong label.
`pairs`: 2,000 of two digits, 100 classes; nine settings a method, tuned by a validation split.
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

BATCH_SIZE, HIDDEN, DRAWS, WRONG = 50, 128, 32, 0.4
DECAYS, PAIR_DECAYS = (0.0, 1e-3, 3e-3, 1e-2, 3e-2), (1e-4, 5e-4, 2e-3)
METHODS: dict[str, dict[str, Any]] = {  # tuples are grids
    "wrong labels": {
        "momentum": {"lr": (0.01,), "decay": DECAYS},
        "label noise 0.5": {"lr": (0.01,), "decay": DECAYS, "label_std": (0.5,)},
        "label noise 1": {"lr": (0.01,), "decay": DECAYS, "label_std": (1.0,)},
        "weight noise 0.01": {"lr": (0.01,), "decay": DECAYS, "weight_std": (0.01,)},
        "weight noise 0.03": {"lr": (0.01,), "decay": DECAYS, "weight_std": (0.03,)},
        "ivon": {"lr": (0.1,), "decay": DECAYS, "hess_init": (0.1,)},
    },
    "pairs": {
        "momentum": {"lr": (0.03, 0.1, 0.3), "decay": PAIR_DECAYS},
        "adamw": {"lr": (1e-3, 3e-3, 1e-2), "adam_decay": (0.1, 0.5, 2.0)},
        "label noise": {"lr": (0.1,), "decay": PAIR_DECAYS, "label_std": (0.03, 0.1, 0.3)},
        "weight noise": {"lr": (0.1,), "decay": PAIR_DECAYS, "weight_std": (0.005, 0.01, 0.03)},
        "ivon": {"lr": (0.3,), "decay": PAIR_DECAYS, "hess_init": (0.03, 0.1, 0.3)},
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


def optimizer(hp: dict[str, Any], num_examples: int, steps: int) -> Any:
    """The optimizer that a setting names, its learning rate on a cosine."""
    lr = lambda count: hp["lr"] * (1 + jnp.cos(jnp.pi * count / steps)) / 2
    if "adam_decay" in hp:
        return optax.adamw(lr, weight_decay=hp["adam_decay"])
    if "hess_init" in hp:
        curvature: Any = {"hess_init": hp["hess_init"], "hess_decay": 0.9995}
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

    carry = start, tx.init(start)
    (params, state), _ = jax.lax.scan(step, carry, jax.random.split(key_loop, steps))
    predict = lambda p: {s: jax.nn.softmax(mlp(p, data[s][0])) for s in ("valid", "test")}
    found = predict(params)
    if "hess_init" not in hp:
        return found
    draw = lambda key: predict(diffopt.perturbed(params, state, key))
    each = jax.lax.map(draw, jax.random.split(key_draws, DRAWS))
    return found | {f"{name} draws": probs.mean(0) for name, probs in each.items()}


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


@cli.program("training_noise")
def main(argv: list[str] | None = None) -> None:
    """Parse the command line, measure, show."""
    parser, rows = cli.parser("training_noise", __doc__), []
    parser.add_argument("--steps", type=cli.at_least_one, default=2000, help="default %(default)s")
    parser.add_argument("--seeds", type=cli.at_least_one, default=6, help="default %(default)s")
    args = parser.parse_args(argv)
    out = cli.make_folder(args.out)
    for task, method, grid in [(t, *case) for t in METHODS for case in METHODS[t].items()]:
        settings = [dict(zip(grid, x, strict=True)) for x in itertools.product(*grid.values())]
        if task == "pairs":
            tried = [score(task, hp, range(100, 102), args.steps) for hp in settings]
            nlls = [np.mean(t.get("valid draws", t["valid"])["nll"]) for t in tried]
            settings = [settings[int(np.argmin(nlls))]]
        for hp in settings:
            found = score(task, hp, range(args.seeds), args.steps)
            for part in [part for part in found if "test" in part]:
                named = {"task": task, "method": method + part.removeprefix("test"), "setting": hp}
                rows.append(named | found[part])
                print(*named.values(), *(scores.plus_minus(x, 3) for x in found[part].values()))
    command = f"python -m benchmarks.training_noise --steps {args.steps} --seeds {args.seeds}"
    about = {"command": command, "machine": machine.describe(), "cpu_seconds": time.process_time()}
    files.write_json(out / "training_noise.json", about | {"rows": rows})
    print(f"Wrote {out / 'training_noise.json'}")


if __name__ == "__main__":
    sys.exit(main())
