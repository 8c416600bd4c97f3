"""Searches for the minimum of a landscape: chains of an optimizer, and basin hopping."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import diffopt

from .landscape import Landscape


def vmap_leading_axis(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """`tx` for each element of a leading axis, each with keys of its own."""
    tx = optax.with_extra_args_support(tx)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        one = lambda u, s, p, extra_args: tx.update(u, s, p, **extra_args)
        return jax.vmap(one)(updates, state, params, extra_args)

    init = lambda params: diffopt.split_keys(tx.init(params[0]), len(params))
    return optax.GradientTransformationExtraArgs(init, update)


def quasi_newton(longest: float) -> optax.GradientTransformation:
    """L-BFGS without a line search, for each chain: downhill, by no step longer than `longest`."""
    lbfgs = optax.scale_by_lbfgs()

    def update(gradient: Any, state: Any, x: Any = None) -> Any:
        step, state = lbfgs.update(gradient, state, x)
        step *= -jnp.where(jnp.vdot(step, gradient) < 0, -1, 1)
        return step * jnp.minimum(1, longest / optax.safe_norm(step, 1e-12)), state

    one_chain = optax.GradientTransformation(lbfgs.init, update)
    return vmap_leading_axis(vmap_leading_axis(one_chain))


def descend(
    tx: optax.GradientTransformation, energy: Callable[[Any, jax.Array], jax.Array], data: Any,
    x: jax.Array, steps: int,
) -> jax.Array:  # fmt: skip
    """Where `steps` updates lead from the points `x`."""
    tx = optax.with_extra_args_support(tx)

    def total(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        energies = energy(data, x)
        return energies.sum(), energies

    def step(carry: Any, _: None) -> tuple[Any, None]:
        x, state = carry
        (_, energies), gradient = jax.value_and_grad(total, has_aux=True)(x)
        updates, state = tx.update(gradient, state, x, value=energies)
        return (optax.apply_updates(x, updates), state), None

    return jax.lax.scan(step, (x, tx.init(x)), length=steps)[0][0]


@partial(
    jax.jit, static_argnames=("landscape", "make", "dimensions", "instances", "chains", "length")
)
def run_chains(
    data: Any, key: jax.Array, hp: dict[str, jax.Array], *, landscape: Landscape,
    make: Callable[..., optax.GradientTransformation], dimensions: int, instances: int,
    chains: int, length: int,
) -> jax.Array:  # fmt: skip
    """The least finished energy of each instance, `[instances]`, after `length` steps of chains.

    `make(hp, steps, chains, key)` is their optimizer.
    """
    start_key, noise_key = jax.random.split(key)
    x = landscape.start(start_key, (instances, chains, dimensions))
    x = descend(make(hp, length, chains, noise_key), landscape.energy, data, x, length)
    return landscape.finish(data, x).min(1)


@partial(jax.jit, static_argnames=("landscape", "dimensions", "instances", "chains", "length"))
def hop_basins(
    data: Any, key: jax.Array, hp: dict[str, jax.Array], *, landscape: Landscape,
    dimensions: int, instances: int, chains: int, length: int, descents: int,
) -> jax.Array:  # fmt: skip
    """The least finished energy of each instance, `[instances]`, by basin hopping.

    A chain makes `descents` of `length` steps, each from the best of its minima so far after a
    kick.
    """
    start_key, noise_key = jax.random.split(key)
    x = landscape.start(start_key, (instances, chains, dimensions))
    fall = partial(descend, landscape.descent, landscape.energy, data, steps=length)

    def hop(i: jax.Array, best: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, energy = best
        there = fall(x=landscape.kick(jax.random.fold_in(noise_key, i), x, hp["kick"]))
        reached = landscape.energy(data, there)
        lower = reached < energy
        return jnp.where(lower[..., None], there, x), jnp.where(lower, reached, energy)

    x = fall(x=x)
    x, _ = jax.lax.fori_loop(1, descents, hop, (x, landscape.energy(data, x)))
    return landscape.finish(data, x).min(1)
