"""The README's Python, run as it stands there, on a small linear regression."""

import re
from pathlib import Path

import arviz
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import diffopt
from tests.helpers import assert_equal

README = (Path(__file__).parent.parent / "README.md").read_text()


def snippets(heading: str) -> list[str]:
    """The Python under a heading, up to the next heading of its level."""
    level = heading.split()[0]
    section = README.split(f"\n{heading}\n")[1].split(f"\n{level} ")[0]
    found = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert found, heading
    return found


def regression():
    """Inputs, targets and the loss over a batch of indices, of 40 examples of 3 features."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(40, 3)), jnp.float32)
    y = x @ jnp.array([1.0, -2.0, 0.5]) + jnp.asarray(rng.normal(size=40), jnp.float32)

    def loss(params, batch):
        likelihood = ((y[batch] - x[batch] @ params["w"]) ** 2).mean() / 2
        return likelihood + (params["w"] ** 2).sum() / (2 * len(y))

    return x, y, loss


def test_use():
    params = {"w": jnp.ones(3), "b": jnp.zeros(())}
    names = {"D": 0.1, "lr": 0.01, "params": params, "grads": params}
    (snippet,) = snippets("## Use")
    exec(snippet, names)
    expected = diffopt.langevin(0.1, learning_rate=0.01).init(params)
    assert jax.tree.structure(names["params"]) == jax.tree.structure(params)
    assert jax.tree.structure(names["state"][0]) == jax.tree.structure(expected)
    moved = names["params"]["w"] - (1 - 0.01)
    assert 0 < np.abs(moved).max() < 6 * np.sqrt(2 * 0.1 * 0.01)


def test_many_chains_sample_the_posterior():
    matplotlib.use("Agg")
    x, y, loss = regression()
    chains, N = 4, len(y)
    order = jax.random.permutation
    batches = jax.vmap(lambda k: order(k, N))(jax.random.split(jax.random.key(0), 20_000))
    names = {
        "jax": jax, "jnp": jnp, "optax": optax, "diffopt": diffopt, "arviz": arviz,
        "lr": 0.02, "N": N, "chains": chains, "loss": loss, "batches": batches, "images": x,
        "params": {"w": jax.random.normal(jax.random.key(1), (chains, 3))},
        "predict": lambda params, x: x @ params["w"], "mean": jnp.zeros(N), "n": 1,
    }  # fmt: skip
    sample, running_mean, diagnose = snippets(
        "## Many chains, and a posterior from one training run"
    )
    exec(sample, names)
    samples = np.asarray(names["samples"]["w"])
    assert samples.shape == (chains, 100, 3)

    # The posterior is N(μ, A⁻¹), and SGHMC samples it with a covariance within O(η).
    precision = np.asarray(x.T @ x) + np.eye(3)
    center = np.linalg.solve(precision, np.asarray(x.T @ y))
    std = np.sqrt(np.diag(np.linalg.inv(precision)))
    ess = np.array([arviz.ess(samples[:, :, i]) for i in range(3)], float)
    assert (ess > 200).all()
    assert (np.abs(samples.mean((0, 1)) - center) < 4.5 * std / np.sqrt(ess)).all()
    np.testing.assert_allclose(samples.std((0, 1)), std, rtol=4.5 / np.sqrt(2 * ess.min()))
    np.testing.assert_allclose(names["probs"], x @ samples.mean((0, 1)), rtol=1e-4, atol=1e-4)

    names["params"] = {"w": names["params"]["w"][0]}
    exec(running_mean, names)
    np.testing.assert_allclose(names["mean"], x @ names["params"]["w"], rtol=1e-5)
    exec(diagnose, names)
    assert "'w'" in str(names["named"].keys()) and "w" in str(names["idata"])


def test_nothing_lost(tmp_path):
    """A run that is saved and restored goes on to the bits of one that is not."""
    tx, keep = diffopt.low_precision(diffopt.sghmc(0.1, 0.1)), diffopt.collect(9)
    (snippet,) = snippets("## Nothing lost")

    @jax.jit
    def step(run):
        updates, opt_state = tx.update(run["params"], run["opt_state"], run["params"])
        params = optax.apply_updates(run["params"], updates)
        return {
            "params": params, "opt_state": opt_state, "kept": keep.update(params, run["kept"])
        }  # fmt: skip

    params = {"w": jnp.ones(3, jnp.bfloat16), "none": None}
    start = {"params": params, "opt_state": tx.init(params), "kept": keep.init(params)}
    state = start
    for count in range(1, 5):
        state = step(state)
        exec(snippet, {"ocp": ocp, "folder": tmp_path / f"of {count}", "count": count, **state})
    for count in range(1, 5):
        names = {"ocp": ocp, "folder": tmp_path / f"of {count}", "count": count + 1, **start}
        exec(snippet, names)
        restored = names["run"]
        for _ in range(count, 4):
            restored = step(restored)
        assert_equal(restored, state)
    assert not jnp.array_equal(state["params"]["w"], start["params"]["w"])


@pytest.mark.parametrize("heading", re.findall(r"^## .*$", README, re.MULTILINE))
def test_its_python_compiles(heading):
    section = README.split(f"\n{heading}\n")[1].split("\n## ")[0]
    for snippet in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        compile(snippet, heading, "exec")


def test_it_shows_the_test_command_that_ci_runs():
    ci = (Path(__file__).parent.parent / ".ci" / "run").read_text()
    (command,) = re.findall(r"^python3 -m venv .*pytest.*$", ci, re.MULTILINE)
    assert f"```bash\n{command}\n```" in README
