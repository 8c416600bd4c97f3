"""Aliases for signatures. Any tree passes for a tree: the names tell the reader which is meant."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import optax

Params = Any
"""A tree of floating-point arrays: what a diffusion moves."""

Updates = Any
"""A tree like the parameters: gradients, increments, moves, velocities."""

Batch = Any
"""A tree of arrays that lead with one axis of examples."""

Stream = Iterable[Any] | Callable[[int], Any]
"""Batches: a loader, any iterable of batches, or a function of their number that gives one."""

State = Any
"""A tree of arrays: the state of a transformation or of an estimator."""

Key = int | jax.Array
"""A seed, or a PRNG key, typed or raw."""

Loss = Callable[..., jax.Array]
"""`loss(params, batch)`, or `loss(params)` where there are no data: a real scalar."""

Schedule = Callable[[Any], jax.Array]
"""A function of the step count."""

NoiseFunction = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]

Noise = str | NoiseFunction
"""The law of the increments, by name or as a function: see `sampler`."""

Sampler = Callable[..., optax.GradientTransformation]
"""`sampler(step_size, temperature, key=key)`, as `sgld`: `functools.partial` binds the rest."""
