"""A cache of compiled programs for all processes of a run, and the budget of minutes."""

import os
import signal
import tempfile
import time
from pathlib import Path

import pytest

BUDGET = 200  # seconds of wall time for the default suite on 2 quiet cores

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # set by the first process, before it imports jax
    CACHE = tempfile.TemporaryDirectory(prefix="diffopt-jax-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


@pytest.fixture(autouse=True)
def ctrl_c():
    """The handler of Ctrl-C that Python starts with, also where a shell had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


def cpu_of_the_machine():
    """CPU seconds that all processes have had; None where there is no /proc."""
    if not Path("/proc/stat").exists():
        return None
    ticks = [int(x) for x in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def pytest_configure(config):
    config.started = time.monotonic(), cpu_of_the_machine()
    config.cpu_of_workers = 0.0


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Add the CPU seconds of a worker of xdist and its subprocesses."""
    node.config.cpu_of_workers += getattr(node, "workeroutput", {}).get("cpu", 0.0)


def pytest_sessionfinish(session):
    """The whole default suite fails over its budget if nobody else used the machine."""
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput["cpu"] = sum(os.times()[:4])
        return
    start, before = config.started
    wall, after = time.monotonic() - start, cpu_of_the_machine()
    whole = config.args_source == pytest.Config.ArgsSource.TESTPATHS and not config.option.keyword
    if not whole or config.option.markexpr != "not slow" or wall < BUDGET:
        return
    own = config.cpu_of_workers + sum(os.times()[: 2 if config.cpu_of_workers else 4])
    quiet = after is not None and after - before - own < 0.1 * wall
    quiet = quiet and "CI" not in os.environ  # whose processors are shared with machines unseen
    if quiet and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    config.get_terminal_writer().line(
        f"\nThe default suite took {wall:.0f} s; its budget is {BUDGET} s on 2 quiet cores,"
        f" and this machine was {'quiet: a failure' if quiet else 'busy: a warning'}.",
        red=quiet,
        yellow=not quiet,
    )
