"""Does noise escape from minima? Rugged landscapes, at equal numbers of gradients.

The ground state of a Sherrington-Kirkpatrick spin glass, whose spins are sin θ, and the minimum of
Rastrigin's function. The article's step is `sgld`, diffopt's best `baoab`, both cooled to 0; their
rivals start again from elsewhere, or hop from basin to basin; on a glass one anneals the spins
themselves, which needs no gradient. In full replica exchange is tried too, and networks of ReLU
units that learn others. Whatever each has found is finished alike: a glass by flipping single spins
as long as one lowers the energy, a cluster by a descent. The controls: a small glass, whose ground
state all find; in full Rastrigin's function, whose minima are one kick from each other, clusters of
Lennard-Jones atoms, which basin hopping was made for, and a network on clean digits.
In full there is the deep sea too, where exploration is escape.
"""

from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffopt

from ...lib import plots
from ...lib.plots import plt
from ..problems import annealer, deep_sea, network_methods, networks, search
from ..problems.clusters import CLUSTER
from ..problems.glass import GLASS
from ..problems.landscape import Landscape, displace
from ..problems.rastrigin import RASTRIGIN
from ..problems.students import STUDENT
from ..protocol import frozen_settings
from ..protocol.cells import Keep, Record, Result, Settings, grid, run_timed
from ..protocol.pairs import Entry, entry

DIFFUSION, OVERDAMPED, REPLICAS = "baoab, annealed", "sgld, annealed", "baoab, replica exchange"
DIFFUSIONS = (DIFFUSION, OVERDAMPED, REPLICAS)


def replicas(hp: Settings, chains: int, key: jax.Array) -> optax.GradientTransformation:
    """Each instance's chains on a ladder of temperatures, geometric and down to a quarter."""
    ladder = jnp.geomspace(hp["temperature"] / 4, hp["temperature"], chains)
    sampler = partial(diffopt.baoab, friction=0.5)
    tx = diffopt.replica_exchange(sampler, hp["learning_rate"], ladder, key=key)
    return search.vmap_leading_axis(tx)


# each of (hyperparameters, steps, chains, key)
METHODS: dict[str, Callable[..., optax.GradientTransformation]] = {
    DIFFUSION: lambda hp, steps, chains, key: diffopt.baoab(
        hp["learning_rate"],
        optax.linear_schedule(hp["temperature"], 0.0, steps),
        friction=0.5,
        key=key,
    ),
    OVERDAMPED: lambda hp, steps, chains, key: diffopt.sgld(
        hp["learning_rate"], optax.linear_schedule(hp["temperature"], 0.0, steps), key=key
    ),
    REPLICAS: lambda hp, steps, chains, key: replicas(hp, chains, key),
    "gradient descent, restarts": lambda hp, *_: optax.sgd(hp["learning_rate"]),
    "momentum, restarts": lambda hp, *_: optax.sgd(hp["learning_rate"], momentum=0.9),
    "adam, restarts": lambda hp, *_: optax.adam(hp["learning_rate"]),
}
HOPPING = "basin hopping"
BLIND_HOPPING = "basin hopping, Gaussian kick"  # where the other kick knows the problem
ANNEALER = "metropolis, annealed"
RIVALS_IN_FULL = (*(name for name in METHODS if name not in DIFFUSIONS), HOPPING)
RIVALS = ("momentum, restarts", HOPPING)  # the best of the restarts
OWN_RIVALS = {GLASS: (ANNEALER,), STUDENT: (BLIND_HOPPING,)}
COLORS = dict(
    zip(
        (*RIVALS_IN_FULL, ANNEALER, BLIND_HOPPING),
        (plots.BLUE, plots.GREEN, plots.ORANGE, plots.VIOLET, plots.RED, plots.GRAY),
        strict=True,
    )
)
SCORED_BY = "mean least energy of 8 instances; in the deep sea, mean episodes of 8 agents"
CONTROLS = ("glass of 25 spins", "digits, a network", "Rastrigin", "Lennard-Jones")
NETWORKS = ("sghmc, cooled", "momentum, last", "adamw, last")


class Place(NamedTuple):
    """A setting: a landscape, its size, gradients for each instance, whose settings it has."""

    setting: str
    landscape: Landscape
    dimensions: int
    gradients: int
    tuned_as: str
    saving: int = 1  # the diffusion has so many times fewer gradients
    diffusion: str = DIFFUSION
    instances: int | None = None  # if not as many as the size has

    @property
    def column(self) -> str:
        """The article's step is overdamped."""
        return "article" if self.diffusion == OVERDAMPED else "best"


GLASS_100 = Place("glass of 100 spins", GLASS, 100, 16_000, "glass of 100 spins")
GLASS_400 = Place("glass of 400 spins", GLASS, 400, 16_000, "glass of 400 spins")
QUARTER = GLASS_400._replace(
    setting="glass of 400 spins, a quarter of the rivals' gradients", saving=4
)
RASTRIGIN_10 = Place("Rastrigin in 10 dimensions", RASTRIGIN, 10, 128_000, "Rastrigin")
SMALL_GLASS = Place(CONTROLS[0], GLASS, 25, 16_000, "glass of 100 spins")
# some more than basin hopping needs to find the lowest cluster of 13 atoms, and of 26 most times
CLUSTER_13 = Place("Lennard-Jones, 13 atoms", CLUSTER, 39, 2_000, "Lennard-Jones, 13 atoms")
CLUSTER_26 = Place("Lennard-Jones, 26 atoms", CLUSTER, 78, 32_000, "Lennard-Jones, 26 atoms")
STUDENT_30 = Place("a student of 30 ReLU units", STUDENT, 900, 8_000, "a student of 30 ReLU units")
STUDENTS = tuple(
    STUDENT_30._replace(
        setting=f"a student of {units} ReLU units", dimensions=units**2, instances=12
    )
    for units in (10, 15, 20, 25, 30)
)
SOLVED = 1e-3  # the loss of a student that has its teacher: of all other minima it is higher


class Size(NamedTuple):
    """What is run."""

    instances: int
    places: tuple[Place, ...]


def in_full(place: Place) -> Place:
    """The place under a name of its own, as the default has it with fewer instances."""
    return place._replace(setting=f"{place.setting}, 32 instances")


def by_both(*places: Place) -> tuple[Place, ...]:
    """Places that are tried with the article's step, then with diffopt's best."""
    return (*(place._replace(diffusion=OVERDAMPED) for place in places), *places)


SIZES = {
    "quick": Size(12, by_both(GLASS_100)),
    "default": Size(14, by_both(GLASS_400, SMALL_GLASS)),
    "full": Size(
        32,
        (
            *by_both(in_full(GLASS_400), in_full(SMALL_GLASS), RASTRIGIN_10),
            GLASS_100,
            GLASS_400._replace(setting="glass of 200 spins", dimensions=200),
            QUARTER,
            GLASS_400._replace(setting="glass of 800 spins", dimensions=800),
            RASTRIGIN_10._replace(setting="Rastrigin in 5 dimensions", dimensions=5),
            RASTRIGIN_10._replace(setting="Rastrigin in 20 dimensions", dimensions=20),
            GLASS_400._replace(setting="glass of 400 spins, replica exchange", diffusion=REPLICAS),
            CLUSTER_13,
            CLUSTER_26,
            *STUDENTS,
        ),
    ),
}


def find_least(
    place: Place, method: str, hp: Settings, *, gradients: int, instances: int, seed: int
) -> Result:
    """The least energy that a method finds in each instance."""
    key = jax.random.key(seed)
    data = place.landscape.data(key, instances, place.dimensions)
    chains = hp["chains"]
    blind = method == BLIND_HOPPING
    static = dict(
        landscape=place.landscape._replace(kick=displace) if blind else place.landscape,
        dimensions=place.dimensions,
        instances=instances,
        chains=chains,
    )
    traced = {name: value for name, value in hp.items() if name not in ("chains", "length")}
    arguments = data, jax.random.fold_in(key, 1), traced
    if method in (HOPPING, BLIND_HOPPING):
        static["length"] = length = hp["length"]
        energies, seconds = run_timed(
            search.hop_basins, *arguments, static=static, descents=gradients // (chains * length)
        )
    elif method == ANNEALER:
        sweeps = {"chains": chains, "sweeps": gradients // chains}
        energies, seconds = run_timed(annealer.anneal_spins, *arguments, static=sweeps)
    else:
        static |= {"length": gradients // chains, "make": METHODS[method]}
        energies, seconds = run_timed(search.run_chains, *arguments, static=static)
    rounded = np.round(energies.astype(float), 6)  # the same spins have the same energy
    return {"values": {"energy": rounded.tolist()}, "seconds": seconds}


def run(size: str, keep: Keep) -> list[Entry]:
    """The entries of the claim."""
    chosen = SIZES[size]
    entries = []
    for place in chosen.places:
        results = {}
        settings = frozen_settings.load("escapes")[place.tuned_as]
        rivals = RIVALS_IN_FULL if size == "full" else RIVALS
        rivals += OWN_RIVALS.get(place.landscape, ())
        for method in (place.diffusion, *rivals):
            hp = settings[method]
            gradients = place.gradients // (place.saving if method == place.diffusion else 1)
            instances = place.instances or chosen.instances
            amount = {"gradients": gradients, "instances": instances, "seed": 0}
            result = keep(
                f"{place.landscape.name} {place.dimensions}, {method}",
                [hp, amount],
                partial(find_least, place, method, hp, **amount),
            )
            results[method] = (method, result["values"]["energy"], result["seconds"])
        control = place.setting.startswith(CONTROLS)
        entries += [
            entry(
                "escapes", place.column, place.setting, place.landscape.metric,
                results[place.diffusion], results[rival], lower_is_better=True, control=control,
            )
            for rival in rivals
        ]  # fmt: skip
    if size == "full":
        task = networks.digits_with_cnn()
        trained = network_methods.run_methods(
            task, {name: network_methods.METHODS[name] for name in NETWORKS},
            frozen_settings.load(f"{task.prefix}overfits")["0 %"], 0.0,
            networks.SIZES[task.name][size], keep,
        )  # fmt: skip
        entries += network_methods.compare(
            "escapes", "article", f"{CONTROLS[1]} of convolutions", "test error, %", trained,
            itemgetter("error"), control=True,
        )  # fmt: skip
        entries += deep_sea.run(keep)
    return entries


def gaps(entries: Sequence[Entry]) -> dict[str, dict[int, list[Entry]]]:
    """The entries by landscape and dimension, of landscapes that were tried in some dimensions.

    At the same number of gradients in all of them.
    """
    by_size: dict[str, dict[int, list[Entry]]] = {}
    for place in (place for size in SIZES.values() for place in size.places):
        mine = [each for each in entries if each["setting"] == place.setting]
        mine = [each for each in mine if each["column"] == "best"]
        if mine and place.saving == 1 and place.diffusion == DIFFUSION:
            title = f"{place.landscape.name.capitalize()}, {place.gradients:,} gradients"
            by_size.setdefault(title, {})[place.dimensions] = mine
    return {title: dict(sorted(of.items())) for title, of in by_size.items() if len(of) > 1}


def plot_gaps(by_size: dict[str, dict[int, list[Entry]]], path: Path) -> None:
    """How far each rival ends above the diffusion, against the dimension, with its interval."""
    size = (plots.WIDTH, 3.3 * len(by_size) + 0.8)
    fig, axes = plt.subplots(len(by_size), 1, figsize=size, layout="constrained", squeeze=False)
    for ax, (title, of) in zip(axes.flat, by_size.items(), strict=True):
        for rival, color in COLORS.items():
            mine = [each for entries in of.values() for each in entries if each["rival"] == rival]
            if not mine:  # left to the full trial
                continue
            above = [-each["difference"] for each in mine]
            ends = [[-end for end in each["interval"]] for each in mine]
            ax.plot(list(of), above, "o-", color=color, label=rival, linewidth=1.8)
            ax.vlines(list(of), *np.transpose(ends), color=color)
        ax.axhline(0, color=plots.LIGHT, linewidth=1)
        ax.set(title=title, xlabel="dimension", xscale="log")
        ax.set_xticks(list(of), map(str, of))
        ax.minorticks_off()
        ax.grid(**plots.GRID)
        ax.set_ylabel("energy above the diffusion's")
    lines = {line.get_label(): line for ax in axes.flat for line in ax.get_lines()}
    drawn = [lines[rival] for rival in COLORS if rival in lines]
    fig.legend(handles=drawn, loc="outside lower center", ncols=2)
    plots.save(fig, path)


def tune(record: Record) -> None:
    """Twelve trials of each method, on eight instances that the trial does not have.

    On glasses twice as many of `baoab` and of the annealer.
    """
    glass = {
        DIFFUSION: grid(learning_rate=[0.2, 0.3, 0.4], temperature=[0.5, 0.8], chains=[4, 16])
        + grid(learning_rate=[0.7, 1.0], temperature=[0.4, 0.55, 0.75], chains=[4, 8]),
        OVERDAMPED: grid(learning_rate=[0.1, 0.2, 0.4], temperature=[0.5, 0.8], chains=[4, 16]),
        REPLICAS: grid(learning_rate=[0.3, 0.4], temperature=[0.4, 0.6, 0.8], chains=[4, 8]),
        "gradient descent, restarts": grid(
            learning_rate=[0.3, 0.6, 1.0, 2.0], chains=[256, 1024, 4096]
        ),
        "momentum, restarts": grid(learning_rate=[0.3, 0.6, 1.0, 2.0], chains=[256, 1024, 4096]),
        "adam, restarts": grid(learning_rate=[0.1, 0.3, 1.0, 3.0], chains=[256, 1024, 4096]),
        HOPPING: grid(kick=[0.1, 0.2, 0.3], length=[25, 50], chains=[16, 64]),
        ANNEALER: grid(temperature=[0.3, 0.5, 0.8, 1.2, 2.0, 3.0], chains=[1, 4, 16, 64]),
    }
    hills = {
        DIFFUSION: grid(learning_rate=[0.02, 0.04], temperature=[3.0, 10.0, 30.0], chains=[4, 16]),
        OVERDAMPED: grid(
            learning_rate=[0.001, 0.002], temperature=[3.0, 10.0, 30.0], chains=[4, 16]
        ),
        "gradient descent, restarts": grid(
            learning_rate=[0.001, 0.002, 0.004, 0.01], chains=[64, 512, 2048]
        ),
        "momentum, restarts": grid(
            learning_rate=[0.0005, 0.001, 0.002, 0.005], chains=[64, 512, 2048]
        ),
        "adam, restarts": grid(learning_rate=[0.03, 0.1, 0.3, 1.0], chains=[64, 512, 2048]),
        HOPPING: grid(kick=[0.3, 0.5, 0.8, 1.2], length=[25, 50, 100], chains=[4]),
    }
    clusters = {
        DIFFUSION: grid(learning_rate=[0.02, 0.03, 0.04], temperature=[0.3, 0.6], chains=[1, 4]),
        "gradient descent, restarts": grid(
            learning_rate=[0.0005, 0.001, 0.002, 0.004], chains=[4, 32, 256]
        ),
        "momentum, restarts": grid(learning_rate=[0.001, 0.002, 0.004, 0.008], chains=[4, 32, 256]),
        "adam, restarts": grid(learning_rate=[0.03, 0.1, 0.3, 1.0], chains=[4, 32, 256]),
        HOPPING: grid(kick=[0.2, 0.3, 0.4], length=[50, 100], chains=[1, 4]),
    }
    students = {
        DIFFUSION: grid(learning_rate=[0.3, 0.5], temperature=[3e-4, 6e-4, 1e-3], chains=[1, 2]),
        "gradient descent, restarts": grid(learning_rate=[0.1, 0.2, 0.4, 0.8], chains=[4, 8, 16]),
        "momentum, restarts": grid(learning_rate=[0.03, 0.06, 0.1, 0.2], chains=[4, 8, 16]),
        "adam, restarts": grid(learning_rate=[0.01, 0.02, 0.03, 0.06], chains=[4, 8, 16]),
        HOPPING: grid(kick=[0.0, 0.1], length=[50, 100, 200], chains=[1, 2]),
        BLIND_HOPPING: grid(kick=[0.1, 0.15, 0.2], length=[100, 200], chains=[1, 2]),
    }
    deep_sea.tune(record)
    for place, grids in (
        (GLASS_100, glass),
        (GLASS_400, glass),
        (RASTRIGIN_10, hills),
        (CLUSTER_13, clusters),
        (CLUSTER_26, clusters),
        (STUDENT_30, students),
    ):
        for method, points in grids.items():
            amount = {"gradients": place.gradients, "instances": 8, "seed": 1000}
            energies = [
                find_least(place, method, hp, **amount)["values"]["energy"] for hp in points
            ]
            scores = [float(np.mean(each)) for each in energies]
            record(place.tuned_as, method, list(zip(points, scores, strict=True)))
