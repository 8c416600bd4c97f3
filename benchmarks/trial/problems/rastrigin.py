"""Rastrigin's function, whose minima are one kick from each other."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from .landscape import Landscape, displace, no_data


def energy(_: Any, x: jax.Array) -> jax.Array:
    """10 d + Σ (x² - 10 cos 2πx): a minimum near every point of whole numbers, the least at 0."""
    return (10 + x**2 - 10 * jnp.cos(2 * jnp.pi * x)).sum(-1)


RASTRIGIN = Landscape(
    "rastrigin",
    "least value",
    no_data,
    energy,
    lambda key, shape: jax.random.uniform(key, shape, minval=-5.12, maxval=5.12),
    displace,
    optax.sgd(0.002, momentum=0.9),
    energy,
)
