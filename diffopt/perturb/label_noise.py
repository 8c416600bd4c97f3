"""Targets with fresh Gaussian noise."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._types import Key
from ..inputs.keys import check_key, derive_key
from ..inputs.scalars import as_float, check_int, check_number, ratio, root
from ..inputs.trees import array_dtype
from ..noise.increments import draw_increments


def label_noise(
    key: Key,
    labels: Any,
    std: Any = None,
    num_classes: int | None = None,
    *,
    temperature: Any = None,
    learning_rate: Any = None,
) -> jax.Array:
    r"""Targets with Gaussian noise, fresh at every visit: a diffusion that the network shapes.

        targets = one_hot(labels) + std ξ    ξ ~ N(0, I); labels + std ξ in regression

    The gradient is linear in the noise, which has mean 0, so the gradient's mean is that of clean
    targets. With K classes, `optax.softmax_cross_entropy` and, for one example, probabilities p
    and logits of Jacobian J, the noise ε = std ξ adds Jᵀ(p1ᵀ - I)ε to the gradient, of covariance

        std² Jᵀ C J,   C = (p1ᵀ - I)(1pᵀ - I) = I - p1ᵀ - 1pᵀ + Kppᵀ

    For the squared error (f - y)²/2 the covariance is std² JᵀJ. So the diffusion is strong along
    weights that change the outputs, and weak where the network is flat.

    `temperature` and `learning_rate` give std² = 2TB/η for B examples. The derivation: the mean
    over B examples has noise of covariance std² G/B, with G the mean of JᵀCJ, and a step
    of SGD has η² std² G/B = 2TηG. That is the noise of dθ = -∇L dt + √(2TG) dW, Langevin
    dynamics with the metric G, so T stands for the same diffusion at every η and B, as it does
    in `langevin`. On a linear model with squared error, whose Hessian is G, the stationary
    covariance is T I, and T(I - ηG/2)⁻¹ of the steps. Before momentum m give η/(1 - m).

    Choose it for training sets with wrong labels where you cannot tune weight decay; where you
    can, expect a tie (see the page on training noise). Cost: the noise of B·K numbers a step,
    next to nothing. At std = 0 targets are clean to the bit.

    Args:
      key: an int or a PRNG key, another at every step.
      labels: class numbers as integers, where `num_classes` is given; else real targets.
      std: the standard deviation ≥ 0, a number or a 0-d array.
      num_classes: K > 0; targets gain a last axis of this length.
      temperature: T ≥ 0, in units of the loss; in place of `std`.
      learning_rate: η ≥ 0 of the optimizer; at 0 there is no noise.

    Returns:
      Targets. B, of which the loss must be the mean, is the number of labels with classes, else
      the length of the first axis. Inside `vmap` over examples B is 1, so call it on the batch.

    Raises:
      ValueError: a number is negative, NaN or infinite; a label is no class; both of `std` and
        `temperature` are given, or neither; `temperature` comes without `learning_rate`.
      TypeError: an argument is of the wrong type; classes are not integers; targets are.

    Examples:
      >>> import diffopt, jax, jax.numpy as jnp, optax
      >>> labels = jnp.array([2, 0])
      >>> diffopt.label_noise(0, labels, 0.0, 3).tolist()
      [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
      >>> def loss(logits, key):
      ...     targets = diffopt.label_noise(key, labels, 0.5, num_classes=3)
      ...     return optax.softmax_cross_entropy(logits, targets).mean()
      >>> keys = jax.random.split(jax.random.key(1), 10_000)
      >>> g = jax.vmap(jax.grad(loss), (None, 0))(jnp.zeros((2, 3)), keys)
      >>> bool(jnp.allclose(g.mean(0)[0], jnp.array([1, 1, -2]) / 6, atol=0.02))
      True

    References:
      Chen et al., [Noise against noise: stochastic label noise helps combat inherent label
      noise](https://openreview.net/forum?id=80FMcTSZ6J0), ICLR 2021.
    """
    check_key(key)
    if (std is None) == (temperature is None):
        raise ValueError(
            f"give one of std and temperature, got std={std!r}, temperature={temperature!r}"
        )
    if (temperature is None) != (learning_rate is None):
        raise ValueError(
            "temperature and learning_rate go together, got"
            f" temperature={temperature!r}, learning_rate={learning_rate!r}"
        )
    targets, examples = _clean(labels, num_classes)
    if temperature is None:
        check_number("std", std)
        scale = as_float(std)
    else:
        check_number("temperature", temperature)
        check_number("learning_rate", learning_rate)
        scale = root(ratio(2 * as_float(temperature) * examples, as_float(learning_rate)))
    xi = draw_increments(derive_key(key, "labels"), targets, "gaussian")
    with jax.numpy_dtype_promotion("standard"):
        return (targets + scale * xi).astype(targets.dtype)


def _clean(labels: Any, num_classes: int | None) -> tuple[jax.Array, int]:
    """Targets without noise, and how many examples they are."""
    dtype = array_dtype(labels)
    wanted = jnp.floating if num_classes is None else jnp.integer
    if dtype is None or not jnp.issubdtype(dtype, wanted):
        kind = "real targets" if num_classes is None else "integer class numbers"
        got = repr(labels) if dtype is None else f"dtype {dtype}"
        classes = num_classes is None and dtype is not None and jnp.issubdtype(dtype, jnp.integer)
        cure = ": of classes give num_classes too" if classes else ""
        raise TypeError(
            f"labels must be an array of {kind} where num_classes is {num_classes!r}, got"
            f" {got}{cure}"
        )
    if num_classes is None:
        return jnp.asarray(labels), len(labels) if jnp.ndim(labels) else 1
    check_int("num_classes", num_classes, least=1)
    traced = isinstance(labels, jax.core.Tracer)
    if not traced and getattr(labels, "is_fully_addressable", True) and jnp.size(labels):
        for extreme in (np.asarray(labels).min(), np.asarray(labels).max()):
            if not 0 <= extreme < num_classes:
                raise ValueError(f"labels must be from 0 to {num_classes - 1}, got {extreme}")
    return jax.nn.one_hot(labels, num_classes), math.prod(jnp.shape(labels))
