"""The article's convolutional network, in Flax NNX."""

import jax
from flax import nnx


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
        x = nnx.max_pool(nnx.relu(self.conv1(x)), (2, 2), (2, 2))
        x = nnx.max_pool(nnx.relu(self.conv2(x)), (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nnx.relu(self.dense1(x))
        x = nnx.relu(self.dense2(x))
        return self.dense3(x)
