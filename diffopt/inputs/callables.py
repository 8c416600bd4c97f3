"""Functions that a user gives: checked without running them."""

from typing import Any

import jax
import jax.numpy as jnp

from .._types import Batch, Loss, Params, Sampler
from .trees import check_like, describe_shapes


def check_transformation(tx: Any) -> None:
    """Raise a TypeError unless `tx` has the two functions of an Optax transformation."""
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise TypeError(f"tx must be an Optax transformation, got {tx!r}")


def check_sampler(sampler: Sampler) -> None:
    """Raise a TypeError unless `sampler(step_size, temperature, key=key)` is a transformation.

    It is called with traced numbers, as it is where the program runs.
    """
    call = "sampler(step_size, temperature, key=key)"
    wrong: list[str] = []  # no tracer leaves the trace
    number = jax.ShapeDtypeStruct((), jnp.float32)
    seed = jax.eval_shape(lambda: jax.random.key(0))

    def make(step_size: jax.Array, temperature: jax.Array, key: jax.Array) -> None:
        tx = sampler(step_size, temperature, key=key)
        if not (hasattr(tx, "init") and hasattr(tx, "update")):
            wrong.append(repr(tx))

    try:
        jax.eval_shape(make, number, number, seed)
    except TypeError as error:
        raise TypeError(f"sampler must accept {call}, as diffopt.sgld does: {error}") from error
    if wrong:
        raise TypeError(f"{call} must return an Optax transformation, got {wrong[0]}")


def check_loss(loss: Loss, params: Params, *batch: Batch) -> None:
    """Raise unless `loss(params, *batch)` is a real scalar; shapes will do.

    An error of the loss's own leaves with a note of the arguments it was called with.
    """
    if not callable(loss):
        raise TypeError(f"loss must be a function, got {loss!r}")
    try:
        value = jax.eval_shape(lambda *args: loss(*args), params, *batch)  # traced anew
    except Exception as error:
        arguments = {"params": params} | ({"batch": batch[0]} if batch else {})
        shapes = ", ".join(describe_shapes(name, tree) for name, tree in arguments.items())
        error.add_note(f"one chain calls loss({', '.join(arguments)}), here with {shapes}")
        raise
    if not (
        isinstance(value, jax.ShapeDtypeStruct)
        and value.shape == ()
        and jnp.issubdtype(value.dtype, jnp.floating)
    ):
        raise TypeError(f"loss must return a real scalar, got {value}")


def check_estimator(estimator: Any, params: Params, batch: Batch) -> None:
    """Raise a TypeError unless `estimator` gives gradients like `params`; shapes will do."""
    if not (hasattr(estimator, "init") and hasattr(estimator, "update")):
        raise TypeError(f"estimator must be a GradientEstimator, as svrg gives, got {estimator!r}")
    try:
        state = jax.eval_shape(estimator.init, params)
        gradients, after = jax.eval_shape(estimator.update, params, batch, state)
    except Exception as error:  # of whatever is given in its place
        raise TypeError(
            "estimator.update(params, batch, state) must return (gradients, state):"
            f" {str(error).strip().splitlines()[0]}"
        ) from error
    check_like("the gradients of estimator", gradients, params)
    check_like("the new state of estimator", after, state)


def check_concrete(call: str, **trees: Any) -> None:
    """Raise a TypeError where a tree is traced: `call` compiles and runs its own program."""
    for name, tree in trees.items():
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree)):
            raise TypeError(
                f"{call} compiles its own loop and cannot run inside jit, vmap, grad or scan:"
                f" {name} is traced. To start chains at different points, give params a leading"
                " chain axis and num_chains=None"
            )
