"""The cost of one update of the parameters: SGD, its noisy peers and diffopt.

    python -m benchmarks.step_cost [--methods] [--trees NAME...] [--json FILE]

The gradient is an input, so only the update is timed. Buffers are donated. The updates take turns,
and each begins its turn with a step that is not timed. On a CPU with vectors of 512 bits, programs
compiled for these vectors have their own rows beside XLA's default. A tree of a billion parameters
is for a GPU: `--trees billion`.
`--methods` times methods that are no plain SGLD in place of the peers. If a method takes its
gradient at another point, that point counts too.
"""

import statistics
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import diffopt

from .lib import cli, files, machine, models, timing
from .lib.models import fill_tree
from .lib.tables import Tables, load, markdown, origin

LEARNING_RATE, TEMPERATURE = 1e-3, 1e-5
WIDE = {"xla_cpu_prefer_vector_width": 512}
PEERS = ("optax.noisy_sgd", "blackjax.sgld", "posteriors.sgld")

Start = Callable[[], timing.Run]


def contestants(shapes: Any) -> dict[str, Start]:
    """What is measured: a name, and a function that allocates it and returns its run."""
    lr, T = LEARNING_RATE, TEMPERATURE
    grads = fill_tree(shapes, 1e-2)

    def optax_row(
        make: Callable[[], optax.GradientTransformation], options: dict[str, Any] | None = None
    ) -> Start:
        return lambda: timing.optax_run(make(), fill_tree(shapes, 0.0), grads, options)

    chain = lambda: optax.chain(diffopt.langevin(T, learning_rate=lr), optax.sgd(lr))
    wide = {
        "optax.noisy_sgd, 512 bits": optax_row(lambda: optax.noisy_sgd(lr, key=0), WIDE),
        "diffopt.sgld gaussian, 512 bits": optax_row(lambda: diffopt.sgld(lr, T), WIDE),
        "diffopt.sgld gaussian16, 512 bits": optax_row(
            lambda: diffopt.sgld(lr, T, noise="gaussian16"), WIDE
        ),
    }
    return {
        "optax.sgd": optax_row(lambda: optax.sgd(lr)),
        "optax.adam": optax_row(lambda: optax.adam(lr)),
        "optax.noisy_sgd": optax_row(lambda: optax.noisy_sgd(lr, key=0)),
        "blackjax.sgld": lambda: blackjax_run(fill_tree(shapes, 0.0), grads),
        "posteriors.sgld": lambda: posteriors_run(shapes),
        "diffopt.sgld gaussian": optax_row(lambda: diffopt.sgld(lr, T)),
        "diffopt.sgld gaussian16": optax_row(lambda: diffopt.sgld(lr, T, noise="gaussian16")),
        "diffopt.sgld rademacher": optax_row(lambda: diffopt.sgld(lr, T, noise="rademacher")),
        "chain(langevin, sgd)": optax_row(chain),
    } | (wide if machine.has_wide_vectors() else {})


def methods(shapes: Any) -> dict[str, Start]:
    """The methods of diffopt whose updates are more than those of SGLD, likewise."""
    lr, T = LEARNING_RATE, TEMPERATURE
    grads = fill_tree(shapes, 1e-2)
    sgd, sgld = optax.sgd(lr), diffopt.sgld(lr, T)
    plain = {
        "optax.sgd": sgd,
        "optax.adam": optax.adam(lr),
        "sgld": sgld,
        "lattice_walk": diffopt.lattice_walk(lr, T),
        "chain(hierarchical_prior, sgld)": optax.chain(diffopt.hierarchical_prior(T), sgld),
    }
    perturbing = {
        "chain(weight_noise, sgd)": optax.chain(diffopt.weight_noise(0.01), sgd),
        "chain(weight_noise relative, sgd)": optax.chain(
            diffopt.weight_noise(0.01, relative=True), sgd
        ),
        "ivon": diffopt.ivon(lr, 1e5),
    }

    def start(run: Callable, tx: optax.GradientTransformation) -> timing.Run:
        return run(tx, fill_tree(shapes, 0.1), grads)

    return {
        name: partial(start, run, tx)
        for run, rows in ((timing.optax_run, plain), (perturbed_run, perturbing))
        for name, tx in rows.items()
    }


def perturbed_run(tx: optax.GradientTransformation, params: Any, grads: Any) -> timing.Run:
    """One update and the point at which its gradient would be taken."""

    def update(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        opt_state, _ = state
        point = diffopt.perturbed(params, opt_state)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), (opt_state, point)

    init = lambda params: (tx.init(params), jax.tree.map(jnp.zeros_like, params))
    return timing.update_run(update, init, params, grads)


def blackjax_run(params: Any, grads: Any) -> timing.Run:
    """The integrator that `blackjax.sgld` runs, at our temperature, without the gradient."""
    from blackjax.sgmcmc.diffusions import overdamped_langevin

    one_step = overdamped_langevin()

    def update(params: Any, key: jax.Array, grads: Any) -> tuple[Any, jax.Array]:
        key, subkey = jax.random.split(key)
        ascent = jax.tree.map(jnp.negative, grads)
        return one_step(subkey, params, ascent, LEARNING_RATE, TEMPERATURE), key

    return timing.update_run(update, lambda params: jax.random.key(0), params, grads)


def posteriors_run(shapes: Any) -> timing.Run:
    """The in-place update of PyTorch's `posteriors.sgmcmc.sgld` on a gradient that is given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from posteriors.sgmcmc import sgld

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    flat = jax.tree.leaves(shapes, is_leaf=models.is_shape)
    grads = [torch.full(shape, 1e-2, device=device) for shape in flat]

    class LogPosterior(torch.autograd.Function):
        """A function whose gradient is `grads`, at no cost."""

        @staticmethod
        def forward(*params: Any) -> Any:
            return torch.zeros((), device=device)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, weight: Any) -> Any:
            return tuple(grads)

    def log_posterior(params: Any, batch: Any) -> Any:
        return LogPosterior.apply(*params.values()), torch.zeros(0)

    transform = sgld.build(log_posterior, lr=LEARNING_RATE, temperature=TEMPERATURE)
    state = transform.init({str(i): torch.zeros(s, device=device) for i, s in enumerate(flat)})

    def step() -> None:
        nonlocal state
        state, _ = transform.update(state, None, inplace=True)
        if device == "cuda":
            torch.cuda.synchronize()

    return timing.make_run(step)


def copy_run(size: int) -> timing.Run:
    """A step that adds 1 in place to so many floats that it moves the bytes of an SGD update.

    SGD reads two floats a parameter and writes one, this reads one and writes one.
    """

    def add(x: jax.Array, state: Any, grads: Any) -> tuple[jax.Array, Any]:
        return x + 1, state

    return timing.update_run(add, lambda x: (), fill_tree((3 * size // 2,), 0.0), ())


def measure(
    name: str, contestants: Callable, repeats: int, progress: Progress
) -> tuple[list[dict], list[str]]:
    """Rows for the tree called `name`, and what could not be measured and why."""
    shapes = models.TREES[name]()
    size = models.size(shapes)
    starts = contestants(shapes)
    task = progress.add_task(name, total=len(starts) + repeats)
    turns = {"copy": copy_run(size)}
    first_call, missing = {}, []
    for row, start in starts.items():
        progress.update(task, description=f"{name}: first call of {row}")
        try:
            turns[row] = start()
            first_call[row] = turns[row]()
        except ImportError as error:
            missing.append(f"{row} is not measured: {error}")
        progress.advance(task)
    progress.update(task, description=f"{name}: steps")
    times = timing.time_in_turn(
        turns,
        repeats,
        untimed=True,
        repeats=max(1, 2_000_000 // size),
        done=lambda: progress.advance(task),
    )
    progress.update(task, description=name)

    median = {row: statistics.median(t) for row, t in times.items()}
    copy_seconds = median.pop("copy")
    peers = [row for row in PEERS if row in median]
    peer = min(peers, key=median.__getitem__) if peers else None
    table = [
        {
            "tree": name,
            "leaves": len(jax.tree.leaves(shapes, is_leaf=models.is_shape)),
            "parameters": size,
            "optimizer": row,
            "ns_per_parameter": seconds / size * 1e9,
            "ratio_to_sgd": seconds / median["optax.sgd"],
            "fastest_peer": peer,
            "ratio_to_fastest_peer": seconds / median[peer] if peer else None,
            "fraction_of_copy_bandwidth": copy_seconds / seconds,
            "copy_bandwidth_gb_per_s": 12 * size / copy_seconds / 1e9,
            "first_call_ms": first_call[row] * 1e3,
            "step_ms_quartiles": [q * 1e3 for q in timing.quartiles(times[row])],
        }
        for row, seconds in median.items()
    ]
    return table, missing


def render(rows: list[dict]) -> Table:
    """The rows of one tree as a table."""
    tree = rows[0]
    title = f"{tree['tree']}: {tree['parameters']:,} parameters in {tree['leaves']} leaves"
    peer = tree["fastest_peer"]
    table = Table(title=title, caption=f"peer: {peer}" if peer else None)
    table.add_column("update", no_wrap=True)
    for column in ("ns/param", "× sgd", "× peer", "of copy", "first call"):
        table.add_column(column, justify="right")
    for row in rows:
        ratio = row["ratio_to_fastest_peer"]
        table.add_row(
            row["optimizer"],
            f"{row['ns_per_parameter']:.2f}",
            f"{row['ratio_to_sgd']:.1f}",
            "" if ratio is None else f"{ratio:.3f}",
            f"{row['fraction_of_copy_bandwidth']:.0%}",
            f"{row['first_call_ms']:,.0f} ms",
        )
    return table


def tables() -> Tables:
    """One update of a tree of parameters, on each machine."""
    return {
        "step_cost": partial(tree_table, "step_cost.json", "resnet18"),
        "step_cost_py313": partial(tree_table, "step_cost_py313.json", "resnet18"),
        "step_cost_intel": partial(tree_table, "step_cost_intel.json", "resnet18"),
        "step_cost_lenet": partial(tree_table, "step_cost.json", "lenet"),
        "step_cost_matrices": partial(tree_table, "step_cost.json", "matrices"),
        "step_cost_matrices_py313": partial(tree_table, "step_cost_py313.json", "matrices"),
        "step_cost_transformer": partial(tree_table, "step_cost.json", "transformer"),
        "step_cost_transformer_py313": partial(tree_table, "step_cost_py313.json", "transformer"),
        "step_cost_methods": methods_table,
    }


def tree_table(file: str, tree: str) -> str:
    """One update of a tree of parameters."""
    result = load(file)
    rows = [row for row in result["rows"] if row["tree"] == tree]
    peer = rows[0]["fastest_peer"]
    head = ["update", "ns per parameter", "× `optax.sgd`", f"× `{peer}`",
            "fraction of copy bandwidth", "first call, s"]  # fmt: skip
    body = markdown(head, (
        [
            f"`{row['optimizer']}`", f"{row['ns_per_parameter']:.2f}",
            f"{row['ratio_to_sgd']:.1f}", f"{row['ratio_to_fastest_peer']:.3f}",
            f"{row['fraction_of_copy_bandwidth']:.2f}", f"{row['first_call_ms'] / 1000:.1f}",
        ]
        for row in rows
    ))  # fmt: skip
    config = result["config"]
    trees = " ".join(config["trees"])
    command = f"python -m benchmarks.step_cost --trees {trees} --repeats {config['repeats']}"
    size = f"{rows[0]['parameters']:,} parameters in {rows[0]['leaves']} leaves"
    return body + origin(file, result["machine"], command) + f" {tree}: {size}."


def methods_table() -> str:
    """One update by each method, on two trees."""
    file = "step_cost_methods.json"
    result = load(file)
    trees = result["config"]["trees"]
    cost = {(r["tree"], r["optimizer"]): r["ns_per_parameter"] for r in result["rows"]}
    each = list(dict.fromkeys(row["optimizer"] for row in result["rows"]))
    head = ["update", *(f"{tree}, {unit}" for tree in trees for unit in ("ns", "× `optax.adam`"))]
    ratios = lambda tree, row: (cost[tree, row], cost[tree, row] / cost[tree, "optax.adam"])
    cells = ([f"{x:.2f}" for tree in trees for x in ratios(tree, row)] for row in each)
    body = markdown(head, ([f"`{row}`", *line] for row, line in zip(each, cells, strict=True)))
    options = f"--methods --trees {' '.join(trees)} --repeats {result['config']['repeats']}"
    return body + origin(file, result["machine"], f"python -m benchmarks.step_cost {options}")


@cli.program("step_cost")
def main(argv: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = cli.parser("step_cost", __doc__, out=False)
    default = ["lenet", "matrices", "resnet18", "transformer"]
    parser.add_argument("--methods", action="store_true", help="the methods, not the peers")
    parser.add_argument("--trees", nargs="+", choices=list(models.TREES), default=default)
    parser.add_argument(
        "--repeats", type=cli.at_least(2), default=15, help="timed steps of each update"
    )
    parser.add_argument("--json", type=cli.writable, help="write the figures to this file")
    args = parser.parse_args(argv)
    cli.require_unique("--trees", args.trees)

    console = Console()
    about, missing = machine.describe(), list[str]()
    rows: list[list[dict]] = []
    config: dict[str, Any] = {"trees": args.trees, "repeats": args.repeats}
    config |= {"learning_rate": LEARNING_RATE, "temperature": TEMPERATURE, "donated": True}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for name in args.trees:
            rivals = methods if args.methods else contestants
            table, missed = measure(name, rivals, args.repeats, progress)
            rows.append(table)
            missing += [line for line in missed if line not in missing]
            if args.json:  # whatever comes after
                every_row = [row for table in rows for row in table]
                result = {"config": config, "machine": about, "missing": missing, "rows": every_row}
                files.write_json(args.json, result)
    for table in rows:
        console.print(render(table))
    for line in missing:
        console.print(line)
    console.print(machine.line(about))


if __name__ == "__main__":
    sys.exit(main())
