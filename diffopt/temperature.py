"""What temperature a chain is really at, and how hot the noise of its gradients makes it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .inputs.scalars import as_float, check_number
from .inputs.trees import (
    array_dtype,
    check_inexact,
    check_like,
    count_degrees,
    find_states,
    in_structure_of,
    leading_length,
    mean_product,
)
from .noise.increments import draw_increments


class Temperature(NamedTuple):
    """An estimate of the temperature, in units of the loss.

    Attributes:
      overall: over all parameters, a float32 scalar.
      per_leaf: a tree like the parameters with one such scalar for each leaf.
    """

    overall: jax.Array
    per_leaf: Any


def configurational_temperature(params: Any, grads: Any) -> Temperature:
    r"""The temperature that the positions of a chain show: the mean of θ·∇L(θ).

    At temperature T the mean of θᵢ ∂L/∂θᵢ is T for each parameter, whatever the loss, as long as
    exp(-L/T) vanishes at infinity (a loss without a prior or weight decay need not). For one
    state of the chain the estimate is θ·∇L(θ)/d over d parameters; average it over states.
    Gradients of a minibatch serve as well, because their noise is independent of θ. Give the
    gradient of the loss you sample, with weight decay and other priors, before clipping and
    preconditioning. Take it at these parameters: `params` and gradients from the same step.

    A chain at equilibrium shows T, but a chain that shows T may not be at equilibrium: the estimate
    is a mean over directions, and some can be hotter than T while others are colder. Minibatch
    noise that differs by direction does this, under `sgnht` while every mean reads T:
    `gradient_noise_temperature` shows by how much.

    The estimate is above T where the steps are too long (`sgld` on kθ²/2 is at T/(1 - ηk/2)) or the
    gradients are noisier than the sampler knows. It is below T where a parameter has not yet
    spread. A chain that has not settled shows either.

    For d parameters of curvature k, with the minimum at c in each, its standard error for one state
    is T √(2/d + c²k/(Td)): T √(2/d) where the minimum is at 0, and many times T where it is far
    from there. Any fixed point may be the origin, so give `params` less one near the minimum; the
    temperatures of `sample` are measured so.

    Args:
      params: a tree of parameters θ.
      grads: ∇L(θ), a like tree.

    Returns:
      A `Temperature`: θ·∇L over the number of parameters, in all and for each leaf.

    Raises:
      TypeError: a parameter is not floating-point, or `grads` is no tree like `params`.

    Examples:
      >>> import diffopt, jax, jax.numpy as jnp
      >>> params = {"w": 2 * jax.random.normal(jax.random.key(0), (10_000,))}
      >>> grads = jax.grad(lambda p: jnp.sum(p["w"] ** 2) / 2)(params)
      >>> temperature = diffopt.configurational_temperature(params, grads)
      >>> bool(abs(temperature.overall - 4.0) < 0.2), sorted(temperature.per_leaf)
      (True, ['w'])

    References:
      Wenzel et al., [How Good is the Bayes Posterior in Deep Neural Networks
      Really?](https://arxiv.org/abs/2002.02405), ICML 2020.
    """
    check_inexact(params)
    grads = in_structure_of(params, grads)
    check_like("grads", grads, params)
    return Temperature(mean_product(params, grads), jax.tree.map(mean_product, params, grads))


def kinetic_temperature(opt_state: Any) -> Temperature:
    r"""The temperature that the velocities of a chain show: the mean of M v².

    At temperature T each velocity is distributed as N(0, T/M). The mass M belongs to the sampler
    and comes from its state: with `baoab` and `ubu` M = 1, with `sghmc` (1 + m)/(2η), and with
    `sgnht` (2 - α)/(2η). So the mean of M v² is T exactly for `sgnht`; exactly for `baoab` on a
    quadratic loss and up to O(h²) on others, as for `ubu` on all; and T/(1 - ηk/(2(1 + m))) for
    `sghmc` on kθ²/2.

    It tells within a few steps if noisy gradients overheat the velocities, but nothing of where
    the positions are: `configurational_temperature` tells that. A leaf with one and not the
    other at T is not at equilibrium. With both at T it may still not be: they are means over
    directions, and `sgnht` holds this one at T by making quiet directions colder than T where
    noisy ones are hotter. `gradient_noise_temperature` tells these apart.

    For d parameters its standard error is T √(2/d) for one state; average it over states. For a
    batch of chains, use `jax.vmap(kinetic_temperature)`.

    Args:
      opt_state: a state with the fields `velocity` and `mass`, from `sghmc`, `baoab`, `sgnht` or a
        `sampler` of your own, or the state of an Optax transformation that has
        exactly one such state in it (`optax.chain`, `optax.MultiSteps`, ...).

    Returns:
      A `Temperature`; 0 before the first step.

    Raises:
      ValueError: no state in `opt_state` has velocities, or several have; its mass is no scalar.

    Examples:
      >>> import diffopt, jax.numpy as jnp, optax
      >>> tx = optax.chain(optax.clip_by_global_norm(1.0), diffopt.baoab(0.1, 0.5, friction=100.0))
      >>> params = {"w": jnp.zeros(10_000)}
      >>> _, state = tx.update(params, tx.init(params))
      >>> bool(abs(diffopt.kinetic_temperature(state).per_leaf["w"] - 0.5) < 0.03)
      True

    References:
      Wenzel et al., [How Good is the Bayes Posterior in Deep Neural Networks
      Really?](https://arxiv.org/abs/2002.02405), ICML 2020.
    """
    states = find_states(opt_state, "velocity", "mass")
    if len(states) != 1:
        cure = "pass one of them alone" if states else "take configurational_temperature"
        raise ValueError(
            "opt_state must hold exactly one state with velocity and mass, such as sghmc's, baoab's"
            f" or sgnht's, got {len(states)}: {cure}"
        )
    (state,) = states
    velocity, mass = state.velocity, state.mass
    if jnp.ndim(mass):
        raise ValueError(
            f"mass must be a scalar, got shape {jnp.shape(mass)}: for many chains use"
            " jax.vmap(kinetic_temperature), after sample on samples.state.opt_state"
        )
    return Temperature(
        mass * mean_product(velocity, velocity),
        jax.tree.map(lambda v: mass * mean_product(v, v), velocity),
    )


class NoiseTemperature(NamedTuple):
    """What the noise of the gradients adds to the temperature, in units of the loss.

    Attributes:
      overall: a, the mean over all parameters, a float32 scalar.
      per_leaf: a tree like the parameters with one such scalar for each leaf.
      noisiest: a along the direction in which the gradients are noisiest, likewise.
      stiffest: a along the direction in which the loss is curved most, or None without `hvp`.
      curvature: the curvature k of the loss along that direction, or None.
    """

    overall: jax.Array
    per_leaf: Any
    noisiest: jax.Array
    stiffest: jax.Array | None
    curvature: jax.Array | None


def gradient_noise_temperature(
    grads: Any,
    learning_rate: float | jax.Array,
    *,
    momentum: float | jax.Array = 0.0,
    hvp: Callable[[Any], Any] | None = None,
) -> NoiseTemperature:
    r"""How much hotter than T the noise of minibatches makes a chain, and in which directions.

    Gradients with noise of variance σ² along a direction give it at each step an increment of
    variance η²σ² that the sampler knows nothing of. That direction is then not at T, but at

        T + a                with `sgld` (m = 0) and `sghmc`,  a = ησ² / (2(1 - m))
        T (T + a)/(T + ā)    with `sgnht`,  ā the mean of a over all directions

    so that on kθ²/2 the variance along it is that temperature over k (beside the error of a finite
    step), and intervals are too wide by the factor √(1 + a/T), or √((T + a)/(T + ā)). Look at it
    before you trust an interval:

    - `noisiest / T` well below 1 (0.1 makes intervals 5 % too wide): the noise does not matter.
    - Otherwise intervals along the noisiest directions are too wide, and with `sgnht` those along
      quiet ones too narrow, by √(1 + ā/T) at most, though its temperatures read T: ā is `overall`.
      a is proportional to η and to one over the batch size.
    - `stiffest` counts where the data say most: for a likelihood the noise of the gradients has
      about the shape of the curvature, so that stiff directions are noisy too.

    σ² is estimated from B minibatches, unbiased: relative error √(2/B) along one direction, much
    less in the means. The noisiest direction is found from one half of the minibatches and measured
    with the other, and in turn, or chance would make a direction of a large network look noisy that
    is not; with few minibatches it is therefore missed rather than overstated. The stiffest one is
    found by 100 power iterations.

    For `baoab` with a small friction, take η = h² and m = exp(-γh).

    Args:
      grads: a tree of gradients `[B, ...]` of B ≥ 4 minibatches, drawn as the sampler's are (of the
        same size), all at the same parameters; these should be where the chain samples.
      learning_rate: the step size η > 0, a number or a 0-d array.
      momentum: m in [0, 1), likewise; 0 for `sgld`.
      hvp: the product of the loss's Hessian with a tree like the parameters, at those parameters,
        such as `lambda v: jax.jvp(jax.grad(loss), (params,), (v,))[1]`.

    Returns:
      A `NoiseTemperature`.

    Raises:
      ValueError: `learning_rate` is not positive and finite; `momentum` is not in [0, 1); `grads`
        have no leaves, leading axes that differ, or fewer than 4 minibatches.
      TypeError: an argument is of the wrong type; a gradient is not floating-point.

    Examples:
      Linear regression, minibatches of 10, a posterior temperature of 1/N.

      >>> import diffopt, jax, jax.numpy as jnp
      >>> x = jax.random.normal(jax.random.key(0), (1000, 2)) * jnp.array([1.0, 5.0])
      >>> w = jnp.array([1.0, -1.0])
      >>> y = x @ w + jax.random.normal(jax.random.key(1), (1000,))
      >>> loss = lambda w, x, y: jnp.mean((x @ w - y) ** 2) / 2
      >>> batches = x.reshape(100, 10, 2), y.reshape(100, 10)
      >>> grads = jax.vmap(jax.grad(loss), (None, 0, 0))(w, *batches)
      >>> hvp = lambda v: jax.jvp(lambda w: jax.grad(loss)(w, x, y), (w,), (v,))[1]
      >>> noise = diffopt.gradient_noise_temperature(grads, 0.001, hvp=hvp)
      >>> print(f"{noise.noisiest * 1000:.0f} T, {noise.stiffest * 1000:.0f} T")  # T = 1/1000
      1 T, 1 T

    References:
      Mandt, Hoffman & Blei, [Stochastic Gradient Descent as Approximate Bayesian
      Inference](https://arxiv.org/abs/1704.04289), JMLR 2017.
      Ding et al., [Bayesian Sampling Using Stochastic Gradient Thermostats](
      https://papers.nips.cc/paper/5592-bayesian-sampling-using-stochastic-gradient-thermostats),
      NeurIPS 2014.
    """
    check_number("learning_rate", learning_rate, positive=True)
    check_number("momentum", momentum, below=1)
    check_inexact(grads, "grads")
    B = leading_length("grads", grads, "minibatches")
    if B < 4:
        raise ValueError(f"grads must hold 4 minibatches or more, got {B}")
    with jax.numpy_dtype_promotion("standard"):
        scale = as_float(learning_rate) / (2 * (1 - as_float(momentum)))
        heat = lambda variance: (scale * variance).astype(jnp.float32)
        noise = jax.tree.map(_deviations, grads)
        per_element = lambda x: heat(mean_product(x, x) * B / (B - 1))
        along_stiffest, curvature = None, None
        if hvp is not None:
            like = jax.tree.map(lambda g: g[0], grads)
            direction, curvature = find_stiffest(hvp, like, jax.random.key(0), products=100)
            along = jax.vmap(lambda g: _dot(g, direction))(noise)
            along_stiffest = heat(jnp.var(along, ddof=1))
        return NoiseTemperature(
            overall=per_element(noise),
            per_leaf=jax.tree.map(per_element, noise),
            noisiest=heat(_noisiest(noise, B)),
            stiffest=along_stiffest,
            curvature=curvature,
        )


def _deviations(g: jax.Array) -> jax.Array:
    """g less its mean over the leading axis, in float32 or wider."""
    g = jnp.asarray(g, jnp.promote_types(array_dtype(g), jnp.float32))
    return g - g.mean(0, keepdims=True)


def _dot(x: Any, y: Any) -> jax.Array:
    return mean_product(x, y) * float(count_degrees(x))


@partial(jax.jit, static_argnames="B")
def _noisiest(noise: Any, B: int) -> jax.Array:
    """The variance along the direction in which one half of the minibatches varies most."""

    def products(x: jax.Array) -> jax.Array:
        rows = x.reshape(B, -1)
        return jnp.real(jnp.matmul(rows, rows.conj().T, precision="highest"))

    gram: Any = sum(jax.tree.leaves(jax.tree.map(products, noise)))

    def variance_along(half: jax.Array, other: jax.Array) -> jax.Array:
        inner = gram[jnp.ix_(half, half)]
        inner = inner - inner.mean(0)[None] - inner.mean(1)[:, None] + inner.mean()
        weights = jnp.linalg.eigh(inner)[1][:, -1]
        weights = weights - weights.mean()
        norm = weights @ gram[jnp.ix_(half, half)] @ weights
        along = weights @ gram[jnp.ix_(half, other)]
        return jnp.where(norm <= 0, 0, jnp.var(along, ddof=1) / jnp.where(norm <= 0, 1, norm))

    even, odd = jnp.arange(0, B, 2), jnp.arange(1, B, 2)
    return (variance_along(even, odd) + variance_along(odd, even)) / 2


def find_stiffest(
    hvp: Callable[[Any], Any], like: Any, key: jax.Array, products: int
) -> tuple[Any, jax.Array]:
    """The unit vector of the largest curvature in size, and that curvature, by power iterations.

    Where the Hessian is 0 the vector is too.
    """

    def unit(tree: Any) -> Any:
        norm = jnp.sqrt(_dot(tree, tree))
        norm = jnp.where(norm > 0, norm, 1)
        return jax.tree.map(lambda x, y: (x / norm).astype(jnp.result_type(y)), tree, like)

    start = unit(draw_increments(key, like, "gaussian"))
    direction = jax.lax.fori_loop(0, products, lambda _, v: unit(hvp(v)), start)
    return direction, _dot(direction, hvp(direction))
