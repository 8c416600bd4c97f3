"""The point at which a method that perturbs the weights wants its gradient."""

from collections.abc import Iterator
from typing import Any

import jax
import optax

from .._types import Key, Params, Updates
from ..inputs.keys import check_key, derive_key
from ..noise.increments import NOISES, draw_increments, random_bits_like
from ..samplers.low_precision import is_low, round_at_random


def perturbed(params: Params, opt_state: optax.OptState, key: Key | None = None) -> Any:
    r"""The parameters with the noise of `ivon` or `weight_noise`: where to take the gradient.

        grads = jax.grad(loss)(diffopt.perturbed(params, opt_state), batch)
        updates, opt_state = tx.update(grads, opt_state, params)

    The point is θ + ε. ε is a function of `opt_state` alone: its key moves on at every update of
    the method, and the update computes from it the same ε, which is stored nowhere. So take the
    gradient with the state that you give to the update. Without `perturbed` the loop runs too, but
    on gradients at θ, from which `ivon` learns a wrong h and `weight_noise` nothing.

    The state of the method is found wherever it lies: in `optax.chain`, `optax.partition`,
    `optax.masked` (parameters that are left out stay as they are), `optax.inject_hyperparams`,
    `low_precision`. Under `optax.MultiSteps` every part of an accumulation has an ε of its own
    (with `ivon` where its `draws` say so). Where several devices share a batch, all have the same
    ε. Parameters of 16 bits are rounded at random to one of the two neighbours of θ + ε, so that
    no ε is lost and their mean is θ.

    With a `key` the point is a draw from the method's distribution around θ, of `ivon` from the
    posterior that it has learned: `predictive` takes such draws. In 16 bits give
    `exact_params(params, opt_state)` for float32 draws.

    Cost: one ε for each parameter, as in a step of `sgld`, beside that of the update.

    Args:
      params: the parameters θ.
      opt_state: the state of a transformation with one or more states of `ivon` or `weight_noise`
        in it. Several are for disjoint parts of the parameters; where they overlap, noises add.
      key: None for the next gradient; an int or a PRNG key for a draw.

    Returns:
      A tree like `params`, of the same dtypes. It has the gradient of `params` itself: ε counts
      as a constant.

    Raises:
      ValueError: no state in `opt_state` is that of a method that perturbs.
      TypeError: `key` is no key, or `params` have another structure than at `init`, or of `ivon`
        other shapes.

    Examples:
      >>> import diffopt, jax, jax.numpy as jnp, optax
      >>> tx = optax.chain(diffopt.weight_noise(0.1), optax.sgd(0.1))
      >>> params = jnp.ones(3)
      >>> state = tx.init(params)
      >>> point = diffopt.perturbed(params, state)
      >>> bool(jnp.all(point != params)), bool(jnp.all(abs(point - params) < 0.5))
      (True, True)
      >>> keys = jax.random.split(jax.random.key(1), 1000)
      >>> samples = jax.vmap(lambda key: diffopt.perturbed(params, state, key))(keys)
      >>> [round(float(x), 1) for x in samples.std(0)]
      [0.1, 0.1, 0.1]
    """
    found = list(find_perturbing(opt_state))
    if not found:
        raise ValueError(
            "opt_state must hold a state of ivon or weight_noise, got none in"
            f" {jax.tree.structure(opt_state)}"
        )
    if key is not None:
        check_key(key)
    exact = params
    for number, (state, part) in enumerate(found):
        ((noise, own),) = state.noise.items()
        if key is None:
            draw_key = key_of_part(own, part)
        else:
            draw_key = jax.random.fold_in(derive_key(key, "perturbed"), number)
        deviations = state.deviations(params)
        xi = draw_increments(draw_key, keep_unmasked(deviations, params), noise)
        exact = jax.tree.map(_add, deviations, xi, exact, is_leaf=is_masked)
    if any(is_low(p) for p in jax.tree.leaves(params)):
        bits = random_bits_like(derive_key(draw_key, "rounding"), params)
        return jax.tree.map(_round, params, exact, bits)
    return exact


def check_noise(noise: str) -> None:
    """Raise a ValueError unless `noise` is a name: the state holds a name, and no function."""
    if not isinstance(noise, str) or noise not in NOISES:
        raise ValueError(f"noise must be one of {sorted(NOISES)}, got {noise!r}")


def key_of_part(keys: jax.Array, part: Any) -> jax.Array:
    """The key of ε for one part of an accumulation.

    Several keys are taken in turn; one key gives every part another ε.
    """
    if keys.ndim:
        return jax.random.fold_in(keys[part % len(keys)], 1)
    return jax.random.fold_in(keys, 1 + part)


def next_keys(keys: jax.Array) -> jax.Array:
    """The keys of the step after: no `split`, as both steps of a loop read those of this one."""
    if keys.ndim:
        return jax.vmap(next_keys)(keys)
    return jax.random.fold_in(keys, 0)


def find_perturbing(opt_state: Any, part: Any = 0) -> Iterator[tuple[Any, Any]]:
    """The states that perturb, and the part of the accumulation in which each is."""
    accumulates = lambda x: hasattr(x, "mini_step") and hasattr(x, "inner_opt_state")
    for x in jax.tree.leaves(opt_state, is_leaf=lambda x: accumulates(x) or _perturbs(x)):
        if accumulates(x):
            yield from find_perturbing(x.inner_opt_state, x.mini_step)
        elif _perturbs(x):
            yield x, part


def _perturbs(x: Any) -> bool:
    return hasattr(x, "noise") and hasattr(x, "deviations")


def is_masked(x: Any) -> bool:
    """Whether Optax left out what was here."""
    return isinstance(x, optax.MaskedNode)


def keep_unmasked(mask: Any, params: Params) -> Updates:
    """`params` with what `mask` leaves out left out: as the method saw them at `init`."""
    return jax.tree.map(lambda m, p: m if is_masked(m) else p, mask, params, is_leaf=is_masked)


def _add(deviation: Any, xi: Any, p: Any) -> Any:
    """θ + ε in the dtype of ξ, 32 bits or more."""
    if is_masked(deviation):
        return p
    with jax.numpy_dtype_promotion("standard"):
        return p + jax.lax.stop_gradient(deviation * xi)


def _round(p: Any, x: Any, bits: Any) -> Any:
    """`x` in the dtype of `p`, at random where that has 16 bits; what was left out is `p`."""
    if x is p or not is_low(p):
        return x
    return p + jax.lax.stop_gradient(round_at_random(x, p.dtype, bits) - p)
