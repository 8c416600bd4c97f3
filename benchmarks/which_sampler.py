"""Which sampler? Errors of posterior means and variances against gradients, on five problems.

    python -m benchmarks.which_sampler [--quick] [--out DIR]

The problems (`benchmarks.lib.problems`) have known means and variances. All chains start at one
point, a standard deviation from the mean or at a draw of NUTS. At G gradients a chain is scored by
its steps between G/2 and G: the error of its mean in standard deviations, and of its variance over
the exact one, rms over chains, in the worst coordinate. For the 25 Gaussians the score is half the
sum of |share - exact| over the modes and the rest, mean over chains.

Each sampler has its default friction or momentum and the step size of `diffopt.find_step_size` (0.9
of it for `baoab` and `ubu`, as it advises). If that is refused at a tolerance of 5 %, the tolerance
is 10, 20 or 50 %, else the sampler is left out. Control variates and SVRG take two gradients of
smaller batches, so a step costs the same for all, at the step size for control variates. The one
gradient of all examples at the center is not counted.

BlackJAX's SGLD, SGHMC and SGNHT, and the diffusions of SGMCMCJax if it is installed, run in the
same loop on the log posterior at T = 1. Step size and friction equal diffopt's, in their terms:
ε = ηT, and ε = √(ηT), α = (1 - m)/ε, for BlackJAX's SGHMC and SGNHT; ε = ηT, α = 1 - m for
SGMCMCJax's. SGMCMCJax's SGHMC draws a fresh velocity every 10 steps.
"""

import importlib
import itertools
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import diffopt

from .lib import cli, files, machine, plots
from .lib.plots import plt
from .lib.problems import PROBLEMS, Problem
from .lib.tables import Tables, load, markdown, origin

MOMENTUM, FRESH = 0.9, 10  # the default of sghmc and sgnht; BlackJAX's steps of one velocity
TOLERANCES = (0.05, 0.1, 0.2, 0.5)  # of the temperature: the next where one is refused
LADDER = (1.0, 2.0, 4.0, 8.0, 16.0)  # of temperatures
SAMPLERS: dict[str, Callable[..., Any]] = {
    name: getattr(diffopt, name) for name in ("sgld", "psgld", "sghmc", "baoab", "ubu", "sgnht")
}
PEERS = ("sgld", "sghmc", "sgnht")
ERRORS = ("mean", "variance")
QUICK = ("gaussian", "logistic")
COLORS = {
    "sgld": plots.BLUE, "psgld": plots.GRAY, "sghmc": plots.ORANGE, "baoab": plots.RED,
    "ubu": plots.VIOLET, "sgnht": plots.GREEN, "replica exchange": "black", "csgld": "black",
}  # fmt: skip
STYLES = {"BlackJAX": "--", "SGMCMCJax": ":"}


class Way(NamedTuple):
    """One chain: its functions, and how many gradients (of a batch) a step costs."""

    name: str
    init: Callable[[jax.Array, jax.Array], Any]
    step: Callable[[jax.Array, Any, Any], Any]
    position: Callable[[Any], jax.Array]
    cost: int = 1
    batch_size: int | None = None
    weight: Callable[[Any], Any] = lambda state: 1.0  # of a position among the others


# The ways to sample


def step_size(name: str, problem: Problem) -> tuple[float, str]:
    """What `find_step_size` gives to a sampler, NaN for nothing; and what it first refused with."""
    start, refusal = jnp.asarray(problem.start, jnp.float32), ""
    for tolerance in TOLERANCES:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # of one that is not confirmed
                size, _ = diffopt.find_step_size(
                    SAMPLERS[name], problem.loss, start, problem.data,
                    temperature=problem.temperature, tolerance=tolerance, judge="stiffest",
                    batch_size=problem.batch_size,
                )  # fmt: skip
            return size * (0.9 if name in ("baoab", "ubu") else 1.0), refusal
        except (ValueError, UserWarning) as error:
            refusal = refusal or cli.first_line(error)
    return float("nan"), refusal


def diffopt_way(
    name: str, problem: Problem, make: Callable[[Any], Any], estimator: Any = None,
    batch_size: int | None = None,
) -> Way:  # fmt: skip
    """A sampler of diffopt, with the gradients of the batch or of an estimator."""
    grad = jax.grad(problem.loss)
    if estimator is None:
        estimator = diffopt.GradientEstimator(lambda p: (), lambda p, b, s: (grad(p, b), s))

    def step(key: jax.Array, state: Any, batch: Any) -> Any:
        theta, opt_state, grad_state = state
        grads, grad_state = estimator.update(theta, batch, grad_state)
        updates, opt_state = make(0).update(grads, opt_state, theta)
        return theta + updates, opt_state, grad_state

    init = lambda key, theta: (theta, make(key).init(theta), estimator.init(theta))
    return Way(name, init, step, lambda state: state[0], 1, batch_size or problem.batch_size)


def replicas(problem: Problem, eta: float) -> Way:
    """The coldest of five chains of `sgld`, which may swap at each step."""
    make = lambda key: diffopt.replica_exchange(diffopt.sgld, eta, LADDER, every=1, key=key)

    def init(key: jax.Array, theta: jax.Array) -> Any:
        chains = jnp.broadcast_to(theta, (len(LADDER), *theta.shape))
        return chains, make(key).init(chains)

    def step(key: jax.Array, state: Any, batch: Any) -> Any:
        theta, opt_state = state
        losses, grads = jax.vmap(jax.value_and_grad(problem.loss))(theta)
        updates, opt_state = make(0).update(grads, opt_state, theta, value=losses)
        return theta + updates, opt_state

    coldest = lambda state: state[0][jnp.argmin(state[1].rung)]
    return Way("replica exchange", init, step, coldest, len(LADDER))


def blackjax_way(name: str, problem: Problem, eta: float) -> Way:
    """A sampler of BlackJAX, on the log posterior."""
    score = lambda theta, batch: -jax.grad(problem.loss)(theta, batch) / problem.temperature
    epsilon = eta * problem.temperature if name == "sgld" else (eta * problem.temperature) ** 0.5
    options: dict[str, Any] = {} if name == "sgld" else {"alpha": (1 - MOMENTUM) / epsilon}
    if name == "sghmc":
        options["num_integration_steps"] = FRESH
    algorithm = getattr(blackjax, name)(score, **options)
    return Way(
        f"BlackJAX {name}", lambda key, theta: algorithm.init(theta, key),
        lambda key, state, batch: algorithm.step(key, state, batch, epsilon),
        lambda state: state.position if name == "sgnht" else state,
        FRESH if name == "sghmc" else 1, problem.batch_size,
    )  # fmt: skip


def contour(problem: Problem, eta: float) -> Way:
    """BlackJAX's contour SGLD: 100 energies from -1 to 24, the best of seven settings here."""
    score = lambda theta, batch: -jax.grad(problem.loss)(theta)
    algorithm = blackjax.csgld(
        lambda theta, batch: -problem.loss(theta), score,
        num_partitions=100, energy_gap=0.25, min_energy=-1.0,
    )  # fmt: skip
    return Way(
        "BlackJAX csgld", lambda key, theta: algorithm.init(theta, key),
        lambda key, state, batch: algorithm.step(key, state, batch, eta, 0.03),
        lambda state: state.position, weight=lambda state: state.energy_pdf[state.energy_idx],
    )  # fmt: skip


def sgmcmcjax_way(name: str, problem: Problem, eta: float) -> Way:
    """A diffusion of SGMCMCJax, on the log posterior."""
    diffusions = importlib.import_module("sgmcmcjax.diffusions")
    alpha = () if name == "sgld" else (1 - MOMENTUM,)
    begin, update, position, *fresh = getattr(diffusions, name)(eta * problem.temperature, *alpha)

    def step(key: jax.Array, state: Any, batch: Any) -> Any:
        count, inner = state
        noise_key, fresh_key = jax.random.split(key)
        for renew in fresh:
            new = renew(count, fresh_key, inner)
            inner = jax.tree.map(lambda a, b: jnp.where(count % FRESH == 0, a, b), new, inner)
        score = -jax.grad(problem.loss)(position(inner), batch) / problem.temperature
        return count + 1, jax.tree.map(jnp.asarray, update(count, noise_key, score, inner))

    init = lambda key, theta: (jnp.zeros([], jnp.int32), jax.tree.map(jnp.asarray, begin(theta)))
    return Way(f"SGMCMCJax {name}", init, step, lambda state: position(state[1]), 1,
               problem.batch_size)  # fmt: skip


def peers() -> dict[str, Callable[[str, Problem, float], Way]]:
    """The other libraries that are installed."""
    try:
        importlib.import_module("sgmcmcjax.diffusions")
    except ImportError:
        return {"BlackJAX": blackjax_way}
    return {"BlackJAX": blackjax_way, "SGMCMCJax": sgmcmcjax_way}


def ways(problem: Problem) -> Iterator[tuple[Way, float, str]]:
    """All ways to sample a problem, each with its step size, and why that was refused."""
    sizes: dict[str, float] = {}
    for name, make in SAMPLERS.items():
        sizes[name], refusal = step_size(name, problem)
        tx = partial(_keyed, make, sizes[name], problem.temperature)
        yield diffopt_way(name, problem, tx), sizes[name], refusal
    for other in peers().values():
        for name in PEERS:
            yield other(name, problem, sizes[name]), sizes[name], ""
    if problem.name == "25 Gaussians":
        yield contour(problem, sizes["sgld"]), sizes["sgld"], ""
        yield replicas(problem, sizes["sgld"]), sizes["sgld"], ""
    if problem.mode is None:
        return
    mode, grad = jnp.asarray(problem.mode, jnp.float32), jax.grad(problem.loss)
    number, n = len(problem.data[1]), problem.batch_size or 1

    def corrected(theta: jax.Array, batch: Any) -> jax.Array:
        """The loss whose gradient the control variate estimates, up to its mean gradient, 0."""
        return problem.loss(theta, batch) - grad(mode, batch) @ (theta - mode)

    estimators = {
        "control_variate": (diffopt.control_variate(grad, mode, problem.data), n // 2),
        "svrg": (diffopt.svrg(grad, problem.data, number // (n - 2 * (n // 4))), n // 4),
    }
    for name in ("sgld", "baoab"):
        half = problem._replace(loss=corrected, batch_size=n // 2)
        size, refusal = step_size(name, half)
        make = partial(_keyed, SAMPLERS[name], size, problem.temperature)
        for kind, (estimator, batch_size) in estimators.items():
            yield (
                diffopt_way(f"{name}, {kind}", problem, make, estimator, batch_size),
                size,
                refusal,
            )


def _keyed(make: Callable[..., Any], size: float, temperature: float, key: Any) -> Any:
    return make(size, temperature, key=key)


# The errors


def curve(problem: Problem, way: Way, gradients: int, chains: int) -> dict[str, list[float]]:
    """The errors of one chain at numbers of gradients that double up to `gradients`."""
    key = jax.random.key(1)
    number = 0 if problem.data is None else len(jax.tree.leaves(problem.data)[0])
    size = way.batch_size or 1
    epoch = number // size  # steps
    mean, deviation, start = (
        jnp.asarray(a, jnp.float32) for a in (problem.mean, problem.deviation, problem.start)
    )
    see = lambda state: (problem.observe(way.position(state)) - mean) / deviation

    @jax.jit
    def segment(state: Any, order: jax.Array, first: jax.Array, last: jax.Array, data: Any) -> Any:
        def step(t: jax.Array, carry: Any) -> Any:
            state, order, weights, total, square = carry
            now, batch = jax.random.fold_in(key, t), None
            if number:  # epochs in random order, in which each chain begins somewhere else
                order = jax.lax.cond(
                    t % epoch == 0, lambda: jax.random.permutation(now, number), lambda: order
                )
                place = (t + jnp.arange(chains) * epoch // chains) % epoch * size
                index = order[place[:, None] + jnp.arange(size)]
                batch = jax.tree.map(lambda a: a[index], data)
            keys = jax.random.split(now, chains)
            state = jax.vmap(way.step, (0, 0, 0 if number else None))(keys, state, batch)
            z = jax.vmap(see)(state)
            w = jnp.broadcast_to(jax.vmap(way.weight)(state), chains)[:, None]
            return state, order, weights + w, total + w * z, square + w * z**2

        zero, none = jnp.zeros((chains, mean.size)), jnp.zeros((chains, 1))
        carry = state, order, none, zero, zero
        state, order, weights, total, square = jax.lax.fori_loop(first, last, step, carry)
        return state, order, total / weights, square / weights

    keys = jax.random.split(jax.random.key(2), chains)
    state, order = jax.vmap(way.init, (0, None))(keys, start), jnp.arange(number)
    errors: dict[str, list[float]] = {"gradients": [], "mean": [], "variance": []}
    first, reached = 0, 128
    while reached <= gradients:
        last = reached // way.cost
        state, order, *moments = segment(state, order, first, last, problem.data)
        m, s = (np.asarray(a, float) for a in moments)
        if first:
            errors["gradients"].append(reached)
            if problem.name == "25 Gaussians":
                errors["mean"].append(float(np.abs(m).sum(1).mean() / 2))
            else:
                rms = lambda error: float(np.sqrt(np.mean(error**2, axis=0)).max())
                errors["mean"].append(rms(m))
                errors["variance"].append(rms(s - m**2 - 1))
        first, reached = last, 2 * reached
    return errors


# What a person sees


def cell(row: dict[str, Any]) -> str:
    """The errors at the last number of gradients and the step size; a refused one is marked."""
    if not row["gradients"]:
        return "refused"
    errors = (row[kind][-1] for kind in ERRORS if row[kind])
    shown = ", ".join("diverged" if e is None or not e < 100 else f"{e:.2g}" for e in errors)
    return f"{shown} ({row['step_size']:.2g}{'*' if row['refusal'] else ''})"


def table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows: samplers, with the errors on each problem."""
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    cells = {(row["sampler"], row["problem"]): cell(row) for row in rows}
    names = dict.fromkeys(row["sampler"] for row in rows)
    return ["sampler", *problems], [[n, *(cells.get((n, p), "") for p in problems)] for n in names]


def plot(rows: list[dict[str, Any]], references: dict[str, float], path: Path) -> None:
    """Errors of means on the left and of variances on the right, a row for each problem."""
    size = (plots.WIDTH, 2.9 * len(references) + 3)
    figure, axes = plt.subplots(
        len(references), 2, figsize=size, layout="constrained", squeeze=False, sharex=True
    )
    for (name, kind), ax in zip(itertools.product(references, ERRORS), axes.flat, strict=True):
        shown = [row for row in rows if row["problem"] == name and row[kind]]
        if not shown:
            ax.axis("off")
            continue
        for row in shown:
            library, _, own = row["sampler"].partition(" ")
            own = own if library in STYLES else row["sampler"]
            ax.plot(
                row["gradients"], np.array(row[kind], float), label=row["sampler"], lw=1.4,
                color=COLORS[own.split(",")[0]], ls=STYLES.get(library, "-"),
                marker="o" if "control" in own else "s" if "svrg" in own else None, markersize=4,
            )  # fmt: skip
        if references[name] and kind == "mean":
            ax.axhline(references[name], color=plots.LIGHT, label="error of NUTS' means")
        title = kind if name != "25 Gaussians" else "weights"
        ax.set(xscale="log", title=f"{name}: {title}", xlabel="gradients")
        ax.tick_params(labelbottom=True)
        plots.log_scale(ax)
        ax.set_ylim(top=min(ax.get_ylim()[1], 10))
        ax.grid(**plots.GRID)
    for ax in axes[:, 0]:
        ax.set_ylabel("error of one chain")
    pairs = (zip(*ax.get_legend_handles_labels(), strict=True) for ax in figure.axes)
    lines = {label: line for line, label in itertools.chain.from_iterable(pairs)}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=2)
    plots.save(figure, path)


def tables() -> Tables:
    """The errors of every sampler on every problem."""
    return {
        "samplers": error_table,
    }


def error_table() -> str:
    """Errors of means and variances at equal gradients, and the step sizes that were refused."""
    result = load("which_sampler.json")
    command = "python -m benchmarks.which_sampler" + " --quick" * result["config"]["quick"]
    refused = {
        f"{row['sampler']}, {row['problem']}": None for row in result["rows"] if row["refusal"]
    }
    below = origin("which_sampler.json", result["machine"], command)
    if refused:
        below += f" \\* Refused at a tolerance of 5 %: {'; '.join(refused)}."
    head, body = table(result["rows"])
    return markdown(head, [[cell.replace("*", "\\*") for cell in row] for row in body]) + below


@cli.program("which_sampler")
def main(argv: list[str] | None = None) -> None:
    """Parse the command line, sample, show."""
    parser = cli.parser("which_sampler", __doc__)
    parser.add_argument("--quick", action="store_true", help="a thirtieth of the gradients")
    parser.add_argument(
        "--problems", nargs="+", choices=PROBLEMS, default=(), metavar="NAME",
        help=f"of {', '.join(PROBLEMS)} (default all, with --quick {' and '.join(QUICK)})",
    )  # fmt: skip
    args = parser.parse_args(argv)
    cli.require_unique("--problems", args.problems)
    out = cli.make_folder(args.out)
    gradients, chains = (1024, 4) if args.quick else (32_768, 32)

    console, rows = Console(), []
    references = {}
    for name in args.problems or (QUICK if args.quick else PROBLEMS):
        with console.status(f"{name}: the reference") as status:
            problem = PROBLEMS[name](args.quick)
            references[problem.name] = problem.reference_error
            for way, size, refusal in ways(problem):
                status.update(f"{name}: {way.name}")
                row = {"problem": problem.name, "sampler": way.name, "step_size": size}
                errors: dict[str, list[float]] = {"gradients": [], "mean": [], "variance": []}
                if size > 0:
                    errors = curve(problem, way, gradients, chains)
                rows.append(row | {"refusal": refusal} | errors)

    head, body = table(rows)
    shown = Table(*head, title=f"errors at {gradients:,} gradients: mean, variance (step size)")
    for line in body:
        shown.add_row(*line)
    console.print(shown)
    for row in rows:
        if row["refusal"]:
            console.print(f"* {row['sampler']}, {row['problem']}: {row['refusal']}")
    about = machine.describe()
    console.print(machine.line(about))
    config = {"quick": args.quick, "gradients": gradients, "chains": chains}
    result = {
        "command": "python -m benchmarks.which_sampler" + " --quick" * args.quick,
        "config": config, "machine": about, "reference_errors": references, "rows": rows,
    }  # fmt: skip
    files.write_json(out / "which_sampler.json", result)
    plot(rows, references, out / "samplers_choice.png")
    console.print(f"Wrote {out / 'which_sampler.json'}, {out / 'samplers_choice.png'}")


if __name__ == "__main__":
    sys.exit(main())
