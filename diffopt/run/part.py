"""A part of a network: its parameters alone, and how they are put back into the whole."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._types import Params
from ..inputs.trees import check_arrays, check_structure

SHOWN = 8  # paths that an error lists


def take_part(params: Params, part: Any) -> tuple[Params, Callable[[Params], Params]]:
    """The parameters of a part of a network, and the function that puts them back into the whole.

    The part is what you give to `sample`, `find_step_size`, `local_learning_coefficient` or
    `influence`; the loss closes over the rest, which stays as it is in `params`:

        moving, merge = take_part(params, part)
        sample(tx, lambda moving, batch: loss(merge(moving), batch), moving, data, ...)

    Chains, draws, velocities and gradients are then of the size of the part. Of a leaf that is in
    the part whole, the array itself is taken; of some entries, such as those of an attention head,
    a vector of them; a leaf that is left out is `None`, which JAX sees as no leaf at all.

    Args:
      params: the parameters of the whole network, a tree of arrays.
      part: which of them: a tree like `params` (or the top of one) of bools, or of boolean arrays
        of the shape of the leaf for some of its entries; or `part(path)`, a function from the path
        of a leaf, such as `"layer1.kernel"`, to either.

    Returns:
      `(moving, merge)`: the part, in the structure of `params`; and `merge(moving)`, which gives
      parameters like `params` with the part in its place, under `jit`, `grad` and `vmap` too.

    Raises:
      ValueError: a mask has another shape than its leaf, or nothing is taken.
      TypeError: `part` has another structure than `params`, or something else than bools; `params`
        have a leaf that is no array.
      From `merge`, a ValueError: a leaf of `moving` has another shape than in the part, or `moving`
        another structure.

    Examples:
      The second head of two, and a bias.

      >>> import diffopt, jax.numpy as jnp
      >>> params = {"query": jnp.ones([4, 6]), "bias": jnp.zeros(6), "out": jnp.ones([6, 4])}
      >>> head = jnp.zeros([4, 6], bool).at[:, 3:].set(True)
      >>> moving, merge = diffopt.take_part(params, {"query": head, "bias": True, "out": False})
      >>> moving["query"].shape, moving["bias"].shape, moving["out"]
      ((12,), (6,), None)
      >>> merge({"query": jnp.zeros(12), "bias": jnp.ones(6), "out": None})["query"][0].tolist()
      [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    """
    check_arrays("params", params)
    with_paths = jax.tree_util.tree_leaves_with_path(params)
    treedef: Any = jax.tree.structure(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in with_paths]
    leaves = [jnp.asarray(leaf) for _, leaf in with_paths]
    if callable(part):
        masks = [part(path) for path in paths]
    else:
        ends = {path for path, _ in jax.tree_util.tree_leaves_with_path(part)}
        at_end = lambda path, x: path in ends
        tops, top = jax.tree_util.tree_flatten_with_path(params, at_end, is_leaf_takes_path=True)
        check_structure("part", part, jax.tree.unflatten(top, [True] * len(tops)))
        spread = lambda mask, below: jax.tree.map(lambda _: mask, below)
        masks = treedef.flatten_up_to(jax.tree.map(spread, part, params))
    chosen = [_read_mask(*each) for each in zip(paths, masks, leaves, strict=True)]
    if all(isinstance(places, np.ndarray) and not places.size for places in chosen):
        raise ValueError(f"part takes nothing of params, which has {', '.join(paths[:SHOWN])}")

    def take(leaf: jax.Array, places: Any) -> Any:
        if places is ...:
            return leaf
        return leaf.ravel()[places] if places.size else None

    def put(path: str, leaf: jax.Array, places: Any, moved: Any) -> jax.Array:
        if places is not ... and not places.size:
            return leaf
        shape = leaf.shape if places is ... else places.shape
        if jnp.shape(moved) != shape:
            raise ValueError(
                f"merge got {path} of shape {jnp.shape(moved)}, and the part has {shape}: under a"
                " leading axis of chains or draws use jax.vmap(merge)"
            )
        if places is ...:
            return moved
        return leaf.ravel().at[places].set(moved, unique_indices=True).reshape(leaf.shape)

    def merge(moving: Params) -> Params:
        try:
            moved = treedef.flatten_up_to(moving)
        except ValueError as error:
            raise ValueError(f"merge needs moving in the structure of params: {error}") from None
        return treedef.unflatten(map(put, paths, leaves, chosen, moved))

    return treedef.unflatten(map(take, leaves, chosen)), merge


def _read_mask(path: str, mask: Any, leaf: jax.Array) -> Any:
    """`...` for the whole of a leaf, else the places of the entries in it, flat."""
    array = np.asarray(mask)
    if array.dtype != bool:
        raise TypeError(f"part must have bools or boolean arrays, got {mask!r} for {path}")
    if array.ndim == 0:
        return ... if array else np.arange(0)
    if array.shape != leaf.shape:
        raise ValueError(
            f"part has a mask of shape {array.shape} for {path}, which is of {leaf.shape}"
        )
    return np.flatnonzero(array)
