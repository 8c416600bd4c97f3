"""The tables of the trial."""

from functools import partial

import numpy as np

from ..lib.tables import Tables, load, markdown, origin
from .protocol import panel
from .protocol.verdicts import Summary, summarize
from .run import CONTROLS, ON_CIFAR10


def tables() -> Tables:
    """The verdicts, and the settings of each claim: by default, on CIFAR-10 and in full."""
    return {
        "claims": claims,
        **{f"claim_{claim}": partial(settings, claim) for claim in panel.TITLES},
        **{
            f"claim_{claim}_cifar10": partial(settings, claim, "trial_cifar10.json")
            for claim in ON_CIFAR10
        },
        **{f"claim_{claim}_full": partial(settings_in_full, claim) for claim in panel.TITLES},
        "memory": memory,
    }


def verdicts(file: str = "trial.json") -> list[Summary]:
    """The verdicts on the article's claims."""
    return summarize(load(file)["claims"], CONTROLS)


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
    (tried,) = (each.settings for each in verdicts(file) if each.claim == claim)
    rows = []
    for name, control, entry in tried:
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


def settings_in_full(claim: str) -> str:
    """The settings of a claim, in full."""
    file = "trial_full.json"
    result = load(file)
    return settings(claim, file) + origin(file, result["machine"], result["config"]["command"])


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
