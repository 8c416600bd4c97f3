"""Students of ReLU units that learn a teacher of orthonormal ones: a network with false minima."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from .landscape import Landscape, no_data


@jax.custom_jvp
def overlap(c: jax.Array) -> jax.Array:
    """E[relu(u·x) relu(v·x)] of unit vectors with the cosine `c`, x ~ N(0, I)."""
    angle = jnp.arccos(jnp.clip(c, -1, 1))
    return (jnp.sin(angle) + (jnp.pi - angle) * c) / (2 * jnp.pi)


@overlap.defjvp
def _overlap_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """The derivative, which is finite at ±1 too."""
    ((c,), (dc,)) = primals, tangents
    return overlap(c), (jnp.pi - jnp.arccos(jnp.clip(c, -1, 1))) / (2 * jnp.pi) * dc


def loss(_: Any, x: jax.Array) -> jax.Array:
    """E[(Σ relu(wᵢ·x) - Σ relu(xᵢ))²]/2 of n students wᵢ in n dimensions, a flat `[..., n²]`.

    The teachers are the unit vectors; inputs x ~ N(0, I), so that the mean has a closed form. From
    n = 6 gradient descent ends in false minima, the more surely the larger n is.

    Safran & Shamir 2018, [Spurious local minima are common in two-layer ReLU neural
    networks](https://arxiv.org/abs/1712.08968).
    """
    n = round(x.shape[-1] ** 0.5)
    w = x.reshape(*x.shape[:-1], n, n)
    norms = optax.safe_norm(w, 1e-12, axis=-1)
    units = w / norms[..., None]
    among = overlap(units @ units.swapaxes(-1, -2)) * norms[..., None, :]
    between = overlap(units).sum(-1)
    teachers = n / 2 + n * (n - 1) / (2 * jnp.pi)
    return (norms * (among.sum(-1) / 2 - between)).sum(-1) + teachers / 2


def start(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Units of about the teachers' length."""
    return jax.random.normal(key, shape) * shape[-1] ** -0.25


def redraw_units(key: jax.Array, x: jax.Array, size: jax.Array) -> jax.Array:
    """Each unit drawn anew with probability `size`, one of them if none is."""
    n = round(x.shape[-1] ** 0.5)
    choose, draw = jax.random.split(key)
    ranks = jax.random.uniform(choose, (*x.shape[:-1], n))
    chosen = (ranks < size) | (ranks == ranks.min(-1, keepdims=True))
    return jnp.where(jnp.repeat(chosen, n, -1), start(draw, x.shape), x)


STUDENT = Landscape(
    "student", "loss of the student", no_data, loss, start, redraw_units, optax.sgd(0.1, 0.9), loss
)
