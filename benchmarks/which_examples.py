"""Which training examples made a prediction: influence by sampling, beside its rivals.

    python -m benchmarks.which_examples [--out DIR]

Networks are retrained on random halves of 400 digits, and the losses of 100 test digits under them
are compared with what each method foretells from one network trained on all. The score is the mean
over test digits of the rank correlation over halves (the linear datamodeling score of Park et al.,
https://arxiv.org/abs/2303.14186). Rivals: the inverse Hessian with a damping (Koh & Liang,
https://arxiv.org/abs/1703.04730), products of gradients, the empirical Fisher matrix, conjugate
gradients on the Gauss-Newton matrix (Martens, 2010), and its Kronecker factors with corrected
eigenvalues, EK-FAC (George et al., https://arxiv.org/abs/1806.03884; Grosse et al.,
https://arxiv.org/abs/2308.03296).

Then a tenth of 1,000 labels are made wrong, and each method names the hundred that it doubts most.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from scipy.stats import spearmanr

import diffopt

from .lib import cli, files, machine, plots
from .lib.plots import plt
from .lib.tables import RESULTS, Tables, load, markdown, origin

Data = tuple[jax.Array, jax.Array]  # images [example, 64] and labels
Params = list[jax.Array]  # [inputs + 1, outputs] of each layer, the bias last

TRAIN, TEST, CLASSES, DECAY = 400, 100, 10, 1e-3
SMALL, LARGE = (64, 32, 10), (64, 280, 280, 10)
LABELS, WRONG = 1000, 100
DAMPINGS = (0.0, 1e-3, 1e-2, 1e-1)


class Setting(NamedTuple):
    """How influence is sampled: the temperature in units of 1/N, the damping, the step size."""

    temperature: float
    damping: float
    step_size: float
    friction: float = 1.0


BEST = Setting(1.0, 0.02, 0.7, 0.3)
SETTINGS = (
    Setting(1.0, 0.0, 0.1),
    Setting(0.01, 0.01, 0.3),
    Setting(1.0, 0.1, 0.3),
    Setting(0.1, 0.01, 0.8, 0.2),
    BEST,
)
LARGE_SETTINGS = (
    Setting(0.01, 0.03, 0.8, 0.35),
    Setting(0.001, 0.01, 0.8, 0.2),
)
TRIALS = ("small", "large", "labels", "labels_large")
LABEL_SETTINGS = {
    SMALL: (BEST, Setting(1.0, 0.1, 0.3)),
    LARGE: (Setting(1.0, 0.1, 0.4, 0.6), Setting(0.01, 0.03, 0.4, 0.35)),
}


def load_digits(number: int) -> tuple[Data, Data]:
    """So many training digits, and the test digits, of scikit-learn's, in a fixed order."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = jnp.asarray(x[order] / 16, jnp.float32), jnp.asarray(y[order], jnp.int32)
    return (x[TEST : TEST + number], y[TEST : TEST + number]), (x[:TEST], y[:TEST])


# The network


def start(sizes: tuple[int, ...], key: jax.Array) -> Params:
    """Weights of variance 1 / inputs, and biases of 0."""
    keys = jax.random.split(key, len(sizes) - 1)
    weights = [
        jax.random.normal(key, (i, o)) / i**0.5
        for key, (i, o) in zip(keys, itertools.pairwise(sizes), strict=True)
    ]
    return [jnp.concatenate([w, jnp.zeros((1, w.shape[1]))]) for w in weights]


def forward(params: Params, x: jax.Array, taps: Any = None) -> tuple[jax.Array, list[jax.Array]]:
    """The logits of one image, and the inputs of each layer; `taps` are added to its outputs."""
    inputs = []
    for i, w in enumerate(params):
        inputs.append(jnp.append(x, 1.0))
        x = inputs[-1] @ w
        if taps is not None:
            x += taps[i]
        if i < len(params) - 1:
            x = jnp.tanh(x)
    return x, inputs


def losses(params: Params, data: Data) -> jax.Array:
    """The cross-entropy of each example."""
    x, y = data
    logits = jax.vmap(lambda x: forward(params, x)[0])(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)


def loss(params: Params, data: Data) -> jax.Array:
    """Their mean."""
    return losses(params, data).mean()


def penalized(params: Params, data: Data) -> jax.Array:
    """What is trained: the loss with its decay."""
    return loss(params, data) + DECAY / 2 * optax.tree.norm(params, squared=True)


def train(
    sizes: tuple[int, ...], steps: int, key: jax.Array, data: Data
) -> tuple[Params, jax.Array]:
    """A trained network, and the loss of each example averaged along training."""
    tx = optax.sgd(optax.cosine_decay_schedule(0.3, steps), momentum=0.9)
    params = start(sizes, key)

    def step(carry: Any, _: Any) -> tuple[Any, None]:
        params, state, total = carry
        total += losses(params, data)
        updates, state = tx.update(jax.grad(penalized)(params, data), state)
        return (optax.apply_updates(params, updates), state, total), None

    carry = params, tx.init(params), jnp.zeros(len(data[1]))
    params, _, total = jax.lax.scan(step, carry, length=steps)[0]
    return params, total / steps


def retrain(
    sizes: tuple[int, ...], steps: int, data: Data, test: Data, halves: np.ndarray, seeds: int
) -> np.ndarray:
    """The losses of the test digits after training on each half, `[half, test]`, over seeds."""

    @jax.jit
    def test_losses(half: jax.Array) -> jax.Array:
        part = jax.tree.map(lambda a: a[half], data)
        keys = jax.random.split(jax.random.key(1), seeds)
        nets, _ = jax.vmap(lambda key: train(sizes, steps, key, part))(keys)
        return jax.vmap(lambda net: losses(net, test))(nets).mean(0)

    return np.stack([np.asarray(test_losses(jnp.asarray(half))) for half in halves])


# The methods: each gives [example, test], the change of a test loss per unit of weight


def gradients(params: Params, data: Data) -> jax.Array:
    """The gradients of the losses of examples, `[example, parameter]`."""
    flat, unravel = ravel_pytree(params)
    one = lambda flat, x, y: losses(unravel(flat), (x[None], y[None]))[0]
    return jax.jit(jax.vmap(jax.grad(one), (None, 0, 0)))(flat, *data)


def inverse_hessian(params: Params, data: Data) -> Callable[[float, Any, Any], np.ndarray]:
    """By the Hessian of what is trained, with a damping."""
    flat, unravel = ravel_pytree(params)
    hessian = jax.jit(jax.hessian(lambda flat: penalized(unravel(flat), data)))(flat)
    return by_matrix(hessian)


def empirical_fisher(params: Params, data: Data) -> Callable[[float, Any, Any], np.ndarray]:
    """By the mean outer product of the gradients, with the decay and a damping."""
    g = np.asarray(gradients(params, data), float)
    return by_matrix(g.T @ g / len(g) + DECAY * np.eye(g.shape[1]))


def by_matrix(matrix: Any) -> Callable[[float, Any, Any], np.ndarray]:
    """-g (matrix + damping)⁻¹ t, for gradients g and t."""
    values, vectors = np.linalg.eigh(np.asarray(matrix, float))

    def influence(damping: float, g: np.ndarray, t: np.ndarray) -> np.ndarray:
        return -(g @ vectors / (values + damping)) @ (t @ vectors).T

    return influence


def conjugate_gradients(
    params: Params, data: Data, damping: float, test: Data, iterations: int
) -> np.ndarray:
    """By the Gauss-Newton matrix and a damping, of which only products with vectors are taken."""
    flat, unravel = ravel_pytree(params)
    logits = lambda flat: jax.vmap(lambda x: forward(unravel(flat), x)[0])(data[0])

    @jax.jit
    def solve(t: jax.Array) -> jax.Array:
        def product(v: jax.Array) -> jax.Array:
            out, tangent = jax.jvp(logits, (flat,), (v,))
            p = jax.nn.softmax(out)
            curved = p * tangent - p * jnp.sum(p * tangent, -1, keepdims=True)
            (back,) = jax.vjp(logits, flat)[1](curved / len(data[1]))
            return back + (DECAY + damping) * v

        return jax.scipy.sparse.linalg.cg(product, t, maxiter=iterations, tol=1e-4)[0]

    g, t = gradients(params, data), gradients(params, test)
    return np.asarray(-g @ jnp.stack([solve(one) for one in t]).T)


class Factors(NamedTuple):
    """Of a layer: the eigenvectors of its two Kronecker factors, and the corrected eigenvalues."""

    inputs: jax.Array
    outputs: jax.Array
    values: jax.Array


def kronecker_factors(params: Params, data: Data) -> list[Factors]:
    """EK-FAC of the Gauss-Newton matrix, which is the Fisher matrix: exact over the classes."""

    def one(x: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        taps = [jnp.zeros(w.shape[1]) for w in params]
        logits, inputs = forward(params, x, taps)
        of_class = lambda taps, c: -jax.nn.log_softmax(forward(params, x, taps)[0])[c]
        slopes = jax.vmap(jax.grad(of_class), (None, 0))(taps, jnp.arange(CLASSES))
        root = jnp.sqrt(jax.nn.softmax(logits))[:, None]
        return inputs, [root * s for s in slopes]  # [class, output], their squares weighted by p

    factors = []
    inputs, slopes = jax.jit(jax.vmap(one))(data[0])
    for a, s in zip(inputs, slopes, strict=True):
        _, q = jnp.linalg.eigh(a.T @ a / len(a))
        _, r = jnp.linalg.eigh(jnp.einsum("nco,ncp->op", s, s) / len(a))
        squares = jnp.sum((s @ r) ** 2, 1)
        factors.append(Factors(q, r, ((a @ q) ** 2).T @ squares / len(a)))
    return factors


def by_factors(
    factors: list[Factors], damping: float, g: np.ndarray, t: np.ndarray | None
) -> np.ndarray:
    """-g (EK-FAC + decay + damping)⁻¹ t, all pairs, or each g with itself where t is None."""
    total, first = 0.0, 0
    for q, r, values in factors:
        size = values.size
        turn = lambda v, first=first, size=size, q=q, r=r, shape=values.shape: np.asarray(
            q.T @ jnp.reshape(v[:, first : first + size], (-1, *shape)) @ r
        ).reshape(len(v), -1)
        turned = turn(g)
        scaled = turned / (np.asarray(values).ravel() + DECAY + damping)
        total = total - ((scaled * turned).sum(1) if t is None else scaled @ turn(t).T)
        first += size
    return np.asarray(total)


def sampled(
    params: Params, data: Data, test: Data | None, setting: Setting, steps: int, chains: int,
) -> tuple[np.ndarray, float]:  # fmt: skip
    """By chains at a temperature: the influence, and the median of its signal over its error."""
    temperature = setting.temperature / len(data[1])
    decayed = lambda step_size, temperature, key: optax.chain(
        optax.add_decayed_weights(DECAY),
        diffopt.baoab(step_size, temperature, friction=setting.friction, key=key),
    )
    found = diffopt.influence(
        loss, params, data, None if test is None else lambda params: losses(params, test),
        temperature=temperature, localization=setting.damping / temperature, sampler=decayed,
        step_size=setting.step_size, num_steps=steps, burn_in=steps // 10, every=10,
        num_chains=chains,
    )  # fmt: skip
    signal = float(np.median(np.abs(found.values) / found.standard_errors))
    return found.values, signal


def score(influence: np.ndarray, halves: np.ndarray, actual: np.ndarray) -> float:
    """The mean over test digits of the rank correlation over halves."""
    predicted = influence[halves].sum(1)
    columns = zip(predicted.T, actual.T, strict=True)
    return float(np.mean([spearmanr(p, a).statistic for p, a in columns]))


# The three trials


def compare(
    sizes: tuple[int, ...], settings: tuple[Setting, ...], halves: int, seeds: int, steps: int,
    chain_steps: int, chains: int, iterations: int, note: Callable[[dict[str, Any]], None],
) -> Params:  # fmt: skip
    """Each method's score on retraining a network of these sizes, and the seconds it took."""
    data, test = load_digits(TRAIN)
    params, _ = jax.jit(partial(train, sizes, steps))(jax.random.key(0), data)
    number = count(sizes)
    rng = np.random.default_rng(1)
    chosen = np.stack([rng.permutation(TRAIN)[: TRAIN // 2] for _ in range(halves)])
    began = time.perf_counter()
    actual = retrain(sizes, steps, data, test, chosen, seeds)
    gradient = optax.tree.norm(jax.grad(penalized)(params, data))
    result: dict[str, Any] = {
        "parameters": number, "halves": halves, "seeds": seeds, "training_steps": steps,
        "gradient": float(gradient), "test_error": error(params, test),
        "retraining_seconds": time.perf_counter() - began, "methods": [],
    }  # fmt: skip

    def add(name: str, influence: np.ndarray, began: float, **more: Any) -> None:
        row = {"method": name, **more, "score": score(influence, chosen, actual)}
        row["seconds"] = time.perf_counter() - began
        print(row, flush=True)
        result["methods"].append(row)
        note(result)

    began = time.perf_counter()
    g, t = (np.asarray(gradients(params, d), float) for d in (data, test))
    add("products of gradients", -g @ t.T, began)
    began = time.perf_counter()
    factors = kronecker_factors(params, data)
    for damping in DAMPINGS:
        add("EK-FAC", by_factors(factors, damping, g, t), began, damping=damping)
    if number < 10_000:
        for name, make in (
            ("inverse Hessian", inverse_hessian),
            ("empirical Fisher", empirical_fisher),
        ):
            began = time.perf_counter()
            by = make(params, data)
            for damping in DAMPINGS:
                add(name, by(damping, g, t), began, damping=damping)
    for damping in (0.0, 1e-2) if iterations else ():
        began = time.perf_counter()
        found = conjugate_gradients(params, data, damping, test, iterations)
        add("Gauss-Newton by conjugate gradients", found, began, damping=damping)
    for setting in settings:
        began = time.perf_counter()
        found, signal = sampled(params, data, test, setting, chain_steps, chains)
        more = {"steps": chain_steps, "chains": chains, "signal": signal} | setting._asdict()
        add("sampling", found, began, **more)
    return params


def error(params: Params, data: Data) -> float:
    """The share of examples that the network gets wrong."""
    logits = jax.vmap(lambda x: forward(params, x)[0])(data[0])
    return float(jnp.mean(logits.argmax(-1) != data[1]))


def doubt_labels(
    sizes: tuple[int, ...], seeds: int, steps: int, chain_steps: int, chains: int,
    note: Callable[[dict[str, Any]], None],
) -> None:  # fmt: skip
    """For each method the share of wrong labels among the hundred that it doubts most, by seed."""
    found: dict[str, list[float]] = {}
    (x, labels), _ = load_digits(LABELS)
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        wrong = rng.permutation(LABELS)[:WRONG]
        y = labels.at[wrong].add(jnp.asarray(rng.integers(1, CLASSES, WRONG), jnp.int32)) % CLASSES
        data = x, y
        params, along = jax.jit(partial(train, sizes, steps))(jax.random.key(seed), data)
        g = np.asarray(gradients(params, data))
        factors = kronecker_factors(params, data)
        doubts = {
            "loss at the end": losses(params, data),
            "loss averaged along training": along,
            "squared gradient": (g**2).sum(1),
            "self-influence by EK-FAC, damping 0.01": -by_factors(factors, 1e-2, g, None),
        }
        if sizes is SMALL:
            solve = inverse_hessian(params, data)
            doubts["self-influence by the inverse Hessian, damping 0.01"] = -np.diagonal(
                solve(1e-2, g, g)
            )
        for setting in LABEL_SETTINGS[sizes]:
            name = f"self-influence by sampling, {name_setting(setting._asdict())}"
            doubts[name] = -sampled(params, data, None, setting, chain_steps, chains)[0]
        for name, doubt in doubts.items():
            first = np.argsort(-np.asarray(doubt))[:WRONG]
            found.setdefault(name, []).append(float(np.isin(first, wrong).mean()))
        print({name: shares[-1] for name, shares in found.items()}, flush=True)
        note({"steps": chain_steps, "shares": found})


# The report


def plot_examples(params: Params, chain_steps: int, chains: int, path: Path) -> None:
    """The test digit that the network finds hardest, and the training digits behind its loss."""
    data, test = load_digits(TRAIN)
    hard = int(jnp.argmax(losses(params, test)))
    one = jax.tree.map(lambda a: a[hard : hard + 1], test)
    values = sampled(params, data, one, BEST, chain_steps, chains)[0][:, 0]
    order = np.argsort(values)
    chance = jax.nn.softmax(forward(params, one[0][0])[0])
    taken = int(chance.argmax())
    fig, axes = plt.subplots(2, 6, figsize=(plots.WIDTH, 4), layout="constrained")
    for ax in axes.ravel():
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    show = lambda ax, image: ax.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
    show(axes[0, 0], one[0][0])
    label = int(one[1][0])
    axes[0, 0].set_title(f"a test {label}")
    axes[0, 0].set_xlabel(f"{taken} has {chance[taken]:.0%},\n{label} has {chance[label]:.0%}")
    axes[1, 0].axis("off")
    rows = (("for", order[:5], plots.BLUE), ("against", order[::-1][:5], plots.RED))
    for row, (name, which, color) in zip(axes, rows, strict=True):
        for ax, i in zip(row[1:], which, strict=True):
            show(ax, data[0][i])
            ax.set_title(f"{name}: {int(data[1][i])}", color=color)
            change = -values[i] / TRAIN
            ax.set_xlabel(f"without\n{change:+.3f}")
    plots.save(fig, path)


def tables() -> Tables:
    """How well influence foretells retraining, and which labels it finds wrong."""
    return {"influence": influence_table, "wrong_labels": labels_table}


def name_row(row: dict[str, Any]) -> str:
    """A method with its settings."""
    if row["method"] != "sampling":
        return row["method"] + (f", damping {row['damping']:g}" if "damping" in row else "")
    return f"sampling, {name_setting(row)}"


def name_setting(row: dict[str, Any]) -> str:
    """A setting of sampling in words."""
    return (
        f"T = {row['temperature']:g}/N, damping {row['damping']:g}, step {row['step_size']:g},"
        f" friction {row['friction']:g}"
    )


def load_trials(*trials: str) -> dict[str, Any]:
    """The results of those of the trials that are there."""
    files = {trial: f"which_examples_{trial}.json" for trial in trials}
    return {trial: load(file) for trial, file in files.items() if (RESULTS / file).exists()}


def influence_table() -> str:
    """The rank correlation of each method on the networks, and its seconds."""
    results = load_trials("small", "large")
    names: dict[str, list[str]] = {}
    head = [""]
    for i, result in enumerate(results.values()):
        head += [f"{result['parameters']:,} parameters", "seconds"]
        for row in result["methods"]:
            cells = names.setdefault(name_row(row), ["", ""] * len(results))
            cells[2 * i : 2 * i + 2] = f"{row['score']:.2f}", f"{row['seconds']:.0f}"
    rows = ([name, *cells] for name, cells in names.items())
    return markdown(head, rows) + tell_origin(results)


def labels_table() -> str:
    """The share of wrong labels among the hundred that each method doubts most."""
    results = load_trials("labels", "labels_large")
    sizes = {"labels": SMALL, "labels_large": LARGE}
    names = {name: None for result in results.values() for name in result["shares"]}
    show = lambda of: (
        f"{np.mean(of):.3f} ± {np.std(of, ddof=1) / len(of) ** 0.5:.3f}" if len(of) > 1 else ""
    )
    rows = ([name, *(show(r["shares"].get(name, ())) for r in results.values())] for name in names)
    head = ["share of wrong labels among the hundred most doubted"]
    head += [f"{count(sizes[trial]):,} parameters" for trial in results]
    return markdown(head, rows) + tell_origin(results)


def tell_origin(results: dict[str, Any]) -> str:
    """Where a table of several trials comes from."""
    trial, result = next(iter(results.items()))
    command = f"python -m benchmarks.which_examples {' '.join(results)}"
    return origin(f"which_examples_{trial}.json", result["machine"], command)


def count(sizes: tuple[int, ...]) -> int:
    """The parameters of a network of these sizes."""
    return sum((i + 1) * o for i, o in itertools.pairwise(sizes))


@cli.program("which_examples")
def main(argv: list[str] | None = None) -> None:
    """Parse the command line, run the trials, report; a trial's file is written as it goes."""
    args = parse_args(argv)
    out = cli.make_folder(args.out)
    config = {name: value for name, value in vars(args).items() if name not in ("out", "trials")}
    head = {"config": config, "machine": machine.describe()}
    steps, chain_steps = args.training_steps, args.steps
    half, large_steps = steps // 2, args.large_steps
    for trial in args.trials or TRIALS:
        path = out / f"which_examples_{trial}.json"
        note = lambda found, path=path: files.write_json(path, head | found)
        if trial == "small":
            params = compare(
                SMALL, SETTINGS, args.halves, args.seeds, steps, chain_steps, args.chains, 0, note
            )
            plot_examples(params, chain_steps, args.chains, out / "which_examples.png")
        elif trial == "large":
            compare(
                LARGE, LARGE_SETTINGS, args.large_halves, 2, half, large_steps, args.chains, 30,
                note,
            )  # fmt: skip
        elif trial == "labels":
            doubt_labels(SMALL, args.seeds, steps, max(20, chain_steps // 8), args.chains, note)
        else:
            doubt_labels(LARGE, 2, half, max(20, large_steps // 5), args.chains, note)
        print(f"Wrote {path}", flush=True)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read and check the command line."""
    parser = cli.parser("which_examples", __doc__)
    whole = cli.at_least_one
    two = cli.at_least(2)
    parser.add_argument(
        "trials", nargs="*", choices=[[], *TRIALS], help="which of them; by default all"
    )
    parser.add_argument("--halves", type=two, default=60, help="random halves to retrain on")
    parser.add_argument("--seeds", type=whole, default=4, help="networks trained on each half")
    parser.add_argument("--training-steps", type=two, default=1000, help="steps of training")
    parser.add_argument("--steps", type=cli.at_least(20), default=16_000, help="steps of a chain")
    parser.add_argument("--chains", type=two, default=4, help="chains of each sampling")
    parser.add_argument(
        "--large-halves", type=two, default=20, help="halves for the larger network"
    )
    parser.add_argument(
        "--large-steps", type=cli.at_least(20), default=1500, help="steps of its chains"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
