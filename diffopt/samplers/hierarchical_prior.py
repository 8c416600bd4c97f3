"""A Gaussian prior whose precision is sampled with the parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..inputs.keys import check_key, derive_key
from ..inputs.scalars import as_float, check_int, check_number, check_scalar, value_at
from ..inputs.trees import cast_like, check_inexact, count_degrees, mean_product


class HierarchicalPriorState(NamedTuple):
    """State of `hierarchical_prior`.

    Attributes:
      count: steps taken, an int32 scalar that stays at 2³¹ - 1 once it is there.
      key: a typed PRNG key, split at every step.
      precision: λ of each leaf, a tree like the parameters of float32 scalars.
    """

    count: jax.Array  # type: ignore[assignment]
    key: jax.Array
    precision: Any


def hierarchical_prior(
    temperature: optax.ScalarOrSchedule,
    *,
    shape: float | jax.Array = 1.0,
    rate: float | jax.Array = 1.0,
    every: int = 10,
    key: int | jax.Array = 0,
) -> optax.GradientTransformation:
    r"""Add the gradient of a Gaussian prior whose precision is sampled for each leaf.

    Each of the d parameters of a leaf θ has the prior N(0, 1/λ). The precision λ is one number for
    the leaf and has the prior Gamma(shape, rate), of mean shape/rate. The chain samples both:

        p(θ, λ) ∝ exp(-L(θ)/T) · Π λ^(d/2) exp(-λ|θ|²/2) · λ^(shape - 1) exp(-rate λ)

    where the product is over the leaves. Given λ, the gradient is the one of
    `gaussian_prior(1/λ, T)`, with the temperature T of the sampler that follows. Given θ, λ is
    independent of the loss and has a Gamma law. It is drawn from this law at the first step and
    then once in `every` steps (Gibbs):

        λ' ~ Gamma(shape + d/2, rate + |θ|²/2), or λ' = λ between draws
        g ← g + T (λ + λ')/2 θ
        λ ← λ'

    T stands in the gradient alone: it tempers the loss, as 1/N does for a mean over N examples, but
    not the priors of θ and λ. At T = 0 gradients pass unchanged. Half of the gradient uses the old
    λ, because the velocities of `baoab` and `sghmc` stand half a kick behind the parameters. (With
    λ' alone a chain of `baoab` that draws at every step is far from its law.)

    With λ integrated out, the prior of a leaf is Student's t with 2·shape degrees of freedom and
    the squared scale rate/shape: heavier tails than a Gaussian, and one scale for the leaf that the
    data choose. The draws are exact at every `every`, so only the sampler's step has an error: of
    second order for `baoab`, of first order for `sgld`.

    Where it goes: first in the chain, before the sampler:

        tx = optax.chain(diffopt.hierarchical_prior(T), diffopt.baoab(h, T))

    Choose it where the scale of the weights is not known and would be tuned as weight decay: λT is
    the decay, found layer by layer from the draws, and `state.precision` shows it. Start the chain
    at the weights that initialize a network: at 0 the first λ is far too large. A leaf of many
    parameters determines its λ to √(2/d), and for it the prior of λ hardly matters; with few and
    with a small `rate`, a layer can die: θ near 0 makes λ large, and λ holds θ there.

    Memory: a number for each leaf. A draw costs one sum over the parameters and one Gamma number
    for each leaf, once in `every` steps; where the steps of chains are one `jax.vmap`, that cost
    falls on every step. A scale per group of leaves is `optax.masked` around several of these, each
    with its own key.

    Args:
      temperature: T ≥ 0 of the sampler, in units of the loss: a number, a 0-d array or a schedule
        of the step count.
      shape: of the Gamma prior of λ, > 0, a number or a 0-d array.
      rate: of the Gamma prior of λ, > 0, in units of θ², likewise.
      every: λ is drawn at the first step, and then once in so many.
      key: an int or a PRNG key, of the draws of λ. It may equal the sampler's.

    Returns:
      An `optax.GradientTransformation` with a `HierarchicalPriorState`; its `update` needs
      `params`. Shapes and dtypes of the gradients are kept; a complex element is two real ones.

    Raises:
      ValueError: `temperature` is negative, NaN or infinite; `shape` or `rate` is not positive and
        finite; `every` is less than 1; `update` gets no `params`.
      TypeError: an argument is of the wrong type; at `init`, a parameter is not floating-point.

    Examples:
      A hundred effects of scale 3, each seen once with unit noise: their scale is sampled too.

      >>> import diffopt, jax, jax.numpy as jnp, optax
      >>> y = 3 * jax.random.normal(jax.random.key(1), (100,))
      >>> tx = optax.chain(diffopt.hierarchical_prior(1.0), diffopt.baoab(0.3, 1.0))
      >>> @jax.jit
      ... def step(carry, _):
      ...     params, state = carry
      ...     updates, state = tx.update(params - y, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     return (params, state), state[0].precision
      >>> _, precision = jax.lax.scan(step, (y, tx.init(y)), length=5_000)
      >>> bool(2.5 < jnp.mean(precision[500:]) ** -0.5 < 3.5)
      True

    References:
      Gibbs for the precisions beside SGHMC for the weights: Chen, Fox & Guestrin, [Stochastic
      Gradient Hamiltonian Monte Carlo](https://arxiv.org/abs/1402.4102), ICML 2014, section 4.
    """
    check_scalar("temperature", temperature)
    check_number("shape", shape, positive=True)
    check_number("rate", rate, positive=True)
    check_int("every", every, least=1)
    check_key(key)

    def init_fn(params: optax.Params) -> HierarchicalPriorState:
        check_inexact(params)
        mean = as_float(shape) / as_float(rate)
        precision = jax.tree.map(lambda _: jnp.array(mean, jnp.float32), params)
        start = derive_key(key, "hierarchical prior")
        return HierarchicalPriorState(jnp.zeros([], jnp.int32), start, precision)

    def draw(key: jax.Array, params: Any, precision: Any) -> Any:
        leaves, structure = jax.tree.flatten(params)
        if not leaves:
            return precision
        degrees = jnp.array([float(count_degrees(p)) for p in leaves], jnp.float32)
        squares = degrees * jnp.stack([mean_product(p, p) for p in leaves])
        gamma = jax.random.gamma(key, as_float(shape) + degrees / 2, dtype=jnp.float32)
        drawn = gamma / (as_float(rate) + squares / 2)
        return cast_like(jax.tree.unflatten(structure, list(drawn)), precision)

    def update_fn(
        updates: optax.Updates, state: HierarchicalPriorState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, HierarchicalPriorState]:
        if params is None:
            raise ValueError("hierarchical_prior needs params: tx.update(grads, opt_state, params)")
        key, subkey = jax.random.split(state.key)
        T = value_at(temperature, state.count)
        with jax.numpy_dtype_promotion("standard"):  # `cast_like` is meant
            precision = jax.lax.cond(
                state.count % every == 0, lambda: draw(subkey, params, state.precision),
                lambda: state.precision,
            )  # fmt: skip
            moves = jax.tree.map(
                lambda g, p, a, b: None if g is None else g + T * (a + b) / 2 * p,
                updates, params, state.precision, precision, is_leaf=lambda x: x is None,
            )  # fmt: skip
        count = optax.safe_increment(state.count)
        return cast_like(moves, updates), HierarchicalPriorState(count, key, precision)

    return optax.GradientTransformation(init_fn, update_fn)
