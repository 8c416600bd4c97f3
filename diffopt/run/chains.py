"""Many chains in one program: their keys, their number and the devices that share them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from .._types import Params, State
from ..inputs.keys import derive_key
from ..inputs.scalars import check_int
from ..inputs.trees import array_dtype, leading_length


def split_keys(opt_state: Any, num_chains: int) -> Any:
    """The state of `num_chains` independent chains, from the state of one.

    Every leaf gains a leading axis of `num_chains` equal copies, except the PRNG keys: each chain
    gets its own, derived from the key, its position in the state and the number of the chain. So
    two samplers that were given equal keys become independent too, and the first 4 of 8 chains
    are the 4 chains that `split_keys(opt_state, 4)` gives. Without it, `jax.vmap(tx.init)(params)`
    calls `tx.init` once and copies, so that all chains hold the same key, draw the same noise at
    every step, and are not independent: on a convex loss they even merge into one.

    Keys are found by their dtype (`jax.random.key`) wherever they are: in `optax.chain`,
    `optax.masked`, `optax.MultiSteps` or `optax.inject_hyperparams`. (The int `key` that
    `inject_hyperparams` lists as a hyperparameter seeds nothing after `init`, and is copied.)

    Args:
      opt_state: the state `tx.init(params)` of one chain.
      num_chains: how many chains, at least 1.

    Returns:
      The same tree, each leaf of shape `[num_chains, *leaf.shape]`.

    Raises:
      ValueError: `num_chains` is less than 1.
      TypeError: `num_chains` is no int, or a leaf is no array.

    Examples:
      >>> import diffopt, jax, jax.numpy as jnp, optax
      >>> tx = diffopt.sgld(0.1, temperature=1.0)
      >>> params = jnp.zeros([4, 3])  # 4 chains of 3 parameters
      >>> state = diffopt.split_keys(tx.init(params[0]), 4)
      >>> updates, state = jax.vmap(tx.update)(params, state)
      >>> bool(jnp.all(updates[0] != updates[1]))
      True
    """
    check_int("num_chains", num_chains, least=1)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(opt_state)
    chains = []
    for position, (path, leaf) in enumerate(leaves):
        dtype = array_dtype(leaf)
        if dtype is None:
            where = jax.tree_util.keystr(path)
            raise TypeError(f"opt_state must hold arrays, but opt_state{where} is {leaf!r}")
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            chains.append(_keys_of_chains(leaf, position, num_chains))
        else:
            chains.append(jnp.broadcast_to(leaf, (num_chains, *jnp.shape(leaf))))
    return jax.tree.unflatten(treedef, chains)


def _keys_of_chains(keys: jax.Array, position: int, num_chains: int) -> jax.Array:
    """`[num_chains, *keys.shape]` keys."""

    derive = lambda key: jax.random.fold_in(derive_key(key, "chain"), position)
    flat = jax.vmap(derive)(keys.reshape(-1))
    # No transpose of the keys, which `jax.debug_key_reuse` would take for a second use.
    of_chain = lambda chain: jax.vmap(lambda key: jax.random.fold_in(key, chain))(flat)
    return jax.vmap(of_chain)(jnp.arange(num_chains)).reshape(num_chains, *keys.shape)


def derive_chain_keys(
    tx: optax.GradientTransformation, params: Params, num_chains: int, key: jax.Array
) -> State:
    """Keys for the chains, from each key in the state of `tx` with `key` folded into it."""
    first, second = jax.random.bits(key, (2,))

    def fold(leaf: Any) -> Any:
        if not is_key(leaf):
            return jnp.zeros([])  # holds the place, by which `split_keys` tells keys apart
        both = lambda k: jax.random.fold_in(jax.random.fold_in(k, first), second)
        return jax.vmap(both)(leaf.reshape(-1)).reshape(leaf.shape)

    return split_keys(jax.tree.map(fold, tx.init(params)), num_chains)


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a typed PRNG key."""
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def count_chains(params: Params, num_chains: int | None) -> tuple[int, bool]:
    """How many chains there are, and whether `params` leads with them."""
    if num_chains is not None:
        return check_int("num_chains", num_chains, least=1), False
    return leading_length("params", params, "chains"), True


def share_chains(num_chains: int, params: Params) -> Mesh | None:
    """The devices that share the chains, or `None` where one device runs them all.

    Parameters that the user has put on devices stay there. Parameters of an earlier run are shared
    anew, because a diverged chain may have been left out.
    """
    devices: Any = jax.local_devices()
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf, jax.Array) and leaf.committed:
            mesh = getattr(leaf.sharding, "mesh", None)
            if mesh is None or mesh.axis_names != ("chain",):
                return None
            devices = mesh.devices.flatten().tolist()
            break
    else:
        if jax.config.jax_default_device is not None:  # type: ignore[attr-defined]
            return None
    number = max(n for n in range(1, len(devices) + 1) if num_chains % n == 0)
    return None if number == 1 else Mesh(np.array(devices[:number]), ("chain",))


@contextmanager
def own_mesh(tree: Any) -> Iterator[None]:
    """The mesh over which the chains of `tree` are shared, in place of one that the user has set.

    Under a mesh of explicit axes JAX refuses arrays that lie on another.
    """
    for leaf in jax.tree.leaves(tree):
        mesh = getattr(getattr(leaf, "sharding", None), "mesh", None)
        if isinstance(mesh, Mesh) and mesh.axis_names == ("chain",):
            with jax.set_mesh(mesh):
                yield
            return
    yield
