"""Times in turns, of programs whose seconds are made up."""

import jax.numpy as jnp
import pytest

from benchmarks.lib import timing


def program(name, seconds, calls):
    seconds = iter(seconds)

    def run():
        calls.append(name)
        return next(seconds)

    return run


def test_programs_take_turns():
    calls, rounds = [], []
    runs = {"a": program("a", [1, 2, 3], calls), "b": program("b", [4, 5, 6], calls)}
    times = timing.time_in_turn(runs, 3, done=lambda: rounds.append(len(calls)))
    assert times == {"a": [1, 2, 3], "b": [4, 5, 6]}
    assert calls == ["a", "b"] * 3 and rounds == [2, 4, 6]


def test_a_turn_is_the_median_of_its_runs_after_an_untimed_one():
    calls = []
    runs = {"a": program("a", [90, 1, 5, 2, 80, 4, 4, 4], calls)}
    assert timing.time_in_turn(runs, 2, untimed=True, repeats=3) == {"a": [2, 4]}
    assert len(calls) == 8


def test_the_overhead_is_the_median_ratio_of_neighbours():
    calls, drift = [], [1, 3, 9, 1]  # that both runs of a pair feel
    one = program("without", [2.0 * slow for slow in drift], calls)
    two = program("with", [3.0 * slow for slow in drift], calls)
    result = timing.compare_times(one, two, 4)
    assert calls == ["without", "with", "with", "without"] * 2
    assert result["median"] == 1.5 and result["quartiles"] == [1.5, 1.5]
    assert result["standard_error"] == 0 and result["pairs"] == 4


def test_quartiles():
    assert timing.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == [2.0, 4.0]


def test_an_update_goes_on_from_the_last_and_takes_time():
    seen = []

    def update(params, state, grads):
        return params - grads, state + 1

    run = timing.update_run(update, lambda params: jnp.zeros(()), jnp.ones(3), jnp.ones(3))
    assert run() > 0 and run() > 0
    assert timing.make_run(lambda: seen.append(1))() >= 0 and seen == [1]


@pytest.mark.parametrize("pairs", [2, 3])
def test_an_odd_number_of_pairs_serves(pairs):
    one, two = (program("", [seconds] * pairs, []) for seconds in (1.0, 2.0))
    assert timing.compare_times(one, two, pairs)["median"] == 2
