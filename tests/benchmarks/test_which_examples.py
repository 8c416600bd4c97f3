"""The program of influence: its rivals against what they approximate, and what it writes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from benchmarks import which_examples
from tests.benchmarks import helpers

SIZES = (64, 3, 10)


@pytest.fixture(scope="module")
def network():
    data, test = which_examples.load_digits(20)
    test = jax.tree.map(lambda a: a[:4], test)
    return which_examples.start(SIZES, jax.random.key(0)), data, test


@pytest.mark.slow
def test_conjugate_gradients_solve_the_gauss_newton_matrix(network):
    params, data, test = network
    flat, unravel = ravel_pytree(params)
    logits = lambda w, x: which_examples.forward(unravel(w), x)[0]
    jacobian = jax.vmap(jax.jacobian(logits), (None, 0))(flat, data[0])
    p = jax.nn.softmax(jax.vmap(logits, (None, 0))(flat, data[0]))
    curved = jnp.einsum("nc,cd->ncd", p, jnp.eye(10)) - p[:, :, None] * p[:, None]
    matrix = jnp.einsum("nci,ncd,ndj->ij", jacobian, curved, jacobian) / 20
    g, t = (which_examples.gradients(params, d) for d in (data, test))
    damped = matrix + (which_examples.DECAY + 0.1) * jnp.eye(len(flat))
    found = which_examples.conjugate_gradients(params, data, 0.1, test, 100)
    np.testing.assert_allclose(found, -g @ jnp.linalg.solve(damped, t.T), rtol=0.01, atol=1e-3)


@pytest.mark.slow
def test_kronecker_factors_are_exact_for_one_image(network):
    params, data, test = network
    one = jax.tree.map(lambda a: a[:1], data)
    g, t = (np.asarray(which_examples.gradients(params, d)) for d in (data, test))
    last = params[-1].size  # of a single layer the matrix is a Kronecker product
    factors = which_examples.kronecker_factors(params, one)[-1:]
    a = which_examples.forward(params, one[0][0])[1][-1]
    p = jax.nn.softmax(which_examples.forward(params, one[0][0])[0])
    matrix = jnp.kron(jnp.outer(a, a), jnp.diag(p) - jnp.outer(p, p))
    damped = matrix + (which_examples.DECAY + 0.1) * jnp.eye(last)
    exact = -g[:, -last:] @ jnp.linalg.solve(damped, t[:, -last:].T)
    found = which_examples.by_factors(factors, 0.1, g[:, -last:], t[:, -last:])
    np.testing.assert_allclose(found, exact, rtol=0.01, atol=1e-3)
    own = which_examples.by_factors(factors, 0.1, g[:, -last:], None)
    all_pairs = which_examples.by_factors(factors, 0.1, g[:, -last:], g[:, -last:])
    np.testing.assert_allclose(own, np.diagonal(all_pairs), rtol=1e-3)


def test_what_is_foretold_right_scores_1():
    rng = np.random.default_rng(0)
    halves = np.stack([rng.permutation(8)[:4] for _ in range(6)])
    influence = rng.normal(size=(8, 3))
    actual = influence[halves].sum(1) ** 3
    assert which_examples.score(influence, halves, actual) == pytest.approx(1)
    assert which_examples.score(-influence, halves, actual) == pytest.approx(-1)


@pytest.mark.slow
def test_it_writes_scores_wrong_labels_and_a_picture(tmp_path, monkeypatch):
    small, large = (64, 4, 10), (64, 4, 4, 10)
    monkeypatch.setattr(which_examples, "LARGE", large)
    monkeypatch.setattr(which_examples, "SMALL", small)
    one = which_examples.SETTINGS[-1:]
    monkeypatch.setattr(which_examples, "SETTINGS", one)
    monkeypatch.setattr(which_examples, "LARGE_SETTINGS", one)
    monkeypatch.setattr(which_examples, "LABEL_SETTINGS", {small: one, large: one})
    arguments = ["--halves", 3, "--seeds", 2, "--training-steps", 20, "--steps", 80]
    arguments += ["--chains", 2, "--large-halves", 3, "--large-steps", 40]
    assert helpers.status(which_examples.main, *arguments, "--out", tmp_path) == 0
    read = lambda trial: json.loads((tmp_path / f"which_examples_{trial}.json").read_text())
    for trial in ("small", "large"):
        assert all(-1 <= row["score"] <= 1 for row in read(trial)["methods"])
    for trial in ("labels", "labels_large"):
        assert all(len(shares) == 2 for shares in read(trial)["shares"].values())
    assert (tmp_path / "which_examples.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--halves", "1"], "'1' is not a whole number from 2"),
        (["--chains", "1"], "'1' is not a whole number from 2"),
        (["--out", "/proc/x"], "which_examples: --out /proc/x cannot be written"),
    ],
)
def test_bad_arguments_are_refused(arguments, sentence, capsys):
    assert helpers.status(which_examples.main, *arguments) == 2
    assert sentence in capsys.readouterr().err
