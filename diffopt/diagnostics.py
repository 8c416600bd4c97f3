"""What temperature a chain is really at, measured in two independent ways."""

from typing import Any, NamedTuple

import jax

from .trees import check_inexact, mean_product


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
    Gradients of a minibatch, and of L shifted by a constant, serve as well: their noise is
    independent of θ. The gradient has to be that of the loss that is sampled, weight decay and
    other priors included, before clipping and preconditioning.

    It is above T where the steps are too long (`sgld` on kθ²/2 is at T/(1 - ηk/2)), where the
    gradients are noisier than the sampler knows, and below T where a parameter has not yet
    spread; a chain that has not settled shows either.

    For d parameters in a quadratic loss its standard error is T √(2/d) for one state.

    Args:
      params: a tree of parameters θ.
      grads: ∇L(θ), a like tree.

    Returns:
      A `Temperature`: θ·∇L over the number of parameters, in all and for each leaf.

    Raises:
      TypeError: a parameter is not floating-point.

    Example:
      >>> import diffopt, jax, jax.numpy as jnp
      >>> params = {"w": 2 * jax.random.normal(jax.random.key(0), (10_000,))}
      >>> grads = jax.grad(lambda p: jnp.sum(p["w"] ** 2) / 2)(params)
      >>> temperature = diffopt.configurational_temperature(params, grads)
      >>> bool(abs(temperature.overall - 4.0) < 0.2), sorted(temperature.per_leaf)
      (True, ['w'])

    References:
      Wenzel et al., `How Good is the Bayes Posterior in Deep Neural Networks Really?
      <https://arxiv.org/abs/2002.02405>`_, ICML 2020.
    """
    check_inexact(params)
    return Temperature(mean_product(params, grads), jax.tree.map(mean_product, params, grads))


def kinetic_temperature(opt_state: Any) -> Temperature:
    r"""The temperature that the velocities of a chain show: the mean of M v².

    At temperature T each velocity is distributed as N(0, T/M). The mass M belongs to the sampler
    and comes from its state: with `baoab` M = 1, with `sghmc` (1 + m)/(2η), and with `sgnht`
    (2 - α)/(2η). So the mean of M v² is T exactly for `sgnht`; exactly for `baoab` on a quadratic
    loss and up to O(h²) on others; and T/(1 - ηk/(2(1 + m))) for `sghmc` on kθ²/2.

    It tells within a few steps if noisy gradients overheat the velocities, but nothing of where
    the positions are: `configurational_temperature` tells that. A leaf with one and not the
    other at T is not at equilibrium.

    With `sghmc` and `sgnht` M follows the present step size, while the velocities remember those
    of some 1/(1 - m) steps: it must change little in as many, so a cycle of
    `cyclical_schedule` has to be much longer than that.

    For d parameters its standard error is T √(2/d) for one state; average it over states. For a
    batch of chains, use `jax.vmap(kinetic_temperature)`.

    Args:
      opt_state: a state with the fields `velocity` and `mass`, such as that of `sghmc`, `baoab`,
        `sgnht` or a `sampler` of your own, or the state of an Optax transformation that has
        exactly one such state in it (`optax.chain`, `optax.MultiSteps`, ...).

    Returns:
      A `Temperature`; 0 before the first step.

    Raises:
      ValueError: no state in `opt_state` has velocities, or several have.

    Example:
      >>> import diffopt, jax.numpy as jnp, optax
      >>> tx = optax.chain(optax.clip_by_global_norm(1.0), diffopt.baoab(0.1, 0.5, friction=100.0))
      >>> params = {"w": jnp.zeros(10_000)}
      >>> _, state = tx.update(params, tx.init(params))
      >>> bool(abs(diffopt.kinetic_temperature(state).per_leaf["w"] - 0.5) < 0.03)
      True

    References:
      Wenzel et al., `How Good is the Bayes Posterior in Deep Neural Networks Really?
      <https://arxiv.org/abs/2002.02405>`_, ICML 2020.
    """
    has_velocity = lambda x: hasattr(x, "velocity") and hasattr(x, "mass")
    leaves = jax.tree.leaves(opt_state, is_leaf=has_velocity)
    found = [x for x in leaves if has_velocity(x)]
    if len(found) != 1:
        raise ValueError(
            "opt_state must hold exactly one state with a velocity and a mass, as those of sghmc,"
            f" baoab and sgnht, got {len(found)}; pass that state itself"
        )
    (state,) = found
    velocity, mass = state.velocity, state.mass
    return Temperature(
        mass * mean_product(velocity, velocity),
        jax.tree.map(lambda v: mass * mean_product(v, v), velocity),
    )
