"""Replica exchange: chains at a ladder of temperatures, which they swap."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._types import Sampler
from ..inputs.callables import check_sampler
from ..inputs.keys import check_key, derive_key
from ..inputs.scalars import check_int
from ..inputs.trees import cast_like, check_inexact


class ReplicaState(NamedTuple):
    """State of `replica_exchange`, for chains as many as there are temperatures.

    Attributes:
      key: a typed PRNG key, split at every step.
      rung: chain i is at `temperatures[rung[i]]`, int32 `[chain]`.
      phase: steps taken, modulo twice `every`: an int32 scalar.
      attempts: how often each pair of neighbours on the ladder could have swapped, int32
        `[rung - 1]`; it stays at 2³¹ - 1 once it is there.
      swaps: how often they did, likewise.
      states: the states of the samplers, each leaf `[chain, ...]`.
    """

    key: jax.Array
    rung: jax.Array
    phase: jax.Array
    attempts: jax.Array
    swaps: jax.Array
    states: Any


def replica_exchange(
    sampler: Sampler,
    step_size: Any,
    temperatures: Sequence[float] | jax.typing.ArrayLike,
    *,
    every: int = 10,
    key: int | jax.Array = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Replica exchange: chains at a ladder of temperatures swap them with their neighbours.

    Hot chains cross barriers. The coldest chain has the density you ask for. Swaps carry modes from
    hot to cold with the right weights. Once in `every` steps, every other pair of neighbours on the
    ladder may swap; the remaining pairs have their turn next time. Chains i and j at Tᵢ < Tⱼ, with
    losses L, swap with probability

        min(1, exp(δ (Lᵢ - Lⱼ) - δ² Var(Lᵢ - Lⱼ)/2)),    δ = 1/Tᵢ - 1/Tⱼ

    and then each takes a step of `sampler` at its temperature. The first term is Metropolis' rule,
    which leaves the joint density ∏ exp(-L(θ)/T) as it is, so that every rung keeps the law that
    its sampler has there. The second corrects for losses of minibatches: it keeps the law
    exact under Gaussian noise of known covariance. It costs swaps: where Lᵢ = Lⱼ and the noise of
    δ(Lᵢ - Lⱼ) has the standard deviation s, a share of erfc(s/√8) is left, 0.62 at s = 1 and 0.05
    at s = 4. With T = 1/N and batches of B, s grows as N/√B: take a larger batch for the losses of
    the step at which swaps are tried, or rungs that are closer.

    It is the temperatures that move, not the parameters: a swap is exact in every dtype and sends
    two numbers between devices. So `params[i]` is one chain for ever, at `state.rung[i]` on the
    ladder, and the samples at `temperatures[r]` are `params[jnp.argsort(state.rung)[r]]`, for
    params and state of one update. Velocities (a field `velocity` of the sampler's state) change by
    the square root of the temperatures' ratio, and the friction of `sgnht` stays at its rung, whose
    noise it has found. Velocities stand half a kick behind the positions; a swap completes it with
    the gradients that `update` is given, scales, and takes it back, so that every rung keeps its
    law also with a swap tried at each step. Clipping or a prior inside `sampler` is not seen here:
    put the prior into the loss. The laws of `sgld`, `sghmc` and `ubu` are off T by an error of the
    step size. Swaps keep such a law up to a part of that error, because Metropolis' rule goes by T.

    You write the loop of one chain under `jax.vmap`, as in the example. A transformation that
    couples parameters, such as clipping by a global norm, goes into `sampler`. The losses include
    every term that is sampled: a prior in the gradients too, the same for all temperatures. Their
    rounding has to be far below the temperatures: float32 knows a loss of 10,000 to 1e-3, and at
    T = 1e-4 rounding alone would decide. Then give the losses in float64, or as the mean of
    differences from the losses at a fixed point.

    Memory: the memory of `sampler` for each chain, and five numbers. A step costs as much as a step
    of each chain. The ladder is right where neighbours swap some 20 to 60 % of the time
    (`state.swaps / state.attempts`). Start with temperatures in geometric progression; their ratio
    approaches 1 as √(2/d) in d dimensions. Choose replica exchange where modes are far apart and
    you need their weights. `cyclical_schedule` finds modes too, but weighs them by how often it
    falls into them.

    Args:
      sampler: `sampler(step_size, temperature, key=key)` makes the transformation of one chain, for
        a traced temperature, as `sgld` does; `functools.partial` binds the rest.
      step_size: of the sampler, or its learning rate, as it takes it: the same at all temperatures.
      temperatures: the ladder, two or more, positive and increasing, in units of the loss. A traced
        one is taken as it is.
      every: swaps are tried at the first step, and then once in so many.
      key: an int or a PRNG key; the keys of the chains are derived from it.

    Returns:
      An `optax.GradientTransformationExtraArgs` with a `ReplicaState`, for params and gradients
      that lead with the chain axis, as long as the ladder. `update` needs `value`, the losses at
      these params, `[chain]`, and takes `covariance`, the covariance of their noise,
      `[chain, chain]`: `jnp.cov(ℓ) / batch_size` for the losses ℓ `[chain, example]` of one batch
      for all chains. By default the losses are exact. Other extra arguments, misspelt ones too, are
      ignored. A chain whose loss is NaN swaps with none; a chain at +inf moves up the ladder.

    Raises:
      ValueError: `temperatures` are fewer than two, not positive and finite, or not increasing;
        `every` is less than 1; params, gradients, `value` or `covariance` are of another shape.
      TypeError: an argument is of the wrong type, `value` is missing; at `init`, a parameter is not
        floating-point, or the sampler keeps hyperparameters in its state.

    Examples:
      Two wells that no chain at T = 0.08 leaves by itself.

      >>> import diffopt, jax, jax.numpy as jnp, optax
      >>> loss = lambda x: (x**2 - 1) ** 2 + 0.05 * x
      >>> tx = diffopt.replica_exchange(diffopt.sgld, 0.02, [0.08, 0.2, 0.5])
      >>> @jax.jit
      ... def step(carry, _):
      ...     params, state = carry
      ...     losses, grads = jax.vmap(jax.value_and_grad(loss))(params)
      ...     updates, state = tx.update(grads, state, params, value=losses)
      ...     params = optax.apply_updates(params, updates)
      ...     return (params, state), params[jnp.argmin(state.rung)]  # the coldest
      >>> params = jnp.ones(3)
      >>> carry, cold = jax.lax.scan(step, (params, tx.init(params)), length=100_000)
      >>> x = jnp.linspace(-3, 3, 10_001)
      >>> density = jnp.exp(-loss(x) / 0.08)
      >>> exact = density[x < 0].sum() / density.sum()
      >>> print(f"{exact:.2f}", bool(abs(jnp.mean(cold < 0) - exact) < 0.05))
      0.77 True

    References:
      Deng et al., [Non-convex Learning via Replica Exchange Stochastic Gradient
      MCMC](https://arxiv.org/abs/2008.05367), ICML 2020; that the correction is exact: Ceperley &
      Dewing, [The penalty method for random walks with uncertain
      energies](https://arxiv.org/abs/physics/9812035), Journal of Chemical Physics 1999.
    """
    ladder = _check_ladder(temperatures)
    check_int("every", every, least=1, below=2**30)
    check_key(key)
    size = len(ladder)
    check_sampler(sampler)

    def make(temperature: jax.Array, key: Any) -> optax.GradientTransformationExtraArgs:
        return optax.with_extra_args_support(sampler(step_size, temperature, key=key))

    def init_fn(params: optax.Params) -> ReplicaState:
        check_inexact(params)
        _check_leading("params", params, size)
        own, other = jax.random.split(derive_key(key, "replica exchange"))
        start = lambda T, key, p: make(T, key).init(p)
        states = jax.vmap(start)(jnp.asarray(ladder), jax.random.split(other, size), params)
        holds = lambda x: hasattr(x, "hyperparams")
        if any(map(holds, jax.tree.leaves(states, is_leaf=holds))):
            raise TypeError(
                "sampler must not keep the temperature in its state, as optax.inject_hyperparams"
                " does: replica_exchange passes a new temperature after each swap"
            )
        return ReplicaState(
            own,
            jnp.arange(size, dtype=jnp.int32),
            jnp.zeros([], jnp.int32),
            jnp.zeros(size - 1, jnp.int32),
            jnp.zeros(size - 1, jnp.int32),
            states,
        )

    def update_fn(
        updates: optax.Updates,
        state: ReplicaState,
        params: optax.Params | None = None,
        *,
        value: jax.Array | None = None,
        covariance: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ReplicaState]:
        del extra_args
        _check_leading("updates", updates, size)
        losses = _check_losses(value, size)
        key, subkey = jax.random.split(state.key)
        chain = jnp.argsort(state.rung).astype(jnp.int32)  # at each rung
        pair = jnp.arange(size - 1, dtype=jnp.int32)
        tried = (state.phase % every == 0) & (pair % 2 == state.phase // every)
        log_ratio = _log_ratios(jnp.asarray(ladder), losses[chain], covariance, chain)
        swap = tried & (-jax.random.exponential(subkey, (size - 1,)) < log_ratio)
        one = swap.astype(jnp.int32)
        place = jnp.arange(size, dtype=jnp.int32).at[:-1].add(one).at[1:].add(-one)
        rung = jnp.argsort(chain[place]).astype(jnp.int32)

        T = jnp.asarray(ladder)[rung]
        factors = jnp.sqrt(T / jnp.asarray(ladder)[state.rung])
        states = _exchange(state.states, updates, factors, chain[rung])
        move = lambda T, g, s, p, loss: make(T, jax.random.key(0)).update(g, s, p, value=loss)
        moves, states = jax.vmap(move)(T, updates, states, params, losses)
        return moves, ReplicaState(
            key,
            rung,
            (state.phase + 1) % (2 * every),
            jnp.where(tried, optax.safe_increment(state.attempts), state.attempts),
            jnp.where(swap, optax.safe_increment(state.swaps), state.swaps),
            states,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_ladder(temperatures: Any) -> np.ndarray | jax.Array:
    """The temperatures as an array; raise unless they form a ladder. A tracer is taken as it is."""
    traced = any(isinstance(T, jax.core.Tracer) for T in jax.tree.leaves(temperatures))
    try:
        ladder = (jnp if traced else np).asarray(temperatures, jnp.result_type(float))
    except (TypeError, ValueError):
        ladder = None
    if ladder is None or ladder.ndim != 1:
        raise TypeError(f"temperatures must be a sequence of numbers, got {temperatures!r}")
    good = traced or (
        np.all(ladder > 0) and np.all(np.isfinite(ladder)) and np.all(np.diff(ladder) > 0)
    )
    if len(ladder) < 2 or not good:
        raise ValueError(
            "temperatures must be two or more numbers, positive, finite and increasing, got"
            f" {temperatures if traced else ladder.tolist()}"
        )
    return ladder


def _check_leading(name: str, tree: Any, size: int) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.shape(leaf)[:1] != (size,):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} must have a leading axis of {size} chains, one"
                f" for each temperature, got shape {jnp.shape(leaf)}"
            )


def _check_losses(value: Any, size: int) -> jax.Array:
    if value is None:
        raise TypeError("update needs value=losses, the loss of each chain")
    if jnp.shape(value) != (size,):
        raise ValueError(
            f"value must be the losses of the {size} chains, got shape {jnp.shape(value)};"
            " replica_exchange needs your own loop, sample does not run it"
        )
    return jnp.asarray(value, float)


def _log_ratios(
    ladder: jax.Array, losses: jax.Array, covariance: Any, chain: jax.Array
) -> jax.Array:
    """δ (Lᵢ - Lⱼ) - δ² Var(Lᵢ - Lⱼ)/2 for neighbouring rungs, of losses in the order of rungs."""
    size = len(ladder)
    delta = 1 / ladder[:-1] - 1 / ladder[1:]
    cold, hot = losses[:-1], losses[1:]
    infinite = jnp.isinf(cold) & (cold == hot)  # these have no difference, and do not swap
    gap = jnp.where(infinite, -jnp.inf, cold) - jnp.where(infinite, 0, hot)
    if covariance is None:
        return delta * gap
    if jnp.shape(covariance) != (size, size):
        raise ValueError(
            f"covariance of the {size} losses must have shape ({size}, {size}), got"
            f" {jnp.shape(covariance)}"
        )
    of_rungs = jnp.asarray(covariance, ladder.dtype)[chain][:, chain]
    own = jnp.diagonal(of_rungs)
    variance = own[:-1] + own[1:] - jnp.diagonal(of_rungs, 1) - jnp.diagonal(of_rungs, -1)
    return delta * gap - delta**2 * jnp.maximum(variance, 0) / 2


def _exchange(states: Any, grads: Any, factors: jax.Array, source: jax.Array) -> Any:
    """`states` after the swaps: velocities times the factor of their chain, frictions of the rung.

    It is the velocity at θ that is scaled, for which the state's `half_kick` says how much of the
    gradient to take. A thermostat's friction belongs to its temperature: chain i
    takes over the friction of chain `source[i]`.
    """
    at_path = {jax.tree_util.keystr(p): g for p, g in jax.tree_util.tree_leaves_with_path(grads)}

    def exchange(state: Any) -> Any:
        if not hasattr(state, "velocity"):
            return state
        half_kick = getattr(state, "half_kick", jnp.zeros_like(factors))

        def scale(path: Any, v: jax.Array) -> jax.Array:
            along = lambda x: x.reshape(-1, *[1] * (v.ndim - 1))
            g = at_path.get(jax.tree_util.keystr(path))
            if g is None or jnp.shape(g) != v.shape:  # of another form than the parameters
                return along(factors) * v
            return along(factors) * v + along(half_kick * (1 - factors)) * g

        with jax.numpy_dtype_promotion("standard"):  # the cast below is meant
            scaled = jax.tree_util.tree_map_with_path(scale, state.velocity)
        state = state._replace(velocity=cast_like(scaled, state.velocity))
        return (
            state._replace(friction=state.friction[source]) if hasattr(state, "friction") else state
        )

    return jax.tree.map(exchange, states, is_leaf=lambda x: hasattr(x, "velocity"))
