"""The frame that all samplers share: the key, the increments, the casts and the count."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._types import Noise
from ..inputs.keys import check_key, derive_key
from ..inputs.scalars import check_int
from ..inputs.trees import cast_like, check_inexact, check_like
from ..noise.increments import draw_increments, get_noise


class SamplerState(NamedTuple):
    """State of `langevin`, `sgld` and of any sampler that keeps nothing else.

    Attributes:
      count: steps taken, an int32 scalar that stays at 2³¹ - 1 once it is there.
      key: a typed PRNG key, split at every step.
    """

    count: jax.Array  # type: ignore[assignment]
    key: jax.Array


def sampler(
    step: Callable[[optax.Updates, optax.Updates, Any], tuple[optax.Updates, Any]],
    init: Callable[[optax.Params, jax.Array, jax.Array], Any] | None = None,
    *,
    increments: int = 1,
    key: int | jax.Array = 0,
    noise: Noise = "gaussian",
) -> optax.GradientTransformationExtraArgs:
    r"""Make a sampler from its equation: the frame in which every sampler of diffopt is written.

    The equation is a function `step(g, xi, state) -> (updates, state)` of trees: the gradient g, a
    fresh increment ξ ~ N(0, I) in every element, and the state before the step. The frame does the
    rest: it checks the key, the noise and the parameters, splits the key, draws ξ, counts the
    steps and casts. Your sampler then works under `jax.jit`, `scan`, `vmap`, sharding,
    `optax.MultiSteps` and checkpoints, like the samplers of diffopt.

    Args:
      step: the equation. g and ξ are in float32 or wider, whatever the gradients are; the frame
        rounds what comes out. In the new state it may leave `count` and `key` as they are. Read a
        schedule at `state.count`.
      init: `init(params, count, key)` gives the first state, a NamedTuple with the fields `count`
        and `key` and whatever the sampler keeps. By default a `SamplerState`. A state with a
        `velocity` (a tree like the parameters) and a `mass` (a scalar) can be read by
        `kinetic_temperature`, and a `half_kick` tells `replica_exchange` how far the velocity
        stands behind the parameters (see `UnderdampedState`).
      increments: how many independent increments a step takes: where more than 1, ξ is a tuple of
        as many trees.
      key: an int or a PRNG key, typed or raw. The state's key is derived from it so that no
        `split` or `fold_in` of yours meets it: the key that initialized the network will do. But
        equal keys give equal noise: give each sampler in one program its own, each chain by
        `split_keys`, and, where a new state is made each epoch, each epoch
        `jax.random.fold_in(key, epoch)`.
      noise: the law of ξ: `"gaussian"` (the numbers of `jax.random.normal`), `"gaussian16"` (from
        16 bits each, several times cheaper: 65,536 values up to ±4.43, the fourth moment 3 to
        2·10⁻⁵ of it, numbers of its own), `"rademacher"` (±1 with equal probability, from one
        random bit; mean, variance and third moment are a Gaussian's, so an Euler-Maruyama
        step keeps its weak order 1, but a step never moves an element further than its standard
        deviation), or a function `(key, shape, dtype) -> array` of mean 0 and variance 1, which
        `optax.inject_hyperparams` takes for a schedule unless it is told `static_args="noise"`.

    Returns:
      An `optax.GradientTransformationExtraArgs`. A complex leaf is two real ones; `None` leaves
      stay `None`. Extra arguments of `update` are ignored.

    Raises:
      ValueError: `noise` is an unknown name, or `increments` is less than 1. From the samplers of
        diffopt also: a step size is not positive and finite; a temperature, a friction or a
        diffusion coefficient is negative, NaN or infinite; a momentum or a decay is not in [0, 1).
      TypeError: `key` is no key, or `increments` no int, or another argument is of the wrong type;
        at `init`, a parameter is not floating-point, or the state has no `count` and `key`; at
        `update`, `step` gives another structure or other shapes.

    Examples:
      SGLD in coordinates of one's own scale: dθ = -G∇L dt + √(2TG) dW with a constant G, which
      keeps the stationary density exp(-L/T) and takes steps of length ηG.

      >>> import diffopt, jax, jax.numpy as jnp
      >>> def scaled_sgld(learning_rate, temperature, scales, *, key=0):
      ...     def step(g, xi, state):
      ...         move = lambda g, xi, G: (
      ...             -learning_rate * G * g + jnp.sqrt(2 * temperature * learning_rate * G) * xi
      ...         )
      ...         return jax.tree.map(move, g, xi, scales), state
      ...     return diffopt.sampler(step, key=key)
      >>> params = {"soft": jnp.ones(3), "stiff": jnp.ones(3)}
      >>> tx = scaled_sgld(0.1, temperature=1e-3, scales={"soft": 1.0, "stiff": 0.01})
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> jax.tree.map(jnp.shape, updates), int(state.count)
      ({'soft': (3,), 'stiff': (3,)}, 1)

    References:
      The laws of ±1 increments: Kloeden & Platen, [Numerical Solution of Stochastic Differential
      Equations](https://doi.org/10.1007/978-3-662-12616-5), section 14.1.
    """
    check_key(key)
    get_noise(noise)
    check_int("increments", increments, least=1)

    def init_fn(params: optax.Params) -> Any:
        check_inexact(params)
        fresh = SamplerState(jnp.zeros([], jnp.int32), derive_key(key, "sampler"))
        state = fresh if init is None else init(params, *fresh)
        if not all(hasattr(state, name) for name in ("count", "key", "_replace")):
            raise TypeError(f"init must return a NamedTuple with count and key, got {state!r}")
        return cast_like(state, state)

    def update_fn(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        del params, extra_args
        key, subkey = jax.random.split(state.key)
        if increments == 1:
            first = xi = draw_increments(subkey, updates, noise)
        else:
            first, *_ = xi = draw_increments(subkey, (updates,) * increments, noise)
        with jax.numpy_dtype_promotion("standard"):  # the casts below are meant
            wide = jax.tree.map(lambda g, x: jnp.asarray(g, x.dtype), updates, first)
            stepped = step(wide, xi, state)
        if type(stepped) is not tuple or len(stepped) != 2:
            raise TypeError(f"step must return (updates, state), got {type(stepped).__name__}")
        moves, after = stepped
        check_like("updates of step", moves, updates)
        check_like("state of step", after, state)
        after = cast_like(after, state)
        after = after._replace(count=optax.safe_increment(state.count), key=key)
        return cast_like(moves, updates), after

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
