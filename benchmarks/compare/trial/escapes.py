"""Does noise escape from minima? Rugged landscapes, at equal numbers of gradients.

The ground state of a Sherrington-Kirkpatrick spin glass, whose spins are sin θ, and the minimum of
Rastrigin's function. The diffusion is `baoab`, cooled to 0; its rivals start again from elsewhere,
or hop from basin to basin. In full `sgld` is tried too, and replica exchange. Whatever each has
found is finished alike: a glass by flipping single spins as long as one lowers the energy, a
cluster by a descent. The controls: a small glass, whose ground state all find; Rastrigin's
function, whose minima are one kick from each other; in full clusters of Lennard-Jones atoms, which
basin hopping was made for; a network on clean digits.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffopt

from ...lib import plots
from ...lib.plots import plt
from . import networks, overfits, tuned
from .cells import Keep, Record, Result, Settings, grid, measured
from .statistics import Entry, entry


class Landscape(NamedTuple):
    """A function to minimize over points `[instances, chains, dimensions]`.

    `metric` names what is found. `data(key, instances, dimensions)` is what tells instances apart;
    `energy(data, x)` is differentiated; `start(key, shape)` is where chains begin; `kick(key, x,
    size)` is the jump of basin hopping, `descent` how it falls, a gradient a step; `finish(data,
    x)` gives the energies `[instances, chains]` of points once they are finished.
    """

    metric: str
    data: Callable[[jax.Array, int, int], Any]
    energy: Callable[[Any, jax.Array], jax.Array]
    start: Callable[[jax.Array, tuple[int, ...]], jax.Array]
    kick: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    descent: optax.GradientTransformation
    finish: Callable[[Any, jax.Array], jax.Array]


def couplings(key: jax.Array, instances: int, spins: int) -> jax.Array:
    """Symmetric Gaussian couplings of variance 1/N, none of a spin with itself."""
    above = jnp.triu(jax.random.normal(key, (instances, spins, spins)), 1)
    return (above + above.swapaxes(1, 2)) / jnp.sqrt(spins)


def glass_energy(J: jax.Array, theta: jax.Array) -> jax.Array:
    """The energy -sᵀJs/2 of spins s = sin θ.

    Its gradient is that of -sᵀh with the field h = Js held fixed: one product with J, not two.
    """
    s = jnp.sin(theta)
    h = jax.lax.stop_gradient(s @ J)
    half = jax.lax.stop_gradient(0.5 * (s * h).sum(-1))
    return half - (s * h).sum(-1)


def quench(J: jax.Array, theta: jax.Array) -> jax.Array:
    """Energy per spin of ±1 spins, once the flip of no single spin lowers it; best flips first.

    With g = s Js, spin by spin: half of what its flip adds to the energy. Two chains of every
    instance at a time, which stay in the cache.
    """
    spins = jnp.where(jnp.sin(theta) >= 0, 1.0, -1.0)
    instances, chains, number = spins.shape
    instance, index = jnp.arange(instances)[:, None], jnp.arange(number)

    def lowers(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        _, g = state
        return (g < -1e-6).any()

    def flip(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        s, g = state
        least = g.min(-1, keepdims=True)
        flipped = (g == least) & (least < -1e-6)  # no two couplings are equal
        i = (flipped * index).max(-1)
        of_i = (flipped * s).sum(-1, keepdims=True)
        return jnp.where(flipped, -s, s), jnp.where(flipped, -g, g - 2 * of_i * J[instance, i] * s)

    def energies(s: jax.Array) -> jax.Array:
        s, _ = jax.lax.while_loop(lowers, flip, (s, s * (s @ J)))
        return -0.5 * (s * (s @ J)).sum(-1) / number

    few = math.gcd(chains, 2)
    pieces = spins.reshape(instances, -1, few, number).swapaxes(0, 1)
    return jax.lax.map(energies, pieces).swapaxes(0, 1).reshape(instances, chains)


def rastrigin(_: Any, x: jax.Array) -> jax.Array:
    """10 d + Σ (x² - 10 cos 2πx): a minimum near every point of whole numbers, the least at 0."""
    return (10 + x**2 - 10 * jnp.cos(2 * jnp.pi * x)).sum(-1)


def cluster_energy(_: Any, x: jax.Array) -> jax.Array:
    """The energy Σ 4 (r⁻¹² - r⁻⁶) of pairs of atoms, a flat `[..., 3 atoms]`, in a ball.

    Forces stay finite, and minima are as they were: nearer than 0.9, where no minimum has a pair, a
    pair's energy goes on as its tangent in r²; outside of the ball, of radius atoms^(1/3), it rises
    as (x² - radius²)².

    Wales & Doye 1997, [Global optimization by basin-hopping and the lowest energy structures of
    Lennard-Jones clusters](https://arxiv.org/abs/cond-mat/9803344).
    """
    x = x.reshape(*x.shape[:-1], -1, 3)
    atoms = x.shape[-2]
    i, j = np.triu_indices(atoms, 1)
    square = ((x[..., i, :] - x[..., j, :]) ** 2).sum(-1)
    near = 0.9**2
    far = jnp.maximum(square, near)
    slope = 4 * (3 * near**-4 - 6 * near**-7)
    pairs = 4 * (far**-6 - far**-3) + slope * jnp.minimum(square - near, 0)
    outside = jnp.maximum((x**2).sum(-1) - atoms ** (2 / 3), 0)
    return pairs.sum(-1) + (outside**2).sum(-1)


def start_cluster(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Atoms anywhere in the ball of `cluster_energy`."""
    *batch, dimensions = shape
    atoms = dimensions // 3
    return (jax.random.ball(key, 3, shape=(*batch, atoms)) * atoms ** (1 / 3)).reshape(shape)


def mapped(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`tx` for each element of a leading axis, each with keys of its own."""
    tx = optax.with_extra_args_support(tx)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        one = lambda u, s, p, extra_args: tx.update(u, s, p, **extra_args)
        return jax.vmap(one)(updates, state, params, extra_args)

    init = lambda params: diffopt.split_keys(tx.init(params[0]), len(params))
    return optax.GradientTransformationExtraArgs(init, update)


def quasi_newton(longest: float) -> optax.GradientTransformation:
    """L-BFGS without a line search, for each chain: downhill, by no step longer than `longest`."""
    lbfgs = optax.scale_by_lbfgs()

    def update(gradient: Any, state: Any, x: Any = None) -> Any:
        step, state = lbfgs.update(gradient, state, x)
        step *= -jnp.where(jnp.vdot(step, gradient) < 0, -1, 1)
        return step * jnp.minimum(1, longest / optax.safe_norm(step, 1e-12)), state

    return mapped(mapped(optax.GradientTransformation(lbfgs.init, update)))


def descend(
    tx: optax.GradientTransformation, landscape: Landscape, data: Any, x: jax.Array, steps: int
) -> jax.Array:
    """Where `steps` updates lead from the points `x`."""
    tx = optax.with_extra_args_support(tx)

    def total(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        energies = landscape.energy(data, x)
        return energies.sum(), energies

    def step(carry: Any, _: None) -> tuple[Any, None]:
        x, state = carry
        (_, energies), gradient = jax.value_and_grad(total, has_aux=True)(x)
        updates, state = tx.update(gradient, state, x, value=energies)
        return (optax.apply_updates(x, updates), state), None

    return jax.lax.scan(step, (x, tx.init(x)), length=steps)[0][0]


def settle(_: Any, x: jax.Array) -> jax.Array:
    """The energy of each instance's lowest cluster after 1,000 steps of L-BFGS, `[instances, 1]`.

    To 4 decimals, which is what float32 can tell.
    """
    cluster = LANDSCAPES["cluster"]
    lowest = cluster.energy(None, x).argmin(1)[:, None, None]
    x = descend(cluster.descent, cluster, None, jnp.take_along_axis(x, lowest, 1), 1000)
    return jnp.round(cluster.energy(None, x), 4)


def displaced(key: jax.Array, x: jax.Array, size: jax.Array) -> jax.Array:
    """Points moved by Gaussian noise."""
    return x + size * jax.random.normal(key, x.shape)


def nothing(*_: Any) -> None:
    """Instances that differ by their start and their noise alone."""


LANDSCAPES = {
    "glass": Landscape(
        "least energy per spin",
        couplings,
        glass_energy,
        lambda key, shape: jax.random.uniform(key, shape, minval=-jnp.pi, maxval=jnp.pi),
        lambda key, x, size: jnp.where(jax.random.bernoulli(key, size, x.shape), -x, x),
        optax.sgd(0.3, momentum=0.9),
        quench,
    ),
    "rastrigin": Landscape(
        "least value",
        nothing,
        rastrigin,
        lambda key, shape: jax.random.uniform(key, shape, minval=-5.12, maxval=5.12),
        displaced,
        optax.sgd(0.002, momentum=0.9),
        rastrigin,
    ),
    "cluster": Landscape(
        "least energy",
        nothing,
        cluster_energy,
        start_cluster,
        displaced,
        quasi_newton(0.3),
        settle,
    ),
}
DIFFUSION, OVERDAMPED, REPLICAS = "baoab, annealed", "sgld, annealed", "baoab, replica exchange"
DIFFUSIONS = (DIFFUSION, OVERDAMPED, REPLICAS)


def replicas(hp: Settings, chains: int, key: jax.Array) -> optax.GradientTransformation:
    """Each instance's chains on a ladder of temperatures, geometric and down to a quarter."""
    ladder = jnp.geomspace(hp["temperature"] / 4, hp["temperature"], chains)
    sampler = partial(diffopt.baoab, friction=0.5)
    return mapped(diffopt.replica_exchange(sampler, hp["learning_rate"], ladder, key=key))


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
RIVALS = (*(name for name in METHODS if name not in DIFFUSIONS), HOPPING)
SCORED_BY = "mean least energy of 8 instances"
CONTROLS = ("glass of 25 spins", "digits, a network", "Rastrigin", "Lennard-Jones")


@partial(jax.jit, static_argnames=("method", "name", "dimensions", "instances", "chains", "length"))
def search(
    data: Any, key: jax.Array, hp: dict[str, jax.Array], *, method: str, name: str,
    dimensions: int, instances: int, chains: int, length: int, descents: int = 1,
) -> jax.Array:  # fmt: skip
    """The least finished energy of each instance, `[instances]`.

    Each of the chains makes `length` steps; those of basin hopping are a descent, of which it makes
    `descents`, each from the best of its minima so far after a kick.
    """
    landscape = LANDSCAPES[name]
    start_key, noise_key = jax.random.split(key)
    x = landscape.start(start_key, (instances, chains, dimensions))
    if method != HOPPING:
        x = descend(METHODS[method](hp, length, chains, noise_key), landscape, data, x, length)
        return landscape.finish(data, x).min(1)
    fall = partial(descend, landscape.descent, landscape, data, steps=length)

    def hop(i: jax.Array, best: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, energy = best
        there = fall(x=landscape.kick(jax.random.fold_in(noise_key, i), x, hp["kick"]))
        found = landscape.energy(data, there)
        lower = found < energy
        return jnp.where(lower[..., None], there, x), jnp.where(lower, found, energy)

    x = fall(x=x)
    x, _ = jax.lax.fori_loop(1, descents, hop, (x, landscape.energy(data, x)))
    return landscape.finish(data, x).min(1)


class Place(NamedTuple):
    """A setting: a landscape, its size, gradients for each instance, whose settings it has."""

    setting: str
    name: str
    dimensions: int
    gradients: int
    tuned_as: str
    saving: int = 1  # the diffusion has so many times fewer gradients
    diffusion: str = DIFFUSION


GLASS_100 = Place("glass of 100 spins", "glass", 100, 16_000, "glass of 100 spins")
GLASS_400 = Place("glass of 400 spins", "glass", 400, 16_000, "glass of 400 spins")
QUARTER = GLASS_400._replace(
    setting="glass of 400 spins, a quarter of the rivals' gradients", saving=4
)
RASTRIGIN = Place("Rastrigin in 10 dimensions", "rastrigin", 10, 128_000, "Rastrigin")
SMALL_GLASS = Place(CONTROLS[0], "glass", 25, 16_000, "glass of 100 spins")
# some more than basin hopping needs to find the lowest cluster of 13 atoms, and of 26 most times
CLUSTER_13 = Place("Lennard-Jones, 13 atoms", "cluster", 39, 2_000, "Lennard-Jones, 13 atoms")
CLUSTER_26 = Place("Lennard-Jones, 26 atoms", "cluster", 78, 32_000, "Lennard-Jones, 26 atoms")


class Size(NamedTuple):
    """What is run."""

    instances: int
    places: tuple[Place, ...]
    network: bool  # the control on digits


SIZES = {
    "quick": Size(12, (GLASS_100, SMALL_GLASS), network=False),
    "default": Size(
        16,
        (GLASS_100, GLASS_400, QUARTER, RASTRIGIN, SMALL_GLASS),
        network=True,
    ),
    "full": Size(
        32,
        (
            GLASS_100,
            GLASS_400._replace(setting="glass of 200 spins", dimensions=200),
            GLASS_400,
            QUARTER,
            GLASS_400._replace(setting="glass of 800 spins", dimensions=800),
            RASTRIGIN._replace(setting="Rastrigin in 5 dimensions", dimensions=5),
            RASTRIGIN,
            RASTRIGIN._replace(setting="Rastrigin in 20 dimensions", dimensions=20),
            GLASS_400._replace(setting="glass of 400 spins, sgld", diffusion=OVERDAMPED),
            GLASS_400._replace(setting="glass of 400 spins, replica exchange", diffusion=REPLICAS),
            RASTRIGIN._replace(setting="Rastrigin in 10 dimensions, sgld", diffusion=OVERDAMPED),
            CLUSTER_13,
            CLUSTER_26,
            SMALL_GLASS,
        ),
        network=True,
    ),
}


def least(
    place: Place, method: str, hp: Settings, *, gradients: int, instances: int, seed: int
) -> Result:
    """The least energy that a method finds in each instance."""
    key = jax.random.key(seed)
    data = LANDSCAPES[place.name].data(key, instances, place.dimensions)
    chains = hp["chains"]
    length = hp["length"] if method == HOPPING else gradients // chains
    shape = dict(
        method=method, name=place.name, dimensions=place.dimensions, instances=instances,
        chains=chains, length=length,
    )  # fmt: skip
    traced = {name: value for name, value in hp.items() if name not in ("chains", "length")}
    energies, seconds = measured(
        search, data, jax.random.fold_in(key, 1), traced, static=shape,
        descents=gradients // (chains * length),
    )  # fmt: skip
    rounded = np.round(energies.astype(float), 6)  # the same spins have the same energy
    return {"values": {"energy": rounded.tolist()}, "seconds": seconds}


def run(size: str, keep: Keep) -> list[Entry]:
    """The entries of the claim."""
    chosen = SIZES[size]
    entries = []
    for place in chosen.places:
        found = {}
        settings = tuned.load("escapes")[place.tuned_as]
        for method in (place.diffusion, *RIVALS):
            hp = settings[method]
            gradients = place.gradients // (place.saving if method == place.diffusion else 1)
            amount = {"gradients": gradients, "instances": chosen.instances, "seed": 0}
            result = keep(
                f"{place.name} {place.dimensions}, {method}",
                [hp, amount],
                partial(least, place, method, hp, **amount),
            )
            found[method] = (method, result["values"]["energy"], result["seconds"])
        metric = LANDSCAPES[place.name].metric
        entries += [
            entry(
                "escapes", place.setting, metric, found[place.diffusion], found[rival],
                lower_is_better=True,
            )
            for rival in RIVALS
        ]  # fmt: skip
    if chosen.network:
        # the article's CNN, with compilation, is too long for the default
        task = networks.digits_with_cnn() if size == "full" else networks.DIGITS
        entries += overfits.compared(
            "escapes", task, CONTROLS[1] + (" of convolutions" if size == "full" else ""), "error",
            overfits.LAST, tuned.load(f"{task.prefix}overfits")["0 %"], 0.0,
            overfits.SIZES[task.name][size], keep,
        )  # fmt: skip
    return entries


def gaps(entries: Sequence[Entry]) -> dict[str, dict[int, list[Entry]]]:
    """The entries by landscape and dimension, of landscapes that were tried in some dimensions.

    At the same number of gradients in all of them.
    """
    found: dict[str, dict[int, list[Entry]]] = {}
    for place in SIZES["full"].places:
        mine = [each for each in entries if each["setting"] == place.setting]
        if mine and place.saving == 1 and place.diffusion == DIFFUSION:
            title = f"{place.name.capitalize()}, {place.gradients:,} gradients"
            found.setdefault(title, {})[place.dimensions] = mine
    return {title: dict(sorted(of.items())) for title, of in found.items() if len(of) > 1}


def plot_gaps(found: dict[str, dict[int, list[Entry]]], path: Path) -> None:
    """How far each rival ends above the diffusion, against the dimension, with its interval."""
    size = (5.2 * len(found) + 2.5, 3.9)
    fig, axes = plt.subplots(1, len(found), figsize=size, layout="constrained", squeeze=False)
    colors = (plots.BLUE, plots.GREEN, plots.ORANGE, plots.VIOLET)
    for ax, (title, of) in zip(axes.flat, found.items(), strict=True):
        for rival, color in zip(RIVALS, colors, strict=True):
            mine = [each for entries in of.values() for each in entries if each["rival"] == rival]
            above = [-each["difference"] for each in mine]
            ends = [[-end for end in each["interval"]] for each in mine]
            ax.plot(list(of), above, "o-", color=color, label=rival, linewidth=1.8)
            ax.vlines(list(of), *np.transpose(ends), color=color)
        ax.axhline(0, color=plots.LIGHT, linewidth=1)
        ax.set(title=title, xlabel="dimension", xscale="log")
        ax.set_xticks(list(of), map(str, of))
        ax.minorticks_off()
        ax.grid(**plots.GRID)
    axes[0, 0].set_ylabel("energy above the diffusion's")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    plots.save(fig, path)


def tune(record: Record) -> None:
    """Twelve trials of each method, on eight instances that the trial does not have."""
    glass = {
        DIFFUSION: grid(learning_rate=[0.2, 0.3, 0.4], temperature=[0.5, 0.8], chains=[4, 16]),
        OVERDAMPED: grid(learning_rate=[0.1, 0.2, 0.4], temperature=[0.5, 0.8], chains=[4, 16]),
        REPLICAS: grid(learning_rate=[0.3, 0.4], temperature=[0.4, 0.6, 0.8], chains=[4, 8]),
        "gradient descent, restarts": grid(
            learning_rate=[0.3, 0.6, 1.0, 2.0], chains=[256, 1024, 4096]
        ),
        "momentum, restarts": grid(learning_rate=[0.3, 0.6, 1.0, 2.0], chains=[256, 1024, 4096]),
        "adam, restarts": grid(learning_rate=[0.1, 0.3, 1.0, 3.0], chains=[256, 1024, 4096]),
        HOPPING: grid(kick=[0.1, 0.2, 0.3], length=[25, 50], chains=[16, 64]),
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
    for place, grids in (
        (GLASS_100, glass),
        (GLASS_400, glass),
        (RASTRIGIN, hills),
        (CLUSTER_13, clusters),
        (CLUSTER_26, clusters),
    ):
        for method, points in grids.items():
            amount = {"gradients": place.gradients, "instances": 8, "seed": 1000}
            found = [least(place, method, hp, **amount)["values"]["energy"] for hp in points]
            scores = [float(np.mean(energies)) for energies in found]
            record(place.tuned_as, method, list(zip(points, scores, strict=True)))
