"""Whether the diffopt installed in this Python works without extras, and how long its import takes.

Run it away from the checkout, so that what it imports is the wheel:

    cd /tmp && venv/bin/python CHECKOUT/.ci/wheel.py
"""

import importlib.util
import statistics
import subprocess
import sys

import jax.numpy as jnp
import optax

import diffopt

LIMIT = 0.3  # seconds for diffopt, over jax and optax
TIMED = """
import time, jax, optax
start = time.perf_counter()
import diffopt
print(time.perf_counter() - start)
"""

assert "site-packages" in diffopt.__file__, diffopt.__file__
extras = [name for name in ("flax", "matplotlib", "sklearn") if importlib.util.find_spec(name)]
assert not extras, f"not an empty environment: {extras}"

tx = diffopt.sgld(0.1, temperature=1e-3)
params = {"w": jnp.ones(3)}
updates, state = tx.update(params, tx.init(params), params)
moved = optax.apply_updates(params, updates)["w"]
assert state.count == 1 and 0 < abs(moved - 0.9).max() < 0.1, moved

times = [
    float(subprocess.run([sys.executable, "-c", TIMED], check=True, capture_output=True).stdout)
    for _ in range(5)
]
print(f"diffopt {diffopt.__version__}: an SGLD step; import {statistics.median(times):.3f} s")
assert statistics.median(times) <= LIMIT, f"import takes over {LIMIT} s: {times}"
