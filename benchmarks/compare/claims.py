"""The article's claims for the diffusion, on trial."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from ..lib.scores import mean_and_deviation
from .metrics import accuracies, finished, good_accuracy, runs_of, swept_runs_of
from .options import WITHOUT_TEMPERATURE

Verdict = Literal["holds", "fails", "open"]
Values = dict[str, list[float]]  # of each optimizer, one a run


class Claim(NamedTuple):
    """A claim, how it is measured, what each optimizer has of that, and what follows."""

    claim: str
    measure: str
    values: dict[str, str]
    verdict: Verdict
    remark: str = ""


def claims(metrics: dict[str, Any]) -> list[Claim]:
    """The article's five claims for the diffusion against SGD, momentum and Adam, as measured.

    Every measure is a number that is better when smaller, one a run. A claim holds if the
    diffusion's mean is below that of every rival by more than the two standard deviations (over
    seeds, or the learning rates of a sweep) together, fails if it is above some rival's by more,
    and is open in between. A network that learned too little to reach the goal of the first claim
    is neither stable nor free of overfitting. A claim is open too with one seed, and for the
    cost: runs that follow one another are timed while the machine changes;
    `benchmarks.train_cost` interleaves them.
    """
    present = finished(metrics)
    rivals = [name for name in present if name in WITHOUT_TEMPERATURE]
    if "langevin" not in present or not rivals:
        return []
    goal = good_accuracy(metrics)
    learned = accuracies(metrics)["langevin"] >= goal

    def measured(value: Callable[[dict[str, Any]], float]) -> Values:
        return {name: [value(run) for run in runs_of(metrics, name)] for name in present}

    epochs = measured(lambda run: epochs_to(goal, run))
    changes, gaps = measured(late_change), measured(gap)
    found = [
        Claim(
            "faster convergence",
            f"epochs to {goal:.1%} test accuracy",
            shown(epochs, never_above=metrics["config"]["epochs"]),
            verdict(epochs, rivals, learned),
        ),
        Claim(
            "more stable training",
            "mean change of test accuracy per epoch, late half",
            shown(changes, " %"),
            verdict(changes, rivals, learned),
        ),
        Claim(
            "less overfitting",
            "train-test gap",
            shown(gaps, " %"),
            verdict(gaps, rivals, learned),
        ),
    ]
    swept = {
        name: [100 * (1 - run["test_accuracy"]) for run in swept_runs_of(metrics, name)]
        for name in present
    }
    number = len(swept["langevin"])
    if number and all(len(errors) == number for errors in swept.values()):
        found.append(
            Claim(
                "less sensitive to the learning rate",
                "mean test error at 1/10, 1/3, 3 and 10 times the learning rate",
                shown(swept, " %"),
                verdict(swept, rivals, learned),
            )
        )
    times = measured(lambda run: 1e3 * run["step_time"])
    rival = "sgd" if "sgd" in rivals else rivals[0]
    ratio = np.mean(times["langevin"]) / np.mean(times[rival])
    found.append(
        Claim(
            "little extra cost",
            "time per step, timed one after another",
            shown(times, " ms"),
            "open",
            f"{ratio:.2f} of {rival}",
        )
    )
    return found


def epochs_to(goal: float, run: dict[str, Any]) -> float:
    """Epochs until a test accuracy is reached; one more than there were if it never is."""
    hits = (h["epoch"] for h in run["history"] if h["test_accuracy"] >= goal)
    return next(hits, len(run["history"]) + 1)


def late_change(run: dict[str, Any]) -> float:
    """Mean change of the test accuracy from epoch to epoch in the late half, in percent."""
    changes = np.abs(np.diff([h["test_accuracy"] for h in run["history"]]))
    return 100 * changes[len(changes) // 2 :].mean() if len(changes) else float("nan")


def gap(run: dict[str, Any]) -> float:
    """Train accuracy above test accuracy, in percent."""
    return 100 * (run["train_accuracy"] - run["test_accuracy"])


def verdict(values: Values, rivals: list[str], learned: bool) -> Verdict:
    """What the diffusion's values say against those of its rivals."""
    mean, deviation = mean_and_deviation(values["langevin"])
    others = [mean_and_deviation(values[rival]) for rival in rivals]
    if all(other - mean > deviation + its for other, its in others):
        return "holds" if learned else "fails"
    return "fails" if any(mean - other > deviation + its for other, its in others) else "open"


def shown(values: Values, unit: str = "", never_above: float = float("inf")) -> dict[str, str]:
    """The mean of each optimizer with its unit; "never" where all are above a number."""
    return {
        name: "never" if min(each) > never_above else f"{np.mean(each):.3g}{unit}"
        for name, each in values.items()
    }
