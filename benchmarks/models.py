"""The article's convolutional network, in Flax NNX."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def conv_by_rows(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The valid convolution of `x` `[batch, h, w, in]` and `kernel` `[kh, kw, in, out]`.

    One matrix product makes each row of the output from the `kh` rows of the input under it; the
    matrix is the kernel repeated along a band, once for each column of the output.
    """
    batch, h, w, channels = x.shape
    kh, kw, _, features = kernel.shape
    H, W = h - kh + 1, w - kw + 1
    rows = jnp.concatenate([x[:, i : i + H].reshape(batch, H, -1) for i in range(kh)], axis=-1)
    band = jnp.stack([jnp.pad(kernel, ((0, 0), (j, W - 1 - j), (0, 0), (0, 0))) for j in range(W)])
    band = jnp.moveaxis(band, 0, -2).reshape(kh * w * channels, W * features)
    return (rows @ band).reshape(batch, H, W, features)


def convolve(x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
    """`jax.lax.conv_general_dilated`, but `conv_by_rows` where JAX computes on a CPU.

    For `nnx.Conv(..., padding="VALID", conv_general_dilated=convolve)` without strides. The choice
    is made when the call is traced, by the default backend.
    """
    if jax.default_backend() == "cpu":
        return conv_by_rows(x, kernel)
    return jax.lax.conv_general_dilated(x, kernel, *args, **kwargs)


def max_pool(x: jax.Array) -> jax.Array:
    """The maximum of each 2x2 window of `[batch, h, w, channels]`, h and w even."""
    batch, h, w, channels = x.shape
    return x.reshape(batch, h // 2, 2, w // 2, 2, channels).max((2, 4))


class CNN(nnx.Module):
    """conv 5x5x6, pool, conv 5x5x16, pool, 120, 84, 10, with ReLU, on 32x32 images.

    Call with images `[batch, 32, 32, channels]`, get logits `[batch, classes]`.
    """

    def __init__(self, channels: int, classes: int = 10, *, rngs: nnx.Rngs):
        """Draw the weights from `rngs.params`."""
        conv = partial(nnx.Conv, padding="VALID", conv_general_dilated=convolve, rngs=rngs)
        self.conv1 = conv(channels, 6, (5, 5))
        self.conv2 = conv(6, 16, (5, 5))
        self.dense1 = nnx.Linear(5 * 5 * 16, 120, rngs=rngs)
        self.dense2 = nnx.Linear(120, 84, rngs=rngs)
        self.dense3 = nnx.Linear(84, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of a batch of images."""
        x = nnx.relu(max_pool(self.conv1(x)))
        x = nnx.relu(max_pool(self.conv2(x)))
        x = x.reshape(x.shape[0], -1)
        x = nnx.relu(self.dense1(x))
        x = nnx.relu(self.dense2(x))
        return self.dense3(x)
