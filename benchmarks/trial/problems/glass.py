"""The Sherrington-Kirkpatrick spin glass, whose spins are sin θ."""

import math

import jax
import jax.numpy as jnp
import optax

from .landscape import Landscape


def couplings(key: jax.Array, instances: int, spins: int) -> jax.Array:
    """Symmetric Gaussian couplings of variance 1/N, none of a spin with itself."""
    above = jnp.triu(jax.random.normal(key, (instances, spins, spins)), 1)
    return (above + above.swapaxes(1, 2)) / jnp.sqrt(spins)


def energy(J: jax.Array, theta: jax.Array) -> jax.Array:
    """The energy -sᵀJs/2 of spins s = sin θ.

    Its gradient is that of -sᵀh with the field h = Js held fixed: one product with J, not two.
    """
    s = jnp.sin(theta)
    h = jax.lax.stop_gradient(s @ J)
    half = jax.lax.stop_gradient(0.5 * (s * h).sum(-1))
    return half - (s * h).sum(-1)


def quench(J: jax.Array, theta: jax.Array) -> jax.Array:
    """Energy per spin of ±1 spins, once the flip of no single spin lowers it; best flips first.

    With g = s Js, spin by spin: half of what its flip adds to the energy. Two chains of every
    instance at a time, which stay in the cache.
    """
    spins = jnp.where(jnp.sin(theta) >= 0, 1.0, -1.0)
    instances, chains, number = spins.shape
    instance, index = jnp.arange(instances)[:, None], jnp.arange(number)

    def lowers(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        _, g = state
        return (g < -1e-6).any()

    def flip(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        s, g = state
        least = g.min(-1, keepdims=True)
        flipped = (g == least) & (least < -1e-6)  # no two couplings are equal
        i = (flipped * index).max(-1)
        of_i = (flipped * s).sum(-1, keepdims=True)
        return jnp.where(flipped, -s, s), jnp.where(flipped, -g, g - 2 * of_i * J[instance, i] * s)

    def energies(s: jax.Array) -> jax.Array:
        s, _ = jax.lax.while_loop(lowers, flip, (s, s * (s @ J)))
        return -0.5 * (s * (s @ J)).sum(-1) / number

    few = math.gcd(chains, 2)
    pieces = spins.reshape(instances, -1, few, number).swapaxes(0, 1)
    return jax.lax.map(energies, pieces).swapaxes(0, 1).reshape(instances, chains)


GLASS = Landscape(
    "glass",
    "least energy per spin",
    couplings,
    energy,
    lambda key, shape: jax.random.uniform(key, shape, minval=-jnp.pi, maxval=jnp.pi),
    lambda key, x, size: jnp.where(jax.random.bernoulli(key, size, x.shape), -x, x),
    optax.sgd(0.3, momentum=0.9),
    quench,
)
