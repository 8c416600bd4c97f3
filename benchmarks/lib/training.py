"""The loop that trains a network, whose epoch is one compiled program, and its predictions."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P


def mean_loss(graphdef: Any, params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of a batch."""
    logits = nnx.merge(graphdef, params)(images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


class Epoch(NamedTuple):
    """What a network is after an epoch. The next one donates its parameters and its state."""

    number: int
    params: Any
    opt_state: Any
    losses: np.ndarray
    seconds: float


def train(
    epoch: Callable[..., Any],
    params: Any,
    opt_state: Any,
    key: jax.Array,
    train_set: tuple[jax.Array, jax.Array],
    numbers: Iterable[int],
) -> Iterator[Epoch]:
    """Train for the epochs `numbers`, which count from 1.

    Args:
      epoch: a program of `make_epoch`.
      params: the parameters to begin with, donated as `opt_state` is.
      opt_state: the optimizer's state.
      key: with the number of an epoch it gives the order of the data.
      train_set: images and labels.
      numbers: as an iterable that shows progress, for example.
    """
    for number in numbers:
        order_key = jax.random.fold_in(key, number)
        start = time.perf_counter()
        params, opt_state, losses = epoch(params, opt_state, order_key, *train_set)
        losses = np.asarray(losses)
        yield Epoch(number, params, opt_state, losses, time.perf_counter() - start)


def second_half(epochs: int) -> range:
    """The epochs whose predictions are averaged."""
    return range(epochs // 2 + 1, epochs + 1)


def make_mesh(batch_size: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All `devices`, by default all there are on all hosts, as a mesh with axes "data" and "copy".

    A batch is cut along "data" into equal shares: as many as divide both the batch and the
    devices. Where that is fewer than the devices, those along "copy" compute the same share.
    """
    devices = jax.devices() if devices is None else devices
    shares = math.gcd(batch_size, len(devices))
    shape = shares, len(devices) // shares
    return jax.make_mesh(shape, ("data", "copy"), (AxisType.Auto,) * 2, devices=devices)


def data_parallel(gradient: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`gradient(params, images, labels)`, each device on its share of the batch; then the mean."""

    def gradient_of_share(params: Any, images: jax.Array, labels: jax.Array) -> Any:
        return jax.lax.pmean(gradient(params, images, labels), "data")

    specs = P(), P("data"), P("data")
    return jax.shard_map(
        gradient_of_share, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False
    )


def make_epoch(
    graphdef: Any, tx: optax.GradientTransformation, batch_size: int, mesh: Mesh | None = None
) -> Any:
    """Compile `epoch(params, opt_state, key, images, labels) -> params, opt_state, losses`.

    The epoch visits the examples in an order drawn from `key`, `batch_size` at a time, dropping
    the last incomplete batch; `losses` has one entry a step. `params` and `opt_state` are donated.
    With a `mesh` from `make_mesh` the devices share every batch. They exchange gradients and
    losses and nothing else: each draws the same noise from the same key.
    """
    gradient = jax.value_and_grad(partial(mean_loss, graphdef))
    if mesh is not None and mesh.size > 1:
        gradient = data_parallel(gradient, mesh)

    @partial(jax.jit, donate_argnums=(0, 1))
    def epoch(
        params: Any, opt_state: Any, key: jax.Array, images: jax.Array, labels: jax.Array
    ) -> tuple[Any, Any, jax.Array]:
        steps = len(images) // batch_size
        order = jax.random.permutation(key, len(images))[: steps * batch_size]

        def step(carry: tuple[Any, Any], index: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:
            params, opt_state = carry
            loss, grads = gradient(params, images[index], labels[index])
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        (params, opt_state), losses = jax.lax.scan(
            step, (params, opt_state), order.reshape(steps, batch_size)
        )
        return params, opt_state, losses

    return epoch


@partial(jax.jit, static_argnums=(0, 3))
def predict(graphdef: Any, params: Any, images: jax.Array, batch_size: int = 100) -> jax.Array:
    """Class probabilities `[examples, classes]`, computed in batches that fit in cache."""
    model, examples = nnx.merge(graphdef, params), len(images)
    batch_size = min(batch_size, examples)
    batches = jnp.arange(-(-examples // batch_size) * batch_size).reshape(-1, batch_size) % examples
    logits = jax.lax.map(lambda index: model(images[index]), batches)
    return jax.nn.softmax(logits.reshape(-1, logits.shape[-1])[:examples])
