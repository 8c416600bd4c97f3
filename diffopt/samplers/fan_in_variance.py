"""The variance of a prior by the width of a layer."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..inputs.scalars import check_int, check_number
from ..inputs.trees import check_inexact


def fan_in_variance(
    params: optax.Params,
    scale: float | jax.Array = 2.0,
    *,
    other: float | jax.Array = 1.0,
    out_axis: int = -1,
) -> Any:
    r"""A prior variance for each weight: `scale` over the fan-in of its layer.

    If the inputs of a unit are of order 1 and its weights are independent with variance c/fan-in,
    the sum over its inputs has variance of order c at every width. c = 2 keeps the size of the
    signal from layer to layer of rectified units, as it does at initialization; c = 1 does so for
    linear and tanh units. With one variance for all weights, such as 1, wide layers have far too
    large outputs under the prior.

    The rule looks at shapes alone, with the last axis for the outputs, as in Flax and Haiku:

    - two axes or more are the weights of a layer. Fan-in is the product of all but the axis of the
      outputs: `[in, out]` has in, a convolution `[height, width, in, out]` has height·width·in
      (with groups, `in` counts the inputs of one group). Equinox and PyTorch have the outputs
      first, `[out, in]`, `[out, in, height, width]`: `out_axis=0`.
    - no axis or one is a bias, a scale or a shift of a normalization: `other`.

    Shapes do not tell everything. Change these leaves of the tree that you get:

    - an embedding `[words, features]` is looked up, one row at a time: its fan-in is not the
      number of words. 1/features is what Flax begins with.
    - layers stacked for `vmap` or `scan`, `[layers, in, out]`, look like convolutions, and so do
      chains. Numbers fit a stack as well: give this function `jax.tree.map(lambda p: p[0], stack)`.
    - kernels of attention with an axis of heads: `[in, heads, features]` of queries, keys and
      values has fan-in `in`, not in·heads, and their biases have two axes.
    - the scale of a normalization is about 1, where the center of a prior is 0 by default:
      `center` takes a tree too.

    Args:
      params: the parameters, or a tree of their shapes.
      scale: c > 0, a number or a 0-d array.
      other: the variance where a leaf has fewer than two axes, > 0, likewise.
      out_axis: the axis of the outputs of a layer's weights.

    Returns:
      A tree like `params` of numbers, for `gaussian_prior`.

    Raises:
      ValueError: `scale` or `other` is not positive and finite; a leaf has no axis `out_axis`.
      TypeError: an argument is of the wrong type, or a parameter is not floating-point.

    Examples:
      >>> import diffopt, jax.numpy as jnp, optax
      >>> params = {"conv": jnp.ones((5, 5, 3, 6)), "bias": jnp.ones(6), "words": jnp.ones((90, 8))}
      >>> variance = diffopt.fan_in_variance(params) | {"words": 1 / 8}
      >>> variance == {"conv": 2 / 75, "bias": 1.0, "words": 0.125}
      True
      >>> T = 1 / 50_000
      >>> tx = optax.chain(diffopt.gaussian_prior(variance, T), diffopt.sghmc(0.01, T))

    References:
      He et al., [Delving Deep into Rectifiers](https://arxiv.org/abs/1502.01852), ICCV 2015.
    """
    check_number("scale", scale, positive=True)
    check_number("other", other, positive=True)
    out = check_int("out_axis", out_axis)
    check_inexact(params)

    def variance(path: Any, p: Any) -> Any:
        shape = jnp.shape(p)
        if len(shape) < 2:
            return other
        if not -len(shape) <= out < len(shape):
            name = f"params{jax.tree_util.keystr(path)}"
            raise ValueError(f"out_axis must be an axis of {name}, of shape {shape}, got {out}")
        fan_in = math.prod(n for axis, n in enumerate(shape) if axis != out % len(shape))
        return scale / max(fan_in, 1)

    return jax.tree_util.tree_map_with_path(variance, params)
