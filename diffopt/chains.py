"""Many chains in one program: what `jax.vmap` needs and does not do by itself."""

from typing import Any

import jax
import jax.numpy as jnp

from .keys import derive_key


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

    Example:
      >>> import diffopt, jax, jax.numpy as jnp, optax
      >>> tx = diffopt.sgld(0.1, temperature=1.0)
      >>> params = jnp.zeros([4, 3])  # 4 chains of 3 parameters
      >>> state = diffopt.split_keys(tx.init(params[0]), 4)
      >>> updates, state = jax.vmap(tx.update)(params, state)
      >>> bool(jnp.all(updates[0] != updates[1]))
      True
    """
    if num_chains < 1:
        raise ValueError(f"num_chains must be at least 1, got {num_chains}")

    leaves, treedef = jax.tree.flatten(opt_state)
    chains = [
        _chain_keys(leaf, position, num_chains)
        if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
        else jnp.broadcast_to(leaf, (num_chains, *jnp.shape(leaf)))
        for position, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(treedef, chains)


def _chain_keys(keys: jax.Array, position: int, num_chains: int) -> jax.Array:
    """`[num_chains, *keys.shape]` keys."""

    def of_one(key: jax.Array) -> jax.Array:
        key = jax.random.fold_in(derive_key(key, "chain"), position)
        return jax.random.split(key, num_chains)

    return jax.vmap(of_one, out_axes=1)(keys.reshape(-1)).reshape(num_chains, *keys.shape)
