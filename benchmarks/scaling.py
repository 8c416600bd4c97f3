"""How the cost of a training step grows with the number of devices, and what limits it.

    python -m benchmarks.scaling [--out DIR]

Bytes sent and arithmetic per device are read from the compiled program. The devices are virtual, on
the cores of one CPU: the CPU time of a step divided by their number shows the overhead per device,
not a speedup. The last part is a model.
"""

import argparse
import math
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import diffopt

from .lib import cli, files, machine, plots, timing
from .lib.plots import plt
from .lib.tables import Tables, load, markdown, origin
from .lib.training import data_parallel, make_mesh

LAYERS, BATCH_SIZE = 4, 64  # examples on each device
NOISES: dict[str, optax.GradientTransformation] = {
    "none": optax.sgd(1e-3),
    "gaussian": diffopt.sgld(1e-3, 1e-5),
    "rademacher": diffopt.sgld(1e-3, 1e-5, noise="rademacher"),
}
WAYS = ("data parallel", "fully sharded")

# The model's device and links, of data sheets: operations a second in matrix products (0.4 of an
# H100's 989 bfloat16 teraflops) and elsewhere (0.5 of its 67 float32 teraflops), and bytes a second
# that each device can send.
MATRIX, VECTOR = 4e14, 3e13
LINKS = {
    "NVLink 4, 450 GB/s": 450e9,
    "InfiniBand NDR, 50 GB/s": 50e9,
    "25 Gb/s Ethernet, 3.1 GB/s": 3.125e9,
}

COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|"
    r"collective-broadcast)(?:-start)?\("
)
ARRAY = re.compile(r"\b[a-z]+(\d+)\[([\d,]*)\]")


def mean_loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean square error of a network of square layers."""
    for layer in params:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return jnp.mean((x - y) ** 2)


def fully_sharded(specs: Any, mesh: Mesh) -> Callable[..., Any]:
    """The loss and its gradient where a device holds a shard of each kernel, and gets its gradient.

    All shards are gathered for the loss. The transpose of that scatters the sum of the gradients.
    """
    cut = lambda spec: spec == P("data")

    def gradient_of_shards(shards: Any, x: jax.Array, y: jax.Array) -> Any:
        def loss(shards: Any) -> jax.Array:
            gather = lambda p, spec: jax.lax.all_gather(p, "data", tiled=True) if cut(spec) else p
            return mean_loss(jax.tree.map(gather, shards, specs), x, y)

        def mean(g: jax.Array, spec: P) -> jax.Array:
            return g / mesh.size if cut(spec) else jax.lax.pmean(g, "data")

        value, grads = jax.value_and_grad(loss)(shards)
        return jax.lax.pmean(value, "data"), jax.tree.map(mean, grads, specs)

    share = P("data")
    return jax.shard_map(
        gradient_of_shards,
        mesh=mesh,
        in_specs=(specs, share, share),
        out_specs=(P(), specs),
        check_vma=False,
    )


def compile_step(
    way: str, tx: optax.GradientTransformation, width: int, devices: int
) -> tuple[Any, Callable[[], float]]:
    """A compiled step on some devices, and a function that takes it and returns its CPU seconds."""
    mesh = make_mesh(devices, jax.devices()[:devices])
    on = lambda spec: NamedSharding(mesh, spec)
    params = [{"kernel": jnp.eye(width), "bias": jnp.zeros(width)} for _ in range(LAYERS)]
    kernel = P("data") if way == "fully sharded" else P()
    specs = [{"kernel": kernel, "bias": P()} for _ in range(LAYERS)]
    if devices == 1:
        gradient = jax.value_and_grad(mean_loss)
    elif way == "fully sharded":
        gradient = fully_sharded(specs, mesh)
    else:
        gradient = data_parallel(jax.value_and_grad(mean_loss), mesh)

    def step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any, jax.Array]:
        loss, grads = gradient(params, x, y)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    places = jax.tree.map(on, specs), on(P())
    params, state = jax.device_put((params, tx.init(params)), places)
    x = jax.device_put(jnp.ones((devices * BATCH_SIZE, width)), on(P("data")))
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=(*places, on(P())))
    program = jitted.lower(params, state, x, x).compile()

    def run() -> float:
        nonlocal params, state
        clock = time.process_time()
        params, state, _ = jax.block_until_ready(program(params, state, x, x))
        return time.process_time() - clock

    return program, run


def collectives(hlo: str, devices: int) -> dict[str, dict[str, int]]:
    """How many collectives of each kind a program has, and the bytes of their whole arrays."""
    traffic: dict[str, dict[str, int]] = {}
    for shapes, kind in COLLECTIVE.findall(hlo):
        size = sum(
            int(bits) // 8 * math.prod(int(n) for n in dims.split(",") if n)
            for bits, dims in ARRAY.findall(shapes)
        )
        entry = traffic.setdefault(kind, {"count": 0, "bytes": 0})
        entry["count"] += 1
        entry["bytes"] += size * devices if kind == "reduce-scatter" else size
    return traffic


def bytes_sent(traffic: dict[str, dict[str, int]], devices: int) -> float:
    """Bytes that each device of a ring sends: an all-reduce scatters the sums and gathers them."""
    passes = {kind: 2 if kind == "all-reduce" else 1 for kind in traffic}
    return sum(passes[kind] * e["bytes"] * (devices - 1) / devices for kind, e in traffic.items())


def measure(counts: list[int], width: int, repeats: int, progress: Progress) -> list[dict]:
    """What a step without noise costs each device, and one with each noise, by count and way."""
    rows: list[dict[str, Any]] = [{"devices": n, "way": way} for n in counts for way in WAYS]
    bar = progress.add_task("compile", total=len(rows) * len(NOISES) + repeats)
    runs = {}
    for i, row in enumerate(rows):
        n = row["devices"]
        for noise, tx in NOISES.items():
            program, run = compile_step(row["way"], tx, width, n)
            run()
            runs[i, noise] = run
            traffic = collectives(program.as_text(), n)
            operations = program.cost_analysis()["flops"]
            row[noise] = {
                "collectives": traffic,
                "sent": bytes_sent(traffic, n),
                "operations": operations,
            }
            progress.advance(bar)
    progress.update(bar, description="time")
    times = timing.time_in_turn(runs, repeats, done=lambda: progress.advance(bar))
    for (i, noise), seconds in times.items():
        rows[i][noise]["cpu_seconds"] = statistics.median(seconds) / rows[i]["devices"]
    return rows


def increase(row: dict[str, Any], noise: str, field: str) -> float:
    """What `noise` adds to a figure of a step."""
    return row[noise][field] - row["none"][field]


def step_time(examples: Any, devices: int, link: float, operations: float, shards: int = 1) -> Any:
    """Seconds of a step per parameter: compute + noise + bytes / bandwidth.

    A parameter takes 6 operations an example, forward and back. Its noise takes `operations`, in
    `shards` parts. Its float32 gradient goes twice round the ring, whole or as shards.
    """
    compute = 6 * examples / MATRIX
    noise = operations / shards / VECTOR
    return compute + noise + 2 * 4 * (devices - 1) / devices / link


def limits(operations: float) -> dict[str, float]:
    """Examples on each device whose compute takes as long as the link, and as long as the noise."""
    same = {name: 8 / link * MATRIX / 6 for name, link in LINKS.items()}
    return same | {"Gaussian noise": operations / VECTOR * MATRIX / 6}


def plot_costs(rows: list[dict], parameters: int, operations: float, path: Path) -> None:
    """Bytes, CPU time and the model."""
    figure, (left, middle, right) = plt.subplots(
        3, 1, figsize=(plots.WIDTH, 12), layout="constrained"
    )
    counts = sorted({row["devices"] for row in rows})
    n = np.linspace(1, max(counts))
    left.plot(n, 8 * (n - 1) / n, color=plots.LIGHT, label="8 (n - 1) / n")
    for way, color in zip(WAYS, (plots.BLUE, plots.RED), strict=True):
        some = [row for row in rows if row["way"] == way]
        for noise, marker, size in zip(NOISES, "ox+", (12, 8, 8), strict=True):
            sends = [row[noise]["sent"] / parameters for row in some]
            times = [1000 * row[noise]["cpu_seconds"] for row in some]
            look: dict[str, Any] = {"color": color, "marker": marker}
            look["label"] = f"{way}, {'no' if noise == 'none' else noise} noise"
            left.plot(counts, sends, ls="", ms=size, mfc="none", **look)
            middle.plot(counts, times, **look)
    left.set(title="sent by each device, from the HLO", ylabel="bytes per parameter and step")
    middle.set(title="CPU time of each device, measured", ylabel="ms per step", ylim=(0, None))
    for ax in (left, middle):
        ax.set(xlabel="virtual devices", xticks=counts)
    left.legend()
    examples = np.geomspace(10, 1e6)
    for (name, link), color in zip(
        LINKS.items(), (plots.GREEN, plots.ORANGE, plots.VIOLET), strict=True
    ):
        for shards, line, label in ((1, "-", name), (64, ":", None)):
            share = 6 * examples / MATRIX / step_time(examples, 64, link, operations, shards)
            right.semilogx(examples, share, line, color=color, label=label)
    right.set(title="64 devices, a model", xlabel="examples (tokens) on each device")
    right.set(ylabel="compute / step time", ylim=(0, 1))
    right.legend(title="Gaussian noise (dotted: fully sharded)")
    plots.save(figure, path)


def show(
    console: Console, rows: list[dict], parameters: int, examples_at_limit: dict[str, float]
) -> None:
    """The results as tables."""
    noises = [noise for noise in NOISES if noise != "none"]
    traffic = Table("n", "way", "collectives", "bytes", title="sent by each, per parameter")
    work = Table("n", "way", title="done by each, per parameter: operations, CPU time")
    for noise in noises:
        traffic.add_column(f"+ {noise}")
        work.add_column(f"+ {noise}\noperations")
    for noise in NOISES:
        work.add_column(f"{noise}\nns")
    for row in rows:
        kinds = [f"{e['count']} {kind}" for kind, e in row["none"]["collectives"].items()]
        head = str(row["devices"]), row["way"]
        bytes_, operations = (
            [f"{increase(row, noise, field) / parameters:.3g}" for noise in noises]
            for field in ("sent", "operations")
        )
        plain = f"{row['none']['sent'] / parameters:.3f}"
        times = [f"{1e9 * row[noise]['cpu_seconds'] / parameters:.2f}" for noise in NOISES]
        traffic.add_row(*head, "\n".join(kinds) or "none", plain, *bytes_)
        work.add_row(*head, *operations, *times)
    console.print(traffic)
    console.print(work)
    table = Table("with", "examples", title="a model: examples on each device for half the speed")
    for name, examples in examples_at_limit.items():
        table.add_row(name, f"{examples:,.0f}")
    console.print(table)


def tables() -> Tables:
    """What devices send and do."""
    return {
        "scaling": device_table,
    }


def device_table() -> str:
    """What devices send and do, in each way of sharing the work."""
    result = load("scaling.json")
    per = result["parameters"]

    def row(row: dict[str, Any]) -> list[str]:
        none, gaussian = row["none"], row["gaussian"]
        kinds = (f"{each['count']} {kind}" for kind, each in none["collectives"].items())
        more = (gaussian["operations"] - none["operations"]) / per
        times = (f"{1e9 * row[noise]['cpu_seconds'] / per:.1f}" for noise in noises)
        return [
            str(row["devices"]), row["way"], ", ".join(kinds) or "none",
            f"{none['sent'] / per:.3g}",
            f"{(gaussian['sent'] - none['sent']) / per:+.3g}", f"{more:.0f}", *times,
        ]  # fmt: skip

    noises = ("none", "gaussian", "rademacher")
    head = ["devices", "way", "collectives", "bytes sent, per parameter", "by the noise",
            "Gaussian noise, operations per parameter",
            "CPU ns per parameter, no noise", "Gaussian", "±1"]  # fmt: skip
    body = markdown(head, map(row, result["rows"]))
    return body + origin("scaling.json", result["machine"], "python -m benchmarks.scaling")


@cli.program("scaling")
def main(argv: list[str] | None = None) -> None:
    """Parse the command line, compile, measure, report."""
    args = parse_args(argv)
    out = cli.make_folder(args.out)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(args.devices))
    parameters = LAYERS * args.width * (args.width + 1)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        rows = measure(args.devices, args.width, args.repeats, progress)
    operations = increase(rows[0], "gaussian", "operations") / parameters
    examples_at_limit = limits(operations)
    show(Console(), rows, parameters, examples_at_limit)
    config = {"devices": args.devices, "width": args.width, "repeats": args.repeats}
    result = {
        "config": config | {"layers": LAYERS, "batch_size": BATCH_SIZE},
        "machine": machine.describe(),
        "parameters": parameters,
        "rows": rows,
        "model": {"matrix": MATRIX, "vector": VECTOR, "links": LINKS, "limits": examples_at_limit},
    }
    files.write_json(out / "scaling.json", result)
    plot_costs(rows, parameters, operations, out / "scaling.png")
    print(f"Wrote {out / 'scaling.json'}, {out / 'scaling.png'}")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read and check the command line."""
    parser = cli.parser("scaling", __doc__)
    parser.add_argument(
        "--devices", type=int, nargs="+", default=[1, 2, 4, 8], metavar="N",
        help="numbers of virtual devices; 1 must be among them (default: 1 2 4 8)",
    )  # fmt: skip
    parser.add_argument("--width", type=int, default=512, help="of a layer (default %(default)s)")
    parser.add_argument(
        "--repeats", type=cli.at_least_one, default=20, help="timed steps (default %(default)s)"
    )
    args = parser.parse_args(argv)
    cli.require_unique("--devices", args.devices)
    if min(args.devices) != 1:
        parser.error("--devices: the least must be 1, to which the others are compared")
    if args.width < 256 or any(args.width % n for n in args.devices):
        parser.error("--width must be at least 256 and a multiple of every count of devices")
    return args


if __name__ == "__main__":
    sys.exit(main())
