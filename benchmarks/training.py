"""One epoch as one compiled program, and the scores of a trained network."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from .calibration import brier


def mean_loss(graphdef: Any, params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of a batch."""
    logits = nnx.merge(graphdef, params)(images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


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

    def of_share(params: Any, images: jax.Array, labels: jax.Array) -> Any:
        return jax.lax.pmean(gradient(params, images, labels), "data")

    specs = P(), P("data"), P("data")
    return jax.shard_map(of_share, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)


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


@partial(jax.jit, static_argnums=0)
def predict(graphdef: Any, params: Any, images: jax.Array) -> jax.Array:
    """Class probabilities `[examples, classes]`, computed in batches that fit in cache."""
    model, examples = nnx.merge(graphdef, params), len(images)
    batch_size = min(100, examples)
    batches = jnp.arange(-(-examples // batch_size) * batch_size).reshape(-1, batch_size) % examples
    logits = jax.lax.map(lambda index: model(images[index]), batches)
    return jax.nn.softmax(logits.reshape(-1, logits.shape[-1])[:examples])


def scores(probs: jax.Array, labels: jax.Array, bins: int = 15) -> dict[str, float]:
    """Accuracy, negative log-likelihood, Brier score and calibration error of class probabilities.

    The calibration error is the mean gap between confidence and accuracy over `bins` equal bins
    of confidence, weighted by the examples in each (Guo et al. 2017, https://arxiv.org/abs/1706.04599).
    """
    nll = -jnp.log(jnp.take_along_axis(probs, labels[:, None], axis=1).clip(1e-30))
    confidence, correct = probs.max(1), probs.argmax(1) == labels
    which = jnp.clip((confidence * bins).astype(int), 0, bins - 1)
    gap = jax.ops.segment_sum(confidence - correct, which, num_segments=bins)
    return {
        "accuracy": float(correct.mean()),
        "nll": float(nll.mean()),
        "brier": brier(probs, labels),
        "ece": float(jnp.abs(gap).sum() / len(labels)),
    }
