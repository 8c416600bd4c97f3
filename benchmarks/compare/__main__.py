"""Train one network from the same initial weights with several optimizers, and report on them.

    python -m benchmarks.compare                                  # digits, no download
    python -m benchmarks.compare --dataset cifar10 --data-dir DIR
    python -m benchmarks.compare --dataset cifar10 --data-dir DIR --claims overfits tuning
    python -m benchmarks.compare --quick                          # a minute
    python -m benchmarks.compare --checkpoint DIR                 # resumes after a kill
    srun python -m benchmarks.compare --distributed               # on many hosts

The network is the article's CNN, in Flax NNX. An epoch is one compiled program, and all devices
of all hosts share its batches. Then the article's claims for the diffusion are tried, each where it
is decided: see `benchmarks.trial`.
"""

import contextlib
from functools import partial
from typing import Any

import jax
from rich.console import Console

from ..lib import cli, data, machine
from ..trial.committed import left_out
from ..trial.run import try_claims, tune_claims
from . import distributed, metrics, options, report, run


@cli.program("compare")
def main(argv: list[str] | None = None) -> int:
    """Parse the command line, train, report."""
    chosen = options.parse(argv, __doc__)
    if chosen.tune:
        named = chosen.dataset == "cifar10"
        cifar10 = data.load("cifar10", chosen.data_dir) if named else None
        tune_claims(chosen.claims, partial(print, flush=True), cifar10)
        return 0
    if chosen.distributed:
        distributed.connect()
    with contextlib.ExitStack() as held:
        return compare(chosen, held)


def compare(chosen: options.Options, held: contextlib.ExitStack) -> int:
    """Train and report; the folders written into are locked until `held` is closed."""
    first = jax.process_index() == 0
    console = Console(quiet=not first)
    with distributed.report_lost_process():
        dataset, ood_images = distributed.prepare_all(lambda: run.prepare(chosen, console))
        distributed.require_same_arguments(run.arguments(chosen, dataset))
        distributed.prepare_all(lambda: run.lock_folders(chosen, held))
    result: dict[str, Any] = {
        "config": options.config(chosen), "machine": machine.describe(), "runs": [],
        "claims": [],
    }  # fmt: skip
    predictions: dict[str, run.Predictions] = {}  # of each optimizer's first run
    stop = None
    try:
        with distributed.report_lost_process():
            for record, predicted in run.train_all(chosen, dataset, ood_images, console):
                predictions.setdefault(record["optimizer"], predicted)
                result["runs"].append(record)
                if not first:
                    continue
                if len(result["runs"]) == 1:
                    metrics.keep_earlier(chosen.out, result["config"], bool(chosen.checkpoint))
                metrics.save(chosen.out, result)
        with console.status("the trial") as bar:
            report_progress = lambda text: bar.update(f"the trial: {text}")
            cifar10 = dataset if chosen.dataset == "cifar10" else None
            for parts in try_claims(
                chosen.claims, chosen.size, chosen.out, report_progress, cifar10
            ):
                for name, rows in parts.items():
                    result.setdefault(name, []).extend(rows)
                result["full"] = left_out(result["claims"])
                metrics.save(chosen.out, result)
    except (KeyboardInterrupt, cli.UsageError) as error:
        stop = error
        number = len(result["runs"])
        kept = f"keeping the {number} finished runs" if number else "no run was finished"
        console.print(f"[yellow]{cli.stop_name(error).capitalize()}: {kept}.")
    if first and result["runs"]:
        report.write(chosen.out, result, predictions, dataset)
        report.show(console, result)
        console.print(f"Wrote {', '.join(str(chosen.out / f) for f in report.FILES)}")
    if stop:
        raise stop
    return 0


if __name__ == "__main__":
    distributed.end_process(main())
