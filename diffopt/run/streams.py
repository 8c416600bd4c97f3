"""Batches from a loader, an iterator or a function, stacked for the device."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._types import Batch
from ..inputs.trees import check_arrays, check_structure, leading_length

ROWS = 64  # steps whose batches lie on the device at once, at most
ROWS_BYTES = 2**26


def is_stream(data: Any) -> bool:
    """Whether `data` gives batches: a function, or an iterable that is no tree of arrays."""
    if callable(data) or hasattr(data, "__next__"):
        return True
    is_leaf = jax.tree_util.all_leaves([data]) and not isinstance(data, str | bytes)
    return is_leaf and hasattr(data, "__iter__") and not hasattr(data, "__array__")


def refuse_batch_size(batch_size: int | None) -> None:
    """Raise a ValueError where a size is asked for beside that of a stream's batches."""
    if batch_size is not None:
        raise ValueError(
            f"batch_size is that of the batches that data gives, got batch_size={batch_size}: leave"
            " it out"
        )


def read_batches(data: Any, number: int = 0) -> Iterator[Batch]:
    """Batch after batch as NumPy arrays, all of the structure, shapes and dtypes of the first.

    A last batch of an epoch that is shorter is dropped. `number` is that of a function's first.

    Raises:
      ValueError: there is no batch at all.
    """
    like = kind = None
    for epoch in _epochs(data, number):
        given, short = False, None
        for name, batch in epoch:
            if short is not None:
                raise short
            batch = _to_host(name, batch)
            seen = jax.tree.structure(batch), [(x.shape, x.dtype) for x in jax.tree.leaves(batch)]
            if seen != kind:
                check_arrays(name, batch)
                if like is None:
                    _refuse_empty(name, batch)
                    like = batch
                error, shorter = _compare(name, batch, like)
                if shorter:
                    short = error
                    continue
                if error is not None:
                    raise error
                kind = seen
            given = True
            yield batch
        if like is None:
            raise ValueError(f"data gave no batch: {type(data).__name__} is empty or was used up")
        if not given:
            return


def _epochs(data: Any, number: int) -> Iterator[Iterator[tuple[str, Batch]]]:
    """The named batches of each epoch: a function and an iterator have one."""
    if callable(data):
        yield ((f"data({i})", data(i)) for i in itertools.count(number))
        return
    for epoch in itertools.count():
        of = f" of epoch {epoch}" if epoch else ""
        yield ((f"batch {i}{of} of data", batch) for i, batch in enumerate(data))
        if hasattr(data, "__next__"):
            return


def _to_host(name: str, batch: Batch) -> Batch:
    """A batch of NumPy arrays, of which those of PyTorch, TensorFlow and JAX share the memory."""

    try:
        batch = jax.tree.map(np.asarray, batch)
    except Exception as error:  # of whatever is given
        raise TypeError(
            f"{name} must be a tree of what np.asarray makes an array of:"
            f" {str(error).strip().splitlines()[0]}"
        ) from error
    if not jax.tree.leaves(batch):
        raise TypeError(f"{name} must be a tree of arrays, got {batch!r}")
    return batch


def _refuse_empty(name: str, batch: Batch) -> None:
    for path, x in jax.tree_util.tree_leaves_with_path(batch):
        if not x.size:
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} has no examples: its shape is {x.shape}"
            )


def _compare(name: str, batch: Batch, like: Batch) -> tuple[Exception | None, bool]:
    """What is wrong with a batch beside the first, and whether it is shorter and no more."""
    try:
        check_structure(name, batch, like)
    except TypeError as error:
        return error, False
    wrong: Exception | None = None
    shorter = True
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    for (path, x), y in zip(leaves, jax.tree.leaves(like), strict=True):
        dtypes = jnp.result_type(x), jnp.result_type(y)
        if x.shape == y.shape and dtypes[0] == dtypes[1]:
            continue
        cut = x.ndim == y.ndim > 0 and x.shape[1:] == y.shape[1:] and len(x) < len(y)
        shorter &= cut and dtypes[0] == dtypes[1]
        wrong = wrong or ValueError(
            f"{name}{jax.tree_util.keystr(path)} must be {dtypes[1]} of shape {y.shape} as the"
            f" first batch, got {dtypes[0]} of shape {x.shape}. Only the last batch of an epoch may"
            " be shorter: it is dropped"
        )
    return wrong, wrong is not None and shorter


def count_rows(batch: Batch, num_chains: int, num_steps: int) -> int:
    """For how many steps batches lie on the device at once."""
    size = sum(math.prod(x.shape) * jnp.result_type(x).itemsize for x in jax.tree.leaves(batch))
    return max(1, min(ROWS, num_steps, ROWS_BYTES // max(num_chains * size, 1)))


def stack_batches(
    batches: Iterator[Batch], number: int, rows: int, num_chains: int, place: Any = None
) -> tuple[Batch, int]:
    """The batches of `number` steps, fewer at the end, as `[rows, chain, ...]`; and how many.

    The array is as long for fewer steps, so that one program serves all.
    """
    taken = list(itertools.islice(batches, number * num_chains))
    number = len(taken) // num_chains
    if not number:
        return None, 0

    def stack(*leaves: np.ndarray) -> jax.Array:
        stacked = np.zeros((rows, num_chains, *leaves[0].shape), jnp.result_type(leaves[0]))
        for i, leaf in enumerate(leaves[: number * num_chains]):
            stacked[divmod(i, num_chains)] = leaf
        return jax.device_put(stacked, place)

    return jax.tree.map(stack, *taken), number


def pool_batches(data: Any, number: int) -> tuple[Batch, int]:
    """The examples of `number` batches along one axis, and how many were in each."""
    batches = list(itertools.islice(read_batches(data), number))
    size = leading_length("a batch of data", batches[0], "examples")
    return jax.tree.map(lambda *x: np.concatenate(x), *batches), size
