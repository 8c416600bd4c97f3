"""A network and data that compile and train in no time, and processes that share their imports."""

import functools
import multiprocessing
import os
import sys

import pytest
from flax import nnx

from benchmarks.lib import data, models

FORK = multiprocessing.get_context("forkserver")  # one start-up for all processes
FORK.set_forkserver_preload(
    [__name__, "benchmarks.compare.__main__", "sklearn.model_selection", "PIL.Image"]
)
TIMEOUT = 300  # of a busy machine


class Small(nnx.Module):
    """In the place of the CNN, which takes long to compile."""

    def __init__(self, channels, classes=10, *, rngs):
        self.dense1 = nnx.Linear(1024 * channels, 16, rngs=rngs)
        self.dense2 = nnx.Linear(16, classes, rngs=rngs)

    def __call__(self, x):
        return self.dense2(nnx.relu(self.dense1(x.reshape(len(x), -1))))


digits = functools.cache(data.digits)


def make_small(patch, examples=192):
    """Let programs train `Small` on a few digits, and call a few others out of distribution.

    Nothing is computed before a program asks for it: JAX may have to learn of its devices first.
    """
    patch.setattr(data, "digits", lambda: data.Data(*(x[:examples] for x in digits())))
    patch.setattr(data, "out_of_distribution", lambda name: digits().test_images[examples:])
    patch.setattr(models, "CNN", Small)


def status(program, *arguments):
    """The exit status of a program's `main`, in this process."""
    try:
        return program([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code


def child(function, arguments, variables, errors):
    """Run `function` in a process with this environment and standard error."""
    os.environ.clear()
    os.environ.update({name: str(value) for name, value in variables.items()})
    with errors.open("w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    with pytest.MonkeyPatch.context() as patch:
        status = function(patch, *arguments)
    sys.stdout.flush()
    sys.exit(status)


def start(function, arguments, errors, variables=None):
    """A process that runs `function(patch, *arguments)`; what it says goes to the file `errors`."""
    process = FORK.Process(target=child, args=(function, arguments, variables or {}, errors))
    process.start()
    return process
