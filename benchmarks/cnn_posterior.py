"""A posterior of a small convolutional network beside Adam, an ensemble and momentum.

    python -m benchmarks.cnn_posterior [--out DIR]

1,000 of scikit-learn's 1,797 digits (8 x 8), 300 to stop and to tune by, 497 to test; a network of
2,746 parameters; each method has 15,000 gradients of batches of 50. The posterior is one call each
of `find_step_size`, from a network that Adam trained, and of `sample`. Momentum and `ivon` are
tuned on a further split. A run that was stopped goes on with what its file lacks.
"""

import itertools
import json
import sys
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from scipy.stats import permutation_test, sem
from sklearn.datasets import load_digits

import diffopt

from .lib import cli, data, files, machine, scores
from .lib.models import conv_pool
from .lib.tables import Tables, load, markdown, origin

N, VALID, BATCH_SIZE = 1000, 300, 50
STEPS, MEMBERS, WARM, CHAINS = 15_000, 5, 2000, 2
SNAPSHOTS = 100  # of a run: what early stopping chooses from, and what averages are over
TUNING_SEED = 100
POSTERIORS = {  # T·N, c of the prior's variance c/fan-in, and the gradients of Adam before
    "posterior": (1.0, 2.0, WARM),
    "posterior, T = 0.3/N": (0.3, 2.0, WARM),
    "posterior, T = 0.1/N": (0.1, 2.0, WARM),
    "posterior, prior of 30/fan-in": (1.0, 30.0, 500),
}
TUNED: dict[str, dict[str, tuple[float, ...]]] = {  # grids
    "momentum": {"lr": (0.01, 0.03, 0.1), "decay": (3e-4, 1e-3, 3e-3)},
    "ivon": {"lr": (0.03, 0.1, 0.3), "decay": (1e-4,)},
}
COLUMNS = {"accuracy": 4, "nll": 4, "ece": 4, "auroc_photographs": 3, "auroc_turned": 3}
RIVALS = ("Adam, early stopping", f"ensemble of {MEMBERS}", "momentum, averaged")


class Network(nnx.Module):
    """Eight 3x3 features, pool, 32, 10, with ReLU, on 8x8 images; logits."""

    def __init__(self, rngs: nnx.Rngs):
        """Draw the weights."""
        self.conv = nnx.Conv(1, 8, (3, 3), padding="VALID", rngs=rngs)
        self.hidden = nnx.Linear(72, 32, rngs=rngs)
        self.out = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of images `[batch, 8, 8, 1]`."""
        x = conv_pool(self.conv, x)
        return self.out(nnx.relu(self.hidden(x.reshape(len(x), -1))))


GRAPH = nnx.graphdef(Network(nnx.Rngs(0)))


def initial(seed: int) -> Any:
    """The weights that a seed gives."""
    return nnx.state(Network(nnx.Rngs(seed)), nnx.Param)


def logits(params: Any, x: jax.Array) -> jax.Array:
    """Of images `[batch, 8, 8, 1]`."""
    return nnx.merge(GRAPH, params)(x)


def loss(params: Any, batch: Any) -> jax.Array:
    """The mean cross-entropy of a batch."""
    x, y = batch
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()


def split(seed: int) -> dict[str, Any]:
    """Images and labels to train on, to stop by and to test on; images of no digit."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    x = images[order].reshape(-1, 8, 8, 1).astype(np.float32) / 16
    y = labels[order].astype(np.int32)
    photographs = np.asarray(data.out_of_distribution("digits")).reshape(-1, 8, 4, 8, 4)
    parts = {"train": slice(N), "valid": slice(N, N + VALID), "test": slice(N + VALID, None)}
    return {name: (x[part], y[part]) for name, part in parts.items()} | {
        "photographs": (photographs.mean((2, 4))[..., None] + 1) / 2,
        "turned": np.rot90(x[N + VALID :], axes=(1, 2)),
    }


def predict(parts: dict[str, Any], params: Any) -> dict[str, jax.Array]:
    """Class probabilities on all that is not trained on."""
    images = {k: v[0] if isinstance(v, tuple) else v for k, v in parts.items() if k != "train"}
    return {name: jax.nn.softmax(logits(params, x)) for name, x in images.items()}


@partial(jax.jit, static_argnums=(0, 4))
def train(make: Any, hp: Any, start: Any, key: jax.Array, steps: int, parts: Any) -> Any:
    """Predictions of the snapshots of a run, `[snapshot, ...]`, and the last weights and state."""
    tx = make(hp)

    def step(carry: Any, key: jax.Array) -> Any:
        params, state = carry
        index = jax.random.choice(key, N, (BATCH_SIZE,), replace=False)
        batch = jax.tree.map(lambda x: jnp.asarray(x)[index], parts["train"])
        point = diffopt.perturbed(params, state) if make is ivon else params
        updates, state = tx.update(jax.grad(loss)(point, batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    def snapshot(carry: Any, keys: jax.Array) -> Any:
        carry, _ = jax.lax.scan(step, carry, keys)
        return carry, predict(parts, carry[0])

    keys = jax.random.split(key, (SNAPSHOTS, steps // SNAPSHOTS))
    return jax.lax.scan(snapshot, (start, tx.init(start)), keys)


def adam(hp: Any) -> Any:
    """Adam at its default."""
    return optax.adam(1e-3)


def momentum(hp: Any) -> Any:
    """Momentum with weight decay."""
    return optax.chain(optax.add_decayed_weights(hp["decay"]), optax.sgd(hp["lr"], 0.9))


def ivon(hp: Any) -> Any:
    """Variational inference, its learning rate on a cosine."""
    lr = lambda count: hp["lr"] * (1 + jnp.cos(jnp.pi * count / STEPS)) / 2
    return diffopt.ivon(lr, N, hess_init=0.1, hess_decay=0.9995, weight_decay=hp["decay"])


def stop_early(seen: dict[str, jax.Array], parts: Any) -> dict[str, jax.Array]:
    """The snapshot that is best on the digits to stop by."""
    labels = parts["valid"][1]
    nll = [scores.evaluate(probs, labels).nll for probs in np.asarray(seen["valid"])]
    return jax.tree.map(lambda x: x[int(np.argmin(nll))], seen)


def average(seen: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The mean over the later half of the snapshots."""
    return jax.tree.map(lambda x: x[SNAPSHOTS // 2 :].mean(0), seen)


def run_tuned(method: str, hp: Any, seed: int, parts: Any) -> dict[str, Any]:
    """What one of the tuned methods predicts."""
    make = {"momentum": momentum, "ivon": ivon}[method]
    numbers = {name: jnp.asarray(value, jnp.float32) for name, value in hp.items()}
    key = jax.random.key(seed)
    (params, state), seen = train(make, numbers, initial(seed), key, STEPS, parts)
    if method == "momentum":
        last = jax.tree.map(lambda x: x[-1], seen)
        return {"momentum, the last": last, "momentum, averaged": average(seen)}
    draw = lambda key: predict(parts, diffopt.perturbed(params, state, key))
    each = jax.lax.map(draw, jax.random.split(jax.random.fold_in(key, 1), SNAPSHOTS))
    return {method: jax.tree.map(lambda x: x.mean(0), each)}


def run_adam(seed: int, parts: Any) -> dict[str, Any]:
    """Adam with early stopping, and an ensemble of those that have a fifth of the gradients."""
    key = jax.random.key(seed)
    _, seen = train(adam, None, initial(seed), key, STEPS, parts)
    members = []
    for i in range(MEMBERS):
        start = initial(1000 * (i + 1) + seed)
        few = train(adam, None, start, jax.random.fold_in(key, i), STEPS // MEMBERS, parts)[1]
        members.append(stop_early(few, parts))
    ensemble = jax.tree.map(lambda *x: sum(x) / MEMBERS, *members)
    return {"Adam, early stopping": stop_early(seen, parts), f"ensemble of {MEMBERS}": ensemble}


def run_posterior(name: str, seed: int, parts: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The averages of a posterior, and what was found on the way."""
    cold, scale, warm = POSTERIORS[name]
    T, began = cold / N, time.perf_counter()
    examples = jax.tree.map(jnp.asarray, parts["train"])
    (trained, _), _ = train(adam, None, initial(seed), jax.random.key(seed), warm, parts)
    variance = diffopt.fan_in_variance(trained, scale)

    def with_prior(params: Any, batch: Any) -> jax.Array:
        scaled = jax.tree.map(lambda p, v: p / v**0.5, params, variance)
        return loss(params, batch) + T * optax.tree.norm(scaled, squared=True) / 2

    step_size, report = diffopt.find_step_size(
        diffopt.sghmc, with_prior, trained, examples, temperature=T, batch_size=BATCH_SIZE, key=seed
    )
    steps = (STEPS - warm - report.gradients) // CHAINS
    samples = diffopt.sample(
        diffopt.sghmc(step_size, T), with_prior, trained, examples, num_steps=steps,
        num_chains=CHAINS, burn_in=steps // 5, every=steps // SNAPSHOTS, batch_size=BATCH_SIZE,
        key=seed, transform=partial(predict, parts),
    )  # fmt: skip
    return jax.tree.map(lambda x: x.mean((0, 1)), samples.draws), {
        "step_size": step_size,
        "gradients": warm + report.gradients + steps * CHAINS,
        "seconds": time.perf_counter() - began,
        "temperature": float(samples.temperatures.average().kinetic.mean) / T,
    }


def score(probs: dict[str, jax.Array], parts: Any) -> dict[str, float]:
    """On the test split, and beside images of no digit."""
    test = scores.evaluate(probs["test"], parts["test"][1])
    auroc = {
        f"auroc_{name}": scores.ood_auroc(probs["test"], probs[name])
        for name in ("photographs", "turned")
    }
    return {"accuracy": test.accuracy, "nll": test.nll, "ece": test.ece} | auroc


def tune(method: str, grid: dict[str, tuple[float, ...]]) -> dict[str, float]:
    """The setting of the least NLL on the digits to tune by."""
    settings = [dict(zip(grid, x, strict=True)) for x in itertools.product(*grid.values())]
    parts, nlls = split(TUNING_SEED), []
    for hp in settings:
        probs = list(run_tuned(method, hp, TUNING_SEED, parts).values())[-1]
        nlls.append(scores.evaluate(probs["valid"], parts["valid"][1]).nll)
    return settings[int(np.argmin(nlls))]


@cli.program("cnn_posterior")
def main(argv: list[str] | None = None) -> None:
    """Parse the command line, measure, show."""
    parser = cli.parser("cnn_posterior", __doc__)
    parser.add_argument("--seeds", type=cli.at_least_one, default=12, help="default %(default)s")
    args = parser.parse_args(argv)
    file = cli.make_folder(args.out) / "cnn_posterior.json"
    if file.exists():
        result = json.loads(file.read_text("utf-8"))
    else:
        settings = {method: tune(method, grid) for method, grid in TUNED.items()}
        result = {"settings": settings, "cpu_seconds": 0.0, "runs": {}, "rows": {}}
    rows, runs, before = result["rows"], result["runs"], result["cpu_seconds"]
    command = f"python -m benchmarks.cnn_posterior --seeds {args.seeds}"
    for seed in range(args.seeds):
        done = {name for name, each in rows.items() if len(each) > seed}
        parts, found, told = split(seed), {}, {}
        for name in [name for name in POSTERIORS if name not in done]:
            found[name], told[name] = run_posterior(name, seed, parts)
        if RIVALS[0] not in done:
            found |= run_adam(seed, parts)
        for method, hp in result["settings"].items():
            if not done & {method, f"{method}, averaged"}:
                found |= run_tuned(method, hp, seed, parts)
        if not found:
            continue
        for name, probs in found.items():
            rows.setdefault(name, []).append(score(probs, parts))
        for name, numbers in told.items():
            runs.setdefault(name, []).append(numbers)
        print(seed, {name: round(rows[name][-1]["nll"], 4) for name in found}, flush=True)
        about = {"command": command, "machine": machine.describe()}
        spent = {"cpu_seconds": before + time.process_time()}
        files.write_json(file, result | about | spent)
    print(f"Wrote {file}")


def tables() -> Tables:
    """The scores of all methods, and how the posterior compares with three of them."""
    return {"cnn_posterior": score_table, "cnn_posterior_pairs": pair_table}


def score_table() -> str:
    """Means over seeds and their standard errors."""
    result = load("cnn_posterior.json")
    rows = []
    rivals = [method for method in result["rows"] if method not in POSTERIORS]
    for method in (*POSTERIORS, *rivals):
        each = result["rows"][method]
        values = {name: [row[name] for row in each] for name in COLUMNS}
        cells = [
            f"{np.mean(v):.{COLUMNS[k]}f} ± {sem(v):.{COLUMNS[k]}f}" for k, v in values.items()
        ]
        told = result["runs"].get(method, [])
        seconds = f"{np.median([run['seconds'] for run in told]):.0f}" if told else ""
        rows.append([method, *cells, f"{STEPS:,}", seconds])
    head = [
        "",
        "accuracy",
        "NLL",
        "calibration error",
        "AUROC, photographs",
        "AUROC, turned digits",
    ]
    where = origin("cnn_posterior.json", result["machine"], result["command"])
    return markdown([*head, "gradients", "seconds"], rows) + where


def pair_table() -> str:
    """The posteriors' NLL less a rival's on the same seeds, its standard error and p."""
    rows = load("cnn_posterior.json")["rows"]
    nll = {method: np.array([row["nll"] for row in each]) for method, each in rows.items()}

    def cell(difference: np.ndarray) -> str:
        p = permutation_test((difference,), np.mean, permutation_type="samples").pvalue
        return f"{difference.mean():+.4f} ± {sem(difference):.4f}, {p:.1g}"

    head = ["NLL less that of", *RIVALS]
    return markdown(head, ([m, *(cell(nll[m] - nll[r]) for r in RIVALS)] for m in POSTERIORS))


if __name__ == "__main__":
    sys.exit(main())
