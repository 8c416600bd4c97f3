"""Results as tables of a page: a program's `tables()` names its tables and how each is made."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

Tables = dict[str, Callable[[], str]]  # by the name that a page's mark has

RESULTS = Path(__file__).parents[1] / "results"
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
