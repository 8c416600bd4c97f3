"""Underdamped Langevin diffusions: dθ = v dt, dv = -∇L(θ) dt - γv dt + √(2γT) dW."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .frame import sampler
from .increments import Noise
from .scalars import as_float, check_number, check_scalar, root, value_at
from .trees import mean_product


class UnderdampedState(NamedTuple):
    """State of `sghmc`, `baoab` and `ubu`.

    Attributes:
      count: steps taken, an int32 scalar that stays at 2³¹ - 1 once it is there.
      key: a typed PRNG key, split at every step.
      velocity: v, with the structure, shapes and dtypes of the parameters.
      mass: the mass M of the last step, a scalar: M v² is on average the temperature.
    """

    count: jax.Array  # type: ignore[assignment]
    key: jax.Array
    velocity: Any
    mass: jax.Array


class ThermostatState(NamedTuple):
    """State of `sgnht`.

    Attributes:
      count: steps taken, an int32 scalar that stays at 2³¹ - 1 once it is there.
      key: a typed PRNG key, split at every step.
      velocity: v, with the structure, shapes and dtypes of the parameters.
      mass: the mass M of the last step, a scalar: M v² is on average the temperature.
      friction: the thermostat α, a scalar; the next step keeps 1 - α of the velocity.
    """

    count: jax.Array  # type: ignore[assignment]
    key: jax.Array
    velocity: Any
    mass: jax.Array
    friction: jax.Array


def _start(params: Any, count: jax.Array, key: jax.Array) -> UnderdampedState:
    velocity = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=jnp.result_type(p)), params)
    return UnderdampedState(count, key, velocity, jnp.zeros([], jnp.float32))


def _start_with_mass_1(params: Any, count: jax.Array, key: jax.Array) -> UnderdampedState:
    return _start(params, count, key)._replace(mass=jnp.ones([], jnp.float32))


def _ratio(x: Any, y: jax.Array) -> jax.Array:
    """x / y, and 0 at y = 0."""
    return jnp.where(y == 0, 0, x / jnp.where(y == 0, 1, y)).astype(jnp.float32)


def sghmc(
    learning_rate: optax.ScalarOrSchedule,
    temperature: optax.ScalarOrSchedule,
    *,
    momentum: float | jax.Array = 0.9,
    key: int | jax.Array = 0,
    noise: Noise = "gaussian",
) -> optax.GradientTransformationExtraArgs:
    r"""Stochastic gradient Hamiltonian Monte Carlo: SGD with momentum, at a temperature.

    The diffusion is dθ = u dt, du = -∇L dt - γu dt + √(2γT) dW. In steps of length h, with
    v = hu, η = h² and m = 1 - γh, Euler's method gives (eq. 15 of the paper, which writes α for
    1 - m and has T = 1):

        v ← m v - η ∇L(θ) + √(2(1 - m)ηT) ξ        ξ ~ N(0, I)
        θ ← θ + v

    The stationary density of θ is proportional to exp(-L(θ)/T), and v has variance ηT, both as
    η → 0 and m → 1. What a finite step makes of that is known on L = kθ²/2, where it is stable
    for ηk < 2(1 + m):

        Var θ = T / (k (1 - ηk / (2(1 + m))))
        Var v = 2ηT / ((1 + m) (1 - ηk / (2(1 + m))))

    so that the error is of weak order 1 in η, and smaller than that of `sgld` at the same η by
    the factor 1 + m; `baoab` has none at all on a quadratic. (With h² = 2η/(1 + m) the step is
    the leapfrog method of Brünger, Brooks & Karplus, of order 2 in h.) A minibatch whose gradients
    have variance σ² adds η²σ² to the variance of each step's noise and raises the temperature to
    T + ησ² / (2(1 - m)): lower η, or use `sgnht`.

    At T = 0 it is `optax.sgd(η, momentum=m)`, and `sghmc(η, T, momentum=0)` is `sgld(η, T)`. It is
    also `chain(langevin((1 - m) T, learning_rate=η), optax.sgd(η, momentum=m))`: the same step with
    the factor 1 - m left to the user.

    Memory: one velocity for each parameter, as `optax.sgd` with momentum. Choose it to sample
    from where SGD with momentum already trains well: what you tuned there holds here.

    Args:
      learning_rate: the step size η > 0: a number, a 0-d array or a schedule of the step count.
      temperature: T ≥ 0, in units of the loss, likewise.
      momentum: m in [0, 1), a number or a 0-d array.
      key: an int or a PRNG key; each sampler and chain needs its own (see `sampler`).
      noise: `"gaussian"`, `"gaussian16"`, `"rademacher"` or a function (see `sampler`).

    Returns:
      An `optax.GradientTransformationExtraArgs` with an `UnderdampedState`. Its updates have the
      shapes and dtypes of the gradients.

    Raises:
      ValueError: `learning_rate` is not positive and finite; `temperature` is negative, NaN or
        infinite; `momentum` is not in [0, 1); `noise` is an unknown name.
      TypeError: an argument is of the wrong type; at `init`, a parameter is not floating-point.

    Examples:
      >>> import diffopt, jax, jax.numpy as jnp, optax
      >>> tx = diffopt.sghmc(0.1, temperature=0.5, momentum=0.9)
      >>> @jax.jit
      ... def step(carry, _):
      ...     params, state = carry
      ...     grads = params  # of the loss θ²/2
      ...     updates, state = tx.update(grads, state)
      ...     return (optax.apply_updates(params, updates), state), None
      >>> params = jnp.zeros(10_000)  # 10,000 chains
      >>> (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=200)
      >>> bool(abs(params.var() - 0.5 / (1 - 0.1 / 3.8)) < 0.03)
      True

    References:
      Chen, Fox & Guestrin, [Stochastic Gradient Hamiltonian Monte
      Carlo](https://arxiv.org/abs/1402.4102), ICML 2014.
    """
    check_scalar("learning_rate", learning_rate, positive=True)
    check_scalar("temperature", temperature)
    check_number("momentum", momentum, below=1)

    def step(g: Any, xi: Any, state: UnderdampedState) -> tuple[Any, UnderdampedState]:
        eta, T = value_at(learning_rate, state.count), value_at(temperature, state.count)
        m = as_float(momentum)
        scale = root(2 * (1 - m) * eta * T)
        velocity = jax.tree.map(
            lambda g, xi, v: m * v - eta * g + scale * xi, g, xi, state.velocity
        )
        return velocity, state._replace(velocity=velocity, mass=_ratio(1 + m, 2 * eta))

    return sampler(step, _start, key=key, noise=noise)


def baoab(
    step_size: optax.ScalarOrSchedule,
    temperature: optax.ScalarOrSchedule,
    *,
    friction: float | jax.Array = 1.0,
    key: int | jax.Array = 0,
    noise: Noise = "gaussian",
) -> optax.GradientTransformationExtraArgs:
    r"""Langevin dynamics split as BAOAB: second order, and exact on a quadratic at every step.

    The diffusion dθ = v dt, dv = -∇L dt - γv dt + √(2γT) dW is split into three parts that can
    each be solved exactly: a kick by the gradient (B), a drift (A), and the Ornstein-Uhlenbeck
    process of the velocity (O). In steps of length h, ξ ~ N(0, I):

        v ← v - h ∇L(θ)                              B and B
        θ ← θ + h v / 2                              A
        v ← c v + √((1 - c²) T) ξ,  c = exp(-γh)     O
        θ ← θ + h v / 2                              A

    The half kicks at the end of one step and at the start of the next are at the same θ, and are
    taken as one: one gradient a step, and the positions are those of BAOAB.

    The stationary density of θ is proportional to exp(-L(θ)/T) and that of v is N(0, T), with an
    error of weak order 2 (of order 4 in θ when the friction is large). On L = kθ²/2 there is
    none: Var θ = T/k and Var v = T at every stable step, that is h < 2/√k.

    At T = 0 it is the leapfrog method damped by c; at T = 0 and γ = 0 it is leapfrog, which
    conserves energy. It is also a form of SGD with momentum: h² is the learning rate and c the
    momentum, so `baoab(√η, T, friction=-log(m)/√η)` takes the place of `sghmc(η, T, momentum=m)`.
    Minibatch noise of variance σ² in the gradients adds h²σ² to the velocity's variance at each
    step, as in `sghmc`.

    Memory: one velocity for each parameter. Choose it when the samples have to be right (the
    gradients exact or nearly so): it allows the longest steps for a given error of all samplers
    here.

    Args:
      step_size: h > 0, in units of time (√ of `sghmc`'s learning rate): a number, a 0-d array or
        a schedule of the step count.
      temperature: T ≥ 0, in units of the loss, likewise.
      friction: γ ≥ 0, per unit of time, a number or a 0-d array.
      key: an int or a PRNG key; each sampler and chain needs its own (see `sampler`).
      noise: `"gaussian"`, `"gaussian16"`, `"rademacher"` or a function (see `sampler`).

    Returns:
      An `optax.GradientTransformationExtraArgs` with an `UnderdampedState`. Its updates have the
      shapes and dtypes of the gradients.

    Raises:
      ValueError: `step_size` is not positive and finite; `temperature` or `friction` is negative,
        NaN or infinite; `noise` is an unknown name.
      TypeError: an argument is of the wrong type; at `init`, a parameter is not floating-point.

    Examples:
      >>> import diffopt, jax, jax.numpy as jnp, optax
      >>> tx = diffopt.baoab(1.5, temperature=0.5)  # the limit of stability is 2
      >>> @jax.jit
      ... def step(carry, _):
      ...     params, state = carry
      ...     grads = params  # of the loss θ²/2
      ...     updates, state = tx.update(grads, state)
      ...     return (optax.apply_updates(params, updates), state), None
      >>> params = jnp.zeros(10_000)  # 10,000 chains
      >>> (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=50)
      >>> bool(abs(params.var() - 0.5) < 0.03)
      True

    References:
      Leimkuhler & Matthews, [Rational Construction of Stochastic Numerical Methods for Molecular
      Sampling](https://arxiv.org/abs/1203.5428), Applied Mathematics Research eXpress 2013.
    """
    check_scalar("step_size", step_size, positive=True)
    check_scalar("temperature", temperature)
    check_number("friction", friction)

    def step(g: Any, xi: Any, state: UnderdampedState) -> tuple[Any, UnderdampedState]:
        h, T = value_at(step_size, state.count), value_at(temperature, state.count)
        gamma = as_float(friction)
        c = jnp.exp(-gamma * h)
        scale = root(-jnp.expm1(-2 * gamma * h) * T)
        kicked = jax.tree.map(lambda g, v: v - h * g, g, state.velocity)
        velocity = jax.tree.map(lambda v, xi: c * v + scale * xi, kicked, xi)
        moves = jax.tree.map(lambda v, w: h / 2 * (v + w), kicked, velocity)
        return moves, state._replace(velocity=velocity)

    return sampler(step, _start_with_mass_1, key=key, noise=noise)


def ubu(
    step_size: optax.ScalarOrSchedule,
    temperature: optax.ScalarOrSchedule,
    *,
    friction: float | jax.Array = 1.0,
    key: int | jax.Array = 0,
    noise: Noise = "gaussian",
) -> optax.GradientTransformationExtraArgs:
    r"""Langevin dynamics split as UBU: its paths are of strong order 2, at one gradient a step.

    The diffusion dθ = v dt, dv = -∇L dt - γv dt + √(2γT) dW is split into two parts: a kick by
    the gradient (B), and all the rest (U), a free particle in a heat bath, which has an exact
    solution too: θ and v move together, driven by one Brownian path. In steps of length h, with
    c = exp(-γh), x = γh/2 and two independent ξ, ζ ~ N(0, I):

        v ← v - h ∇L(θ)                                                 B
        u ← c v + √((1 - c²) T) ξ                                       U and U
        θ ← θ + (tanh x)/x h (v + u)/2 + √(T (x - tanh x))/x h ζ
        v ← u

    The half step U at the end of one step and that at the start of the next are taken as one, so
    that the parameters are where UBU takes its gradients, in the middle of its steps. It is
    `baoab` but for a shorter drift and the second increment.

    Its paths are those of the diffusion with an error of strong order 2: √E|θ - θ(t)|² = O(h²) for
    the same Brownian path, with an error of O(h) in v, which stands half a kick behind. The
    stationary density of θ is proportional to exp(-L/T) with an error of order 2. On L = kθ²/2,
    where it is stable for h²k < 2γh / tanh(γh/2), a little beyond `baoab`'s 4,

        Var θ = T/k (1 + h²k/12 + O(h⁴))

    here, and T/k (1 - h²k/6 + O(h⁴)) at the ends of UBU's steps, which are half a step U after the
    kick and which the papers' bounds are about: the parameters are the better samples of the two.
    `baoab` has no such error at all; its paths are of strong order 1.

    At T = 0 it is momentum with an exact exponential, and at T = 0 and γ = 0 it is leapfrog.
    Noise of variance σ² in the gradients, as of independent minibatches, adds h²σ² to the
    velocity's variance at each step, as in `baoab`. Those of one epoch make up for one another, and
    `sample` goes by epochs: on a linear regression with batches of 20 out of 200 and h = 0.05 the
    hottest direction is 7 % above T, and at twice T with independent batches.

    Memory: one velocity for each parameter. It draws two increments for each where the others draw
    one. Choose it where paths count: to couple chains of different step sizes (multilevel Monte
    Carlo), or with bounds that are proved for it; for samples alone take `baoab`.

    Args:
      step_size: h > 0, in units of time (√ of `sghmc`'s learning rate): a number, a 0-d array or
        a schedule of the step count.
      temperature: T ≥ 0, in units of the loss, likewise.
      friction: γ ≥ 0, per unit of time, a number or a 0-d array.
      key: an int or a PRNG key; each sampler and chain needs its own (see `sampler`).
      noise: `"gaussian"`, `"gaussian16"`, `"rademacher"` or a function (see `sampler`). A strong
        order is one of Gaussian increments.

    Returns:
      An `optax.GradientTransformationExtraArgs` with an `UnderdampedState`. Its updates have the
      shapes and dtypes of the gradients.

    Raises:
      ValueError: `step_size` is not positive and finite; `temperature` or `friction` is negative,
        NaN or infinite; `noise` is an unknown name.
      TypeError: an argument is of the wrong type; at `init`, a parameter is not floating-point.

    Examples:
      >>> import diffopt, jax, jax.numpy as jnp, optax
      >>> tx = diffopt.ubu(0.5, temperature=0.5)
      >>> @jax.jit
      ... def step(carry, _):
      ...     params, state = carry
      ...     grads = params  # of the loss θ²/2
      ...     updates, state = tx.update(grads, state)
      ...     return (optax.apply_updates(params, updates), state), None
      >>> params = jnp.zeros(10_000)  # 10,000 chains
      >>> (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=100)
      >>> bool(abs(params.var() - 0.5 * (1 + 0.5**2 / 12)) < 0.03)
      True

    References:
      Sanz-Serna & Zygalakis, [Wasserstein distance estimates for the distributions of numerical
      approximations to ergodic stochastic differential
      equations](https://arxiv.org/abs/2104.12384), JMLR 2021.
    """
    check_scalar("step_size", step_size, positive=True)
    check_scalar("temperature", temperature)
    check_number("friction", friction)

    def step(
        g: Any, increments: tuple[Any, Any], state: UnderdampedState
    ) -> tuple[Any, UnderdampedState]:
        xi, zeta = increments
        h, T = value_at(step_size, state.count), value_at(temperature, state.count)
        x = as_float(friction) * h / 2
        c = jnp.exp(-2 * x)
        half = h / 2 * jnp.where(x == 0, 1, jnp.tanh(x) / jnp.where(x == 0, 1, x))
        along, across = root(-jnp.expm1(-4 * x) * T), h * root(T * _spread(x))
        kicked = jax.tree.map(lambda g, v: v - h * g, g, state.velocity)
        velocity = jax.tree.map(lambda v, xi: c * v + along * xi, kicked, xi)
        moves = jax.tree.map(
            lambda v, u, zeta: half * (v + u) + across * zeta, kicked, velocity, zeta
        )
        return moves, state._replace(velocity=velocity)

    return sampler(step, _start_with_mass_1, increments=2, key=key, noise=noise)


def _spread(x: jax.Array) -> jax.Array:
    """(x - tanh x)/x², by its series where the difference would be of two like numbers."""
    small = x < 0.4
    coefficients = (1 / 3, -2 / 15, 17 / 315, -62 / 2835, 1382 / 155925)
    series = x * jnp.polyval(jnp.array(coefficients[::-1], x.dtype), x**2)
    large = jnp.where(small, 1, x)
    return jnp.where(small, series, (large - jnp.tanh(large)) / large**2)


def sgnht(
    learning_rate: optax.ScalarOrSchedule,
    temperature: optax.ScalarOrSchedule,
    *,
    momentum: float | jax.Array = 0.9,
    key: int | jax.Array = 0,
    noise: Noise = "gaussian",
) -> optax.GradientTransformationExtraArgs:
    r"""Stochastic gradient Nosé-Hoover thermostat: SGHMC that holds its mean temperature itself.

    The friction is a variable that grows while the velocities are too hot and shrinks while they
    are too cold, so that noise of unknown size in the gradients, as from a minibatch, is taken
    out again: dθ = u dt, du = -∇L dt - γu dt + √(2AT) dW, dγ ∝ (u·u/d - T) dt, with d the number
    of parameters. In steps of length h, with v = hu, η = h², α = γh and m = 1 - Ah,
    ξ ~ N(0, I):

        v ← (1 - α) v - η ∇L(θ) + √(2(1 - m)ηT) ξ
        θ ← θ + v
        K = (2 - α) v·v / (2ηd)                          the kinetic temperature
        1/α ← max(1/α - (K/T - 1)/2, 1)                  α starts at 1 - m

    This is algorithm 2 of the paper but for two things. K is v·v/(ηd) corrected for friction in a
    finite step. And the thermostat follows dα/dt = α²/2 (K/T - 1), solved over the step: critical
    damping, so it settles within some 1/α steps at every temperature and winds up no further than
    it unwinds, where the paper's v·v/d - η (its T is 1) takes 1/(ηT) steps.

    The joint stationary density of the diffusion is proportional to exp(-L/T - u·u/(2T)) times
    an inverse gamma density of α, of shape 2d + 1 and mean 1 - m, for any d
    (`docs/derivations.md`); that of the step has weak order 1 in η. On L = k|θ|²/2 with many
    parameters, where α becomes a constant α*, Var θ = T/k exactly at every stable step for
    gradients with noise of the same variance σ² in every direction:

        2(1 - m)ηT + η²σ² = α* ηT (2 - ηk / (2 - α*)),    α* ≈ 1 - m + ησ²/(2T).

    Since α ≤ 1, the step can take out noise of up to ησ² ≈ 2mT, and few parameters need a momentum
    of 1/2 or more: where 1 - m is near the bound, α can only fluctuate below it (at m = 0, ten
    parameters are 10 % too hot). There is one thermostat for
    all parameters: it holds their mean temperature. The noise of real minibatches differs by
    direction: noisier directions than the mean stay warmer than T and pay by the others' being
    colder, while the mean reads T. So a kinetic and a configurational temperature of T are
    necessary for equilibrium, not sufficient; a direction of noise σ² is near T (T + a)/(T + ā),
    a = ησ²/(2(1 - m)), ā its mean: `gradient_noise_temperature` measures both before you trust an
    interval. `optax.partition` gives each group of parameters its own
    thermostat, and each then needs its own `key`. K weighs velocities that remember some
    1/(1 - m) steps by the present η, so η must change little in as many: a cycle has to be much
    longer.

    At T = 0 the friction is 1 - m and the step is `optax.sgd(η, momentum=m)`.

    Memory: one velocity for each parameter and one scalar. It costs one sum over the velocities
    more than `sghmc`. Choose it when gradients come from minibatches small enough to heat `sghmc`.

    Args:
      learning_rate: the step size η > 0: a number, a 0-d array or a schedule of the step count.
      temperature: T ≥ 0, in units of the loss, likewise.
      momentum: m in [0, 1), a number or a 0-d array: 1 - m is the friction that the injected
        noise asks for.
      key: an int or a PRNG key; each sampler and chain needs its own (see `sampler`).
      noise: `"gaussian"`, `"gaussian16"`, `"rademacher"` or a function (see `sampler`).

    Returns:
      An `optax.GradientTransformationExtraArgs` with a `ThermostatState`. Its updates have the
      shapes and dtypes of the gradients.

    Raises:
      ValueError: `learning_rate` is not positive and finite; `temperature` is negative, NaN or
        infinite; `momentum` is not in [0, 1); `noise` is an unknown name.
      TypeError: an argument is of the wrong type; at `init`, a parameter is not floating-point.

    Examples:
      >>> import diffopt, jax, jax.numpy as jnp, optax
      >>> tx = diffopt.sgnht(0.1, temperature=0.5)
      >>> @jax.jit
      ... def step(carry, key):
      ...     params, state = carry
      ...     grads = params + jax.random.normal(key, params.shape)  # as of a minibatch
      ...     updates, state = tx.update(grads, state)
      ...     return (optax.apply_updates(params, updates), state), None
      >>> params = jnp.zeros(10_000)
      >>> keys = jax.random.split(jax.random.key(1), 300)
      >>> (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), keys)
      >>> bool(abs(params.var() - 0.5) < 0.03)  # sghmc is at 1.03
      True
      >>> print(f"{state.friction:.1f}")  # 1 - m + ησ²/(2T)
      0.2

    References:
      Ding et al., [Bayesian Sampling Using Stochastic Gradient Thermostats](
      https://papers.nips.cc/paper/5592-bayesian-sampling-using-stochastic-gradient-thermostats),
      NeurIPS 2014.
    """
    check_scalar("learning_rate", learning_rate, positive=True)
    check_scalar("temperature", temperature)
    check_number("momentum", momentum, below=1)

    def init(params: Any, count: jax.Array, key: jax.Array) -> ThermostatState:
        friction = as_float(1 - momentum).astype(jnp.float32)
        return ThermostatState(*_start(params, count, key), friction)

    def step(g: Any, xi: Any, state: ThermostatState) -> tuple[Any, ThermostatState]:
        eta, T = value_at(learning_rate, state.count), value_at(temperature, state.count)
        m = as_float(momentum)
        alpha = jnp.where(T > 0, state.friction, 1 - m)
        scale = root(2 * (1 - m) * eta * T)
        velocity = jax.tree.map(
            lambda g, xi, v: (1 - alpha) * v - eta * g + scale * xi, g, xi, state.velocity
        )
        mass = _ratio(2 - alpha, 2 * eta)
        K = mass * mean_product(velocity, velocity)
        drive = jnp.where(eta * T > 0, _ratio(K, T) - 1, 0)
        alpha = 1 / jnp.maximum(1 / alpha - drive / 2, 1)
        return velocity, state._replace(velocity=velocity, mass=mass, friction=alpha)

    return sampler(step, init, key=key, noise=noise)
