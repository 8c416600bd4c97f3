"""Dtypes and constants: what 16 bits, 64 bits and weak types do to every sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffopt

SAMPLERS = {
    "langevin": lambda: diffopt.langevin(0.5, 0.03),
    "sgld": lambda: diffopt.sgld(0.03, 0.5),
    "psgld": lambda: diffopt.psgld(0.03, 0.5, decay=0.999),
    "sghmc": lambda: diffopt.sghmc(0.03, 0.5, momentum=0.999),
    "baoab": lambda: diffopt.baoab(0.3, 0.5, friction=0.003),
    "sgnht": lambda: diffopt.sgnht(0.03, 0.5, momentum=0.999),
}
each_sampler = pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)


@each_sampler
def test_compiled_and_eager_steps_are_the_same_bits_in_bfloat16(make):
    tx = make()
    grads = jnp.linspace(-2, 2, 100, dtype=jnp.bfloat16)
    state = compiled_state = tx.init(grads)
    update = jax.jit(tx.update)
    for _ in range(3):
        eager, state = tx.update(grads, state)
        compiled, compiled_state = update(grads, compiled_state)
        assert eager.dtype == jnp.bfloat16
        np.testing.assert_array_equal(eager, compiled)
