"""How an observable would change if an example weighed more: a covariance over a chain."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._types import Batch, Key, Loss, Params, Sampler
from ..inputs.callables import check_sampler
from ..inputs.keys import check_key
from ..inputs.scalars import check_int, check_number
from ..inputs.trees import count_degrees, describe_shapes, leading_length, place_beside
from ..run.chains import own_mesh
from ..run.program import compile_program
from ..run.sample import sample
from ..samplers.sgld import sgld
from .learning_coefficient import check_run, keep_nothing, localize, losses_of_examples

SEGMENT_BYTES = 2**28  # of losses and observables that are held between two sums


class Influence(NamedTuple):
    """What `influence` returns.

    Attributes:
      values: the change of the observable for each unit of weight, `[example, *observable]`.
      standard_errors: of `values`, from the spread of the chains.
    """

    values: np.ndarray
    standard_errors: np.ndarray


class Moments(NamedTuple):
    """Of each chain: draws seen, the means of two vectors, and the sums of their products.

    Products are of deviations from the means: of each entry of one with each of the other,
    `[chain, first, second]`, or of each entry with its own, `[chain, entry]`.
    """

    count: jax.Array  # type: ignore[assignment]
    first: jax.Array
    second: jax.Array
    products: jax.Array


def influence(
    loss: Loss,
    params: Params,
    data: Batch,
    observable: Callable[[Params], jax.Array] | None = None,
    *,
    perturbation: Callable[[Params], jax.Array] | None = None,
    temperature: float,
    localization: float = 1.0,
    sampler: Sampler = sgld,
    step_size: float,
    num_steps: int,
    burn_in: int,
    every: int = 1,
    num_chains: int = 8,
    batch_size: int | None = None,
    key: Key = 0,
) -> Influence:
    r"""The influence of each example on an observable, such as the loss of a test example.

    Let example i weigh ε more, so that the loss is L(w) + ε ℓᵢ(w) with L the mean of the ℓ over N
    examples. Around w* = `params` the mean of an observable φ(w) then changes at the rate

        w ~ exp(-L(w)/T - localization |w - w*|²/2)
        d E[φ]/dε = -Cov(ℓᵢ(w), φ(w)) / T

    exactly, and without a Hessian. To leave example i out is ε = -1/N: it changes E[φ] by about
    -values[i]/N. So `values` are in the units of φ, and a positive one says that the example raises
    φ: with φ a test loss, a negative one says that the example helps.

    As T → 0 with γ = T · localization held, it tends to the classical influence of damping γ,

        -∇φ · (H + γ)⁻¹ ∇ℓᵢ,        H the Hessian of L at w*

    At T > 0 it has the higher orders too: for ℓᵢ and φ quadratic with the Hessians A and B it is
    the above and -T tr(A (H + γ)⁻¹ B (H + γ)⁻¹)/2.

    The same covariance with something else in the place of ℓᵢ is the response to a perturbation of
    L: `perturbation(params)` gives what is added to it at the weight ε. With
    `lambda w: loss(w, other) - loss(w, data)` it is the susceptibility of φ to a shift of the data
    towards `other`; on a part of the network, by `take_part`, that of the part.

    The covariance is that of all draws around the mean of all chains, without the bias of the
    means; a chain that has not spread along the soft directions knows nothing of them. Its error
    falls with the number of independent draws, and is that of a correlation: in a network of d
    parameters the correlation of two losses at nearly orthogonal gradients drowns among some d
    draws. Localize well; see the guide, which says where a Hessian or a factor of it does better.

    Memory: of each chain its parameters, and a number for each example and entry of φ, however
    many draws; the losses of all examples are computed at every draw that is kept, so take `every`
    as long as the chain remembers.

    Args:
      loss: `loss(params, batch)`, the mean over the examples of a batch, a real scalar. Without
        weight decay or prior, which would be part of every ℓᵢ: put decay λ into the chain by
        `sampler=lambda step_size, temperature, key: optax.chain(optax.add_decayed_weights(λ),
        baoab(step_size, temperature, key=key))`.
      params: w*, the trained parameters; all chains start there, and are held there.
      data: a tree of arrays with one leading axis of examples. ℓᵢ is `loss` of a batch of one.
      observable: φ: `observable(params)` gives an array of real numbers of any shape. By default
        for each example its own loss, so that -values[i] is the variance of ℓᵢ over T: its
        self-influence.
      perturbation: `perturbation(params)` gives an array of real numbers, in the place of the ℓᵢ.
        By default the ℓᵢ. Needed where `loss` cannot take a batch of one, or has a prior; `data`
        may then be None.
      temperature: T > 0, in units of the loss: 1/N is the posterior's.
      localization: the pull to w*, ≥ 0, in units of 1/w², as in `local_learning_coefficient`. For
        the damping γ give γ/T.
      sampler: `sampler(step_size, temperature, key=key)` gives the transformation.
      step_size: of the sampler, > 0.
      num_steps: of each chain, with those of `burn_in`.
      burn_in: steps at the beginning that are passed over, from 0 to below `num_steps`.
      every: keep one draw in so many steps.
      num_chains: chains, at least 2, in one program.
      batch_size: examples of a step, and losses of examples at once at a draw; by default all.
      key: an int or a PRNG key.

    Returns:
      `Influence`: `values` and `standard_errors`, of the shape of the examples (or the
      perturbation), then that of the observable; without an observable, that of the examples.

    Warns:
      UserWarning: what `sample` warns of; a chain that diverged is left out. Or the mean loss of
        the chains is more than dT above that at w*, for d parameters: a step that is too long for
        the stiffest direction may stay finite, and then ranks the examples by chance.

    Raises:
      ValueError: a number is out of its range; `data` have no common leading axis, or are None
        while there is no `perturbation`; fewer than two chains were finite.
      TypeError: an argument is of the wrong type; a parameter is not floating-point; `loss` is not
        a real scalar; `observable` or `perturbation` gives no real array.

    Examples:
      A line through points: the influence of each on the slope, in closed form.

      >>> import diffopt, jax, jax.numpy as jnp
      >>> x = jnp.linspace(-1, 1, 10)
      >>> y = 2 * x + jnp.sin(9 * x)
      >>> loss = lambda w, batch: jnp.mean((w * batch[0] - batch[1]) ** 2) / 2
      >>> best = jnp.sum(x * y) / jnp.sum(x**2)
      >>> found = diffopt.influence(
      ...     loss, best, (x, y), lambda w: w, temperature=1e-3, localization=100.0,
      ...     sampler=diffopt.baoab, step_size=1.0, num_steps=2_000, burn_in=100, num_chains=64,
      ... )
      >>> exact = -(best * x - y) * x / (jnp.mean(x**2) + 1e-3 * 100.0)
      >>> bool(jnp.all(jnp.abs(found.values - exact) < 4.5 * found.standard_errors))
      True

    References:
      Giordano & Broderick, [The Bayesian Infinitesimal
      Jackknife](https://arxiv.org/abs/2305.06466), 2023. Kreer et al., [Bayesian Influence
      Functions for Hessian-Free Data Attribution](https://arxiv.org/abs/2509.26544), 2025. Baker et
      al., [Structural Inference: Interpreting Small Language Models with
      Susceptibilities](https://arxiv.org/abs/2504.18274), 2025.
    """
    check_key(key)
    check_number("step_size", step_size, positive=True)
    check_number("temperature", temperature, positive=True)
    check_number("localization", localization)
    every = check_int("every", every, least=1)
    num_chains = check_int("num_chains", num_chains, least=2)
    check_sampler(sampler)
    num_steps, burn_in, batch_size = check_run(
        "influence", loss, params, data, num_steps, burn_in, batch_size, key
    )
    params, data = jax.tree.map(jnp.asarray, (params, data))
    data = place_beside(data, params)
    of_examples = perturbation is None
    if perturbation is None:
        if data is None:
            raise ValueError("influence needs data or a perturbation, got data=None")
        at_once = batch_size or leading_length("data", data, "examples")
        perturbation = partial(losses_of_examples, loss, at_once, data=data)
    shapes = [_shape_values("perturbation", perturbation, params)]
    if observable is not None:
        shapes.append(_shape_values("observable", observable, params))

    def transform(params: Params) -> tuple[jax.Array, ...]:
        functions = (perturbation, observable)
        return tuple(jnp.ravel(f(params)).astype(float) for f in functions if f is not None)

    tx = localize(sampler(step_size, temperature, key=key), temperature, localization)
    run = partial(sample, tx, loss, data=data, batch_size=batch_size, key=key)
    moments, diverged = _run(
        run, params, transform, num_chains, burn_in, -(-(num_steps - burn_in) // every), every,
        num_chains * sum(4 * int(np.prod(shape)) for shape in shapes),
    )  # fmt: skip
    good = diverged < 0
    if good.sum() < 2:
        raise ValueError(
            f"{good.sum()} of {num_chains} chains were finite, and a covariance needs two: take a"
            " shorter step_size"
        )
    assert moments is not None
    moments = jax.tree.map(lambda x: np.asarray(x)[good], moments)
    if of_examples:
        at_start = compile_program(perturbation, params)(params)
        _warn_if_hot(moments.first.mean(1) - np.mean(at_start), temperature, params)
    covariance, errors = _covariance(moments)
    shape = sum(shapes, ())
    values = -covariance.reshape(shape) / temperature
    return Influence(values, errors.reshape(shape) / temperature)


def _warn_if_hot(excess: np.ndarray, temperature: float, params: Params) -> None:
    """Warn where the loss of the chains is higher than any minimum has it at this temperature."""
    above, degrees = excess / temperature, count_degrees(params)
    error = above.std(ddof=1) / np.sqrt(len(above))
    if above.mean() - 5 * error > degrees:
        warnings.warn(
            f"the chains are too hot: their mean loss is {above.mean():.3g} T above that at params,"
            f" where a minimum of {degrees} parameters has at most {degrees / 2:g} T if it is"
            " smooth: take a shorter step_size (with baoab below 2/√k for the largest curvature"
            " k), larger batches, or a lower temperature",
            stacklevel=3,
        )


def _shape_values(name: str, function: Any, params: Params) -> tuple[int, ...]:
    """The shape of what `function` gives; an error unless that is an array of real numbers."""
    if not callable(function):
        raise TypeError(f"{name} must be a function, got {function!r}")
    try:
        value = jax.eval_shape(lambda params: function(params), params)
    except Exception as error:
        error.add_note(
            f"influence called {name}(params), here with {describe_shapes('params', params)}"
        )
        raise
    if not (isinstance(value, jax.ShapeDtypeStruct) and jnp.issubdtype(value.dtype, jnp.floating)):
        raise TypeError(f"{name} must give an array of real numbers, got {value}")
    return value.shape


def _run(
    run: Callable[..., Any],
    params: Params,
    transform: Callable[[Params], tuple[jax.Array, ...]],
    num_chains: int,
    burn_in: int,
    num_draws: int,
    every: int,
    draw_bytes: int,
) -> tuple[Moments | None, np.ndarray]:
    """The moments of the draws, segment after segment, and which chains diverged."""
    segments = np.array_split(
        np.arange(num_draws), -(-num_draws // max(1, SEGMENT_BYTES // draw_bytes))
    )
    plans: list[dict[str, Any]] = [
        dict(num_steps=len(s) * every, every=every, transform=transform) for s in segments
    ]
    if burn_in:
        plans.insert(0, dict(num_steps=burn_in, every=burn_in, transform=keep_nothing))
    start: dict[str, Any] = dict(num_chains=num_chains)
    moments, steps = None, 0
    for plan in plans:
        samples = run(params, **plan, **start)
        params, start = samples.params, dict(num_chains=None, state=samples.state)
        steps += plan["num_steps"]
        if (samples.diverged >= 0).all():
            break
        if samples.state.step < steps:
            raise KeyboardInterrupt
        if plan["transform"] is transform:
            with own_mesh(samples.losses):
                new = _measure(samples.draws)
                moments = new if moments is None else _join(moments, new)
    return moments, samples.diverged


@jax.jit
def _measure(draws: tuple[jax.Array, ...]) -> Moments:
    """The moments of draws `[chain, draw, entry]` of two vectors, or of one with itself."""
    first, second = draws[0], draws[-1]
    means = first.mean(1), second.mean(1)
    first, second = (x - mean[:, None] for x, mean in zip((first, second), means, strict=True))
    if len(draws) == 1:
        products = jnp.sum(first * second, 1)
    else:
        products = jnp.einsum("ctn,ctm->cnm", first, second, precision="highest")
    return Moments(jnp.full(len(first), first.shape[1], float), *means, products)


@jax.jit
def _join(one: Moments, two: Moments) -> Moments:
    """The moments of all draws, from those of the earlier and of the later ones."""
    count = one.count + two.count
    share = (two.count / count)[:, None]
    first, second = two.first - one.first, two.second - one.second
    between = _multiply(first * share * one.count[:, None], second, one.products.ndim)
    return Moments(
        count,
        one.first + share * first,
        one.second + share * second,
        one.products + two.products + between,
    )


def _multiply(first: Any, second: Any, ndim: int) -> Any:
    """The products of entries, all pairs `[chain, first, second]` or like ones `[chain, entry]`."""
    return first[:, :, None] * second[:, None, :] if ndim == 3 else first * second


def _covariance(moments: Moments) -> tuple[np.ndarray, np.ndarray]:
    """The covariance over all draws of all chains, and its standard error.

    Its mean is that of independent chains exactly: means of different chains share no draw.
    """
    moments = Moments(*(np.asarray(x, float) for x in moments))  # type: ignore[arg-type]
    chains = len(moments.count)
    first, second = (x - x.mean(0) for x in (moments.first, moments.second))
    within = moments.products / moments.count.reshape(-1, *[1] * (moments.products.ndim - 1))
    parts = within + _multiply(first, second, within.ndim) * chains / (chains - 1)
    return parts.mean(0), parts.std(0, ddof=1) / np.sqrt(chains)
