"""What a landscape is: a function to minimize, and how a search moves on it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax


class Landscape(NamedTuple):
    """A function to minimize over points `[instances, chains, dimensions]`.

    `metric` names its values. `data(key, instances, dimensions)` is what tells instances apart;
    `energy(data, x)` is differentiated; `start(key, shape)` is where chains begin; `kick(key, x,
    size)` is the jump of basin hopping, `descent` how it falls, a gradient a step; `finish(data,
    x)` gives the energies `[instances, chains]` of points once they are finished.
    """

    name: str
    metric: str
    data: Callable[[jax.Array, int, int], Any]
    energy: Callable[[Any, jax.Array], jax.Array]
    start: Callable[[jax.Array, tuple[int, ...]], jax.Array]
    kick: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    descent: optax.GradientTransformation
    finish: Callable[[Any, jax.Array], jax.Array]


def no_data(*_: Any) -> None:
    """Instances that differ by their start and their noise alone."""


def displace(key: jax.Array, x: jax.Array, size: jax.Array) -> jax.Array:
    """Points moved by Gaussian noise."""
    return x + size * jax.random.normal(key, x.shape)
