"""How many effective samples do a second and a gradient give, beside NUTS and MCLMC?

    python -m benchmarks.effective_samples [--quick] [--out DIR]

Each method runs four chains, with exact gradients, on three posteriors: eight schools
(non-centred), a linear regression of scikit-learn's diabetes data, and a network of 50 tanh units
for them. diffopt is 1,000 steps of Adam, `find_step_size` there, then `sample` with `baoab` or
`mclmc` at 0.9 of that step. BlackJAX's NUTS has window adaptation, its MCLMC has its own tuner, and
NumPyro's NUTS, where it is installed, its defaults.

Effective samples (ESS) are counted by BlackJAX, in the worst coordinate and in the worst
prediction. Gradients and seconds are those after the tuning, compiled; the tuning, with
compilation, has columns of its own. NUTS has no error of discretization. The others have one,
which shows in the spread of their predictions beside NUTS's.
"""

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from blackjax.diagnostics import effective_sample_size
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_diabetes

import diffopt

from .lib import cli, files, machine, problems, timing
from .lib.tables import Tables, load, markdown, origin

CHAINS, UNITS, HELD_OUT = 4, 50, 42
OURS = {
    "baoab, friction 1": diffopt.baoab,
    "baoab, friction 0.1": partial(diffopt.baoab, friction=0.1),  # it runs along flat directions
    "mclmc, friction 0.1": diffopt.mclmc,
}
DESCENT, ADAM = 1000, 0.01  # to a minimum, where a step size is found
REFERENCE = "BlackJAX NUTS"


class Model(NamedTuple):
    """A posterior exp(-loss/temperature) over vectors, and what is predicted from one.

    `start(key)` is where a chain begins.
    """

    name: str
    loss: Callable[[jax.Array], jax.Array]
    temperature: float
    start: Callable[[jax.Array], jax.Array]
    predict: Callable[[jax.Array], jax.Array]

    def log_density(self, theta: jax.Array) -> jax.Array:
        """The log posterior, up to a constant."""
        return -self.loss(theta) / self.temperature


class Run(NamedTuple):
    """Draws `[chain, draw, coordinate]`, and what they and the tuning before them took."""

    draws: jax.Array
    gradients: float
    seconds: float
    tuning_gradients: float
    tuning_seconds: float


# The posteriors


def eight_schools() -> Model:
    """θ = (μ, log τ, η₁ ... η₈), predicted: the effects μ + τη."""
    problem = problems.eight_schools()
    mean, deviation = (jnp.asarray(a, jnp.float32) for a in (problem.mean, problem.deviation))
    return Model(
        "eight schools", problem.loss, 1.0,
        lambda key: mean + deviation * jax.random.normal(key, mean.shape),
        lambda theta: theta[0] + jnp.exp(theta[1]) * theta[2:],
    )  # fmt: skip


def diabetes() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Standardized inputs and targets, and the inputs of those held out."""
    x, y = ((a - a.mean(0)) / a.std(0) for a in load_diabetes(return_X_y=True))
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    return x[HELD_OUT:], y[HELD_OUT:], x[:HELD_OUT]


def regression(name: str, outputs: Callable[..., jax.Array], size: int) -> Model:
    """A regression with standard normal priors and a noise that is inferred, log σ the last."""
    x, y, others = diabetes()

    def loss(theta: jax.Array) -> jax.Array:
        z = (y - outputs(theta[:-1], x)) / jnp.exp(theta[-1])
        return jnp.mean(z**2) / 2 + theta[-1] + jnp.sum(theta**2) / (2 * len(y))

    start = lambda key: 0.1 * jax.random.normal(key, (size + 1,))
    return Model(name, loss, 1 / len(y), start, lambda theta: outputs(theta[:-1], others))


def line(theta: jax.Array, x: jax.Array) -> jax.Array:
    """Ten slopes and an intercept."""
    return x @ theta[:-1] + theta[-1]


def network(theta: jax.Array, x: jax.Array) -> jax.Array:
    """50 tanh units, scaled so that a standard normal prior is one of functions of order 1."""
    w, b, v, c = jnp.split(theta, np.cumsum([10 * UNITS, UNITS, UNITS]))
    hidden = jnp.tanh(x @ w.reshape(10, UNITS) / 10**0.5 + b)
    return hidden @ v / UNITS**0.5 + c[0]


MODELS: dict[str, Callable[[], Model]] = {
    "eight schools": eight_schools,
    "regression": lambda: regression("diabetes, linear", line, 11),
    "network": lambda: regression("diabetes, 50 units", network, 12 * UNITS + 1),
}


# The methods


def starts(model: Model) -> jax.Array:
    """Where the chains begin, those of all methods."""
    return jax.vmap(model.start)(jax.random.split(jax.random.key(1), CHAINS))


def count_nuts(steps: int) -> tuple[int, int]:
    """The draws and the warm-up of NUTS, whose trees take many gradients a draw."""
    return max(steps // 20, 10), max(steps // 40, 50)


def descend(model: Model, theta: jax.Array) -> jax.Array:
    """Near a minimum, by Adam."""
    tx = optax.adam(ADAM)

    def step(carry: Any, _: None) -> Any:
        theta, state = carry
        updates, state = tx.update(jax.grad(model.loss)(theta), state)
        return (theta + updates, state), None

    return jax.jit(lambda t: jax.lax.scan(step, (t, tx.init(t)), length=DESCENT)[0][0])(theta)


def run_diffopt(model: Model, steps: int, sampler: Any) -> Run:
    """A sampler by `sample`, at 0.9 of the step size that `find_step_size` gives near a minimum."""
    clock = time.perf_counter()
    params = starts(model)
    step_size, found = diffopt.find_step_size(
        sampler, model.loss, descend(model, params[0]), temperature=model.temperature
    )
    tx = sampler(0.9 * step_size, model.temperature)
    call = lambda: diffopt.sample(
        tx, model.loss, params, num_chains=None, num_steps=steps, burn_in=steps // 10, every=4
    )
    call()
    tuned = time.perf_counter() - clock
    clock = time.perf_counter()
    samples = call()
    seconds = time.perf_counter() - clock
    return Run(samples.draws, CHAINS * steps, seconds, DESCENT + found.gradients, tuned - seconds)


def run_nuts(model: Model, steps: int) -> Run:
    """BlackJAX's NUTS, a chain after another: side by side the longest tree makes all wait."""
    draws, warmup = count_nuts(steps)

    def adapt(chain: tuple[jax.Array, jax.Array]) -> Any:
        key, theta = chain
        adaptation = blackjax.window_adaptation(blackjax.nuts, model.log_density)
        result, info = adaptation.run(key, theta, num_steps=warmup)
        return tuple(result), info.info.num_integration_steps.sum()

    def chain(chain: tuple[jax.Array, Any]) -> Any:
        key, (state, parameters) = chain
        kernel = blackjax.nuts(model.log_density, **parameters)

        def step(state: Any, key: jax.Array) -> Any:
            state, info = kernel.step(key, state)
            return state, (state.position, info.num_integration_steps)

        return jax.lax.scan(step, state, jax.random.split(key, draws))[1]

    keys = jax.random.split(jax.random.key(2), (2, CHAINS))
    clock = time.perf_counter()
    (tuned, tuning_gradients), _ = timing.run_compiled(
        lambda *args: jax.lax.map(adapt, args), keys[0], starts(model)
    )
    tuning_seconds = time.perf_counter() - clock
    (path, gradients), seconds = timing.run_compiled(
        lambda *args: jax.lax.map(chain, args), keys[1], tuned
    )
    return Run(path, float(gradients.sum()), seconds, float(tuning_gradients.sum()), tuning_seconds)


def run_mclmc(model: Model, steps: int) -> Run:
    """BlackJAX's MCLMC, whose tuner takes three tenths of the steps; two gradients a step."""
    kernel = blackjax.mcmc.mclmc.build_kernel()

    def adapt(key: jax.Array, theta: jax.Array) -> Any:
        first, second = jax.random.split(key)
        state = blackjax.mcmc.mclmc.init(theta, model.log_density, first)
        return blackjax.mclmc_find_L_and_step_size(
            kernel, num_steps=steps, state=state, rng_key=second, logdensity_fn=model.log_density
        )

    def chain(key: jax.Array, state: Any, tuned: Any) -> Any:
        def step(state: Any, key: jax.Array) -> Any:
            state, _ = kernel(
                key, state, model.log_density, tuned.inverse_mass_matrix, tuned.L, tuned.step_size
            )
            return state, state.position

        path = jax.lax.scan(step, state, jax.random.split(key, steps))[1]
        return path[::4]

    keys = jax.random.split(jax.random.key(3), (2, CHAINS))
    clock = time.perf_counter()
    (states, tuned, number), _ = timing.run_compiled(jax.vmap(adapt), keys[0], starts(model))
    tuning_seconds = time.perf_counter() - clock
    path, seconds = timing.run_compiled(jax.vmap(chain), keys[1], states, tuned)
    tuning_gradients = 2.0 * float(jnp.sum(jnp.broadcast_to(number, (CHAINS,))))
    return Run(path, 2 * CHAINS * steps, seconds, tuning_gradients, tuning_seconds)


def run_numpyro(model: Model, steps: int) -> Run:
    """NumPyro's NUTS at its defaults, a chain after another; its `MCMC` compiles at every call."""
    infer = importlib.import_module("numpyro.infer")
    draws, warmup = count_nuts(steps)
    kernel = infer.NUTS(potential_fn=lambda theta: -model.log_density(theta))

    def walk(state: Any, length: int) -> Any:
        def step(state: Any, _: None) -> Any:
            state = kernel.sample(state, (), {})
            return state, (state.z, state.num_steps)

        state, (path, gradients) = jax.lax.scan(step, state, length=length)
        return state, path, gradients.sum()

    keys = jax.random.split(jax.random.key(4), CHAINS)
    clock = time.perf_counter()
    states = [
        kernel.init(key, warmup, theta, (), {})
        for key, theta in zip(keys, starts(model), strict=True)
    ]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    (tuned, _, tuning_gradients), _ = timing.run_compiled(
        lambda state: jax.lax.map(lambda s: walk(s, warmup), state), state
    )
    tuning_seconds = time.perf_counter() - clock
    (_, path, gradients), seconds = timing.run_compiled(
        lambda state: jax.lax.map(lambda s: walk(s, draws), state), tuned
    )
    return Run(path, float(gradients.sum()), seconds, float(tuning_gradients.sum()), tuning_seconds)


def methods() -> Iterator[tuple[str, Callable[[Model, int], Run]]]:
    """Those that are installed."""
    yield REFERENCE, run_nuts
    if importlib.util.find_spec("numpyro"):
        yield "NumPyro NUTS", run_numpyro
    yield "BlackJAX MCLMC", run_mclmc
    for name, sampler in OURS.items():
        yield f"diffopt {name}", partial(run_diffopt, sampler=sampler)


# What a person sees


def measure(model: Model, run: Run, reference: np.ndarray | None) -> dict[str, Any]:
    """A row: effective samples, gradients, seconds, the spread of predictions over NUTS's."""
    predictions = np.asarray(jax.vmap(jax.vmap(model.predict))(run.draws))
    spread = predictions.std((0, 1))
    return {
        "effective": float(np.min(effective_sample_size(run.draws))),
        "effective_predictions": float(np.min(effective_sample_size(predictions))),
        "spread": None if reference is None else float(np.mean(spread / reference)),
        "deviations": spread.tolist(),
        **{name: float(getattr(run, name)) for name in Run._fields[1:]},
    }


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "ESS, worst coordinate": lambda row: f"{row['effective']:,.0f}",
    "worst prediction": lambda row: f"{row['effective_predictions']:,.0f}",
    "per 1,000 gradients": lambda row: (
        f"{1000 * row['effective_predictions'] / row['gradients']:.1f}"
    ),
    "per second": lambda row: f"{row['effective_predictions'] / row['seconds']:,.0f}",
    "spread over NUTS's": lambda row: "" if row["spread"] is None else f"{row['spread']:.3f}",
    "tuning: gradients": lambda row: f"{row['tuning_gradients']:,.0f}",
    "tuning: seconds": lambda row: f"{row['tuning_seconds']:.0f}",
}


def cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    """A line for each row."""
    return [[row["model"], row["method"], *(f(row) for f in COLUMNS.values())] for row in rows]


def tables() -> Tables:
    """Effective samples of every method on every posterior."""
    return {"effective_samples": effective_table}


def effective_table() -> str:
    """The rows of the committed run."""
    result = load("effective_samples.json")
    below = origin(
        "effective_samples.json", result["machine"], "python -m benchmarks.effective_samples"
    )
    return markdown(["posterior", "method", *COLUMNS], cells(result["rows"]), left=2) + below


@cli.program("effective_samples")
def main(argv: list[str] | None = None) -> None:
    """Parse the command line, sample, show."""
    parser = cli.parser("effective_samples", __doc__)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the steps")
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=(), metavar="NAME",
        help=f"of {', '.join(MODELS)} (default all)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    cli.require_unique("--models", args.models)
    out = cli.make_folder(args.out)
    steps = 400 if args.quick else 40_000

    console, rows = Console(), []
    for name in args.models or MODELS:
        model, reference = MODELS[name](), None
        for method, run in methods():
            with console.status(f"{name}: {method}"):
                row = measure(model, run(model, steps), reference)
            rows.append({"model": model.name, "method": method, **row})
            if method == REFERENCE:
                reference = np.array(row["deviations"])
    shown = Table("posterior", "method", *COLUMNS)
    for line_of_cells in cells(rows):
        shown.add_row(*line_of_cells)
    console.print(shown)
    about = machine.describe()
    console.print(machine.line(about))
    config = {"quick": args.quick, "steps": steps, "chains": CHAINS}
    result = {"config": config, "machine": about, "rows": rows}
    files.write_json(out / "effective_samples.json", result)
    console.print(f"Wrote {out / 'effective_samples.json'}")


if __name__ == "__main__":
    sys.exit(main())
