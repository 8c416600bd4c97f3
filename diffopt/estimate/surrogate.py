"""The law of a sampler, measured on a Gaussian surrogate of the loss that costs no gradients of it.

On a quadratic loss a direction of curvature k has the gradient kθ, and with minibatches a noise of
variance c. A vector of such directions is as many chains, and its steps cost next to nothing. So
the temperature that a sampler holds, at each step size, is measured there, whatever its equation.

Elements that a sampler moves at different rates, by a mass or a learning rate of their own, have
their curvatures in its metric: √P H √P, where P says how far each moves for the same gradient.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._types import Params, Sampler
from ..inputs.trees import count_degrees
from ..noise.increments import draw_increments
from ..run.program import compile_program

WIDTH = 1024  # elements of the surrogate, in all its copies
STIFF = 2  # one element in so many is the stiffest, where elements are independent
COPIES = 4  # at least, of a surrogate with one stiffest element
ALIKE = 0.9  # of the largest curvature: such elements are about as hot as the stiffest
SOFTEST = 0.01  # of the curvature that a step size could bear: softer ones would never settle

PROBE_STEPS, PROBE_SIZE = 16, 1e-3  # they tell how gradients move the elements
STRONG = 100  # times the noise of a step: a gradient that moves whatever depends on it
SAME = 1e-3  # relative: moves that differ by rounding


class Surrogate(NamedTuple):
    """A Gaussian loss: trees like the parameters, `[copy, ...]`.

    Attributes:
      curvature: over the largest, in the sampler's metric.
      noise: the variance of the gradient's noise, in that metric; `None` without minibatches.
      response: P, between 0 and 1.
      start: standard normal numbers, where chains begin.
      stiffest: 1 for elements of the largest curvature, with the noise along that direction; where
        elements are coupled and nothing is noisy, for those of nearly that curvature too.
      typical: 1 for elements whose curvatures are spread as those of the loss, with the mean noise;
        where elements are coupled each copy is a loss of its own, and all of it is typical.
    """

    curvature: Params
    noise: Params | None
    response: Params
    start: Params
    stiffest: Params
    typical: Params


class Law(NamedTuple):
    """Temperatures over T by step size, `[size]`: of the stiffest direction and of the mean."""

    stiffest: np.ndarray
    mean: np.ndarray


def probe_sampler(sampler: Sampler, params: Params, temperature: float) -> tuple[Params, bool]:
    """How gradients move the elements.

    Returns:
      P: how far a gradient of 1 moves each element, over the largest; 0 for one that is frozen.
      And whether the gradient of one element moves another, as under a thermostat for all.
    """
    like = jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), jnp.result_type(p)), params)
    leaves, treedef = jax.tree.flatten(like)
    places = np.split(np.arange(sum(x.size for x in leaves)), np.cumsum([x.size for x in leaves]))
    even = [(place % 2 == 0).reshape(x.shape) for place, x in zip(places, leaves, strict=False)]
    strong = 1 + STRONG * (temperature / PROBE_SIZE) ** 0.5

    def move(T: jax.Array, at_even: jax.Array, zeros: Params, evens: Params) -> Params:
        grads = jax.tree.map(lambda z, e: jnp.where(e, at_even, 1).astype(z.dtype), zeros, evens)
        tx = sampler(jnp.asarray(PROBE_SIZE, jnp.float32), T, key=jax.random.key(0))
        update = optax.with_extra_args_support(tx).update

        def step(_: Any, carry: Any) -> Any:
            total, state = carry
            moves, state = update(grads, state, zeros, value=jnp.zeros([]))
            return jax.tree.map(jnp.add, total, moves), state

        moved, _ = jax.lax.fori_loop(0, PROBE_STEPS, step, (zeros, tx.init(zeros)))
        return jax.tree.map(lambda x: -jnp.real(x).astype(jnp.float32), moved)

    evens = jax.tree.unflatten(treedef, [jnp.asarray(e) for e in even])
    operands = (
        jnp.array([0, temperature, temperature], jnp.float32),
        jnp.array([1, 1, strong], jnp.float32),
        like,
        evens,
    )
    probe = jax.vmap(move, (0, 0, None, None))
    with jax.debug_nans(False):  # of a sampler that has no T = 0
        rows = [
            np.asarray(x) for x in jax.tree.leaves(compile_program(probe, *operands)(*operands))
        ]
    largest = max((x[0].max() for x in rows if x.size), default=0.0)
    finite = all(np.isfinite(x[0]).all() for x in rows)
    if not finite or (not largest > 0 and any(x[1].any() for x in rows)):  # it has no T = 0
        response = [np.ones(x.shape[1:], np.float32) for x in rows]
    elif not largest > 0:
        raise ValueError("sampler moves no parameter down its gradient")
    else:
        response = [np.maximum(x[0] / largest, 0) for x in rows]
    coupled = any(
        (np.abs(x[1] - x[2]) > SAME * np.abs(x[1]))[~e].any()
        for x, e in zip(rows, even, strict=True)
    )
    return jax.tree.unflatten(treedef, response), coupled


def make_surrogate(
    sampler: Sampler,
    params: Params,
    temperature: float,
    spectrum: tuple[np.ndarray, np.ndarray],
    noise: tuple[float, float] | None,
) -> tuple[Params, Surrogate]:
    """Parameters of a surrogate of a loss, and the surrogate.

    Args:
      sampler: as in `find_step_size`.
      params: of the loss. Up to 2,048 of them keep their shapes, in copies; larger leaves are cut
        short, unless the sampler has constants of their shapes.
      temperature: T.
      spectrum: curvatures and their weights.
      noise: its variance in the stiffest direction, and the mean; `None` without minibatches.
    """
    shapes = params
    if count_degrees(params) > WIDTH:
        short = _shorten(params)
        update = lambda p: sampler(1.0, 1.0, key=0).update(p, _init(sampler, p), p)
        try:
            jax.eval_shape(update, short)
            shapes = short
        except (TypeError, ValueError):  # it has arrays of the shapes of the parameters
            pass
    response, coupled = probe_sampler(sampler, shapes, temperature)
    leaves, treedef = jax.tree.flatten(response)
    copies = max(COPIES if coupled else 1, WIDTH // count_degrees(response))
    moves = np.concatenate([(x > 0).ravel() for x in leaves])
    random = np.random.default_rng(0)
    rank = random.random((copies, moves.size)) + ~moves  # the moving ones first
    order = np.argsort(rank, axis=1)
    number = 1 if coupled else max(1, moves.sum() // STIFF)
    stiffest = np.zeros((copies, moves.size))
    if not coupled and moves.sum() < STIFF:
        stiffest[::2] = 1
    else:
        np.put_along_axis(stiffest, order[:, :number], 1, axis=1)
    stiffest *= moves
    rest = moves - stiffest
    values, weights = spectrum
    if coupled:  # the stiffest has its share
        share = np.maximum(weights - (values == values.max()) / moves.sum(), 0)
        weights = share if share.sum() > 0 else weights
    ascending = np.argsort(values)
    position = np.argsort(order, axis=1) - number  # each copy has the whole spectrum
    offset = (random.permutation(copies)[:, None] + 0.5) / copies
    levels = np.clip((position + offset) / max(1, moves.sum() - number), 0, 1)
    places = np.searchsorted(np.cumsum(weights[ascending]) / weights.sum(), levels)
    drawn = values[ascending][np.minimum(places, len(values) - 1)] / values.max()
    curvature = np.where(stiffest, 1, drawn)
    hottest = moves * (curvature >= ALIKE) if coupled and noise is None else stiffest

    start = random.standard_normal(stiffest.shape)
    for group in (stiffest == 1, rest == 1):  # at T exactly: what has not settled yet is there
        start[group] /= np.sqrt(np.mean(start[group] ** 2)) if group.any() else 1

    def tree(rows: np.ndarray) -> Params:
        parts = np.split(rows, np.cumsum([x.size for x in leaves])[:-1], axis=1)
        shaped = [
            jnp.asarray(part.reshape(copies, *x.shape), jnp.float32)
            for part, x in zip(parts, leaves, strict=True)
        ]
        return jax.tree.unflatten(treedef, shaped)

    each = np.concatenate([x.ravel() for x in leaves])
    return shapes, Surrogate(
        curvature=tree(curvature),
        noise=None if noise is None else tree(np.where(stiffest, *noise)),
        response=tree(np.broadcast_to(each, stiffest.shape)),
        start=tree(start),
        stiffest=tree(hottest),
        typical=tree(np.broadcast_to(moves, stiffest.shape) if coupled else rest),
    )


def measure_law(
    sampler: Sampler,
    like: Params,
    surrogate: Surrogate,
    largest: float,
    temperature: float,
    sizes: np.ndarray,
    softest: np.ndarray,
    key: jax.Array,
    num_steps: int,
) -> Law:
    """Temperatures on the surrogate at each step size, in the later half of the steps.

    Chains begin at T. `softest` bounds curvatures from below, over the largest, `[size]`.
    """

    def run(
        surrogate: Surrogate,
        sizes: jax.Array,
        softest: jax.Array,
        largest: jax.Array,
        T: jax.Array,
        key: jax.Array,
        num_steps: jax.Array,
    ) -> Any:
        def chain(size: Any, softest: Any, one: Surrogate, key: Any) -> Any:
            own_key, noise_key = jax.random.split(key)
            scale = jax.tree.map(lambda P: jnp.where(P > 0, 1 / P, 0), one.response)
            k = jax.tree.map(
                lambda c, s: largest * jnp.maximum(c, softest) * s, one.curvature, scale
            )
            place = lambda k, x: jnp.where(k > 0, jnp.sqrt(T / jnp.where(k > 0, k, 1)), 0) * x
            theta = _cast(jax.tree.map(place, k, one.start), like)
            tx = optax.with_extra_args_support(sampler(size, T, key=own_key))

            def step(t: Any, carry: Any) -> Any:
                theta, state, sums = carry
                grads = jax.tree.map(jnp.multiply, k, theta)
                if one.noise is not None:
                    xi = draw_increments(jax.random.fold_in(noise_key, t), grads, "rademacher")
                    add = lambda g, c, s, xi: g + jnp.sqrt(c * s) * xi
                    grads = jax.tree.map(add, grads, one.noise, scale, xi)
                heat = jax.tree.map(
                    lambda k, p: k * jnp.real(p * jnp.conj(p)) / (T * (1 + jnp.iscomplexobj(p))),
                    k,
                    theta,
                )
                seen = jnp.stack([_sum(heat, one.stiffest), _sum(heat, one.typical)])
                value = sum(jax.tree.leaves(jax.tree.map(jnp.sum, heat))) * T / 2
                moves, state = tx.update(_cast(grads, like), state, theta, value=value)
                theta = optax.apply_updates(theta, moves)
                return theta, state, sums + jnp.where(t >= num_steps // 2, seen, 0)

            carry = theta, tx.init(theta), jnp.zeros(2)
            return jax.lax.fori_loop(0, num_steps, step, carry)[2]

        copies = len(jax.tree.leaves(surrogate.stiffest)[0])
        keys = jax.random.split(key, copies)
        each = jax.vmap(chain, (None, None, 0, 0))
        sums = jax.vmap(lambda size, low: each(size, low, surrogate, keys).sum(0))(sizes, softest)
        number = jnp.stack([_sum(x, x) for x in (surrogate.stiffest, surrogate.typical)])
        steps = num_steps - num_steps // 2
        return sums / (jnp.maximum(number, 1) * steps)[None], number

    numbers = (jnp.asarray(x, jnp.float32) for x in (sizes, softest, largest, temperature))
    operands = (surrogate, *numbers, key, jnp.asarray(num_steps, jnp.int32))
    with jax.debug_nans(False):  # the longest sizes are to diverge
        heat, number = compile_program(run, *operands)(*operands)
    heat = np.asarray(heat, float)
    heat[~np.isfinite(heat)] = np.inf
    return Law(heat[:, 0], heat[:, 1] if number[1] else heat[:, 0])


def _shorten(tree: Params) -> Params:
    """Leaves of at most their share of the width, with as many axes."""
    share = max(STIFF, WIDTH // len(jax.tree.leaves(tree)))
    return jax.tree.map(
        lambda x: x if x.size <= share else jnp.zeros((share, *[1] * (x.ndim - 1)), x.dtype), tree
    )


def _init(sampler: Sampler, params: Params) -> Any:
    return sampler(1.0, 1.0, key=0).init(params)


def _cast(tree: Params, like: Params) -> Params:
    return jax.tree.map(lambda x, y: x.astype(jnp.result_type(y)), tree, like)


def _sum(x: Params, weight: Params) -> jax.Array:
    parts = jax.tree.leaves(jax.tree.map(lambda a, w: jnp.sum(a * w), x, weight))
    return sum(parts, start=jnp.zeros([]))
