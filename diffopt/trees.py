"""Trees of parameters: what a diffusion can move, sums over them, and how devices share them."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def array_dtype(leaf: Any) -> Any:
    """The dtype of an array or a number, and None of what is neither, as a function or a dtype."""
    is_array = isinstance(getattr(leaf, "shape", None), tuple)
    return jnp.result_type(leaf) if is_array or isinstance(leaf, int | float | complex) else None


def check_inexact(tree: Any, name: str = "params") -> None:
    """Raise a TypeError that names the first leaf of `tree` that no diffusion can move."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype = array_dtype(leaf)
        if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
            what = f"is {leaf!r}" if dtype is None else f"has dtype {dtype}"
            raise TypeError(
                "a diffusion needs floating-point parameters, but"
                f" {name}{jax.tree_util.keystr(path)} {what}; leave it out with optax.masked"
            )


def check_structure(name: str, tree: Any, like: Any) -> None:
    """Raise a TypeError unless `tree` has the structure of `like`."""
    structure: Any = jax.tree.structure(tree)
    if structure != jax.tree.structure(like):
        raise TypeError(
            f"{name} must have the structure {jax.tree.structure(like)}, got {structure}"
        )


def check_like(name: str, tree: Any, like: Any) -> None:
    """Raise a TypeError unless `tree` has the structure of `like` and the shapes of its leaves."""
    check_structure(name, tree, like)
    like_leaves = jax.tree_util.tree_leaves_with_path(like)
    for (path, leaf), x in zip(like_leaves, jax.tree.leaves(tree), strict=True):
        if jnp.shape(x) != jnp.shape(leaf):
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} must have the shape {jnp.shape(leaf)}, got"
                f" {jnp.shape(x)}"
            )


def check_finite(name: str, tree: Any) -> None:
    """Raise a ValueError that names the first leaf that is not finite.

    A tracer is taken as it is, and so is an array of which other hosts have a part.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        unknown = isinstance(leaf, jax.core.Tracer) or not getattr(
            leaf, "is_fully_addressable", True
        )
        if not unknown and not np.isfinite(np.asarray(leaf)).all():
            raise ValueError(f"{name}{jax.tree_util.keystr(path)} must be finite, got {leaf!r}")


def cast_like(tree: Any, like: Any) -> Any:
    """`tree` in the dtypes of `like`, none of them weak; PRNG keys stay."""

    def cast(x: Any, y: Any) -> jax.Array:
        dtype = jnp.result_type(y)
        settled = getattr(x, "dtype", None) == dtype and not getattr(x, "weak_type", False)
        return x if settled else jnp.asarray(x, dtype)

    return jax.tree.map(cast, tree, like)


def mean_product(x: Any, y: Any) -> jax.Array:
    """The mean of x·y over all elements of two like trees, in float32; a complex one is two."""

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        dtype = np.promote_types(
            np.promote_types(jnp.result_type(a), jnp.result_type(b)), "float32"
        )
        real = jnp.real(jnp.conj(jnp.asarray(a, dtype)) * jnp.asarray(b, dtype))
        return jnp.sum(real).astype(float)

    total = sum(jax.tree.leaves(jax.tree.map(product, x, y)), start=jnp.zeros([], float))
    size = sum(a.size * (1 + jnp.iscomplexobj(a)) for a in map(jnp.asarray, jax.tree.leaves(x)))
    return (total / jnp.asarray(max(size, 1), float)).astype(jnp.float32)  # an int32 ends at 2³¹


def by_shards(draw: Callable[..., Any]) -> Callable[..., Any]:
    """`draw(key, tree, ...)`, of whose arrays, shaped like those of `tree`, devices draw shards.

    Under explicit sharding every device draws the whole of an array whose type has no sharding.
    """

    @wraps(draw)
    def drawn(key: jax.Array, tree: Any, *args: Any) -> Any:
        axes = jax.sharding.get_abstract_mesh().explicit_axes
        if not axes:
            return draw(key, tree, *args)
        specs = jax.tree.map(lambda leaf: jax.typeof(leaf).sharding.spec, tree)
        shards = jax.sharding.auto_axes(
            lambda key: draw(key, tree, *args), axes=axes, out_sharding=specs
        )
        return shards(key)

    return drawn
