"""The deep sea of the trial: its moves, its posterior, its agents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.trial.problems import deep_sea

ROWS = 4


def follow(sides):
    """The moves and the reward of an episode, by hand."""
    made, column, reward = np.zeros((ROWS, ROWS, 2), bool), 0, 0.0
    for row, side in enumerate(sides):
        made[row, column, side] = True
        if side:
            reward += (column == row == ROWS - 1) - 0.01 / ROWS
        column = min(max(column + (1 if side else -1), 0), ROWS - 1)
    return made, reward


def always(made):
    """Values of an agent that makes these moves."""
    return jnp.asarray(np.where(made, 1.0, 0.0))[None]


@pytest.mark.parametrize("sides", [(1, 1, 1, 1), (0, 0, 0, 0), (1, 0, 1, 1), (1, 1, 1, 0)])
def test_a_dive_by_hand(sides):
    by_hand, reward = follow(sides)
    made, treasure = deep_sea.dive(jax.random.key(0)[None], always(by_hand), 0.0, 0.0)
    assert (np.asarray(made[0]) == by_hand).all()
    assert bool(treasure[0]) == (sides == (1, 1, 1, 1))
    assert np.isclose((deep_sea.rewards(ROWS) * by_hand).sum(), reward)


def test_moves_at_random_find_the_treasure_once_in_two_to_the_rows():
    agents = 20_000
    keys, q = jax.random.split(jax.random.key(0), agents), jnp.zeros((agents, ROWS, ROWS, 2))
    share = 2.0**-ROWS
    for epsilon, heat in ((1.0, 0.0), (0.0, 1.0)):
        _, treasure = deep_sea.dive(keys, q, epsilon, heat)
        bound = 4.5 * (share * (1 - share) / agents) ** 0.5
        assert abs(np.asarray(treasure).mean() - share) < bound


def best_values():
    """Values of all moves, by dynamic programming with loops."""
    q = np.zeros((ROWS, ROWS, 2))
    for row in reversed(range(ROWS)):
        for column in range(ROWS):
            for side, to in ((0, max(column - 1, 0)), (1, min(column + 1, ROWS - 1))):
                after = q[row + 1, to].max() if row + 1 < ROWS else 0.0
                found = side and column == row == ROWS - 1
                q[row, column, side] = found - side * 0.01 / ROWS + after
    return q


def test_the_least_energy_is_at_the_best_values_if_all_is_seen():
    seen = jnp.ones((1, ROWS, ROWS, 2), bool)
    best = jnp.asarray(best_values(), jnp.float32)[None]
    assert np.isclose(best[0, 0, 0, 1], 0.99)
    assert deep_sea.energy(seen, best, noise=0.1, spread=0.3) < 1e-9
    descended = deep_sea.descend(seen, jax.random.normal(jax.random.key(0), best.shape), 1.0)
    assert np.allclose(descended, best, atol=1e-6)


def test_the_energy_of_some_moves_by_hand():
    seen, _ = follow((1, 1, 1, 1))
    q = jnp.full((1, ROWS, ROWS, 2), 0.5)
    errors = [0.01 / ROWS] * 3 + [0.5 - 1 + 0.01 / ROWS]  # of 0.5 beside reward and 0.5 after it
    prior = (2 * ROWS**2 - ROWS) * 0.5**2 / 0.3**2
    expected = (prior + sum(e**2 for e in errors) / 0.1**2) / 2
    assert np.isclose(deep_sea.energy(jnp.asarray(seen)[None], q, noise=0.1, spread=0.3), expected)


@pytest.mark.slow
def test_the_diffusion_has_the_law_of_the_exact_draws():
    """The values of the first move to the right, over agents that saw the same."""
    agents, hp = 4000, {"step": 0.3, "friction": 0.5, "noise": 0.4, "spread": 0.3}
    one, other = follow((1, 1, 1, 0))[0], follow((0, 1, 0, 0))[0]
    seen = jnp.broadcast_to(jnp.asarray(one | other), (agents, ROWS, ROWS, 2))
    exact, _ = deep_sea.plan_exactly(hp, jax.random.key(0), seen, seen, None)
    q, state = jnp.zeros(seen.shape), None
    for _ in range(4):
        q, state = deep_sea.PLANS[deep_sea.BEST](hp, jax.random.key(1), seen, q, state)
    assert int(state.step) == 4 * deep_sea.GRADIENTS
    for values in (lambda q: q[:, 0, 0, 1], lambda q: q[:, 2, 2, 1], lambda q: q[:, 3, 0, 0]):
        mine, theirs = np.asarray(values(q)), np.asarray(values(exact))
        assert abs(mine.mean() - theirs.mean()) < 4.5 * theirs.std() * (2 / agents) ** 0.5
        ratio = np.var(mine) / np.var(theirs)
        kurtosis = ((theirs - theirs.mean()) ** 4).mean() / theirs.var() ** 2
        assert abs(np.log(ratio)) < 4.5 * (2 * (kurtosis - 1) / agents) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("method", deep_sea.PLANS)
def test_every_agent_finds_the_treasure_of_a_shallow_sea(method):
    hp = {"step": 0.5, "friction": 0.3, "noise": 0.1, "spread": 0.3, "learning_rate": 1.0}
    hp |= {"epsilon": 0.2} if method == "epsilon-greedy" else {}
    found = deep_sea.explore(method, hp, rows=2, episodes=40, first_seed=0, seeds=6)
    episodes = np.array(found["values"]["episodes"])
    assert episodes.shape == (6,) and (episodes >= 10).all() and episodes.min() < 40
