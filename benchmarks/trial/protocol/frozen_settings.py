"""The settings of the trial in `settings.json`: frozen before it, with all that was tried."""

import json
from pathlib import Path
from typing import Any

from ...lib import files
from .cells import Settings

FILE = Path(__file__).with_name("settings.json")


def load(claim: str) -> dict[str, dict[str, Settings]]:
    """The chosen settings of each setting and method of a claim."""
    chosen: dict[str, dict[str, Settings]] = {}
    for row in json.loads(FILE.read_text("utf-8"))[claim]["chosen"]:
        chosen.setdefault(row["setting"], {})[row["method"]] = row["settings"]
    return chosen


def store(claim: str, record: dict[str, Any]) -> None:
    """Replace what the file says of a claim, one line for each choice and each trial."""
    everything = json.loads(FILE.read_text("utf-8")) if FILE.exists() else {}
    everything[claim] = record
    blocks = []
    for name, parts in sorted(everything.items()):
        lines = [
            f'  "{part}": [\n'
            + ",\n".join(f"   {json.dumps(row, ensure_ascii=False)}" for row in rows)
            + "\n  ]"
            if isinstance(rows, list)
            else f'  "{part}": {json.dumps(rows, ensure_ascii=False)}'
            for part, rows in parts.items()
        ]
        blocks.append(f' "{name}": {{\n' + ",\n".join(lines) + "\n }")
    files.write(FILE, "{\n" + ",\n".join(blocks) + "\n}\n")
