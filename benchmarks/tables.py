"""The tables of the documentation, from the files in `benchmarks/results`.

    python -m benchmarks.tables           # rewrite them in README*.md and docs
    python -m benchmarks.tables trial     # print one

In a page a table stands between `<!-- table: NAME -->` and `<!-- end of table -->`. This program
alone imports others: those whose files it shows.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from . import noise_map, samplers
from .compare import report
from .lib import cli, files
from .lib.scores import plus_minus
from .trial.protocol import panel
from .trial.protocol.verdicts import Summary
from .trial.run import ON_CIFAR10

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").glob("**/*.md")))
MARK = re.compile(r"(<!-- table: (\w+) -->\n)(?:.*?\n)??(<!-- end of table -->)", re.DOTALL)
SHOWN = (
    "python", "jax", "optax", "flax", "blackjax", "sgmcmcjax", "posteriors", "torch", "devinterp",
)  # fmt: skip


def load(name: str) -> Any:
    """A file of results: a JSON value, or the list of those in its lines."""
    text = (RESULTS / name).read_text("utf-8")
    return (
        [json.loads(line) for line in text.splitlines()] if name.endswith("l") else json.loads(text)
    )


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table whose first `left` columns stand to the left and the others to the right."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    lines = (f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))
    return "\n".join(lines)


def origin(file: str, machine: dict[str, Any], command: str) -> str:
    """Where a table comes from, in one line below it."""
    versions = machine.get("versions", {})
    packages = ", ".join(f"{name} {version}" for name, version in versions.items() if name in SHOWN)
    cpu = machine.get("cpu") or machine.get("processor")
    where = ", ".join(str(x) for x in (machine.get("date"), cpu, packages) if x)
    number = machine.get("cores")
    cores = f"{number} core{'s' if number > 1 else ''}, " if number else ""
    return f"\n\n`{command}`; {cores}{where}; `benchmarks/results/{file}`."


def comparison(file: str, columns: tuple[report.Column, ...]) -> str:
    """The optimizers of a run of `benchmarks.compare`."""
    metrics = load(file)
    head = ["optimizer", *(column.title for column in columns)]
    rows = report.rows(metrics, columns).items()
    machine = {"date": metrics["versions"]["date"], "versions": metrics["versions"]}
    body = markdown(head, ([name, *(cell.text for cell in cells)] for name, cells in rows))
    return body + origin(file, machine, metrics["config"]["command"])


def verdicts(file: str = "trial.json") -> list[Summary]:
    """The verdicts on the article's claims."""
    return report.verdicts(load(file))


def claims() -> str:
    """The verdict on each claim, and in which of its settings it holds, is open or fails."""
    rows = []
    for claim, verdict, settings in verdicts():
        named = {"holds": "", "open": "", "fails": ""}
        for setting in settings:
            shown = setting.name + (" (control)" if setting.control else "")
            named[setting.verdict] += f"; {shown}" if named[setting.verdict] else shown
        rows.append([panel.TITLES[claim], f"**{verdict}**", *named.values()])
    return markdown(["claim", "verdict", "holds in", "open in", "fails in"], rows, left=5)


def settings(claim: str, file: str = "trial.json") -> str:
    """The settings of a claim, each with its strongest rival."""
    (found,) = (each.settings for each in verdicts(file) if each.claim == claim)
    rows = []
    for name, control, entry in found:
        mean = {who: f"{np.mean(entry[f'{who}_values']):.4g}" for who in ("diffusion", "rival")}
        low, high = entry["interval"]
        metric = entry["metric"]
        shown = name.replace(f": {metric.split(',')[0]}", "") + (" (control)" if control else "")
        rows.append([
            f"{shown}: {metric}", mean["diffusion"], f"{entry['rival']}: {mean['rival']}",
            f"{entry['difference']:+.3g} [{low:+.3g}, {high:+.3g}]", f"{entry['p']:.1g}",
            f"**{entry['verdict']}**",
        ])  # fmt: skip
    head = ["setting", "diffusion", "strongest rival", "difference, 95 % interval", "p", "verdict"]
    return markdown(head, rows)


def in_full(claim: str) -> str:
    """The settings of a claim, in full."""
    file = "trial_full.json"
    found = load(file)
    return settings(claim, file) + origin(file, found["machine"], found["config"]["command"])


def memory() -> str:
    """What a step allocates, in each network and with each noise."""
    rows = [
        [
            row["setting"], f"{row['sgd_bytes']:,}", f"{row['bytes']:,}",
            f"{(row['bytes'] - row['sgd_bytes']) / row['parameters']:.1f}",
        ]
        for row in load("trial.json")["memory"]
    ]  # fmt: skip
    head = ["setting", "sgd, bytes", "with noise, bytes", "more, bytes a parameter"]
    return markdown(head, rows)


def noise_on_cifar10() -> str:
    """The map of temperatures, batches and steps."""

    def cell(runs: list[dict[str, Any]], part: str, score: str) -> str:
        return plus_minus(noise_map.scores_of(runs, part, score), 3 if score == "nll" else 1)

    rows = []
    for place, runs in noise_map.by_place(load("noise_map.jsonl")).items():
        kinetic = [run["kinetic_temperature"] for run in runs]
        rows.append([
            place.sampler, f"{place.batch_size:,}", f"{place.step_size:g}",
            noise_map.temperature_name(place.temperature),
            noise_map.temperature_name(float(np.mean(kinetic))) if all(kinetic) else "",
            cell(runs, "train", "accuracy"),
            *(cell(runs, p, s) for p in ("last", "average") for s in ("accuracy", "nll", "ece")),
        ])  # fmt: skip
    head = ["sampler", "batch", "step", "T", "kinetic T", "train, %"]
    return markdown([*head, *("last, %", "NLL", "ECE, %"), *("average, %", "NLL", "ECE, %")], rows)


def step_cost(file: str, tree: str) -> str:
    """One update of a tree of parameters."""
    found = load(file)
    rows = [row for row in found["rows"] if row["tree"] == tree]
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
    config = found["config"]
    trees = " ".join(config["trees"])
    command = f"python -m benchmarks.step_cost --trees {trees} --repeats {config['repeats']}"
    size = f"{rows[0]['parameters']:,} parameters in {rows[0]['leaves']} leaves"
    return body + origin(file, found["machine"], command) + f" {tree}: {size}."


def train_cost() -> str:
    """One training step of the article's network, by program."""
    found = load("train_cost.json")
    quartiles = lambda step: "-".join(f"{end:.1f}" for end in step["quartiles_ms"])
    rows = (
        [name, f"{step['median_ms']:.1f}", quartiles(step)] for name, step in found["step"].items()
    )
    shares = "; ".join(
        f"{name.split(', ')[1]} noise {share['median']:.3f} ± {share['standard_error']:.3f}"
        for name, share in found["overhead"].items()
    )
    body = markdown(["program", "ms per step, median", "quartiles"], rows)
    below = origin("train_cost.json", found["machine"], "python -m benchmarks.train_cost")
    return f"{body}{below} A step with noise over one without, in paired epochs: {shares}."


def scaling() -> str:
    """What devices send and do, in each way of sharing the work."""
    found = load("scaling.json")
    per = found["parameters"]

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
    body = markdown(head, map(row, found["rows"]))
    return body + origin("scaling.json", found["machine"], "python -m benchmarks.scaling")


def rounding_laws() -> str:
    """The variance of chains in bfloat16 over the exact one."""
    found = load("low_precision.json")

    def name(law: dict[str, Any]) -> str:
        if law["law"] != "free":
            return f"well, ηk = {law['size']:.0e}"
        return f"free, noise of a step 1/{1 / law['size']:.0f} of the spacing"

    methods = ("float32", "nearest", "stochastic", "low_precision")
    head = ["law", "float32", "bfloat16, to nearest", "rounded at random", "`low_precision`"]
    body = markdown(
        head, ([name(law), *(f"{law[m]:,.3f}" for m in methods)] for law in found["laws"])
    )
    command = "python -m benchmarks.low_precision laws training"
    return body + origin("low_precision.json", found["machine"], command)


def rounding_training() -> str:
    """The article's network in bfloat16."""
    fields = (
        ("accuracy", 100, 1),
        ("nll", 1, 3),
        ("average_accuracy", 100, 1),
        ("average_nll", 1, 3),
    )
    rows = (
        [
            each["optimizer"], each["precision"],
            *(plus_minus([s * run[f] for run in each["runs"]], d) for f, s, d in fields),
        ]
        for each in load("low_precision.json")["training"]
    )  # fmt: skip
    head = ["optimizer", "parameters", "accuracy, %", "NLL", "average, %", "NLL"]
    return markdown(head, rows, left=2)


def rounding_cost() -> str:
    """One update of a ResNet-18 tree in bfloat16."""
    found = load("low_precision_cost.json")
    head = ["update", "ns per parameter", "quartiles"]
    body = markdown(head, (
        [
            row["update"], f"{row['ns_per_parameter']:.1f}",
            "-".join(f"{end:.1f}" for end in row["quartiles"]),
        ]
        for row in found["cost"]
    ))  # fmt: skip
    command = f"python -m benchmarks.low_precision cost --repeats {found['config']['repeats']}"
    return body + origin("low_precision_cost.json", found["machine"], command)


def posterior() -> str:
    """Held-out log-likelihoods of a Bayesian network."""
    found = load("posterior.json")
    rows = (
        [
            name, f"{row['log_likelihood']:.3f} ± {row['error']:.3f}",
            f"{row['minus_nuts']:+.3f} ± {row['minus_nuts_error']:.3f}" if name != "NUTS" else "",
            f"{row['rmse']:.1f}", f"{row['passes']:,.0f}",
        ]
        for name, row in found["diabetes"].items()
    )  # fmt: skip
    head = ["", "log-likelihood, nats", "minus NUTS, paired", "RMSE", "passes"]
    command = f"python -m benchmarks.posterior --splits {found['config']['splits']}"
    return markdown(head, rows) + origin("posterior.json", found["machine"], command)


def samplers_compared() -> str:
    """Errors of means and variances at equal gradients, and the step sizes that were refused."""
    found = load("samplers.json")
    refused = {
        f"{row['sampler']}, {row['problem']}": None for row in found["rows"] if row["refusal"]
    }
    below = origin("samplers.json", found["machine"], found["command"])
    if refused:
        below += f" \\* Refused at a tolerance of 5 %: {'; '.join(refused)}."
    head, body = samplers.table(found["rows"])
    return markdown(head, [[cell.replace("*", "\\*") for cell in row] for row in body]) + below


def llc_training() -> str:
    """λ̂ of a transformer that learns to add, along training."""
    found = load("llc_training.json")
    rows = (
        [
            f"{row['at']:,}", f"{row['llc']:.1f} ± {row['standard_error']:.1f}",
            f"{row['train_loss']:.1e}", f"{100 * row['test_error']:.1f}",
        ]
        for row in found["addition"]
    )  # fmt: skip
    head = ["steps", "λ̂", "training loss", "test error, %"]
    config = found["config"]
    command = f"--chains {config['chains']} --steps {config['steps']}"
    below = origin(
        "llc_training.json", found["machine"], f"python -m benchmarks.llc_training {command}"
    )
    return markdown(head, rows) + below


def mixture() -> str:
    """Modes of 25 Gaussians that chains find, and how evenly they weigh them."""
    found = load("mixture.json")
    rows = (
        [
            name, f"{min(modes)} to {max(modes)}" if min(modes) < max(modes) else f"{modes[0]}",
            f"{found['distances'][name]:.3f}",
        ]
        for name, modes in found["modes"].items()
    )  # fmt: skip
    head = ["", "modes found by a chain, of 25", "distance of the weights from even ones"]
    return markdown(head, rows) + origin(
        "mixture.json", found["machine"], "python -m benchmarks.mixture"
    )


def chains() -> str:
    """What a step of a chain costs, by the number of chains."""
    found = load("chains.json")
    ways = ("vmap", "gaussian16", "one after another", "blackjax", "sgd")
    rows = (
        [str(row["chains"]), *(f"{row[way]:.1f}" for way in ways)]
        for row in found["microseconds_per_step_and_chain"]
    )
    head = [
        "chains", "diffopt, vmapped", "the same, `gaussian16`", "diffopt, one after another",
        "BlackJAX SGLD, vmapped", "SGD, no noise, vmapped",
    ]  # fmt: skip
    config = found["config"]
    command = f"python -m benchmarks.chains --rounds {config['rounds']} --steps {config['steps']}"
    return markdown(head, rows) + origin("chains.json", found["machine"], command)


def sampling() -> str:
    """What `sample` costs beside a bare loop, and what its bar adds."""
    found = load("sampling.json")
    ways = ("bare loop", "sample", "sample with progress")
    rows = (
        [str(row["chains"]), *(f"{row[way]:.0f}" for way in ways), f"{row['progress']:.3f}"]
        for row in found["microseconds_per_step"]
    )
    head = ["chains", *ways, "with progress over without, median of pairs"]
    return markdown(head, rows) + origin(
        "sampling.json", found["machine"], "python -m benchmarks.sampling"
    )


HEADLINES = {
    "en": (
        "what for",
        "what was measured",
        "a posterior",
        "by `sgld` a held-out log-likelihood {nuts:+.3f} ± {error:.3f} nats beside NUTS, with"
        " {passes:.0%} of its gradients",
        "little extra cost",
        "{step:.1%} of a training step of a small CNN on a CPU; {update:.0%} of the time of"
        " `optax.noisy_sgd` for ResNet-18; small batches through dense layers cost more",
        "16 bits that neither lose nor heat",
        "variance over the exact one {kept:.2f}; rounded to nearest {lost:.2f}, at random"
        " {heated:.0f}",
        "five claims on a fair trial",
        "{holds} hold, {open} are open, {fails} fail",
    ),
    "zh": (
        "用途",
        "实测",
        "后验",
        "`sgld` 在留出数据上的对数似然与 NUTS 相差 {nuts:+.3f} ± {error:.3f} nat，"
        "梯度计算量为其 {passes:.0%}",
        "额外开销小",
        "占 CPU 上小型卷积网络训练一步的 {step:.1%}；"
        "ResNet-18 的更新用时为 `optax.noisy_sgd` 的 {update:.0%}；"
        "小批量经过全连接层时开销更大",
        "16 位参数，不丢失也不升温",
        "方差与精确值之比为 {kept:.2f}；就近舍入为 {lost:.2f}，普通随机舍入为 {heated:.0f}",
        "五个论断的公平检验",
        "{holds} 个成立，{open} 个未定，{fails} 个不成立",
    ),
}


def headline(language: str) -> str:
    """Four figures for a front page."""
    sgld, nuts = (load("posterior.json")["diabetes"][name] for name in ("sgld", "NUTS"))
    ns = {
        row["optimizer"]: row["ns_per_parameter"]
        for row in load("step_cost_py313.json")["rows"]
        if row["tree"] == "resnet18"
    }
    tried = [summary.verdict for summary in verdicts()]
    law = next(law for law in load("low_precision.json")["laws"] if law["size"] == 1 / 128)
    figures = {
        "nuts": sgld["minus_nuts"],
        "error": sgld["minus_nuts_error"],
        "passes": sgld["passes"] / nuts["passes"],
        "step": load("train_cost.json")["diffusion_overhead"] - 1,
        "update": ns["diffopt.sgld gaussian"] / ns["optax.noisy_sgd"],
        "kept": law["low_precision"],
        "lost": law["nearest"],
        "heated": law["stochastic"],
        **{verdict: tried.count(verdict) for verdict in ("holds", "open", "fails")},
    }
    cells = [text.format(**figures) for text in HEADLINES[language]]
    head, *rows = zip(cells[::2], cells[1::2], strict=True)
    return markdown(head, rows, left=2)


TABLES: dict[str, Callable[[], str]] = {
    "headline": lambda: headline("en"),
    "headline_zh": lambda: headline("zh"),
    "digits": lambda: comparison("digits.json", report.COLUMNS),
    "cifar10": lambda: comparison("cifar10.json", report.COLUMNS),
    "cifar10_average": lambda: comparison("cifar10.json", report.AVERAGE_COLUMNS),
    "claims": claims,
    **{f"claim_{claim}": partial(settings, claim) for claim in panel.TITLES},
    **{
        f"claim_{claim}_cifar10": partial(settings, claim, "trial_cifar10.json")
        for claim in ON_CIFAR10
    },
    **{f"claim_{claim}_full": partial(in_full, claim) for claim in panel.TITLES},
    "memory": memory,
    "llc_training": llc_training,
    "mixture": mixture,
    "chains": chains,
    "sampling": sampling,
    "noise_map": noise_on_cifar10,
    "step_cost": lambda: step_cost("step_cost.json", "resnet18"),
    "step_cost_py313": lambda: step_cost("step_cost_py313.json", "resnet18"),
    "step_cost_intel": lambda: step_cost("step_cost_intel.json", "resnet18"),
    "step_cost_lenet": lambda: step_cost("step_cost.json", "lenet"),
    "step_cost_matrices": lambda: step_cost("step_cost.json", "matrices"),
    "step_cost_matrices_py313": lambda: step_cost("step_cost_py313.json", "matrices"),
    "step_cost_transformer": lambda: step_cost("step_cost.json", "transformer"),
    "step_cost_transformer_py313": lambda: step_cost("step_cost_py313.json", "transformer"),
    "train_cost": train_cost,
    "posterior": posterior,
    "samplers": samplers_compared,
    "scaling": scaling,
    "rounding_laws": rounding_laws,
    "rounding_training": rounding_training,
    "rounding_cost": rounding_cost,
}


def filled(page: str) -> str:
    """A page with the tables that its marks name."""
    return MARK.sub(lambda mark: f"{mark[1]}{TABLES[mark[2]]()}\n{mark[3]}", page)


@cli.program("tables")
def main(argv: list[str] | None = None) -> None:
    """Print the tables that are named, or rewrite those of all pages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "tables", nargs="*", choices=[[], *TABLES], help="default: rewrite the pages"
    )
    names = parser.parse_args(argv).tables
    for name in names:
        print(TABLES[name](), end="\n\n")
    for path in () if names else PAGES:
        files.write(path, filled(path.read_text("utf-8")))


if __name__ == "__main__":
    sys.exit(main())
