"""What docs/guides/checkpoints.md does for Flax and Equinox, and that it is needed."""

import re
from pathlib import Path

import equinox as eqx
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffopt
from tests.helpers import assert_equal

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "checkpoints.md"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The names of that section, run on a state of a sampler in bfloat16."""
    section = PAGE.read_text(encoding="utf-8").split("\n## Flax and Equinox")[1].split("\n## ")[0]
    tx = diffopt.low_precision(diffopt.sghmc(0.1, temperature=0.01))
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    updates, opt_state = tx.update(params, tx.init(params), params)
    params = optax.apply_updates(params, updates)
    names = {"jax": jax, "jnp": jnp, "tx": tx, "params": params, "opt_state": opt_state}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
            exec(block, names)
    return names


def assert_goes_on_alike(page, restored):
    tx, params, state = page["tx"], page["params"], page["opt_state"]
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    update = jax.jit(tx.update)
    expected, got = (update(params, s, params) for s in (state, restored))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        a, b = (jax.random.key_data(x) if page["is_key"](x) else x for x in (a, b))
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["restored", "loaded"])
def test_a_state_that_was_saved_goes_on_with_the_same_noise(page, name):
    assert_goes_on_alike(page, page[name])


def test_what_holds_more_than_arrays_is_saved(page):
    """A `TrainState` has a number, and a model of Equinox functions."""
    state, restored = page["train_state"], page["train_restored"]
    assert (state.step, restored.step) == (1, 1)
    assert_equal(restored.params, state.params)
    assert_equal(restored.opt_state, state.opt_state)
    model, loaded = page["both"][0], page["both_loaded"][0]
    assert loaded.activation is model.activation
    assert_equal(*(eqx.filter(x, eqx.is_array) for x in (page["both_loaded"], page["both"])))


def test_flax_and_equinox_need_it(page, tmp_path):
    with pytest.raises(TypeError, match="PRNGKey dtype cannot be converted"):
        flax.serialization.to_bytes(page["opt_state"])
    with pytest.raises(RuntimeError, match="Error at leaf with path.*'key'"):
        eqx.tree_serialise_leaves(tmp_path / "state.eqx", page["opt_state"])
