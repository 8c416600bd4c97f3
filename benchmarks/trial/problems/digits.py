"""Digits as 64 numbers, and a small network of dense layers for them."""

import itertools
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

LAYERS = (64, 128, 128, 10)


@lru_cache
def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Digits as 64 numbers of mean 0 and variance 1 in all: train and test as in `lib.data`."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans = load_digits()
    x = ((scans.data - scans.data.mean()) / scans.data.std()).astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(
        x, scans.target.astype(np.int32), test_size=360, random_state=0, stratify=scans.target
    )
    return train_x, train_y, test_x, test_y


@lru_cache
def load_pairs() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two digits side by side in 100 classes: 4,000 pairs of 1,300 digits, 500 of the others."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = ((images - images.mean()) / images.std()).astype(np.float32)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(labels))
    parts: list[np.ndarray] = []
    for part, number in ((order[:1300], 4000), (order[1300:], 500)):
        left, right = part[rng.integers(len(part), size=(2, number))]
        x = np.concatenate([images[left], images[right]], axis=1)
        parts += [x, (10 * labels[left] + labels[right]).astype(np.int32)]
    return parts[0], parts[1], parts[2], parts[3]


def init_network(key: jax.Array, layers: tuple[int, ...] = LAYERS) -> list[dict[str, jax.Array]]:
    """He's initial weights of a network of dense layers."""
    keys = jax.random.split(key, len(layers) - 1)
    shapes = itertools.pairwise(layers)
    return [
        {"kernel": jax.random.normal(k, shape) * (2 / shape[0]) ** 0.5, "bias": jnp.zeros(shape[1])}
        for k, shape in zip(keys, shapes, strict=True)
    ]


def network(params: list[dict[str, jax.Array]], x: jax.Array) -> jax.Array:
    """Logits of a network of dense layers with ReLU."""
    *hidden, last = params
    for layer in hidden:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ last["kernel"] + last["bias"]


def mean_loss(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(network(params, x), labels).mean()
