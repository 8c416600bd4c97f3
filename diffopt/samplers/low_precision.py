"""Parameters of 16 bits: what rounding leaves out is kept, and the rounding itself is random."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..inputs.callables import check_transformation
from ..inputs.keys import check_key, derive_key
from ..inputs.trees import array_dtype, check_inexact, find_states, in_structure_of
from ..noise.increments import SMALL, random_bits_like
from ..noise.threefry import is_constant

UNITS = 2**14


TINY = float(jnp.finfo(jnp.float32).tiny)  # a CPU flushes what is smaller to 0


class LowPrecisionState(NamedTuple):
    """State of `low_precision`.

    Attributes:
      key: a typed PRNG key, split at every step.
      residual: what the parameters leave out, an int16 in units of 2⁻¹⁴ of a parameter's spacing;
        `optax.MaskedNode()` for a parameter of 32 bits or more. None with `residual=False`.
      inner_state: the state of the wrapped transformation, in float32; in bfloat16 the leaves that
        `state_dtype` is for.
    """

    key: jax.Array
    residual: Any
    inner_state: Any


def _is_wide(q: Any) -> bool:
    """Whether `q` stands for the residual of a parameter of 32 bits or more."""
    return isinstance(q, optax.MaskedNode)


def is_low(p: Any) -> bool:
    """Whether `p` is a real array of fewer than 32 bits."""
    dtype = array_dtype(p)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


def _round_to(x: jax.Array, dtype: Any) -> jax.Array:
    """The float32 `x` rounded to the nearest number of `dtype`, in float32.

    Within one program XLA drops a cast to bfloat16 and back, though not one to float16.
    """
    if dtype == jnp.bfloat16:
        return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    return x.astype(dtype).astype(jnp.float32)


def _spacing(x: jax.Array, dtype: Any) -> jax.Array:
    """The spacing of the numbers of `dtype` at the float32 `x`, a power of two."""
    info = jnp.finfo(dtype)
    word = jax.lax.bitcast_convert_type(x, jnp.uint32)
    binade = jax.lax.bitcast_convert_type(word & np.uint32(0x7F800000), jnp.float32)
    finest = max(float(info.smallest_subnormal), TINY)
    return jnp.maximum(binade * np.float32(info.eps), np.float32(finest))


def _unit(p: jax.Array) -> jax.Array:
    """2⁻¹⁴ of the spacing of the numbers of `p`'s dtype at `p`."""
    spacing = _spacing(_widen(p), p.dtype)
    return jnp.maximum(spacing * np.float32(1 / UNITS), np.float32(TINY))


def round_at_random(x: jax.Array, dtype: Any, bits: jax.Array) -> jax.Array:
    """One of the two neighbours of the float32 `x` in `dtype`, by 16 random bits; its mean is x.

    Within one spacing beyond the largest number it is the largest number.
    """
    info = jnp.finfo(dtype)
    width = 23 - info.nmant
    spacing = _spacing(x, dtype)
    chance = (bits << 16 >> (32 - width)).astype(jnp.float32) * np.float32(2.0**-width)
    size = jnp.floor(jnp.abs(x) / spacing + chance) * spacing
    largest = np.float32(info.max)
    near = jnp.abs(x) - largest < _spacing(jnp.asarray(largest), dtype)
    size = jnp.where(near, jnp.minimum(size, largest), size)
    return jnp.where(jnp.isfinite(x), jnp.copysign(size, x), x).astype(dtype)


def _is_none(x: Any) -> bool:
    return x is None


def _widen(p: Any) -> Any:
    if not is_low(p):
        return p
    if isinstance(p, jax.ShapeDtypeStruct):
        return p.update(dtype=jnp.float32)
    return _round_to(p.astype(jnp.float32), p.dtype)


def _residual(p: jax.Array, q: jax.Array) -> jax.Array:
    return q.astype(jnp.float32) * _unit(p)


def _second_16_bits(bits: jax.Array) -> jax.Array:
    """A second number of 16 bits: with `bits` it is a point of a lattice that is even in a square.

    Its factor is the odd number nearest to 2¹⁶ over the golden ratio.
    """
    return bits * np.uint32(40503) & np.uint32(0xFFFF)


def _pass_in_one_word(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`x` and `y`, of at most 16 bits each, by way of one word, as what they have in common.

    On a CPU XLA would compute that, a whole update, once for each of them.
    """
    cast = jax.lax.bitcast_convert_type
    unsigned = [jnp.dtype(f"uint{8 * z.dtype.itemsize}") for z in (x, y)]
    low, high = (cast(z, u).astype(jnp.uint32) for z, u in zip((x, y), unsigned, strict=True))
    word = low | high << 16
    return cast(word.astype(unsigned[0]), x.dtype), cast((word >> 16).astype(unsigned[1]), y.dtype)


def add_residual(params: Any, residual: Any) -> Any:
    """The exact parameters: what is seen and what rounding left out."""
    if residual is None:
        return jax.tree.map(_widen, params)
    residual = in_structure_of(params, residual, _is_wide)

    def add(path: Any, p: Any, q: Any) -> Any:
        if q is None or _is_wide(
            q
        ):  # a parameter of 32 bits, or one that `optax.masked` leaves out
            return p
        _check_dtype(path, p, q)
        return _widen(p) + _residual(p, q)

    return jax.tree_util.tree_map_with_path(add, params, residual)


def _check_dtype(path: Any, p: Any, q: Any) -> None:
    """Raise a TypeError where the residual `q` was made for a parameter of another size."""
    if q is None or is_low(p) != _is_wide(q):
        return
    before = "32 bits or more" if _is_wide(q) else "16 bits"
    raise TypeError(
        f"params{jax.tree_util.keystr(path)} is of {p.dtype}, but the state of low_precision was"
        f" made for a parameter of {before}: cast the parameters before init, or make the state"
        " anew"
    )


def _check_residual(params: Any, residual: Any, keeps: bool) -> None:
    """Raise a TypeError unless the residual is there if it should be, and made for `params`."""
    if keeps != (residual is not None):
        raise TypeError(
            f"low_precision(residual={keeps}) got a state made with residual={not keeps}: make the"
            " state anew by init"
        )
    if keeps:
        residual = in_structure_of(params, residual, _is_wide)
        jax.tree_util.tree_map_with_path(_check_dtype, params, residual)


def _check_state_dtype(dtype: Any) -> None:
    """Raise a ValueError unless `dtype` is None or bfloat16."""
    try:
        name = None if dtype is None else jnp.dtype(dtype).name
    except TypeError:
        name = repr(dtype)
    if name not in (None, "bfloat16"):
        raise ValueError(
            f"state_dtype must be jnp.bfloat16, or None for float32, got {name} (in float16 the"
            " square of a gradient below 2e-4 is 0; bfloat16 serves parameters in float16 too)"
        )


def _narrow(inner_state: Any, params: Any) -> Any:
    """`inner_state`, with each float32 leaf that is like a parameter of 16 bits in bfloat16.

    Such a leaf has the shape of the parameter, and its path ends with the path of the parameter.
    """
    if find_states(inner_state, "noise", "precision"):
        raise ValueError(
            "state_dtype is for averages over up to 10,000 steps, but the precision of ivon in the"
            " state of tx is one over 1 / (1 - hess_decay): leave out state_dtype"
        )
    shapes = {
        path: jnp.shape(p)
        for path, p in jax.tree_util.tree_leaves_with_path(params)
        if is_low(p) and jnp.ndim(p)  # a scalar of the state need not be that of a scalar parameter
    }

    def narrow(path: Any, x: Any) -> Any:
        if is_low(x):
            raise ValueError(
                f"state_dtype rounds a state of float32 at random, but {jax.tree_util.keystr(path)}"
                f" in the state of tx is of {x.dtype} already: leave out its own dtype, as mu_dtype"
            )
        ends = (path[start:] for start in range(len(path) + 1))
        like = any(shapes.get(end) == jnp.shape(x) for end in ends)
        return x.astype(jnp.bfloat16) if like and array_dtype(x) == jnp.float32 else x

    return jax.tree_util.tree_map_with_path(narrow, inner_state)


def _round_state(state: Any, like: Any, key: jax.Array) -> Any:
    """`state`, with the leaves that are of 16 bits in `like` rounded to them at random."""

    def narrow(x: Any, before: Any, bits: Any) -> Any:
        if bits is None:
            return x
        return round_at_random(x.astype(jnp.float32), before.dtype, bits)

    low = jax.tree.map(lambda before: before if is_low(before) else None, like)
    bits = random_bits_like(key, low)
    return jax.tree.map(narrow, state, like, bits, is_leaf=_is_none)


def exact_params(params: optax.Params, opt_state: optax.OptState) -> Any:
    """The exact parameters θ = p + r under `low_precision`, in float32.

    What a program sees, p, is θ rounded at random to 16 bits; the state keeps the residual r. With
    `residual=False` there is none, and θ is p.
    Averages and variances over a chain are those of θ, and so is a checkpoint for use elsewhere.

    Args:
      params: the parameters p; of Flax NNX, `nnx.state(model, nnx.Param)`.
      opt_state: the state of `low_precision`, or of an Optax transformation around it
        (`optax.MultiSteps`, `optax.apply_if_finite`, ...) that has exactly one such state in it.

    Returns:
      A tree like `params`: float32 in place of 16 bits; parameters of 32 bits or more as they are.

    Raises:
      ValueError: no state in `opt_state` is that of `low_precision`, or several are.
      TypeError: a parameter was cast to or from 16 bits after `init`.

    Examples:
      >>> import diffopt, jax.numpy as jnp, optax
      >>> tx = diffopt.low_precision(optax.sgd(1e-3))
      >>> params = jnp.ones(2, jnp.bfloat16)
      >>> updates, state = tx.update(jnp.ones(2, jnp.bfloat16), tx.init(params), params)
      >>> params = optax.apply_updates(params, updates)
      >>> bool(jnp.allclose(diffopt.exact_params(params, state), 0.999, atol=1e-6))
      True
    """
    states = find_states(opt_state, "residual", "inner_state")
    if len(states) != 1:
        raise ValueError(
            f"opt_state must hold exactly one state of low_precision, got {len(states)};"
            " pass that state itself"
        )
    return add_residual(params, states[0].residual)


def low_precision(
    tx: optax.GradientTransformation,
    *,
    residual: bool = True,
    state_dtype: jax.typing.DTypeLike | None = None,
    key: int | jax.Array = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Let a sampler or an optimizer work on bfloat16 or float16 parameters as on float32 ones.

    It goes outermost: `low_precision(optax.chain(...))`, not `chain(low_precision(...), ...)`. A
    transformation after it, as `optax.scale`, changes updates that are rounded already: the
    residual no longer belongs to the parameters, which train wrongly, and `exact_params` agrees
    with them. No error tells you, because a transformation does not see those after it.

    bfloat16 has a spacing of 2⁻⁷ at 1. An update far below it is lost when the sum is rounded to
    the nearest number, and when it is rounded at random, with the right mean, each step adds a
    variance of up to a quarter of the squared spacing, which heats a chain many times over. Here
    the exact parameter is θ = p + r: p is the parameter that the program sees and r a residual of
    16 bits. The wrapped transformation takes its step u in float32, and

        θ ← p + r + u
        p ← θ rounded at random to one of its two neighbours, with mean θ
        r ← θ - p

    so nothing is lost and nothing is heated: the rounding of p does not enter θ. It is seen by
    the gradient alone, which is taken at p; with mean θ its gradient is unbiased wherever the
    loss is quadratic over one spacing. p itself is θ plus a rounding error of variance Δ²/6 or
    less for a spacing Δ, redrawn at every step; `exact_params` gives θ.

    float16's subnormal numbers are numbers like the others. θ may exceed the largest number, 65,504
    in float16, by less than a spacing, and r holds the rest; beyond that p is infinite.

    r is a fixed-point number of 2⁻¹⁴ of the spacing, itself rounded at random, so that p and r
    together hold 22 bits and an update far below what float32 keeps moves θ on average. The grain
    of float32 in r is the limit: each step moves θ up by 2⁻²⁶ of the spacing on average, 1 % of an
    update of 2⁻¹⁹ of it (1.5·10⁻⁸ at 1.3 in bfloat16), and an update below 2⁻²⁵ of it is right in
    size no more. One update loses something: where it takes a parameter to less than half its size,
    |u| > |p|/2, it is rounded to the dtype of the updates, because p + update could not be a finer
    number.
    `docs/theory/derivations.md` says why 14 bits, why p is rounded at random, and what it costs.

    The wrapped transformation sees float32 gradients and the exact θ as its parameters. Its
    hyperparameters are float32 as well. Parameters of 32 bits or more pass as without the wrapper.

    Its state is in float32 by default. A moving average in bfloat16 that is rounded to the nearest
    number, as Adam's of g², stops moving by itself. With `state_dtype=jnp.bfloat16` each leaf of
    the state that is like a parameter of 16 bits is rounded at random to bfloat16, after each step:

        s ← f(s, g) in float32
        s ← s rounded at random to one of its two neighbours, with mean s

    so a moving average keeps its mean, and gains a relative variance of some 5.5·10⁻⁶/(1 - β²) for
    the decay β: a standard deviation of 5 % for Adam's second moment at β₂ = 0.999, 17 % at 0.9999.
    A velocity of momentum m is hotter by 5.5·10⁻⁶/(1 - m²) of T, 3·10⁻⁵ at m = 0.9. Leave averages
    over more than 10,000 steps in float32; that of `ivon` is refused.

    With `residual=False` nothing is kept of what p leaves out: p ← p + u rounded at random. The
    mean is right still, but a step u adds the variance |u|(Δ - |u|), up to a quarter of the squared
    spacing Δ². An optimizer's walk of small steps takes that as noise in the weights, and may train
    as well: AdamW did on both networks of `docs/tutorials/bfloat16.md`. A sampler is heated: with
    noise of standard deviation σ a step, far below Δ, its variance is √(2/π)Δ/σ times what it
    should be, 100 times at σ = Δ/128. Keep the residual there, and for weights that are averaged.

    Memory, in bytes a parameter, all weights and all of the state; "all at random" is `state_dtype`
    with `residual=False`:

    | | float32 | float32 and a copy | `low_precision` | with `state_dtype` | all at random |
    |---|---|---|---|---|---|
    | SGD, SGLD | 4 | 6 | 4 | 4 | 2 |
    | momentum, SGHMC | 8 | 10 | 8 | 6 | 4 |
    | AdamW | 12 | 14 | 12 | 8 | 6 |

    Args:
      tx: a sampler of diffopt or any other Optax transformation that ends in a parameter update.
      residual: keep what p leaves out of θ, in 2 bytes a parameter.
      state_dtype: `jnp.bfloat16` for a state of `tx` in 16 bits, `None` for float32. It serves
        parameters in float16 too.
      key: of the rounding, an int or a PRNG key, typed or raw. It may be that of the sampler.

    Returns:
      An `optax.GradientTransformationExtraArgs` whose state is a `LowPrecisionState`. Its updates
      have the shapes and dtypes of the gradients, and are for `optax.apply_updates`. A gradient of
      `None` stays `None` where the wrapped transformation lets it.

    Raises:
      ValueError: `state_dtype` is neither bfloat16 nor `None`; at `init`, it is given for `ivon`;
        at `update`, no `params` were given.
      TypeError: `tx` is no Optax transformation, `key` no key, or `residual` no bool; at `init`, a
        parameter is not floating-point; at `update`, a parameter was cast to or from 16 bits after
        `init`, or the state was made with another `residual`.

    Examples:
      >>> import diffopt, jax, jax.numpy as jnp, optax
      >>> def last(tx):
      ...     @jax.jit
      ...     def step(carry, _):
      ...         params, state = carry
      ...         updates, state = tx.update(jnp.ones_like(params), state, params)
      ...         return (optax.apply_updates(params, updates), state), None
      ...     params = jnp.ones(10_000, jnp.bfloat16)
      ...     (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=500)
      ...     return round(float(params.astype(jnp.float32).mean()), 2)
      >>> tx = diffopt.sgld(1e-4, temperature=1e-3)  # 500 steps of -0.0001, and noise of 0.00045
      >>> last(tx), last(diffopt.low_precision(tx))
      (1.0, 0.95)

      The learning rate of a chain is inside:

      >>> tx = diffopt.low_precision(optax.chain(optax.scale_by_adam(), optax.scale(-1e-3)))
      >>> params = jnp.ones(2, jnp.bfloat16)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> params = optax.apply_updates(params, updates)
      >>> bool(jnp.allclose(diffopt.exact_params(params, state), 0.999, atol=1e-6))
      True

    References:
      Zhang, Wilson & De Sa, [Low-Precision Stochastic Gradient Langevin
      Dynamics](https://arxiv.org/abs/2206.09909), ICML 2022. The residual is that of compensated
      summation: Kahan, [Further remarks on reducing truncation
      errors](https://doi.org/10.1145/363707.363723), 1965.
    """
    check_transformation(tx)
    check_key(key)
    if not isinstance(residual, bool):
        raise TypeError(f"residual must be True or False, got {residual!r}")
    _check_state_dtype(state_dtype)
    tx = optax.with_extra_args_support(tx)

    def init_fn(params: Any) -> LowPrecisionState:
        check_inexact(params)
        zeros = lambda p: jnp.zeros_like(p, jnp.int16) if is_low(p) else optax.MaskedNode()
        kept = jax.tree.map(zeros, params) if residual else None
        inner_state = tx.init(jax.tree.map(_widen, params))
        if state_dtype is not None:
            inner_state = _narrow(inner_state, params)
        return LowPrecisionState(derive_key(key, "rounding"), kept, inner_state)

    def update_fn(
        updates: Any, state: LowPrecisionState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, LowPrecisionState]:
        if params is None:
            raise ValueError("low_precision needs the parameters: tx.update(grads, state, params)")
        key, subkey = jax.random.split(state.key)
        _check_residual(params, state.residual, residual)
        exact = add_residual(params, state.residual)
        nothing = lambda p: optax.MaskedNode()
        kept = state.residual if residual else jax.tree.map(nothing, params)
        params, rests = (
            jax.tree.map(lambda g, x: None if g is None else x, updates, tree, is_leaf=_is_none)
            for tree in (params, kept)
        )  # what has no gradient stays
        grads = jax.tree.map(
            lambda p, g: g.astype(jnp.float32) if is_low(p) else g, params, updates
        )
        before = state.inner_state
        wide = before if state_dtype is None else jax.tree.map(_widen, before)
        inner, inner_state = tx.update(grads, wide, exact, **extra_args)
        if state_dtype is not None:
            key, state_key = jax.random.split(key)
            inner_state = _round_state(inner_state, before, state_key)

        last = None

        def step(p: Any, g: Any, u: Any, q: Any, bits: Any) -> tuple[Any, Any]:
            nonlocal last
            if not is_low(p):
                return u, q
            if is_constant(jnp.shape(p)) and jnp.size(p) >= SMALL and last is not None:
                # XLA goes through all leaves operation by operation, unless one waits for another.
                if residual:
                    q, _ = jax.lax.optimization_barrier((q, last))
                else:
                    u, _ = jax.lax.optimization_barrier((u, last))
            start, u = _widen(p), u.astype(jnp.float32)
            moved = _residual(p, q) + u if residual else u
            rounded = round_at_random(start + moved, p.dtype, bits)
            if not residual:
                last = rounded
                return (rounded.astype(jnp.float32) - start).astype(g.dtype), q
            update = _round_to(rounded.astype(jnp.float32) - start, g.dtype)
            after = _round_to(start + update, p.dtype)  # as optax.apply_updates does
            rest = (moved - (after - start)) / _unit(after.astype(p.dtype))
            rest = jnp.floor(rest + _second_16_bits(bits).astype(jnp.float32) * np.float32(2**-16))
            rest = jnp.clip(rest, -(2**15), 2**15 - 1).astype(jnp.int16)
            rounded, rest = _pass_in_one_word(rounded, rest)
            last = rest
            return (rounded.astype(jnp.float32) - start).astype(g.dtype), rest

        steps = jax.tree.map(step, params, updates, inner, rests, random_bits_like(subkey, params))
        moves = jax.tree.map(lambda p, pair: pair[0], params, steps)
        if not residual:
            return moves, LowPrecisionState(key, None, inner_state)
        rests = jax.tree.map(lambda p, pair: pair[1], params, steps)
        pick = lambda g, rest, before: before if g is None else rest
        rests = jax.tree.map(pick, updates, rests, state.residual, is_leaf=_is_none)
        return moves, LowPrecisionState(key, rests, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
