"""Times of programs that take turns, since a machine's speed drifts, and of single updates.

What is timed is a function of no arguments that runs once and returns its seconds.
"""

import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import jax
import optax

Run = Callable[[], float]
Name = TypeVar("Name", bound=Hashable)


def make_run(program: Callable[[], Any]) -> Run:
    """`program` as a function that runs it, waits for its arrays and returns its seconds."""

    def run() -> float:
        start = time.perf_counter()
        jax.block_until_ready(program())
        return time.perf_counter() - start

    return run


def run_compiled(program: Any, *args: Any) -> tuple[Any, float]:
    """What `program(*args)` gives under `jit`, and its seconds without compilation."""
    compiled = jax.jit(program).lower(*args).compile()
    start = time.perf_counter()
    result = jax.block_until_ready(compiled(*args))
    return result, time.perf_counter() - start


def time_in_turn(
    runs: Mapping[Name, Run],
    rounds: int,
    *,
    untimed: bool = False,
    repeats: int = 1,
    done: Callable[[], Any] = lambda: None,
) -> dict[Name, list[float]]:
    """The seconds of each program in each of `rounds`, in which they take turns.

    A turn gives the median of `repeats` runs. If `untimed`, it begins with a run that does not
    count, in the caches and the memory that the program before it has left. `done` is called
    after each round.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            if untimed:
                run()
            seconds[name].append(statistics.median(run() for _ in range(repeats)))
        done()
    return seconds


def compare_times(
    one: Run, two: Run, pairs: int, done: Callable[[], Any] = lambda: None
) -> dict[str, Any]:
    """The time of `two` over that of `one`: median, its standard error, quartiles.

    Each ratio is of two runs that follow each other, in either order by turns. The standard error
    is that of the median of a normal sample with these quartiles, √(π/2) σ / √pairs. `done` is
    called after each pair.
    """
    ratios = []
    for i in range(pairs):
        if i % 2:
            above, below = two(), one()
        else:
            below, above = one(), two()
        ratios.append(above / below)
        done()
    low, high = quartiles(ratios)
    error = math.sqrt(math.pi / 2 / pairs) * (high - low) / 1.349
    median = statistics.median(ratios)
    return {"median": median, "standard_error": error, "quartiles": [low, high], "pairs": pairs}


def quartiles(values: list[float]) -> list[float]:
    """The first and the third."""
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return [first, third]


def update_run(
    update: Callable,
    init: Callable,
    params: Any,
    grads: Any,
    compiler_options: dict[str, Any] | None = None,
) -> Run:
    """A run of `update(params, state, grads) -> params, state`, which is given its arrays.

    Its first call compiles.
    """
    state = init(params)
    step = jax.jit(update, donate_argnums=(0, 1), compiler_options=compiler_options)
    jax.block_until_ready((params, state, grads))

    def run() -> float:
        nonlocal params, state
        start = time.perf_counter()
        params, state = jax.block_until_ready(step(params, state, grads))
        return time.perf_counter() - start

    return run


def optax_run(
    tx: optax.GradientTransformation,
    params: Any,
    grads: Any,
    compiler_options: dict[str, Any] | None = None,
) -> Run:
    """A run of one update by an Optax transformation."""

    def update(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return update_run(update, tx.init, params, grads, compiler_options)
