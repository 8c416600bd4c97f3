"""A cache of compiled programs for all processes of a run, and the budget of minutes."""

import os
import tempfile
import time
import warnings
from pathlib import Path

import pytest

BUDGET = 240  # seconds of wall time for the default suite on 2 quiet cores

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # set by the first process, before it imports jax
    CACHE = tempfile.TemporaryDirectory(prefix="diffopt-jax-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def busy():
    """CPU seconds that this process and its children have had, and those of the whole machine."""
    ticks = [int(x) for x in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    idle = ticks[3] + ticks[4]
    return sum(os.times()[:4]), (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK")


def pytest_configure(config):
    config.started = time.monotonic(), busy() if Path("/proc/stat").exists() else None


def pytest_testnodedown(node):
    """Add what a worker has had."""
    config = node.config
    config.workers = getattr(config, "workers", 0) + getattr(node, "workeroutput", {}).get("cpu", 0)


def pytest_sessionfinish(session):
    """Fail the whole default suite if it took too long, and nobody else used the machine."""
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput["cpu"] = sum(os.times()[:4])
        return
    start, before = config.started
    wall = time.monotonic() - start
    whole = config.args_source == pytest.Config.ArgsSource.TESTPATHS and not config.option.keyword
    if not whole or config.option.markexpr != "not slow" or wall < BUDGET:
        return
    message = f"the default suite took {wall:.0f} s, its budget is {BUDGET} s on 2 quiet cores"
    others = None
    if before:
        own, machine = (b - a for a, b in zip(before, busy(), strict=True))
        others = machine - own - getattr(config, "workers", 0)
    if others is not None and others < 0.1 * wall and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        message += ", and the machine was quiet"
    config.get_terminal_writer().line(f"\n{message}", red=True)
    warnings.warn(message, stacklevel=1)
