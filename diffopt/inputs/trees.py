"""Trees of parameters: what a diffusion can move, sums over them, and how devices share them."""

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

SHOWN = 8  # leaves that an error lists
NOT_NUMBERS = ("O", "S", "U", "M", "m")  # kinds of NumPy: objects, text, times
NARROW = {"float64": "float32", "complex128": "complex64"}  # what JAX makes of them without x64


def array_dtype(leaf: Any) -> Any:
    """The dtype of an array or a number as JAX has it, and None of what is neither."""
    if isinstance(leaf, bool | int | float | complex):
        return jnp.result_type(leaf)
    arrays = np.ndarray | np.generic | jax.Array | jax.ShapeDtypeStruct
    if not isinstance(leaf, arrays) and not hasattr(leaf, "__jax_array__"):
        return None
    is_text = getattr(leaf.dtype, "kind", None) in NOT_NUMBERS
    return leaf.dtype if is_text else jnp.result_type(leaf)


def check_arrays(name: str, tree: Any) -> None:
    """Raise a TypeError that names the first leaf of `tree` that is no array of numbers."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        masked = isinstance(leaf, np.ma.MaskedArray)
        dtype = array_dtype(leaf)
        numeric = dtype is not None and any(
            jnp.issubdtype(dtype, kind) for kind in (jnp.number, jnp.bool_, jax.dtypes.extended)
        )
        if numeric and not masked:
            continue
        cure = "drop the masked entries, or pass the mask as data" if masked else "use np.asarray"
        kind = f"{type(leaf).__module__}.{type(leaf).__qualname__}"
        of = "" if dtype is None else f" of {dtype}"
        raise TypeError(
            f"{name}{jax.tree_util.keystr(path)} must be an array of numbers, got {kind}{of}:"
            f" {cure}"
        )


def check_inexact(tree: Any, name: str = "params") -> None:
    """Raise a TypeError that names the first leaf of `tree` that no diffusion can move."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        check_width(f"{name}{jax.tree_util.keystr(path)}", leaf)
        dtype = array_dtype(leaf)
        if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
            what = f"is {_describe(leaf)}" if dtype is None else f"has dtype {dtype}"
            raise TypeError(
                "a diffusion needs floating-point parameters, but"
                f" {name}{jax.tree_util.keystr(path)} {what}: let the loss close over it (for a"
                " model: eqx.partition(model, eqx.is_inexact_array)), or wrap the transformation in"
                " optax.masked"
            )


def check_width(name: str, leaf: Any) -> None:
    """Raise a TypeError where `leaf` is an array of 64 bits from before x64 was turned off."""
    if not isinstance(leaf, jax.Array) or jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        return
    if (narrow := NARROW.get(str(leaf.dtype))) is not None:
        raise TypeError(
            f"{name} is {leaf.dtype}, but jax_enable_x64 is off: turn it on, or cast {name} and the"
            f" state of its sampler to {narrow}"
        )


def refuse_statistics(params: Any) -> None:
    """Raise a TypeError that names the first leaf of `params` that is a running statistic.

    Flax tells them: the collection `batch_stats` of Linen, the variables `BatchStat` of NNX.
    """
    is_statistic = lambda x: any(kind.__name__ == "BatchStat" for kind in type(x).__mro__)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_statistic):
        in_linen = any(getattr(entry, "key", None) == "batch_stats" for entry in path)
        if in_linen or is_statistic(leaf):
            cure = (
                'give variables["params"] alone'
                if in_linen
                else "graphdef, params, rest = nnx.split(model, nnx.Param, ...)"
            )
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} is a running statistic and cannot be sampled:"
                f" {cure}, and let the loss close over the statistics"
            )


def _describe(leaf: Any) -> str:
    text = repr(leaf)
    return text if len(text) < 200 else f"a {type(leaf).__qualname__}"


def describe_shapes(name: str, tree: Any) -> str:
    """The first leaves of a tree with dtype and shape: `params['w'] float32[3]`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    shown = [
        f"{name}{jax.tree_util.keystr(path)} {array_dtype(x)}{list(np.shape(x))}"
        for path, x in leaves[:SHOWN]
    ]
    return ", ".join(shown + ["..."] * (len(leaves) > SHOWN))


def count_degrees(tree: Any) -> int:
    """How many real numbers a tree has: a complex one is two."""
    return sum(math.prod(jnp.shape(x)) * (1 + jnp.iscomplexobj(x)) for x in jax.tree.leaves(tree))


def leading_length(name: str, tree: Any, of: str) -> int:
    """The length of the leading axis that all leaves of `tree` have in common, ≥ 1."""
    (length,) = _leading_shape(name, tree, 1, f"one leading axis of {of}")
    if length < 1:
        raise ValueError(f"{name} has no {of}: its leading axis is 0")
    return length


def chains_and_draws(name: str, tree: Any) -> tuple[int, int]:
    """How many chains, and draws of each: the two leading axes that all leaves have in common."""
    chains, draws = _leading_shape(name, tree, 2, "the leading axes [chain, draw]")
    if not chains * draws:
        raise ValueError(f"{name} hold no draw: the leading axes [chain, draw] are {chains, draws}")
    return chains, draws


def _leading_shape(name: str, tree: Any, axes: int, asked: str) -> tuple[int, ...]:
    """The lengths of so many leading axes, which all leaves of `tree` have in common."""
    shapes = {
        f"{name}{jax.tree_util.keystr(path)}": jnp.shape(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    common = {shape[:axes] for shape in shapes.values()}
    if len(common) != 1 or len(next(iter(common))) < axes:
        shown = [f"{leaf} {shape}" for leaf, shape in shapes.items()][:SHOWN]
        more = f" and {len(shapes) - SHOWN} more" if len(shapes) > SHOWN else ""
        got = ", ".join(shown) + more if shapes else f"{name} without leaves"
        if () in shapes.values():
            got += "; a list of numbers is a tree, and np.asarray makes it one array"
        raise ValueError(f"{name} must have {asked} in common, got {got}")
    return common.pop()


def find_states(opt_state: Any, *fields: str) -> list[Any]:
    """The states in the state of a transformation that have all these fields."""
    return [state for _, state in find_states_with_path(opt_state, fields)]


def find_states_with_path(opt_state: Any, fields: Sequence[str]) -> list[tuple[str, Any]]:
    """The same, each with where it is in `opt_state`."""
    has_fields = lambda x: all(hasattr(x, field) for field in fields)
    leaves = jax.tree_util.tree_leaves_with_path(opt_state, is_leaf=has_fields)
    return [(jax.tree_util.keystr(path), x) for path, x in leaves if has_fields(x)]


def check_structure(
    name: str, tree: Any, like: Any, is_leaf: Callable[[Any], bool] = lambda x: False
) -> None:
    """Raise a TypeError unless `tree` has the structure of `like`, with the first difference.

    Where `is_leaf` is true in `like`, `tree` may have anything.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like, is_leaf)
    any_at = {path for path, x in leaves if is_leaf(x)}
    own: Any
    own_leaves, own = jax.tree_util.tree_flatten_with_path(
        tree, lambda path, x: path in any_at, is_leaf_takes_path=True
    )
    if own == structure:
        return
    wanted, got = ([jax.tree_util.keystr(path) for path, _ in x] for x in (leaves, own_leaves))
    missing = [f": {name}{path} is missing" for path in wanted if path not in got]
    more = [f": {name}{path} is too many" for path in got if path not in wanted]
    told = next(iter(missing + more), "")
    raise TypeError(f"{name} must have the structure {structure}, got {own}{told}")


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
        check_width(f"{name}{jax.tree_util.keystr(path)}", x)


def place_beside(tree: Any, like: Any) -> Any:
    """`tree` on the devices on which `like` has been put, whole on each, and else as it is."""
    placed = [x for x in jax.tree.leaves(like) if _is_placed(x)]
    if not placed:
        return tree
    sharding = placed[0].sharding
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec())
    elif len(sharding.device_set) > 1:
        return tree

    def move(x: Any) -> Any:
        elsewhere = _is_placed(x) and x.sharding.device_set != sharding.device_set
        return jax.device_put(x, sharding) if elsewhere else x

    return jax.tree.map(move, tree)


def _is_placed(leaf: Any) -> bool:
    concrete = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
    return concrete and leaf.committed


def in_structure_of(like: Any, tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> Any:
    """`tree` in the structure of `like` where their leaves have the same paths, else as it is.

    An array of Flax NNX is a `Param` in a model and an `OptVariable` in an optimizer's state, with
    the array at the path of either and `.value`.
    """
    structure: Any = jax.tree.structure(like)
    if structure == jax.tree.structure(tree, is_leaf):
        return tree
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf)
    like_leaves = jax.tree_util.tree_leaves_with_path(like)
    paths, like_paths = (
        [jax.tree_util.keystr(path).removesuffix(".value") for path, _ in some]
        for some in (leaves, like_leaves)
    )
    return structure.unflatten([leaf for _, leaf in leaves]) if paths == like_paths else tree


def check_finite(name: str, tree: Any) -> None:
    """Raise a ValueError that names the first leaf that is not finite.

    Tracers are not checked, nor arrays that are spread over several hosts.
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
    return (total / jnp.asarray(max(count_degrees(x), 1), float)).astype(
        jnp.float32
    )  # an int32 ends at 2³¹


def by_shards(draw: Callable[..., Any]) -> Callable[..., Any]:
    """`draw(key, tree, ...)`, in which each device draws its shard of arrays shaped like `tree`.

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
