"""Clusters of Lennard-Jones atoms, which basin hopping was made for."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import search
from .landscape import Landscape, displace, no_data

DESCENT = search.quasi_newton(0.3)


def energy(_: Any, x: jax.Array) -> jax.Array:
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


def start(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Atoms anywhere in the ball of `energy`."""
    *batch, dimensions = shape
    atoms = dimensions // 3
    return (jax.random.ball(key, 3, shape=(*batch, atoms)) * atoms ** (1 / 3)).reshape(shape)


def settle(_: Any, x: jax.Array) -> jax.Array:
    """The energy of each instance's lowest cluster after 1,000 steps of L-BFGS, `[instances, 1]`.

    To 4 decimals, which is what float32 can tell.
    """
    lowest = energy(None, x).argmin(1)[:, None, None]
    x = search.descend(DESCENT, energy, None, jnp.take_along_axis(x, lowest, 1), 1000)
    return jnp.round(energy(None, x), 4)


CLUSTER = Landscape("cluster", "least energy", no_data, energy, start, displace, DESCENT, settle)
