"""The improved variational online Newton method."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._types import Key, Params
from ..inputs.keys import check_key, derive_key
from ..inputs.scalars import as_float, check_int, check_number, check_scalar, value_at
from ..inputs.trees import cast_like, check_inexact, check_like, check_structure
from ..noise.increments import draw_increments
from .perturbed import check_noise, is_masked, keep_unmasked, key_of_part, next_keys

LEAST, MOST = 2.0**-110, 2.0**110  # of a precision, so that its root and its square are finite


class IvonState(NamedTuple):
    """State of `ivon`.

    Attributes:
      count: steps taken, an int32 scalar that stays at 2³¹ - 1 once it is there.
      noise: as many typed PRNG keys as there are draws, under the name of the noise; new at
        every step.
      momentum: M, the decayed mean of the gradients, float32 where they have 16 bits.
      precision: N(h + δ), of the shapes of the parameters and > 0: the inverse variances of the
        posterior.
    """

    count: jax.Array  # type: ignore[assignment]
    noise: dict[str, jax.Array]
    momentum: Any
    precision: Any

    def deviations(self, params: Params) -> Any:
        """The standard deviation of ε in every element."""
        check_structure("params", params, self.precision, is_masked)
        check_like("params", keep_unmasked(self.precision, params), self.precision)
        return jax.tree.map(jax.lax.rsqrt, self.precision)


def ivon(
    learning_rate: optax.ScalarOrSchedule,
    num_examples: float | jax.Array,
    *,
    hess_init: float | jax.Array = 1.0,
    momentum: float | jax.Array = 0.9,
    hess_decay: float | jax.Array = 0.99999,
    weight_decay: float | jax.Array = 1e-4,
    clip: float | jax.Array = math.inf,
    draws: int = 1,
    key: Key = 0,
    noise: str = "gaussian",
) -> optax.GradientTransformationExtraArgs:
    r"""The improved variational online Newton method: a Gaussian posterior from one training run.

    It minimizes E[L(θ)] + KL/N over Gaussians N(m, 1/(N(h + δ))) with a diagonal precision, for L
    the mean loss of N examples and the prior N(0, 1/(Nδ)), by natural gradients. m is what
    the parameters hold. One step, element by element:

        ε = ξ / √(N(h + δ))                  ξ ~ N(0, I)
        g = ∇L(m + ε)                        the point that `perturbed` gives
        M ← β₁M + (1 - β₁) g                 M starts at 0
        f = N(h + δ) ε g                     with mean ∇²L, by Stein's identity
        h ← β₂h + (1 - β₂) f + (1 - β₂)² (h - f)² / (2(h + δ))
        m ← m - η (h₀ + δ) (M / (1 - β₁ᵗ) + δm) / (h + δ)

    The third term of h keeps h + δ > 0 whatever f is: with a = (1 - β₂)(f - h)/(h + δ), it is
    h + δ ← (h + δ) (1 + (1 + a)²)/2, half of what it was at the least. The factor h₀ + δ makes η
    a learning rate of the size that suits SGD.

    Law on L = kθ²/2: h goes to k, draws have the variance 1/(N(k + δ)) around m, and m goes to 0
    up to the noise of its gradients. To first order in 1 - β₂, h ends above k by
    (1 - β₂) Var f / (2(k + δ)), where Var f = 2k² + N(k + δ)(k²m² + s²) and s² is the variance that
    minibatches give a gradient. So keep N(1 - β₂)s² small beside k, or h measures the noise of
    minibatches. Where β₂ = 1, h stays h₀; with N → ∞ as well, this is SGD with weight decay and the
    mean gradient of `optax.ema`.

    Memory: two numbers for each parameter, as Adam. Cost: three to four times the update of `sgld`
    on a CPU, nearly all of it ε, drawn for the point and for the update; gradients are as many as
    in plain training.

    Choose it where a network overfits, with many classes and few examples, and where you want
    uncertainty from a single run (see the page on training noise; under wrong labels it was behind
    tuned weight decay). Learning rates are those of SGD, 0.1 to 1, as a rule with a cosine. As long
    as f is small, h falls by `hess_decay` at every step, from `hess_init`, and the noise grows: so
    `hess_decay` sets how far it falls in a run. With n steps begin at 1 - 2/n to 1 - 4/n and
    `hess_init` at 1 (at 1 - 6/n training failed there). The paper's 0.99999 is for runs of many
    more steps. Leave other weight decay out of the chain: δ is the prior.

    Args:
      learning_rate: η > 0: a number, a 0-d array or a schedule of the step count.
      num_examples: N ≥ 1, the number of examples of which L is the mean; larger is colder.
      hess_init: h₀ > 0. The first draws have the variance 1/(N(h₀ + δ)).
      momentum: β₁ in [0, 1).
      hess_decay: β₂ in [0, 1].
      weight_decay: δ ≥ 0.
      clip: the largest absolute value, > 0, of (M / (1 - β₁ᵗ) + δm) / (h + δ).
      draws: how many different ε's make up one update, under `optax.MultiSteps(tx, draws)`: part
        i of an accumulation has number i modulo `draws`. f is then the product of the mean
        gradient, which is all that reaches the update, with the sum of the ε's: still unbiased,
        and as noisy as with one part. With 1 all parts have one ε.
      key: an int or a PRNG key; each method in a program needs its own (see `sampler`).
      noise: `"gaussian"`, `"gaussian16"` or `"rademacher"` (see `sampler`), whose draws are no
        Gaussians.

    Returns:
      An `optax.GradientTransformationExtraArgs` with an `IvonState`; its `update` needs `params`,
      and gradients at `perturbed(params, opt_state)`. A complex element has one h, for both of
      its parts.

    Raises:
      ValueError: an argument is out of its range; `noise` is no known name; `update` gets no
        `params`.
      TypeError: an argument is of the wrong type; at `init`, a parameter is not floating-point.

    Examples:
      Curvatures 1 and 4, 100 examples: the posterior's precisions are 100 and 400.

      >>> import diffopt, jax, jax.numpy as jnp, optax
      >>> tx = diffopt.ivon(0.1, 100, hess_decay=0.99, weight_decay=0.0)
      >>> curvature = jnp.repeat(jnp.array([1.0, 4.0]), 2_000)
      >>> def step(carry, _):
      ...     params, state = carry
      ...     grads = curvature * diffopt.perturbed(params, state)
      ...     updates, state = tx.update(grads, state, params)
      ...     return (optax.apply_updates(params, updates), state), None
      >>> params = jnp.ones(4_000)
      >>> (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), length=1_000)
      >>> noise = diffopt.perturbed(params, state, key=1) - params
      >>> precisions = 1 / noise.reshape(2, -1).var(1)
      >>> bool(jnp.allclose(precisions, jnp.array([100.0, 400.0]), rtol=0.15))
      True

    References:
      Shen et al., [Variational Learning is Effective for Large Deep
      Networks](https://arxiv.org/abs/2402.17641), ICML 2024.
    """
    check_scalar("learning_rate", learning_rate, positive=True)
    check_number("num_examples", num_examples, positive=True)
    if not isinstance(num_examples, jax.core.Tracer) and num_examples < 1:
        raise ValueError(f"num_examples must be N ≥ 1, not 1/N, got {num_examples!r}")
    check_number("hess_init", hess_init, positive=True)
    check_number("momentum", momentum, below=1)
    check_number("hess_decay", hess_decay)
    check_number("weight_decay", weight_decay)
    if not isinstance(hess_decay, jax.core.Tracer) and hess_decay > 1:
        raise ValueError(f"hess_decay must be ≤ 1, got {hess_decay!r}")
    clips = not _is_infinite(clip)
    if clips:
        check_number("clip", clip, positive=True)
    if not isinstance(draws, jax.core.Tracer):
        check_int("draws", draws, least=1)
    check_key(key)
    check_noise(noise)

    def init_fn(params: optax.Params) -> IvonState:
        check_inexact(params)
        keys = jax.random.split(derive_key(key, "ivon"), int(draws))
        precision = as_float(num_examples) * (as_float(hess_init) + as_float(weight_decay))

        def zeros(p: Any) -> jax.Array:
            return jnp.zeros_like(p, dtype=np.promote_types(jnp.result_type(p), np.float32))

        def first(m: jax.Array) -> jax.Array:
            return jnp.full_like(m, precision, dtype=jnp.finfo(m.dtype).dtype)

        means = jax.tree.map(zeros, params)
        count = jnp.zeros([], jnp.int32)
        return IvonState(count, {noise: keys}, means, jax.tree.map(first, means))

    def update_fn(
        updates: optax.Updates,
        state: IvonState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, IvonState]:
        del extra_args
        if params is None:
            raise ValueError("ivon needs the parameters: tx.update(grads, opt_state, params)")
        eta = value_at(learning_rate, state.count)
        N, h0, delta, b1 = map(as_float, (num_examples, hess_init, weight_decay, momentum))
        slow = as_float(1 - hess_decay)  # of a Python float without loss
        unbias = 1 - b1 ** (as_float(state.count) + 1)
        keys = state.noise[noise]
        draw = lambda part: draw_increments(key_of_part(keys, part), state.momentum, noise)
        xis = [draw(part) for part in range(len(keys))]

        def learn(s: jax.Array, g: jax.Array, *xis: jax.Array) -> jax.Array:
            f = jnp.sqrt(s) * _product(sum(xis), g)
            p = s / N  # h + δ
            a = slow * (f - (p - delta)) / p
            return jnp.clip(s * (1 + (1 + a) ** 2) / 2, LEAST, MOST)

        def move(g: jax.Array, M: jax.Array, s: jax.Array, m: Any) -> jax.Array:
            step = (M / unbias + delta * m) / (s / N)
            return -eta * (h0 + delta) * (_clip(step, as_float(clip)) if clips else step)

        with jax.numpy_dtype_promotion("standard"):  # `cast_like` below is meant
            wide = jax.tree.map(lambda g, M: jnp.asarray(g, M.dtype), updates, state.momentum)
            means = jax.tree.map(lambda g, M: b1 * M + (1 - b1) * g, wide, state.momentum)
            precision = jax.tree.map(learn, state.precision, wide, *xis)
            moves = jax.tree.map(move, wide, means, precision, params)
        count = optax.safe_increment(state.count)
        after = IvonState(count, {noise: next_keys(keys)}, means, precision)
        return cast_like(moves, updates), cast_like(after, state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _is_infinite(clip: Any) -> bool:
    return not isinstance(clip, jax.core.Tracer) and np.ndim(clip) == 0 and clip == math.inf


def _product(xi: Any, g: jax.Array) -> jax.Array:
    """ξg, and the mean over its two parts of a complex one."""
    return jnp.real(jnp.conj(xi) * g) / (1 + jnp.iscomplexobj(g))


def _clip(x: jax.Array, most: jax.Array) -> jax.Array:
    if jnp.iscomplexobj(x):
        return jax.lax.complex(_clip(x.real, most), _clip(x.imag, most))
    return jnp.clip(x, -most, most)
