"""Many processes on many hosts that train as one."""

import contextlib
import os
import pickle
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from ..lib.cli import UsageError, differences, first_line
from .rendezvous import check_launch

PATIENCE = 120  # seconds that a process waits for the others to start
LOST = 20  # seconds without a sign of life after which a process has ended
LEAVE = 5  # seconds that a process with an error waits for the others to end too
HOW_TO_CONNECT = (
    "Start every process with srun, mpirun or on a TPU pod, or give each JAX_COORDINATOR_ADDRESS"
    " (HOST:PORT of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID"
)
VARIABLES = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
T = TypeVar("T")


def connect() -> None:
    """Join the devices of all processes in one JAX, which must not have started yet.

    JAX knows by itself where it is under SLURM, Open MPI and Kubernetes and on a TPU pod; for
    other launchers three variables tell. What follows runs in a child of this process.

    Raises:
      UsageError: there is no launcher, or it is told wrong.
    """
    address, count, index = read_launch()
    if address and count is not None and index is not None:
        fault = check_launch(address, count, index, PATIENCE)
        if fault:
            raise UsageError(f"--distributed: {fault}. {HOW_TO_CONNECT}")
    fork_child()

    def give_up() -> None:
        sentence = f"not all processes came within {PATIENCE} s. {HOW_TO_CONNECT}"
        print(f"compare: --distributed: {sentence}", file=sys.stderr)
        os._exit(2)

    deadline = threading.Timer(PATIENCE, give_up)  # JAX itself would abort with a stack trace
    deadline.daemon = True
    deadline.start()
    jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM
    try:
        jax.distributed.initialize(
            num_processes=count,
            process_id=index,
            initialization_timeout=PATIENCE + 60,
            heartbeat_timeout_seconds=LOST,
            shutdown_timeout_seconds=LOST,
        )
    except Exception as error:  # each launcher has errors of its own
        raise UsageError(f"--distributed: {first_line(error)}. {HOW_TO_CONNECT}") from error
    finally:
        deadline.cancel()


def read_launch() -> tuple[str | None, int | None, int | None]:
    """The address of process 0, the number of processes and the index of this one, if told.

    Raises:
      UsageError: one of them cannot be.
    """
    address, *numbers = (os.environ.get(name) for name in VARIABLES)
    for name, text in zip(VARIABLES[1:], numbers, strict=True):
        if text and not text.isdecimal():
            raise UsageError(
                f"--distributed: {name}={text} is not a whole number. {HOW_TO_CONNECT}"
            )
    count, index = (int(text) if text else None for text in numbers)
    if address:
        port = re.fullmatch(r"\S+:(\d{1,5})", address)
        if not (port and 0 < int(port[1]) < 65536):
            raise UsageError(f"--distributed: {VARIABLES[0]}={address} is not HOST:PORT")
    if count is not None and index is not None and index >= count:
        raise UsageError(f"--distributed: there is no process {index} of {count}. {HOW_TO_CONNECT}")
    return address, count, index


def fork_child() -> None:
    """Go on in a child of this process, which only waits for it.

    JAX aborts a process that has lost another, with a stack trace; the parent has a sentence for
    that. It passes SIGINT and SIGTERM on, and takes the child with it when it is killed.
    """
    watched, held = os.pipe()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads: JAX has none yet
        child = os.fork()
    if child:
        os.close(watched)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os.kill(child, number))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status < 0:
            killed = -status in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
            reason = "this process was killed" if killed else "another process has ended"
            print(f"compare: --distributed: {reason}", file=sys.stderr, flush=True)
            status = 128 - status if killed else 2
        os._exit(status)
    os.close(held)
    os.setpgid(0, 0)  # signals of the terminal come through the parent, once

    def follow_parent() -> None:
        os.read(watched, 1)  # returns when the parent has ended
        os._exit(2)

    threading.Thread(target=follow_parent, daemon=True).start()


def end_process(status: int) -> NoReturn:
    """End this process; one with an error soon, though others may wait for it for ever."""
    if status and jax.process_count() > 1:

        def shutdown() -> None:
            with contextlib.suppress(Exception):
                jax.distributed.shutdown()

        goodbye = threading.Thread(target=shutdown, daemon=True)
        goodbye.start()
        goodbye.join(LEAVE)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


@contextlib.contextmanager
def report_lost_process() -> Iterator[None]:
    """Raise a `UsageError` where JAX fails since another process has ended."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        lost = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)
        if jax.process_count() == 1 or not lost:
            raise
        raise UsageError(
            f"--distributed: cannot continue with the other processes: {first_line(error)}"
        ) from error


def prepare_all(prepare: Callable[[], T]) -> T:
    """The result of `prepare()`, if no process refuses.

    Raises:
      UsageError: this process refuses, or another does.
    """
    results, failure = [], UsageError("another process cannot start, and says why")
    try:
        results.append(prepare())
    except UsageError as error:
        failure = error
    if not multihost_utils.process_allgather(np.array(bool(results))).all():
        raise failure
    return results[0]


def broadcast_first(make: Callable[[], T]) -> T:
    """What `make()` gives in process 0, in every process, bit for bit."""
    if jax.process_count() == 1:
        return make()
    blob = pickle.dumps(make()) if jax.process_index() == 0 else b""
    size = multihost_utils.broadcast_one_to_all(np.array(len(blob), np.int32))
    content = np.frombuffer(blob.ljust(int(size)), np.uint8)
    return pickle.loads(np.asarray(multihost_utils.broadcast_one_to_all(content)).tobytes())


def require_same_arguments(arguments: dict[str, Any]) -> None:
    """See that every process has the arguments of process 0.

    Raises:
      UsageError: one has not.
    """

    def compare() -> None:
        different = differences(theirs, arguments, "here")
        if different:
            raise UsageError(f"--distributed: process 0 has {different}")

    theirs = broadcast_first(lambda: arguments)
    prepare_all(compare)
