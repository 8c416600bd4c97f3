"""What tests share: every sampler by name, a compiled run, like trees, eight devices."""

import inspect
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.linalg import solve_discrete_lyapunov

import diffopt

ROOT = Path(__file__).parents[1]
LAST_COUNT = np.iinfo(np.int32).max


class MidpointState(NamedTuple):
    """State of `midpoint`: the increment of the step before."""

    count: jax.Array
    key: jax.Array
    xi: Any


def midpoint(step_size, temperature, *, key=0, noise="gaussian"):
    """A user's own sampler: θ ← θ - ηg + √(2Tη) (ξ' + ξ)/2, ξ' the ξ of the step before.

    Leimkuhler & Matthews 2013. On kθ²/2 its variance is T/k exactly.
    """

    def init(params, count, key):
        return MidpointState(count, key, jax.tree.map(jnp.zeros_like, params))

    def step(g, xi, state):
        eta, T = (
            # one that Optax injects beside complex parameters is complex
            jnp.maximum(jnp.real(x(state.count) if callable(x) else x), 0)
            for x in (step_size, temperature)
        )
        move = lambda g, a, b: -eta * g + jnp.sqrt(T * eta / 2) * (a + b)
        return jax.tree.map(move, g, xi, state.xi), state._replace(xi=xi)

    return diffopt.sampler(step, init, key=key, noise=noise)


def langevin(step_size, temperature, *, key=0, noise="gaussian"):
    """`diffopt.langevin` before the learning rate that it was told."""
    return optax.chain(
        diffopt.langevin(temperature, learning_rate=step_size, key=key, noise=noise),
        optax.scale_by_learning_rate(step_size),
    )


def low_precision(step_size, temperature, *, key=0, noise="gaussian"):
    """`diffopt.low_precision` around `sgld`, both with the same key."""
    return diffopt.low_precision(
        diffopt.sgld(step_size, temperature, key=key, noise=noise), key=key
    )


def ubu_covariance(h, k, friction, temperature, end=False):
    """Stationary covariance of (θ, v) on kθ²/2, at UBU's gradients or at the ends of its steps."""

    def free(t):  # the exact flow U over a time t, and its covariance
        a, c = friction * t, np.exp(-friction * t)
        drift = np.array([[1, (1 - c) / friction], [0, c]])
        both = (1 - c) ** 2 / friction
        own = (2 * a - 3 + 4 * c - c**2) / friction**2
        return drift, temperature * np.array([[own, both], [both, 1 - c**2]])

    kick = np.array([[1, 0], [-h * k, 1]])
    U, noise = free(h)
    covariance = solve_discrete_lyapunov(U @ kick, noise)
    if not end:
        return covariance
    half, noise = free(h / 2)
    return half @ kick @ covariance @ kick.T @ half.T + noise


class Sampler(NamedTuple):
    """A row of the registry; `make(step_size, temperature, *, key=0)`, most with a `noise` too."""

    make: Callable
    cold: Callable | None  # the optimizer that it is at T = 0, from its step size
    variance: Callable | None  # on θ²/2 at T = 1, from its step size
    dtype: str = "float32"  # of the parameters it is for
    tosses: bool = False  # whether an element has but two ways to go, so that steps may be equal
    sums: bool = False  # whether a step has a sum over all parameters

    @property
    def takes_noise(self):
        """Whether the increments are of the user's choice."""
        return "noise" in inspect.signature(self.make).parameters

    def make_noisy(self, *args, noise, **keywords):
        """`make`, with that noise where there is a choice."""
        return self.make(*args, **keywords, **({"noise": noise} if self.takes_noise else {}))


SAMPLERS = {
    "langevin": Sampler(langevin, optax.sgd, lambda eta: 1 / (1 - eta / 2)),
    "sgld": Sampler(diffopt.sgld, optax.sgd, lambda eta: 1 / (1 - eta / 2)),
    "psgld": Sampler(
        diffopt.psgld,
        lambda eta: optax.rmsprop(eta, decay=0.99, eps=1e-5, eps_in_sqrt=False),
        None,  # biased: see its law
    ),
    "sghmc": Sampler(
        diffopt.sghmc, lambda eta: optax.sgd(eta, momentum=0.9), lambda eta: 1 / (1 - eta / 3.8)
    ),
    "baoab": Sampler(diffopt.baoab, None, lambda h: 1.0),
    "ubu": Sampler(diffopt.ubu, None, lambda h: ubu_covariance(h, 1.0, 1.0, 1.0)[0, 0]),
    "mclmc": Sampler(diffopt.mclmc, None, None, sums=True),  # off T by the mean curvature
    "sgnht": Sampler(
        diffopt.sgnht, lambda eta: optax.sgd(eta, momentum=0.9), lambda eta: 1.0, sums=True
    ),
    "lattice_walk": Sampler(diffopt.lattice_walk, optax.sgd, lambda eta: 1.0, tosses=True),
    "low_precision": Sampler(low_precision, optax.sgd, None, "bfloat16"),
    "midpoint": Sampler(midpoint, optax.sgd, lambda eta: 1.0),
}


def run(tx, params, grad, steps, *, state=None, seed=None, keep=lambda params, state: None):
    """The last parameters and state of compiled steps, and what was kept after each.

    The gradient is `grad(params)`; where there is a seed, `grad(params, key)`.
    """

    @jax.jit
    def simulate(params, state, keys):
        def step(carry, key):
            params, state = carry
            grads = grad(params) if key is None else grad(params, key)
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), keep(params, state)

        (last, state), kept = jax.lax.scan(step, (params, state), keys, length=steps)
        return last, state, kept

    keys = None if seed is None else jax.random.split(jax.random.key(seed), steps)
    return simulate(params, tx.init(params) if state is None else state, keys)


def normals(seed, *shape):
    """Data that look random, for which no program is compiled."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def path(tx, params, grad, steps):
    """All the parameters of a compiled run, with a leading axis of steps."""
    return run(tx, params, grad, steps, keep=lambda params, state: params)[2]


def is_key(leaf):
    """Whether a leaf is a typed PRNG key."""
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def of_name(state, name):
    """All that is called `name` in a state."""
    return [value for _, value in optax.tree.get_all_with_path(state, name)]


def plain(tree):
    """A tree of NumPy arrays, a key as its words and 16 bits as 32."""

    def leaf(x):
        x = np.asarray(jax.random.key_data(x) if is_key(x) else x)
        return np.float32(x) if x.dtype.itemsize == 2 and x.dtype.kind not in "iu" else x

    return jax.tree.map(leaf, tree)


def assert_equal(a, b):
    """Two trees have the same structure, shapes and numbers (a NaN is itself)."""
    a, b = plain(a), plain(b)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), a, b)


def assert_close(a, b, **tolerance):
    """Two trees have the same structure and shapes, and numbers within a tolerance."""
    a, b = plain(a), plain(b)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def assert_covariance(theta, v, expected):
    """Each entry of the covariance of (θ, v) within 4.5 standard errors over the chains."""
    x = np.stack([theta, v]).astype(np.float64)
    measured = x @ x.T / x.shape[1]
    diagonal = np.diag(expected)
    standard_error = np.sqrt((np.outer(diagonal, diagonal) + expected**2) / x.shape[1])
    assert np.all(np.abs(measured - expected) < 4.5 * standard_error), (measured, expected)


def assert_like(a, b):
    """Two trees have the same structure, shapes and dtypes."""
    like = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    assert like(a) == like(b)


def on_devices(module, devices=8):
    """The tracebacks of the checks of `module` that fail in a process of virtual CPU devices.

    The module is run as a program that calls `report`.
    """
    flags = {
        # a busy machine may keep devices waiting for each other longer than the default, 40 s
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"
        " --xla_cpu_collective_call_terminate_timeout_seconds=600",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, env=os.environ | flags, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def report(checks):
    """Run the checks and print the tracebacks of those that fail."""
    failures = {}
    for name, check in checks.items():
        try:
            check()
        except Exception:
            failures[name] = traceback.format_exc()
    json.dump(failures, sys.stdout)
