"""What every sampler refuses, by name and value."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffopt
from tests.diffopt.contract.helpers import each_sampler, standard


@each_sampler
def test_integer_parameters_are_refused_by_name(name):
    with pytest.raises(TypeError, match=r"params\['layer'\]\[1\] has dtype int32"):
        standard(name)[0].init({"layer": [jnp.ones(2), jnp.arange(3)]})


OURS = [
    *(diffopt.sgld, diffopt.psgld, diffopt.lattice_walk),
    *(diffopt.sghmc, diffopt.baoab, diffopt.ubu, diffopt.mclmc, diffopt.sgnht),
]
GOOD = {make: dict.fromkeys(list(inspect.signature(make).parameters)[:2], 0.1) for make in OURS}
GOOD[diffopt.langevin] = {"diffusion": 0.1, "learning_rate": 0.1}
each_of_ours = pytest.mark.parametrize("make", GOOD, ids=lambda make: make.__name__)
NEGATIVE = [-1.0, float("nan"), float("inf"), np.float32(-1), jnp.array(-1.0), jnp.array(jnp.nan)]


@each_of_ours
@pytest.mark.parametrize("bad", NEGATIVE)
def test_bad_numbers_are_refused_by_name_and_value(make, bad):
    for name in GOOD[make]:
        shown = str(float(bad)).removesuffix(".0")
        with pytest.raises(ValueError, match=f"{name} must be finite.*{shown}"):
            make(**GOOD[make] | {name: bad})


@each_of_ours
def test_a_step_size_of_zero_and_wrong_types_are_refused_by_name(make):
    step_size = next(name for name in GOOD[make] if name in ("learning_rate", "step_size"))
    for zero in (0, 0.0):
        with pytest.raises(ValueError, match=f"{step_size} must be finite and > 0, got 0"):
            make(**GOOD[make] | {step_size: zero})
    for bad in ("0.1", True, 1j, jnp.ones(3), jnp.ones((), bool)):
        for name in GOOD[make]:
            with pytest.raises(TypeError, match=f"{name} must be a"):
                make(**GOOD[make] | {name: bad})


@each_of_ours
def test_what_is_no_key_is_refused_by_name(make):
    for bad in (1.5, "0", None, True, jnp.zeros(3), jax.random.split(jax.random.key(0))):
        with pytest.raises(TypeError, match="key must be an int or a single PRNG key"):
            make(**GOOD[make], key=bad)


@pytest.mark.parametrize(
    "make,name,bad",
    [
        (diffopt.psgld, "decay", (1.0, -0.1)),
        (diffopt.psgld, "eps", (0.0, -1.0)),
        (diffopt.sghmc, "momentum", (1.0, -0.1, float("nan"))),
        (diffopt.sgnht, "momentum", (1.0, -0.1, float("nan"))),
        (diffopt.baoab, "friction", (-1.0, float("inf"))),
        (diffopt.ubu, "friction", (-1.0, float("inf"))),
        (diffopt.mclmc, "friction", (-1.0, float("inf"))),
    ],
)
def test_other_numbers_are_refused_by_name_and_value(make, name, bad):
    for value in bad:
        with pytest.raises(ValueError, match=f"{name} must be .*, got {value}"):
            make(**GOOD[make], **{name: value})
    for value in (jnp.ones(2), lambda count: 0.9, "small"):
        with pytest.raises(TypeError, match=f"{name} must be a"):
            make(**GOOD[make], **{name: value})
