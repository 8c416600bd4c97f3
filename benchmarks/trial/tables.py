"""The tables of the trial."""

from functools import partial

import numpy as np

from ..lib.tables import Tables, load, markdown
from .claims.escapes import SOLVED, STUDENTS
from .committed import left_out
from .protocol import panel
from .protocol.pairs import Entry
from .protocol.verdicts import COLUMNS, Summary, count_won, summarize


def tables() -> Tables:
    """The verdicts, and the settings of each claim: by default, and those left out."""
    return {
        "claims": claims,
        **{f"claim_{claim}": partial(settings, claim) for claim in panel.TITLES},
        **{f"claim_{claim}_full": partial(committed, claim) for claim in panel.TITLES},
        "students": students,
        "memory": memory,
    }


def verdicts() -> list[Summary]:
    """The verdicts on the article's claims."""
    return summarize(load("trial.json")["claims"])


def won() -> dict[tuple[str, str], tuple[int, int]]:
    """In how many settings all rivals are beaten, with those that the default leaves out."""
    by_default = load("trial.json")["claims"]
    return count_won(by_default + left_out(by_default))


def claims() -> str:
    """The verdict on each claim in each column, and the effect that decides it."""
    rows = [
        [panel.TITLES[claim], *(shown(of[column]) for column in COLUMNS)]
        for claim, of in panel.by_claim(verdicts()).items()
    ]
    return markdown(["claim", *COLUMNS.values()], rows, left=3)


def shown(summary: Summary) -> str:
    """A cell of the verdicts."""
    return f"**{summary.verdict}**: {panel.in_words(summary.decisive.entry)}"


def settings(claim: str) -> str:
    """The settings of a claim, each with its strongest rival."""
    return table(claim, load("trial.json")["claims"])


def committed(claim: str) -> str:
    """The settings of a claim that the default leaves out, each with its date."""
    return table(claim, left_out(load("trial.json")["claims"]), with_date=True)


def table(claim: str, entries: list[Entry], *, with_date: bool = False) -> str:
    """Rows of settings, of the article's step, then of diffopt's best."""
    rows = []
    for summary in summarize([each for each in entries if each["claim"] == claim]):
        for name, control, verdict, entry in summary.settings:
            mean = {who: f"{np.mean(entry[f'{who}_values']):.4g}" for who in ("diffusion", "rival")}
            low, high = entry["interval"]
            metric = entry["metric"]
            setting = name.replace(f": {metric.split(',')[0]}", "") + (" (control)" * control)
            rows.append([
                summary.column, f"{setting}: {metric}", f"{entry['method']}: {mean['diffusion']}",
                f"{entry['rival']}: {mean['rival']}",
                f"{entry['difference']:+.3g} [{low:+.3g}, {high:+.3g}]", f"{entry['p']:.1g}",
                f"**{verdict}**", *([entry["date"]] if with_date else []),
            ])  # fmt: skip
    head = ["column", "setting", "method", "strongest rival", "difference, 95 % interval", "p"]
    return markdown([*head, "verdict", *(["date"] if with_date else [])], rows, left=2)


def students() -> str:
    """Gradients for each student that a method brings to its teacher, and how many it brings."""
    entries = left_out([])
    cells: dict[str, dict[str, str]] = {}
    for place in STUDENTS:
        mine = [each for each in entries if each["setting"] == place.setting]
        values = {each["method"]: each["diffusion_values"] for each in mine}
        values |= {each["rival"]: each["rival_values"] for each in mine}
        units = str(round(place.dimensions**0.5))
        for method, losses in values.items():
            solved = sum(loss < SOLVED for loss in losses)
            each = f"{place.gradients * len(losses) / solved:,.0f}" if solved else "none"
            cells.setdefault(method, {})[units] = f"{each} ({solved} of {len(losses)})"
    head = [f"{units} units" for units in next(iter(cells.values()))]
    return markdown(["method", *head], [[method, *of.values()] for method, of in cells.items()])


def memory() -> str:
    """What a step allocates, with noise and without."""
    rows = [
        [
            row["setting"], f"{row['rival']}: {row['rival_bytes']:,}", f"{row['bytes']:,}",
            f"{(row['bytes'] - row['rival_bytes']) / row['parameters']:.1f}",
        ]
        for row in load("trial.json")["memory"]
    ]  # fmt: skip
    head = ["setting", "without noise, bytes", "with noise, bytes", "more, bytes a parameter"]
    return markdown(head, rows)
