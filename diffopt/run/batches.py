"""Minibatches: each epoch has every example at most once, in a fresh order."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._types import Batch, Loss, Params
from ..inputs.scalars import check_int
from ..inputs.trees import check_arrays, leading_length
from ..noise.threefry import random_bits
from .program import compile_program

PAIRS = 4  # of batches that tell whether a loss is a mean
MEAN_TOLERANCE = 1e-3  # relative: a mean in float32 is far within, another normalization beyond
MEAN_ROUNDING = 1e-4  # absolute: of a loss that is a difference of two like ones


class Epoch(NamedTuple):
    """How far the chains are through the examples.

    Attributes:
      key: of the present epoch.
      order: the examples in the order of the present epoch, in which each chain begins somewhere
        else, int32 `[example]`.
      position: examples taken of the present epoch, an int32 scalar.
    """

    key: jax.Array
    order: jax.Array
    position: jax.Array


def count_examples(data: Batch, batch_size: int | None) -> int | None:
    """The length of the leading axis of `data`, after the checks on it and on `batch_size`."""
    if batch_size is not None:
        check_int("batch_size", batch_size, least=1)
    if data is None:
        if batch_size is not None:
            raise ValueError(f"batch_size needs data, got batch_size={batch_size} and data=None")
        return None
    check_arrays("data", data)
    length = leading_length("data", data, "examples")
    if batch_size is not None and batch_size > length:
        raise ValueError(f"batch_size must be ≤ the {length} examples of data, got {batch_size}")
    return length


def shape_batch(data: Batch, batch_size: int | None) -> Batch:
    """The shapes and dtypes of one batch of `data`."""

    def shape(x: jax.Array) -> jax.ShapeDtypeStruct:
        lead = jnp.shape(x)[:1] if batch_size is None else (batch_size,)
        return jax.ShapeDtypeStruct((*lead, *jnp.shape(x)[1:]), jnp.result_type(x))

    return jax.tree.map(shape, data)


def start_epoch(num_examples: int, key: jax.Array) -> Epoch:
    """The state before the first batch, which shuffles the examples."""
    order = jnp.arange(num_examples, dtype=jnp.int32)
    return Epoch(key, order, jnp.zeros([], jnp.int32))


def renew_epoch(epoch: Epoch, batch_size: int) -> Epoch:
    """The epoch of the next batch: a fresh order where none is left, or none was taken."""

    def shuffle(key: jax.Array, order: jax.Array) -> tuple[jax.Array, jax.Array]:
        key, subkey = jax.random.split(key)
        return key, permute(subkey, order)

    position = jnp.where(count_left(epoch, batch_size) > 0, epoch.position, 0)
    key, order = jax.lax.cond(position == 0, shuffle, lambda *same: same, epoch.key, epoch.order)
    return Epoch(key, order, position)


def permute(key: jax.Array, order: jax.Array) -> jax.Array:
    """`jax.random.permutation(key, order)` of a vector, by sorting numbers and not pairs.

    A random word is the upper half of each number and a place the lower, so that the sort is
    stable. JAX sorts pairs of words and places, which takes XLA's CPU backend five times as long.
    """
    rounds = math.ceil(3 * math.log(len(order)) / math.log(2**32 - 1))  # as many as JAX takes
    for _ in range(rounds):
        key, subkey = jax.random.split(key)
        words = random_bits(subkey, order.shape, jnp.uint32)
        with jax.enable_x64(True):
            places = jnp.arange(len(order), dtype=jnp.uint64)
            numbers = words.astype(jnp.uint64) << np.uint64(32) | places
            places = jnp.sort(numbers).astype(jnp.uint32)
        order = order[places]
    return order


def count_left(epoch: Epoch, batch_size: int) -> jax.Array:
    """How many batches are left of the epoch."""
    return (len(epoch.order) - epoch.position) // batch_size


def find_starts(epoch: Epoch, chains: jax.Array) -> jax.Array:
    """Where in the order of an epoch each of `chains` begins, `[chain]`.

    One order serves all chains, as a sort for each would cost more than the step of a small model.
    Each begins at a random place, so that two batches overlap as two independent ones on average.
    """
    key = jax.random.fold_in(epoch.key, 2)  # 0 and 1 are the two that `shuffle` splits off
    (number,) = epoch.order.shape
    return jax.vmap(lambda i: jax.random.randint(jax.random.fold_in(key, i), (), 0, number))(chains)


def take_places(epoch: Epoch, starts: jax.Array, batch_size: int) -> tuple[Epoch, jax.Array]:
    """The examples of the epoch's next batch of each chain, `[chain, example]`."""
    places = starts[:, None] + epoch.position + jnp.arange(batch_size)[None]
    index = epoch.order[places % len(epoch.order)]
    return epoch._replace(position=epoch.position + batch_size), index


def next_batch(epoch: Epoch, chains: jax.Array, batch_size: int) -> tuple[Epoch, jax.Array]:
    """The examples of the next batch of each of `chains`, `[chain, example]`, of any epoch."""
    epoch = renew_epoch(epoch, batch_size)
    return take_places(epoch, find_starts(epoch, chains), batch_size)


def doubt_mean(
    loss: Loss, params: Params, data: Batch, batch_size: int | None = None
) -> str | None:
    """What is wrong where the loss of two batches together is not the mean of their losses.

    Such a loss is no mean over examples, and its batches do not stand for all data. By default the
    two batches are the halves of `data`.
    """
    lengths = {jnp.shape(x)[:1] for x in jax.tree.leaves(data)}
    if len(lengths) > 1 or lengths == {()}:  # leaves that are no examples
        return None
    (number,) = lengths.pop()
    size = min(batch_size or number, number // 2)
    if size < 1:
        return None
    pairs = min(PAIRS, number // (2 * size))
    rows = jax.tree.map(
        lambda x: x[: pairs * 2 * size].reshape(pairs, 2 * size, *x.shape[1:]), data
    )

    def compare(params: Params, rows: Batch) -> tuple[jax.Array, jax.Array]:
        def losses(pair: Batch) -> tuple[jax.Array, jax.Array]:
            halves = [jax.tree.map(lambda x, i=i: x[i : i + size], pair) for i in (0, size)]
            one, two = (loss(params, half) for half in halves)
            return loss(params, pair), (one + two) / 2

        return jax.lax.map(losses, rows)

    try:
        program = compile_program(compare, params, rows)
    except Exception:  # a loss of batches of one size alone cannot be compared
        return None
    whole, mean = (np.asarray(x, float) for x in program(params, rows))
    worst = np.argmax(np.abs(whole - mean))
    whole, mean = whole[worst], mean[worst]
    if not abs(whole - mean) > MEAN_TOLERANCE * max(abs(whole), abs(mean)) + MEAN_ROUNDING:
        return None
    told = f"loss is {whole:.4g} for {2 * size} examples and {mean:.4g} on average for their halves"
    if abs(whole - 2 * mean) <= MEAN_TOLERANCE * abs(whole):
        return (
            f"{told}: it sums over the examples of a batch. Take their mean, and T = 1/N for a"
            " posterior"
        )
    return (
        f"{told}: it is not a mean over examples, so batches do not stand for all data. Divide by"
        " numbers that do not depend on the batch (class weights and tokens of all data), and"
        " evaluate BatchNorm with fixed statistics"
    )
