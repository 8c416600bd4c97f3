"""Does noise keep a network from fitting wrong labels? Some are replaced at random.

Digits, and CIFAR-10 where it is named. No clean validation set says when to stop. The diffusion is
`sghmc`, averaged, or cooled to one network; its rivals are momentum and AdamW, averaged, stopped
early, with mean weights, with snapshots, and an ensemble at equal cost, each tuned by as many
trials on noisy validation labels; and both as they come, untuned. The control is clean labels.
"""

from functools import partial

from ..problems import network_methods, networks
from ..problems.network_methods import AVERAGE, COOLED, DIFFUSION, LAST, Method
from ..problems.networks import DIGITS, SIZES, Run, Task
from ..protocol import frozen_settings
from ..protocol.cells import Keep, Record, Settings, grid
from ..protocol.pairs import Entry

SCORED_BY = "mean NLL of the noisy validation labels, 8 seeds (2 of the article's CNN)"
CONTROLS = ("clean labels", "CIFAR-10, clean labels")

AVERAGES = {
    DIFFUSION: AVERAGE[DIFFUSION],
    "momentum": AVERAGE["momentum"],
    "momentum, mean weights": Method("momentum", "mean weights"),
    "momentum, stopped early": Method("momentum", "stopped early"),
    "momentum, snapshots": Method("momentum", "average", {"cycles": 4}),
    "momentum, ensemble of 4": Method("momentum", "average", {"members": 4}),
    "adamw": AVERAGE["adamw"],
    "adamw, stopped early": Method("adamw", "stopped early"),
}
SINGLES = {
    COOLED: LAST[COOLED],
    "momentum, last": LAST["momentum, last"],
    "momentum, stopped early": AVERAGES["momentum, stopped early"],
    "momentum, mean weights": AVERAGES["momentum, mean weights"],
    "adamw, last": LAST["adamw, last"],
    "adamw, stopped early": AVERAGES["adamw, stopped early"],
}
METHODS = AVERAGES | SINGLES
GRIDS = {
    "digits": {
        "sghmc": grid(
            learning_rate=[0.01, 0.03], weight_decay=[3e-3, 1e-2], temperature=[2e-4, 6e-4, 2e-3]
        ),
        "momentum": grid(learning_rate=[0.003, 0.01, 0.03], weight_decay=[1e-3, 3e-3, 1e-2, 3e-2]),
        "adamw": grid(learning_rate=[3e-4, 1e-3, 3e-3], weight_decay=[0.03, 0.1, 0.3, 1.0]),
    },
    "CIFAR-10": {
        "sghmc": grid(
            learning_rate=[0.01, 0.03], weight_decay=[5e-3, 1e-2], temperature=[5e-5, 2e-4]
        ),
        "momentum": grid(learning_rate=[0.01, 0.03], weight_decay=[2e-3, 5e-3, 1e-2, 2e-2]),
        "adamw": grid(learning_rate=[5e-4, 2e-3], weight_decay=[0.5, 1.0, 2.0, 4.0]),
    },
    "digits, the CNN": {
        "sghmc": grid(
            learning_rate=[0.01, 0.03], weight_decay=[1e-4, 1e-3], temperature=[1e-5, 1e-4]
        ),
        "momentum": grid(learning_rate=[0.003, 0.01, 0.03, 0.1], weight_decay=[1e-4, 1e-3]),
        "adamw": grid(learning_rate=[3e-4, 1e-3, 3e-3, 1e-2], weight_decay=[0.01, 0.1]),
    },
}
SHARES = {
    "quick": (("40 %", 0.4),),
    "default": (("40 %", 0.4), ("0 %", 0.0)),
    "full": (("20 %", 0.2), ("40 %", 0.4), ("60 %", 0.6), ("0 %", 0.0)),
}
TUNING_SEEDS = {"digits": 8, "CIFAR-10": 2, "digits, the CNN": 2}


def untuned(task: Task) -> dict[str, Settings]:
    """Methods as they come: customary values, and a temperature of 1/N."""
    return {
        DIFFUSION: {"learning_rate": 0.01, "weight_decay": 5e-4, "temperature": 1 / task.train},
        "momentum": {"learning_rate": 0.01, "weight_decay": 5e-4},
        "adamw": {"learning_rate": 0.001, "weight_decay": 0.01},
    }


def run(size: str, keep: Keep, task: Task = DIGITS) -> list[Entry]:
    """The entries of the claim."""
    of = partial(network_methods.compare, "overfits", task, size=SIZES[task.name][size], keep=keep)
    frozen = frozen_settings.load(f"{task.prefix}overfits")
    entries = []
    for name, wrong in SHARES[size]:
        # one choice of settings for all shares of wrong labels, another for clean ones
        best = frozen["40 %" if wrong else "0 %"]
        if not wrong:
            for metric in ("error", "NLL"):
                setting = f"{task.prefix}clean labels, tuned: {metric}"
                entries += of(setting, metric, AVERAGES, best, wrong)
            continue
        for metric in ("error", "memorised"):
            setting = f"{task.prefix}{name} wrong labels, untuned: {metric}"
            entries += of(setting, metric, AVERAGES, untuned(task), wrong)
        if size != "quick":
            for metric in ("error", "NLL"):
                setting = f"{task.prefix}{name} wrong labels, tuned: {metric}"
                entries += of(setting, metric, AVERAGES, best, wrong)
            setting = f"{task.prefix}{name} wrong labels, tuned, one network: error"
            entries += of(setting, "error", SINGLES, best, wrong)
    return entries


def tune(record: Record, task: Task = DIGITS) -> None:
    """As many trials of each method: at 40 % wrong labels, and of fewer methods at 0 %.

    Of the CNN on digits, which is but a control, there are single networks at 0 % alone.
    """
    epochs = SIZES[task.name]["default"].epochs
    seeds = TUNING_SEEDS[task.name]
    clean = {name: METHODS[name] for name in (DIFFUSION, "momentum", "adamw", *LAST)}
    places: tuple[tuple[str, float, dict[str, Method]], ...]
    places = ("40 %", 0.4, METHODS), ("0 %", 0.0, clean)
    if task.name not in ("digits", "CIFAR-10"):
        places = (("0 %", 0.0, LAST),)
    for share, wrong, methods in places:
        scores: dict[str, list[dict[str, float]]] = {}
        for name, (optimizer, predictor, options) in methods.items():
            points = GRIDS[task.name][optimizer]
            shared = f"{optimizer} {options}"  # the predictors of one run share their trials
            if shared not in scores:
                fixed = {"epochs": epochs, **options}
                runs = [Run(optimizer, hp | fixed, wrong, 1000, seeds) for hp in points]
                scores[shared] = [networks.validate(task, run) for run in runs]
            values = [score[predictor] for score in scores[shared]]
            record(share, name, list(zip(points, values, strict=True)))
