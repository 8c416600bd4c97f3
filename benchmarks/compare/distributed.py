"""Many processes on many hosts that train as one."""

import os
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from ..lib.cli import Refusal

PATIENCE = 300  # seconds that a process waits for the others
HOW_TO_CONNECT = (
    "Start every process with srun, mpirun or on a TPU pod, or give each JAX_COORDINATOR_ADDRESS"
    " (HOST:PORT of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID"
)
T = TypeVar("T")


def connect() -> None:
    """Make the devices of all processes those of one JAX, which must not have started yet.

    JAX knows by itself where it is under SLURM, Open MPI and Kubernetes and on a TPU pod; for
    other launchers three variables tell, of which it reads the address of process 0 itself.

    Raises:
      Refusal: there is no launcher, or it is told wrong.
    """

    def give_up() -> None:
        sentence = f"not all processes came within {PATIENCE} s. {HOW_TO_CONNECT}"
        print(f"compare: --distributed: {sentence}", file=sys.stderr)
        os._exit(2)

    deadline = threading.Timer(PATIENCE, give_up)  # JAX itself would abort with a stack trace
    deadline.daemon = True
    deadline.start()
    try:
        count, index = (os.environ.get(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID"))
        jax.distributed.initialize(
            num_processes=int(count) if count else None,
            process_id=int(index) if index else None,
            initialization_timeout=PATIENCE + 60,
        )
    except Exception as error:  # each launcher has errors of its own
        reason = (str(error) or repr(error)).splitlines()[0].rstrip(".")
        raise Refusal(f"--distributed: {reason}. {HOW_TO_CONNECT}") from error
    finally:
        deadline.cancel()


def all_or_none(prepare: Callable[[], T]) -> T:
    """The result of `prepare()`, if no process refuses.

    Raises:
      Refusal: this process refuses, or another does.
    """
    results, refusal = [], Refusal("another process cannot start, and says why")
    try:
        results.append(prepare())
    except Refusal as error:
        refusal = error
    if not multihost_utils.process_allgather(np.array(bool(results))).all():
        raise refusal
    return results[0]
