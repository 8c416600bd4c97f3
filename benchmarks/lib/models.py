"""The article's convolutional network and ResNet-18 in Flax NNX, and shapes of larger networks."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint


def conv_windows(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The valid convolution of `x` and `kernel`, apart by position in the 2x2 windows of a pool.

    `y[s, r, k, i, j, b]` is feature k of the convolution at (2i + r, 2j + s) in example b. One
    matrix product makes a whole window of outputs from the patch of inputs under it; its matrix
    is the kernel at four offsets. The batch is the last axis, so that every other step is a copy
    or a comparison of long contiguous rows. XLA's own convolution on a CPU does neither. The layout
    is asked for, so that images are turned once, by a copy made for it, not at every use.

    Args:
      x: `[batch, h, w, in]`.
      kernel: `[kh, kw, in, out]` with h - kh and w - kw odd.
    """
    batch, h, w, channels = x.shape
    kh, kw, _, features = kernel.shape
    H, W = (h - kh + 1) // 2, (w - kw + 1) // 2
    x = with_layout_constraint(x, Layout(major_to_minor=(3, 1, 2, 0))).transpose(3, 1, 2, 0)
    rows = jnp.stack([x[:, i : i + 2 * H : 2] for i in range(kh + 1)])
    patches = jnp.stack([rows[..., j : j + 2 * W : 2, :] for j in range(kw + 1)])
    offsets = [((s, 1 - s), (r, 1 - r), (0, 0), (0, 0)) for s in (0, 1) for r in (0, 1)]
    matrix = jnp.stack([jnp.pad(kernel.swapaxes(0, 1), offset) for offset in offsets], axis=-2)
    size = (kh + 1) * (kw + 1) * channels
    y = matrix.reshape(size, 4 * features).T @ patches.reshape(size, H * W * batch)
    return y.reshape(2, 2, features, H, W, batch)


def conv_pool(conv: nnx.Conv, x: jax.Array) -> jax.Array:
    """`relu(max_pool(conv(x)))` with 2x2 windows, by `conv_windows` where JAX computes on a CPU.

    The choice is made when the call is traced, by the default backend. In both forms the gradient
    goes to the first of the largest outputs of a window.

    Args:
      conv: a convolution with a bias, no padding and no stride.
      x: `[batch, h, w, in]`, such that the convolution has even height and width.
    """
    if jax.default_backend() != "cpu":
        return nnx.relu(nnx.max_pool(conv(x), (2, 2), (2, 2)))
    y = conv_windows(x, conv.kernel[...])
    for _ in range(2):
        left, right = jnp.unstack(y)
        y = jnp.where(left < right, right, left)
    y = nnx.relu(y + jnp.asarray(conv.bias)[:, None, None, None])
    return y.transpose(3, 1, 2, 0)


class CNN(nnx.Module):
    """conv 5x5x6, pool, conv 5x5x16, pool, 120, 84, 10, with ReLU, on 32x32 images.

    Call with images `[batch, 32, 32, channels]`, get logits `[batch, classes]`.
    """

    def __init__(self, channels: int, classes: int = 10, *, rngs: nnx.Rngs):
        """Draw the weights from `rngs.params`."""
        self.conv1 = nnx.Conv(channels, 6, (5, 5), padding="VALID", rngs=rngs)
        self.conv2 = nnx.Conv(6, 16, (5, 5), padding="VALID", rngs=rngs)
        self.dense1 = nnx.Linear(5 * 5 * 16, 120, rngs=rngs)
        self.dense2 = nnx.Linear(120, 84, rngs=rngs)
        self.dense3 = nnx.Linear(84, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of a batch of images."""
        x = conv_pool(self.conv1, x)
        x = conv_pool(self.conv2, x)
        x = x.reshape(x.shape[0], -1)
        x = nnx.relu(self.dense1(x))
        x = nnx.relu(self.dense2(x))
        return self.dense3(x)


class Block(nnx.Module):
    """Two 3x3 convolutions, each with a group norm, around which the input goes past."""

    def __init__(self, width: int, out: int, dtype: Any, *, rngs: nnx.Rngs):
        """Draw the weights; the first convolution has stride 2 where the width changes."""
        conv = partial(nnx.Conv, use_bias=False, dtype=dtype, rngs=rngs)
        norm = partial(nnx.GroupNorm, out, num_groups=8, dtype=dtype, rngs=rngs)
        strides = 1 if width == out else 2
        self.conv1, self.norm1 = conv(width, out, (3, 3), strides=strides), norm()
        self.conv2, self.norm2 = conv(out, out, (3, 3)), norm()
        self.past = (
            nnx.Sequential()
            if width == out
            else nnx.Sequential(conv(width, out, (1, 1), strides=2), norm())
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, h, w, width]` to `[batch, h, w, out]`, or half of h and w."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        return nnx.relu(self.norm2(self.conv2(y)) + self.past(x))


class ResNet18(nnx.Module):
    """ResNet-18 for 32x32 images, with group norms, which know nothing of the rest of a batch.

    Weights are float32, and the arithmetic between them is in `dtype`. Call with images
    `[batch, 32, 32, channels]`, get float32 logits `[batch, classes]`.
    """

    def __init__(
        self, channels: int, classes: int = 10, *, width: int = 64, dtype: Any = jnp.bfloat16,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        """Draw the weights; `width` is the width of the first stage, 64 in the paper."""
        self.stem = nnx.Conv(channels, width, (3, 3), use_bias=False, dtype=dtype, rngs=rngs)
        self.norm = nnx.GroupNorm(width, num_groups=8, dtype=dtype, rngs=rngs)
        widths = [width] * 3 + [width * 2] * 2 + [width * 4] * 2 + [width * 8] * 2
        self.blocks = nnx.List(Block(a, b, dtype, rngs=rngs) for a, b in pairwise(widths))
        self.head = nnx.Linear(width * 8, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of a batch of images."""
        x = nnx.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2), dtype=jnp.float32))


def init_cnn(channels: int, seed: int) -> tuple[Any, Any]:
    """The graph of the CNN and the initial parameters that a seed gives it."""
    return nnx.split(CNN(channels, rngs=nnx.Rngs(seed)))


def lenet() -> dict[str, Any]:
    """Shapes of the article's CNN: 62,006 parameters in 10 leaves."""
    dense = {f"dense{i}": (a, b) for i, (a, b) in enumerate([(400, 120), (120, 84), (84, 10)])}
    kernels = {"conv1": (5, 5, 3, 6), "conv2": (5, 5, 6, 16)} | dense
    return {name: {"kernel": shape, "bias": shape[-1:]} for name, shape in kernels.items()}


def resnet18() -> dict[str, Any]:
    """Shapes of ResNet-18 for CIFAR-10: 11,173,962 parameters in 62 leaves."""
    kernels: dict[str, tuple[int, ...]] = {"stem": (3, 3, 3, 64)}
    width = 64
    for stage, out in enumerate([64, 128, 256, 512]):
        for block in range(2):
            name = f"stage{stage}_block{block}"
            kernels[f"{name}_conv1"] = (3, 3, width, out)
            kernels[f"{name}_conv2"] = (3, 3, out, out)
            if width != out:
                kernels[f"{name}_shortcut"] = (1, 1, width, out)
            width = out
    layers: dict[str, Any] = {
        name: {"kernel": shape, "scale": shape[-1:], "bias": shape[-1:]}
        for name, shape in kernels.items()
    }
    return layers | {"head": {"kernel": (512, 10), "bias": (10,)}}


def transformer(width: int = 768, layers: int = 12, vocabulary: int = 16_384) -> dict[str, Any]:
    """Shapes of a GPT-2-like transformer: 98.4 million parameters in 148 leaves."""
    norm = {"scale": (width,), "bias": (width,)}
    matrices = {"qkv": (1, 3), "out": (1, 1), "up": (1, 4), "down": (4, 1)}
    block = {"norm1": norm, "norm2": norm} | {
        name: {"kernel": (a * width, b * width), "bias": (b * width,)}
        for name, (a, b) in matrices.items()
    }
    tables = {"tokens": (vocabulary, width), "positions": (1024, width), "norm": norm}
    return tables | {f"block{i}": block for i in range(layers)}


def matrices() -> dict[str, Any]:
    """Eight leaves of 1024 x 1024 and twenty small ones: 8.4 million parameters, in a cache."""
    large = {f"large{i}": (1024, 1024) for i in range(8)}
    return large | {f"small{i}": (64, 32) for i in range(20)}


TREES: dict[str, Callable[[], dict[str, Any]]] = {
    "lenet": lenet,
    "matrices": matrices,
    "resnet18": resnet18,
    "transformer": transformer,
    "billion": lambda: transformer(width=2048, layers=19),
}


def is_shape(x: Any) -> bool:
    """Whether `x` is the shape of a leaf."""
    return isinstance(x, tuple)


def size(shapes: Any) -> int:
    """How many parameters a tree of shapes has."""
    return sum(math.prod(shape) for shape in jax.tree.leaves(shapes, is_leaf=is_shape))


def fill_tree(shapes: Any, value: float, dtype: Any = jnp.float32) -> Any:
    """The arrays of a tree of shapes."""
    return jax.tree.map(lambda s: jnp.full(s, value, dtype), shapes, is_leaf=is_shape)
