"""The tables of the documentation, from the files in `benchmarks/results`.

    python -m benchmarks.tables           # rewrite them in README*.md and docs
    python -m benchmarks.tables claims    # print one

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`. The program that
wrote the results makes it, in its `tables()`. This program alone imports others.
"""

import argparse
import re
import sys
from pathlib import Path

from . import (
    adamw_in_16_bits,
    bfloat16,
    chain_cost,
    cnn_posterior,
    effective_samples,
    headline,
    llc_training,
    mixture,
    noise_map,
    posterior_against_nuts,
    sample_cost,
    scaling,
    step_cost,
    train_cost,
    training_noise,
    which_examples,
    which_sampler,
)
from .compare import tables as compare
from .lib import cli, files
from .lib.tables import Tables
from .trial import tables as trial

ROOT = Path(__file__).parents[1]
PAGES = (*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").glob("**/*.md")))
MARK = re.compile(r"(<!-- table: (\w+) -->\n)(?:.*?\n)??(<!-- end of table -->)", re.DOTALL)
PROGRAMS = (
    compare,
    trial,
    adamw_in_16_bits,
    bfloat16,
    chain_cost,
    cnn_posterior,
    effective_samples,
    headline,
    llc_training,
    mixture,
    noise_map,
    posterior_against_nuts,
    sample_cost,
    scaling,
    step_cost,
    train_cost,
    training_noise,
    which_examples,
    which_sampler,
)
TABLES: Tables = {name: make for program in PROGRAMS for name, make in program.tables().items()}


def fill(page: str) -> str:
    """A page with the tables that its marks name."""
    return MARK.sub(lambda mark: f"{mark[1]}{TABLES[mark[2]]()}\n{mark[3]}", page)


@cli.program("tables")
def main(argv: list[str] | None = None) -> None:
    """Print the named tables, or rewrite the tables of all pages."""
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
        files.write(path, fill(path.read_text("utf-8")))


if __name__ == "__main__":
    sys.exit(main())
