"""The deep sea: a treasure that only as many moves to the right in a row find as there are rows.

Each episode starts at the top left and goes down a row at every move, to the left or to the right.
A move to the right costs 0.01 over the number of rows, the one from the bottom right finds the
treasure, which is worth 1. Moves at random find it once in 2^rows episodes. Values of all moves
are a table, for each of the agents; a move that was seen once is known, as nothing is random.

Osband et al. 2020, [Behaviour suite for reinforcement
learning](https://arxiv.org/abs/1908.03568).

Two agents sample these values by `diffopt.sample`, which goes on from episode to episode, and are
greedy for the draw (Thompson sampling). `baoab` samples the posterior itself. `sgld` holds the
targets fixed in the gradient, as in LMC-LSVI: Ishfaq et al. 2024, [Provable and
practical](https://arxiv.org/abs/2305.18246). Their rivals descend on the same squared error.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffopt

from ..protocol import frozen_settings
from ..protocol.cells import Keep, Record, Result, Settings, grid
from ..protocol.pairs import Entry, entry
from . import search

SETTING = "deep sea"
METRIC = "episodes until the tenth treasure"
ROWS = (6, 10, 14, 20)
EASY = 6  # rows: the control, whose treasure all methods find
EPISODES, GRADIENTS = 400, 128  # at most; in each episode
TREASURES = 10
SEEDS = 12

BEST, ARTICLE, EXACT = "baoab, Thompson", "sgld, Thompson", "exact draws, Thompson"
RIVALS = ("epsilon-greedy", "Boltzmann", "optimism")


def rewards(rows: int) -> jax.Array:
    """The reward of every move, `[row, column, 2]`: to the left, to the right."""
    costs = jnp.zeros((rows, rows, 2)).at[..., 1].set(-0.01 / rows)
    return costs.at[-1, -1, 1].add(1.0)


def next_values(below: jax.Array) -> jax.Array:
    """What the row below is worth, `[..., column]`, by the move that leads there, `[..., 2]`."""
    left = jnp.concatenate([below[..., :1], below[..., :-1]], -1)
    right = jnp.concatenate([below[..., 1:], below[..., -1:]], -1)
    return jnp.stack([left, right], -1)


def energy(
    seen: jax.Array, q: jax.Array, *, noise: Any = 1.0, spread: Any = jnp.inf, held: bool = False
) -> jax.Array:
    """Minus the log posterior of each agent's values `[agent, row, column, 2]`, up to a constant.

    A move that was seen is worth its reward and the best move after it, within noise of that
    standard deviation; one that was not has the prior N(0, spread²). `held` takes the best move
    after it as given: the gradient is then not that of this energy.
    """
    best = q.max(-1)
    below = jnp.concatenate([best[:, 1:], jnp.zeros_like(best[:, :1])], 1)
    below = jax.lax.stop_gradient(below) if held else below
    errors = q - rewards(q.shape[1]) - next_values(below)
    return jnp.where(seen, (errors / noise) ** 2, (q / spread) ** 2).sum((1, 2, 3)) / 2


@jax.jit
def draw_exactly(key: jax.Array, seen: jax.Array, noise: jax.Array, spread: jax.Array) -> jax.Array:
    """Values from exp(-energy), row by row from the bottom."""
    rows = seen.shape[1]
    normal = jax.random.normal(key, seen.shape)

    def draw(below: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        known = rewards(rows)[row] + next_values(below) + noise * normal[:, row]
        q = jnp.where(seen[:, row], known, spread * normal[:, row])
        return q.max(-1), q

    _, q = jax.lax.scan(draw, jnp.zeros_like(normal[:, 0, :, 0]), jnp.arange(rows), reverse=True)
    return q.swapaxes(0, 1)


@jax.jit
def dive(
    keys: jax.Array, q: jax.Array, epsilon: jax.Array, heat: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """An episode of each agent: the moves that it made, as a mask like `q`; did it find it?

    A move is the best one, with probability `epsilon` a random one; at a `heat` above 0 it has
    the probabilities softmax(q / heat).
    """
    rows = q.shape[1]

    def one(key: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
        def move(column: jax.Array, row_and_key: Any) -> Any:
            row, key = row_and_key
            heat_key, epsilon_key, side_key = jax.random.split(key, 3)
            side = jnp.argmax(q[row, column] + heat * jax.random.gumbel(heat_key, (2,)))
            astray = jax.random.bernoulli(epsilon_key, epsilon)
            side = jnp.where(astray, jax.random.randint(side_key, (), 0, 2), side)
            return jnp.clip(column + 2 * side - 1, 0, rows - 1), (column, side)

        steps = jnp.arange(rows), jax.random.split(key, rows)
        _, (columns, sides) = jax.lax.scan(move, jnp.zeros([], int), steps)
        made = jnp.zeros(q.shape, bool).at[jnp.arange(rows), columns, sides].set(True)
        return made, made[-1, -1, 1]

    return jax.vmap(one)(keys, q)


@jax.jit
def descend(seen: jax.Array, q: jax.Array, learning_rate: jax.Array) -> jax.Array:
    """Descent on the squared error with targets held, as DQN has it.

    At a learning rate of 1 a step is one of value iteration, exact after as many as there are rows.
    """
    tx = optax.sgd(learning_rate)
    return search.descend(tx, partial(energy, held=True), seen, q, GRADIENTS)


def noise_of_move(hp: Settings, rows: int) -> float:
    """That of one move: what a greedy agent gains from noise adds up along its way."""
    return hp["noise"] / rows


def total(seen: jax.Array, hp: Settings, held: bool, q: jax.Array) -> jax.Array:
    """The energy of all agents: a sum, so that each is sampled at temperature 1."""
    noise = noise_of_move(hp, q.shape[1])
    return energy(seen, q, noise=noise, spread=hp["spread"], held=held).sum()


def sample_posterior(hp: Settings, rows: int) -> optax.GradientTransformation:
    """BAOAB, with times in units of the noise of a move."""
    noise = noise_of_move(hp, rows)
    return diffopt.baoab(hp["step"] * noise, 1.0, friction=hp["friction"] / noise)


def sample_with_targets_held(hp: Settings, rows: int) -> optax.GradientTransformation:
    """The article's step, in the same units."""
    return diffopt.sgld(hp["step"] * noise_of_move(hp, rows) ** 2, 1.0)


def plan_by_sampling(
    make: Callable[..., optax.GradientTransformation], held: bool,
    hp: Settings, key: jax.Array, seen: jax.Array, q: jax.Array, state: Any,
) -> tuple[jax.Array, Any]:  # fmt: skip
    """Go on with the chain of the episode before, now with what was seen in it."""
    samples = diffopt.sample(
        make(hp, q.shape[1]), partial(total, seen, hp, held), q[None], num_steps=GRADIENTS,
        burn_in=GRADIENTS - 1, num_chains=None, key=key, state=state,
    )  # fmt: skip
    return samples.params[0], samples.state


def plan_exactly(
    hp: Settings, key: jax.Array, seen: jax.Array, q: jax.Array, state: None
) -> tuple[jax.Array, None]:
    """A new draw from the posterior."""
    return draw_exactly(key, seen, noise_of_move(hp, q.shape[1]), hp["spread"]), None


def plan_by_descent(
    hp: Settings, key: jax.Array, seen: jax.Array, q: jax.Array, state: None
) -> tuple[jax.Array, None]:
    """The values of the episode before, fitted to what was seen in it."""
    return descend(seen, q, hp["learning_rate"]), None


# each of (hyperparameters, key, seen, values and state so far): values, and state to go on from
PLANS: dict[str, Callable[..., tuple[jax.Array, Any]]] = {
    BEST: partial(plan_by_sampling, sample_posterior, False),
    ARTICLE: partial(plan_by_sampling, sample_with_targets_held, True),
    EXACT: plan_exactly,
    **dict.fromkeys(RIVALS, plan_by_descent),
}


def explore(
    method: str, hp: Settings, *, rows: int, episodes: int, first_seed: int, seeds: int
) -> Result:
    """The episode in which each agent finds the treasure for the tenth time, at most `episodes`."""
    keys = jax.vmap(jax.random.key)(first_seed + jnp.arange(seeds))
    fold = jax.vmap(jax.random.fold_in, (0, None))
    normal = jax.vmap(lambda key: jax.random.normal(key, (rows, rows, 2)))(keys)
    q, state = hp.get("start", 0.0) + hp["spread"] * normal, None
    seen = jnp.zeros(q.shape, bool)
    found, tenth = np.zeros(seeds, int), np.full(seeds, episodes)
    for episode in range(1, episodes + 1):
        key = jax.random.fold_in(keys[0], 2 * episode)
        q, state = PLANS[method](hp, key, seen, q, state)
        epsilon = hp.get("epsilon", 0.0) * 0.5 ** (episode * hp.get("halvings", 0.0))
        made, treasure = dive(fold(keys, 2 * episode + 1), q, epsilon, hp.get("heat", 0.0))
        seen |= made
        found += np.asarray(treasure)
        tenth = np.where(found >= TREASURES, np.minimum(tenth, episode), tenth)
        if episode == 1:
            start = time.perf_counter()  # all is compiled
        if (found >= TREASURES).all():
            break
    seconds = time.perf_counter() - start
    return {"values": {"episodes": tenth.tolist()}, "seconds": seconds}


def run(keep: Keep) -> list[Entry]:
    """The entries of the claim "escapes": each diffusion beside its rivals and the exact draws."""
    settings = frozen_settings.load("escapes")[SETTING]
    entries = []
    for rows in ROWS:
        results = {}
        amount = {"rows": rows, "episodes": EPISODES, "first_seed": 0, "seeds": SEEDS}
        for method in PLANS:
            hp = settings[method]
            compute = partial(explore, method, hp, **amount)
            result = keep(f"{SETTING} {rows}, {method}", [hp, amount, GRADIENTS], compute)
            results[method] = (method, result["values"]["episodes"], result["seconds"])
        for column, method in (("article", ARTICLE), ("best", BEST)):
            for rival in (*RIVALS, EXACT):
                setting = f"{SETTING} of {rows} rows"
                if rival == EXACT:
                    setting = f"{setting}, beside exact draws"
                entries.append(
                    entry(
                        "escapes", column, setting, METRIC, results[method], results[rival],
                        lower_is_better=True, control=rows == EASY or rival == EXACT,
                    )
                )  # fmt: skip
    return entries


def tune(record: Record) -> None:
    """Eight trials of each method in a sea of eight rows, by agents that the trial does not have.

    A learning rate of 1 is the best there can be. The rivals get four times the episodes, or all
    trials of some would end without a treasure.
    """
    points = {
        BEST: grid(step=[0.7], friction=[0.1, 0.3], noise=[0.03, 0.1], spread=[0.1, 0.3]),
        ARTICLE: grid(step=[0.5, 1.0], noise=[0.03, 0.1], spread=[0.1, 0.3]),
        EXACT: grid(noise=[0.01, 0.03, 0.1, 0.3], spread=[0.1, 0.3]),
        "epsilon-greedy": grid(
            learning_rate=[1.0],
            epsilon=[0.1, 1.0],
            halvings=[0.0, 0.003, 0.01, 0.03],
            spread=[0.01],
        ),
        "Boltzmann": grid(learning_rate=[1.0], heat=[0.001, 0.003, 0.01, 0.03], spread=[0.01, 0.1]),
        "optimism": grid(
            learning_rate=[1.0], start=[0.1, 1.0], epsilon=[0.0, 0.02], spread=[0.01, 0.03]
        ),
    }
    for method, trials in points.items():
        episodes = 100 if method in (BEST, ARTICLE) else 400
        amount = {"rows": 8, "episodes": episodes, "first_seed": 1000, "seeds": 8}
        scores = [
            float(np.mean(explore(method, hp, **amount)["values"]["episodes"])) for hp in trials
        ]
        record(SETTING, method, list(zip(trials, scores, strict=True)))
