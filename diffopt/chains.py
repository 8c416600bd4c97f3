"""Many chains in one program: what `jax.vmap` needs and does not do by itself."""

from typing import Any

import jax
import jax.numpy as jnp

from .keys import derive_key
from .scalars import check_int
from .trees import array_dtype


def split_keys(opt_state: Any, num_chains: int) -> Any:
    """The state of `num_chains` independent chains, from the state of one.

    Every leaf gains a leading axis of `num_chains` equal copies, except the PRNG keys: each chain
    gets its own, derived from the key, its position in the state and the number of the chain. So
    two samplers that were given equal keys become independent too, and the first 4 of 8 chains
    are the 4 chains that `split_keys(opt_state, 4)` gives. Without it, `jax.vmap(tx.init)(params)`
    calls `tx.init` once and copies, so that all chains hold the same key, draw the same noise at
    every step, and are not independent: on a convex loss they even merge into one.

    A key is found by its dtype, that of `jax.random.key`, wherever it lies: in `optax.chain`,
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
    if check_int("num_chains", num_chains) < 1:
        raise ValueError(f"num_chains must be at least 1, got {num_chains}")

    leaves, treedef = jax.tree_util.tree_flatten_with_path(opt_state)
    chains = []
    for position, (path, leaf) in enumerate(leaves):
        dtype = array_dtype(leaf)
        if dtype is None:
            where = jax.tree_util.keystr(path)
            raise TypeError(f"opt_state must be of arrays, but opt_state{where} is {leaf!r}")
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            chains.append(_chain_keys(leaf, position, num_chains))
        else:
            chains.append(jnp.broadcast_to(leaf, (num_chains, *jnp.shape(leaf))))
    return jax.tree.unflatten(treedef, chains)


def _chain_keys(keys: jax.Array, position: int, num_chains: int) -> jax.Array:
    """`[num_chains, *keys.shape]` keys."""

    derive = lambda key: jax.random.fold_in(derive_key(key, "chain"), position)
    flat = jax.vmap(derive)(keys.reshape(-1))
    # No transpose of the keys, which `jax.debug_key_reuse` would take for a second use.
    of_chain = lambda chain: jax.vmap(lambda key: jax.random.fold_in(key, chain))(flat)
    return jax.vmap(of_chain)(jnp.arange(num_chains)).reshape(num_chains, *keys.shape)
