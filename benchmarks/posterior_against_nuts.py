"""Uncertainty in one picture: Bayesian regression by diffusions, against NUTS.

    python -m benchmarks.posterior_against_nuts [--out DIR]

Two regressions with small tanh networks, sampled with `diffopt` and with BlackJAX's NUTS. The first
is one-dimensional with a gap in its data, and is drawn as a fan of functions. The second is
scikit-learn's diabetes data; it compares the log-likelihood of held-out patients.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_diabetes
from sklearn.model_selection import ShuffleSplit

import diffopt

from .lib import cli, files, machine, plots, timing
from .lib.plots import plt
from .lib.tables import Tables, load, markdown, origin

CHAINS = 4


class Problem(NamedTuple):
    """A regression: data, and a network of one hidden layer with its prior and its noise."""

    x: jax.Array
    y: jax.Array
    hidden: int
    weight_scale: float  # standard deviation of the prior on the first layer
    noise: float | None  # standard deviation of y around the network, or None to infer it


def network(params: Any, x: jax.Array) -> jax.Array:
    """Outputs `[examples]` of a tanh network on inputs `[examples, features]`."""
    hidden = jnp.tanh(x @ params["w1"] + params["b1"])
    return hidden @ params["w2"] / jnp.sqrt(params["w2"].size) + params["b2"]


def prior_scales(problem: Problem) -> dict[str, float]:
    """Standard deviation of the Gaussian prior on each leaf."""
    scale = problem.weight_scale
    inferred = {"log_noise": 1.0} if problem.noise is None else {}
    return {"w1": scale, "b1": scale, "w2": 1.0, "b2": 1.0} | inferred


def init_params(problem: Problem, key: jax.Array) -> dict[str, jax.Array]:
    """A draw from the prior."""
    shapes = {
        "w1": (problem.x.shape[1], problem.hidden),
        "b1": (problem.hidden,),
        "w2": (problem.hidden,),
        "b2": (),
        "log_noise": (),
    }
    return {
        name: scale * jax.random.normal(jax.random.fold_in(key, i), shapes[name])
        for i, (name, scale) in enumerate(prior_scales(problem).items())
    }


def log_density(problem: Problem, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """log p(y | x, params) of each example."""
    log_noise = jnp.log(problem.noise) if problem.noise else params["log_noise"]
    z = (y - network(params, x)) / jnp.exp(log_noise)
    return -(z**2) / 2 - log_noise - jnp.log(2 * jnp.pi) / 2


def density(problem: Problem, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """p(y | x, params) of each example."""
    return jnp.exp(log_density(problem, params, x, y))


def mean_loss(problem: Problem, params: Any, index: Any) -> jax.Array:
    """Mean negative log posterior over the examples, estimated from a minibatch."""
    log_prior = sum(
        -jnp.sum((params[name] / scale) ** 2) / 2 for name, scale in prior_scales(problem).items()
    )
    log_likelihood = log_density(problem, params, problem.x[index], problem.y[index]).mean()
    return -log_likelihood - log_prior / len(problem.y)


class Sampled(NamedTuple):
    """Samples `[chain, draw, ...]`, how long they took, and the gradients over all data."""

    samples: Any
    seconds: float
    passes: float


def run_diffopt(
    problem: Problem,
    tx: optax.GradientTransformation,
    key: jax.Array,
    *,
    steps: int,
    draws: int = 100,
    batch_size: int | None = None,
    chains: int = CHAINS,
) -> Sampled:
    """Sample with an Optax transformation: half the steps are burn-in, `draws` of the rest stay."""
    keep = diffopt.collect(draws, burn_in=steps // 2, every=max(steps // 2 // draws, 1))

    def step(carry: Any, key: jax.Array) -> Any:
        params, opt_state, kept = carry
        index = jax.random.randint(key, (batch_size,), 0, len(problem.y)) if batch_size else ...
        grads = jax.grad(partial(mean_loss, problem))(params, index)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, opt_state, keep.update(params, kept)), None

    @jax.jit
    def run(key: jax.Array) -> Any:
        start_key, batch_key = jax.random.split(key)
        params = jax.vmap(partial(init_params, problem))(jax.random.split(start_key, chains))
        state = diffopt.split_keys(tx.init(jax.tree.map(lambda p: p[0], params)), chains)
        carry = params, state, jax.vmap(keep.init)(params)
        vstep = jax.vmap(step, in_axes=(0, None))
        return jax.lax.scan(vstep, carry, jax.random.split(batch_key, steps))[0][2]

    kept, seconds = timing.run_compiled(run, key)
    passes = steps * chains * (batch_size / len(problem.y) if batch_size else 1)
    return Sampled(diffopt.draws(kept), seconds, passes)


def run_nuts(problem: Problem, key: jax.Array, *, warmup: int, draws: int = 100) -> Sampled:
    """Sample with BlackJAX's NUTS after window adaptation, every other of `2 * draws` kept."""

    def logdensity(params: Any) -> jax.Array:
        return -mean_loss(problem, params, ...) * len(problem.y)

    def chain(key: jax.Array) -> Any:
        start_key, warmup_key, key = jax.random.split(key, 3)
        adaptation = blackjax.window_adaptation(blackjax.nuts, logdensity)
        (state, parameters), info = adaptation.run(
            warmup_key, init_params(problem, start_key), num_steps=warmup
        )
        nuts = blackjax.nuts(logdensity, **parameters)

        def step(state: Any, key: jax.Array) -> Any:
            state, info = nuts.step(key, state)
            return state, (state.position, info.num_integration_steps)

        _, (path, gradients) = jax.lax.scan(step, state, jax.random.split(key, 2 * draws))
        total = info.info.num_integration_steps.sum() + gradients.sum()
        return jax.tree.map(lambda p: p[::2], path), total

    keys = jax.random.split(key, CHAINS)
    (samples, gradients), seconds = timing.run_compiled(jax.vmap(chain), keys)
    return Sampled(samples, seconds, float(gradients.sum()))


# The toy


def toy() -> Problem:
    """40 points of a wave with noise 0.1, in two groups with a gap between."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-2, -0.7, 20), rng.uniform(0.6, 1.6, 20)])
    y = np.sin(2.5 * x) + 0.3 * x + rng.normal(0, 0.1, x.shape)
    return Problem(jnp.asarray(x[:, None], jnp.float32), jnp.asarray(y, jnp.float32), 50, 3.0, 0.1)


def run_toy(quick: bool) -> dict[str, Any]:
    """Functions `[draws, grid]` sampled by `baoab` and by NUTS, and the one that Adam finds."""
    problem, key = toy(), jax.random.key(0)
    temperature = 1 / len(problem.y)
    steps = 1_000 if quick else 20_000
    runs = {
        "Adam": run_diffopt(
            problem, optax.adam(optax.cosine_decay_schedule(0.01, 10_000)), key,
            steps=min(steps, 10_000), draws=1, chains=1,
        ),
        "baoab": run_diffopt(problem, diffopt.baoab(0.02, temperature), key, steps=steps),
        "NUTS": run_nuts(problem, key, warmup=50 if quick else 300, draws=5 if quick else 100),
    }  # fmt: skip
    grid = jnp.linspace(-3, 3, 241)
    functions = {
        name: np.asarray(jax.vmap(partial(network, x=grid[:, None]))(merge_chains(run)))
        for name, run in runs.items()
    }
    return {"problem": problem, "grid": np.asarray(grid), "functions": functions, "runs": runs}


def merge_chains(run: Sampled) -> Any:
    """The samples of all chains along one axis."""
    return jax.tree.map(jnp.concatenate, run.samples)


# Diabetes


def run_diabetes(splits: int, quick: bool, console: Console) -> dict[str, dict[str, Any]]:
    """Each method's log-likelihood of held-out patients, over random splits of the data."""
    x, y = load_diabetes(return_X_y=True)
    steps = 1_000 if quick else 20_000
    rows: dict[str, dict[str, Any]] = {}
    for number, (train, test) in enumerate(
        ShuffleSplit(splits, test_size=0.1, random_state=0).split(x)
    ):
        center, scale = x[train].mean(0), x[train].std(0)
        inputs = jnp.asarray((x - center) / scale, jnp.float32)
        target_scale = float(y[train].std())
        targets = jnp.asarray((y - y[train].mean()) / target_scale, jnp.float32)
        problem = Problem(inputs[train], targets[train], 32, 10**-0.5, None)
        temperature, key = 1 / len(train), jax.random.key(number)
        methods: dict[str, tuple[Any, dict[str, int]]] = {
            "Adam": (optax.adam(1e-3), {"draws": 1, "chains": 1}),
            "sgld": (diffopt.sgld(0.01, temperature), {"batch_size": 32}),
            "sghmc": (diffopt.sghmc(0.002, temperature, momentum=0.9), {"batch_size": 32}),
            "baoab": (diffopt.baoab(0.2, temperature, friction=0.3), {}),
            "NUTS": (None, {"warmup": 50, "draws": 5} if quick else {"warmup": 300}),
        }
        for name, (tx, options) in methods.items():
            with console.status(f"diabetes, split {number + 1} of {splits}: {name}"):
                if tx is None:
                    sampled = run_nuts(problem, key, **options)
                else:
                    sampled = run_diffopt(problem, tx, key, steps=steps, **options)
            samples = merge_chains(sampled)
            xs, ys = inputs[test], targets[test]
            likelihood = diffopt.predictive(partial(density, problem), samples, xs, ys)
            mean = diffopt.predictive(network, samples, xs)
            row = rows.setdefault(
                name, {"log_likelihoods": [], "squared_errors": [], "seconds": [], "passes": []}
            )
            # in units of the target, so that the number does not depend on how it was scaled
            row["log_likelihoods"] += (np.log(likelihood) - np.log(target_scale)).tolist()
            row["squared_errors"] += (((mean - ys) * target_scale) ** 2).tolist()
            row["seconds"].append(sampled.seconds)
            row["passes"].append(sampled.passes)
    reference = np.array(rows["NUTS"]["log_likelihoods"])
    for row in rows.values():
        values = np.array(row["log_likelihoods"])
        row["log_likelihood"], row["error"] = mean_and_error(values)
        row["minus_nuts"], row["minus_nuts_error"] = mean_and_error(values - reference)
        row["rmse"] = float(np.sqrt(np.mean(row["squared_errors"])))
        row["seconds"], row["passes"] = np.mean(row["seconds"]), np.mean(row["passes"])
    return rows


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


# What a person sees


def plot_posterior(toy: dict[str, Any], rows: dict[str, dict[str, Any]], path: Path) -> None:
    """Three views of the toy, and the log-likelihoods, as one figure."""
    titles = {
        "Adam": "one network by Adam",
        "baoab": "posterior by diffopt.baoab",
        "NUTS": "the same by NUTS",
    }
    figure, axes = plt.subplots(2, 2, figsize=(plots.WIDTH, 6.6), layout="constrained")
    for ax, (name, title) in zip(axes.flat, titles.items(), strict=False):
        functions, grid = toy["functions"][name], toy["grid"]
        if len(functions) > 1:
            mean, spread = functions.mean(0), functions.std(0)
            ax.fill_between(
                grid, mean - 2 * spread, mean + 2 * spread, color=plots.RED, alpha=0.12, lw=0
            )
            for f in functions[:: max(len(functions) // 40, 1)]:
                ax.plot(grid, f, color=plots.RED, alpha=0.25, lw=0.7)
        ax.plot(grid, functions.mean(0), color="#7a1f3d", lw=2)
        ax.plot(toy["problem"].x[:, 0], toy["problem"].y, "o", color="black", ms=4)
        ax.set(title=title, xlim=(-3, 3), ylim=(-3, 3), xlabel="x", ylabel="y")
    names = list(rows)
    ax = axes.flat[3]
    ax.axvline(0, color=plots.GRAY, lw=1)
    ax.errorbar(
        [rows[n]["minus_nuts"] for n in names], names,
        xerr=[2 * rows[n]["minus_nuts_error"] for n in names], fmt="o", color=plots.RED, capsize=3,
    )  # fmt: skip
    ax.invert_yaxis()
    ax.set(
        title="diabetes: log-likelihood - NUTS's",
        xlabel="nats a patient ± 2 standard errors",
    )
    plots.save(figure, path)


def show(console: Console, rows: dict[str, dict[str, Any]]) -> None:
    """The log-likelihoods as a table; a pass is one gradient over all the data."""
    table = Table(title="diabetes, held-out patients", title_justify="left")
    columns = ("log-lik., nats", "minus NUTS", "RMSE", "passes", "seconds")
    table.add_column("method")
    for column in columns:
        table.add_column(column, justify="right")
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['log_likelihood']:.3f} ± {row['error']:.3f}",
            f"{row['minus_nuts']:+.3f} ± {row['minus_nuts_error']:.3f}",
            f"{row['rmse']:.1f}",
            f"{row['passes']:,.0f}",
            f"{row['seconds']:.1f}",
        )
    console.print(table)


def tables() -> Tables:
    """The log-likelihoods of the diabetes data."""
    return {
        "posterior": diabetes_table,
    }


def diabetes_table() -> str:
    """Held-out log-likelihoods of a Bayesian network."""
    result = load("posterior_against_nuts.json")
    rows = (
        [
            name, f"{row['log_likelihood']:.3f} ± {row['error']:.3f}",
            f"{row['minus_nuts']:+.3f} ± {row['minus_nuts_error']:.3f}" if name != "NUTS" else "",
            f"{row['rmse']:.1f}", f"{row['passes']:,.0f}",
        ]
        for name, row in result["diabetes"].items()
    )  # fmt: skip
    head = ["", "log-likelihood, nats", "minus NUTS, paired", "RMSE", "passes"]
    command = f"python -m benchmarks.posterior_against_nuts --splits {result['config']['splits']}"
    return markdown(head, rows) + origin("posterior_against_nuts.json", result["machine"], command)


@cli.program("posterior_against_nuts")
def main(argv: list[str] | None = None) -> None:
    """Parse the command line, sample, show."""
    parser = cli.parser("posterior_against_nuts", __doc__)
    parser.add_argument(
        "--splits",
        type=cli.at_least_one,
        default=3,
        help="of the diabetes data (default %(default)s)",
    )
    parser.add_argument("--quick", action="store_true", help="a twentieth of the work, for a test")
    args = parser.parse_args(argv)
    out = cli.make_folder(args.out)

    console = Console()
    with console.status("the toy"):
        toy = run_toy(args.quick)
    rows = run_diabetes(args.splits, args.quick, console)
    show(console, rows)
    about = machine.describe()
    console.print(machine.line(about))
    spread = {name: f.std(0).tolist() for name, f in toy["functions"].items()}
    result = {
        "config": {"splits": args.splits, "quick": args.quick},
        "machine": about,
        "toy": {"grid": toy["grid"].tolist(), "standard_deviation": spread},
        "diabetes": rows,
    }
    files.write_json(out / "posterior_against_nuts.json", result)
    plot_posterior(toy, rows, out / "posterior.png")
    console.print(f"Wrote {out / 'posterior_against_nuts.json'}, {out / 'posterior.png'}")


if __name__ == "__main__":
    sys.exit(main())
