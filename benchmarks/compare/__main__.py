"""Train one network from the same initial weights with several optimizers, and report on them.

    python -m benchmarks.compare                                  # digits, no download
    python -m benchmarks.compare --dataset cifar10 --data-dir DIR
    python -m benchmarks.compare --quick                          # a minute
    python -m benchmarks.compare --checkpoint DIR                 # killed, it goes on from there
    srun python -m benchmarks.compare --distributed               # on many hosts

The network is the article's CNN, in Flax NNX. An epoch is one compiled program, and all devices
share its batches, those of other hosts too. Then the article's five claims for the diffusion are
tried, each where it is decided: see `trial`.
"""

import sys
from typing import Any

import jax
from rich.console import Console

from ..lib import cli, machine
from . import distributed, metrics, options, report, run
from .trial import trial


@cli.program("compare")
def main(argv: list[str] | None = None) -> int:
    """Parse the command line, train, report."""
    chosen = options.parse(argv, __doc__)
    if chosen.tune:
        trial.tune(chosen.claims, print)
        return 0
    if chosen.distributed:
        distributed.connect()
    first = jax.process_index() == 0
    console = Console(quiet=not first)
    found: dict[str, Any] = {
        "config": options.config(chosen), "machine": machine.describe(), "runs": [],
        "claims": [],
    }  # fmt: skip
    dataset, ood_images = distributed.all_or_none(lambda: run.prepare(chosen, console))
    if first:
        metrics.save(chosen.out, found)
    predictions: dict[str, run.Predictions] = {}  # of each optimizer's first run
    status = 0
    try:
        for record, predicted in run.train_all(chosen, dataset, ood_images, console):
            predictions.setdefault(record["optimizer"], predicted)
            found["runs"].append(record)
            if first:
                metrics.save(chosen.out, found)
        with console.status("the trial") as bar:
            say = lambda claim: bar.update(f"the trial: {claim}")
            for entries in trial.run(chosen.claims, chosen.size, chosen.out, say):
                found["claims"] += entries
                metrics.save(chosen.out, found)
    except KeyboardInterrupt:
        console.print(f"[yellow]Interrupted: keeping the {len(found['runs'])} finished runs.")
        status = 130
    if first and found["runs"]:
        report.write(chosen.out, found, predictions, dataset)
        report.show(console, found)
        console.print(f"Wrote {', '.join(str(chosen.out / f) for f in report.FILES)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
