"""Compiled programs, kept by what they compute and not by the function that they came from.

`jax.jit` keeps a program by the identity of a function. What the function closes over is then part
of the program, as it was at the first call. Here a function is traced at every call and sees the
present values. The arrays that it closes over become arguments, so JAX compiles again only if the
program differs, not if its values do.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import jax

KEPT = 32  # programs: about as many as a session uses again
_programs: OrderedDict[Any, Any] = OrderedDict()


def compile_program(
    function: Callable[..., Any], *args: Any, donate: tuple[int, ...] = ()
) -> Callable[..., Any]:
    """`function` as a compiled program for arguments like `args`, trees of arrays.

    Inside another program, where an argument or what the function closes over is traced, it is
    `function` itself. A program that calls back to Python is not kept, as its text does not say
    whom it calls.

    Args:
      function: a function of trees of arrays.
      *args: arguments with the shapes, dtypes and devices of the calls.
      donate: the positions of arguments whose memory the program may use for its results.
    """
    jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    constants = list(jaxpr.consts)
    leaves = jax.tree.leaves((constants, args))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return function
    structure = jax.tree.structure(shapes)

    def program(constants: Any, *args: Any) -> Any:
        results = jax.core.eval_jaxpr(jaxpr.jaxpr, constants, *jax.tree.leaves(args))
        return jax.tree.unflatten(structure, results)

    donated = tuple(position + 1 for position in donate)
    lowered = jax.jit(program, donate_argnums=donated).lower(constants, *args)
    text = lowered.as_text()
    places = tuple(leaf.sharding if _is_placed(leaf) else None for leaf in leaves)
    default = jax.config.jax_default_device  # type: ignore[attr-defined]
    trees = jax.tree.structure((constants, args)), structure
    types = tuple(jax.typeof(leaf) for leaf in leaves)  # of unused ones the text says nothing
    key = hashlib.sha256(text.encode()).digest(), places, default, trees, types
    executable = _programs.pop(key, None)
    if executable is None:
        executable = lowered.compile()
    if "callback" not in text:
        _programs[key] = executable
        if len(_programs) > KEPT:
            _programs.popitem(last=False)
    return lambda *args: executable(constants, *args)


def _is_placed(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and leaf.committed
