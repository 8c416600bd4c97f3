"""Simulated annealing of the spins themselves: the method that was made for a glass."""

import math
from functools import partial

import jax
import jax.numpy as jnp

from .glass import quench


def sweep(
    J: jax.Array, key: jax.Array, s: jax.Array, h: jax.Array, temperature: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
    """Spins `[instances, chains, N]` and their fields h = Js after Metropolis has tried each flip.

    One spin after another: its flip adds 2 sᵢhᵢ to the energy, and is done with probability
    min(1, exp(-2 sᵢhᵢ / T)). A flip adds a row of J to the fields. That makes N² additions at most,
    where a gradient makes N² multiplications: a sweep counts as one.

    Fields outside of a block of 20 spins hear of its flips once all of its spins are tried.

    Metropolis et al. 1953, [Equation of state calculations by fast computing
    machines](https://doi.org/10.1063/1.1699114).
    """
    number = J.shape[-1]
    block = math.gcd(number, 20)
    allowed = temperature / 2 * jax.random.exponential(key, s.shape)

    def try_block(b: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        s, h = state
        of_block = partial(jax.lax.dynamic_slice_in_dim, start_index=b * block, slice_size=block)
        rows = of_block(J, axis=1)
        within, limits = of_block(rows, axis=2), of_block(allowed, axis=2)

        def try_flip(
            i: jax.Array, state: tuple[jax.Array, jax.Array]
        ) -> tuple[jax.Array, jax.Array]:
            s, h = state
            change = jnp.where(s[..., i] * h[..., i] < limits[..., i], -2 * s[..., i], 0)
            return s.at[..., i].add(change), h + change[..., None] * within[:, None, i]

        before = of_block(s, axis=2)
        after, _ = jax.lax.fori_loop(0, block, try_flip, (before, of_block(h, axis=2)))
        s = jax.lax.dynamic_update_slice_in_dim(s, after, b * block, 2)
        return s, h + (after - before) @ rows

    return jax.lax.fori_loop(0, number // block, try_block, (s, h))


@partial(jax.jit, static_argnames=("chains", "sweeps"))
def anneal_spins(
    J: jax.Array, key: jax.Array, hp: dict[str, jax.Array], *, chains: int, sweeps: int
) -> jax.Array:
    """The least quenched energy per spin of each instance, `[instances]`.

    Each chain makes so many sweeps, at temperatures that fall in a line from `hp["temperature"]`
    to 0.

    Kirkpatrick, Gelatt & Vecchi 1983, [Optimization by simulated
    annealing](https://doi.org/10.1126/science.220.4598.671).
    """
    start_key, flip_key = jax.random.split(key)
    s = jax.random.rademacher(start_key, (len(J), chains, J.shape[-1]), J.dtype)

    def cool(k: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        temperature = hp["temperature"] * (1 - k / sweeps)
        return sweep(J, jax.random.fold_in(flip_key, k), *state, temperature)

    s, _ = jax.lax.fori_loop(0, sweeps, cool, (s, s @ J))
    return quench(J, jnp.pi / 2 * s).min(1)
