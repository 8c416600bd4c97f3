"""Cyclical schedules: step sizes that explore and settle in turn, and when to sample."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from .._types import Schedule
from ..inputs.scalars import as_float, check_int, check_number


def _phase(count: Any, length: int) -> jax.Array:
    return as_float(jnp.asarray(count) % length) / length


def cyclical_schedule(peak: float | jax.Array, cycle_length: int) -> Schedule:
    r"""Cosine cycles of the step size: long steps that find modes, short ones that sample them.

    At step t of cycles of C steps, η(t) = η₀/2 (cos(π (t mod C)/C) + 1): each cycle starts at the
    peak η₀ and falls towards 0, which is eq. 1 of the paper with t counted from 0. Any sampler
    becomes its cyclical form, for instance

        eta = diffopt.cyclical_schedule(0.1, 1000)
        stage = diffopt.sampling_stage(1000, 0.8)
        csgld = diffopt.sgld(eta, temperature=lambda t: T * stage(t))
        csghmc = diffopt.sghmc(eta, temperature=lambda t: T * stage(t))

    Keep samples where `stage(t)` is 1. Velocities are taken into the units of each step, so that
    samplers with momentum stay at T in every part of a cycle, and where one begins.

    Args:
      peak: η₀ > 0, a number or a 0-d array.
      cycle_length: C ≥ 1, steps in a cycle (the paper's ⌈K/M⌉).

    Returns:
      A schedule: the step count to a scalar.

    Raises:
      ValueError: `peak` is not positive and finite, or `cycle_length` is below 1.
      TypeError: an argument is of the wrong type.

    Examples:
      >>> import diffopt
      >>> schedule = diffopt.cyclical_schedule(0.1, cycle_length=4)
      >>> [round(float(schedule(t)), 3) for t in range(6)]
      [0.1, 0.085, 0.05, 0.015, 0.1, 0.085]

    References:
      Zhang et al., [Cyclical Stochastic Gradient MCMC for Bayesian Deep
      Learning](https://arxiv.org/abs/1902.03932), ICLR 2020.
    """
    check_number("peak", peak, positive=True)
    length = check_int("cycle_length", cycle_length, least=1)
    return lambda count: as_float(peak) / 2 * (jnp.cos(jnp.pi * _phase(count, length)) + 1)


def sampling_stage(cycle_length: int, explore: float) -> Schedule:
    r"""A schedule that is 0 while a cycle explores and 1 while it samples.

    Of each cycle of C steps the part `explore`, β, explores: 0 where (t mod C)/C < β, else 1.
    Times a temperature, it makes the exploring part an optimizer without noise, as in algorithm 1
    of the paper; as a condition, it says which samples to keep.

    Args:
      cycle_length: C ≥ 1, steps in a cycle.
      explore: β in [0, 1), the part of each cycle that explores.

    Returns:
      A schedule: the step count to 0.0 or 1.0.

    Raises:
      ValueError: `cycle_length` is below 1; `explore` is not in [0, 1), or so large that no step
        of a cycle samples.
      TypeError: an argument is of the wrong type.

    Examples:
      >>> import diffopt
      >>> stage = diffopt.sampling_stage(cycle_length=4, explore=0.5)
      >>> [float(stage(t)) for t in range(6)]
      [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]

    References:
      Zhang et al., [Cyclical Stochastic Gradient MCMC for Bayesian Deep
      Learning](https://arxiv.org/abs/1902.03932), ICLR 2020.
    """
    length = check_int("cycle_length", cycle_length, least=1)
    check_number("explore", explore, below=1)
    first = math.ceil(round(explore * length, 6))
    if first == length:
        raise ValueError(
            "explore must leave at least one step of the cycle to sample, got explore"
            f" {explore!r} with cycle_length {length}"
        )
    return lambda count: jnp.where(count % length < first, 0.0, 1.0)
