"""How a loss is curved at a point, and how noisy the gradients of its minibatches are there."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._types import Batch, Loss, Params
from ..inputs.trees import count_degrees, mean_product
from ..noise.increments import draw_increments
from ..run.program import compile_program
from ..temperature import gradient_noise_temperature

NEGLIGIBLE = 1e-5  # of the largest curvature: what rounding leaves


class Curvatures(NamedTuple):
    """What Lanczos' iteration tells of the Hessian.

    Attributes:
      values: curvatures, `[product]`, or one for each parameter that moves where those are fewer.
      weights: of the values in the spectrum, of sum 1.
      axis: the unit vector of the largest, a tree like the parameters.
    """

    values: np.ndarray
    weights: np.ndarray
    axis: Params


class GradientNoise(NamedTuple):
    """Variances of the gradients of minibatches.

    Attributes:
      mean: over all parameters that move.
      stiffest: along the stiffest direction.
      noisiest: along the noisiest.
    """

    mean: float
    stiffest: float
    noisiest: float


def take_gradients(
    loss: Loss, params: Params, data: Batch, batches: jax.Array | None
) -> tuple[np.ndarray, Params]:
    """Losses and gradients of batches, given by their examples, or of all data: `[batch, ...]`."""

    def take(params: Params, data: Batch, batches: Any) -> Any:
        gradient = lambda index: jax.value_and_grad(loss)(params, *_select(data, index))
        values, grads = _map(gradient, batches)
        return values, jax.tree.map(jnp.conj, grads)

    operands = params, data, batches
    values, grads = compile_program(take, *operands)(*operands)
    return np.asarray(values, float), grads


def find_curvatures(
    loss: Loss,
    params: Params,
    scale: Params,
    data: Batch,
    batches: jax.Array | None,
    key: jax.Array,
    products: int,
    moving: int,
) -> Curvatures:
    """Curvatures of S H S, H the mean Hessian of the batches and S the diagonal `scale`.

    Lanczos' iteration from a random vector finds the largest to a few percent in twenty products,
    and the values with their weights have the moments of the whole spectrum, as that vector sees
    it: a Gauss quadrature. With no more parameters than products it finds every curvature: where
    it ends in a subspace, it goes on from a random vector outside.
    """

    def iterate(params: Params, scale: Params, data: Batch, batches: Any, key: jax.Array) -> Any:
        wide = jax.tree.map(
            lambda p: jnp.zeros(p.shape, jnp.promote_types(jnp.result_type(p), jnp.float32)), params
        )
        degrees = float(count_degrees(params))
        dot = lambda x, y: mean_product(x, y) * degrees
        times = lambda v: jax.tree.map(jnp.multiply, scale, v)
        cast = lambda tree, like: jax.tree.map(lambda x, y: x.astype(y.dtype), tree, like)

        def apply_hessian(v: Params) -> Params:
            direction = cast(times(v), params)

            def product(index: Any) -> Params:
                batch = _select(data, index)
                gradient = lambda p: jax.tree.map(jnp.conj, jax.grad(loss)(p, *batch))
                return jax.jvp(gradient, (params,), (direction,))[1]

            each = _map(product, batches)
            return times(jax.tree.map(lambda x, w: x.astype(w.dtype).mean(0), each, wide))

        def normalize(v: Params, least: Any) -> tuple[Params, jax.Array]:
            norm = jnp.sqrt(dot(v, v))
            norm = jnp.where(norm > least, norm, 0)
            safe = jnp.where(norm > 0, norm, 1)
            return jax.tree.map(lambda x: jnp.where(norm > 0, x / safe, 0), v), norm

        def combine(weights: jax.Array, basis: Params) -> Params:
            return jax.tree.map(lambda b: jnp.tensordot(weights.astype(b.dtype), b, 1), basis)

        def leave(basis: Params, w: Params) -> Params:
            along = jax.vmap(dot, (0, None))(basis, w)
            return jax.tree.map(jnp.subtract, w, combine(along, basis))

        def step(i: Any, carry: Any) -> Any:
            basis, alphas, betas, largest = carry
            v = jax.tree.map(lambda b: b[i], basis)
            w = apply_hessian(v)
            alpha = dot(v, w)
            w = leave(basis, leave(basis, w))  # rounding would bring the first vectors back
            largest = jnp.maximum(largest, jnp.abs(alpha))
            v, beta = normalize(w, NEGLIGIBLE * largest)
            if moving <= products:
                other = leave(basis, leave(basis, draw(jax.random.fold_in(key, i))))
                other, _ = normalize(other, NEGLIGIBLE)
                v = jax.tree.map(lambda v, x: jnp.where(beta > 0, v, x), v, other)
            largest = jnp.maximum(largest, beta)
            basis = jax.tree.map(lambda b, x: b.at[i + 1].set(x, mode="drop"), basis, v)
            return basis, alphas.at[i].set(alpha), betas.at[i].set(beta), largest

        def draw(key: jax.Array) -> Params:
            xi = draw_increments(key, wide, "gaussian")
            return jax.tree.map(lambda s, xi: xi * (s > 0), scale, xi)

        first, _ = normalize(draw(key), 0.0)
        basis = jax.tree.map(lambda x: jnp.zeros((products, *x.shape), x.dtype).at[0].set(x), first)
        zeros = jnp.zeros(products)
        return jax.lax.fori_loop(0, products, step, (basis, zeros, zeros, jnp.zeros([])))[:3]

    operands = params, scale, data, batches, key
    basis, alphas, betas = compile_program(iterate, *operands)(*operands)
    alphas, betas = np.asarray(alphas, float), np.asarray(betas, float)[:-1]
    if not (np.isfinite(alphas).all() and np.isfinite(betas).all()):
        raise ValueError("the Hessian of loss must be finite at params")
    tridiagonal = np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1)
    values, vectors = np.linalg.eigh(tridiagonal[:moving, :moving])
    weights = vectors[0] ** 2 if moving > products else np.full(moving, 1 / moving)
    top = jnp.zeros(products).at[: len(values)].set(vectors[:, -1])
    axis = jax.tree.map(lambda b: jnp.tensordot(top.astype(b.dtype), b, 1), basis)
    return Curvatures(values[::-1], weights[::-1], axis)


def measure_noise(grads: Params, scale: Params, axis: Params, moving: int) -> GradientNoise:
    """The noise of S times the gradients of batches, `[batch, ...]`."""
    grads = jax.tree.map(lambda s, g: s * g, scale, grads)
    degrees = count_degrees(axis)
    heat = gradient_noise_temperature(grads, 2.0)  # ησ²/2 is σ²
    along = jax.vmap(lambda g: mean_product(axis, g) * degrees)(grads)
    return GradientNoise(
        mean=float(heat.overall) * degrees / moving,
        stiffest=float(np.var(np.asarray(along, float), ddof=1)),
        noisiest=float(heat.noisiest),
    )


def _select(data: Batch, index: jax.Array | None) -> tuple[Batch, ...]:
    if data is None:
        return ()
    return (data if index is None else jax.tree.map(lambda x: x[index], data),)


def _map(function: Any, batches: jax.Array | None) -> Any:
    """The results for batches, one after another; for all data, one result."""
    if batches is None:
        return jax.tree.map(lambda x: jnp.asarray(x)[None], function(None))
    return jax.lax.map(function, batches)
