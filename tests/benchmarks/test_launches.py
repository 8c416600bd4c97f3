"""Launches of many processes gone wrong: each process ends with one sentence and status 2."""

import functools
import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.compare import distributed, rendezvous, run
from benchmarks.compare.__main__ import main
from benchmarks.lib import cli
from tests.benchmarks import helpers
from tests.benchmarks.test_distributed import coordinator, environments, launch

pytestmark = pytest.mark.slow

JOB = ["--optimizers", "sghmc", "--epochs", "3", "--seeds", "1", "--batch-size", "32"]


def check_launches(count, indices, counts=None, patience=60):
    """What each of some processes, here threads, hears when they meet."""
    address = coordinator()
    counts = counts or [count] * len(indices)
    with ThreadPoolExecutor(len(indices)) as pool:
        calls = [
            pool.submit(rendezvous.check_launch, address, n, index, patience)
            for n, index in zip(counts, indices, strict=True)
        ]
        return [call.result() for call in calls]


def test_all_come():
    assert check_launches(4, [3, 1, 0, 2]) == [""] * 4


@pytest.mark.parametrize("indices", [[0, 1, 1], [1, 0, 1]])
def test_two_processes_of_one_index_are_told_at_once(indices):
    assert check_launches(3, indices) == ["two processes have the index 1"] * 3


def test_two_processes_0_are_told_at_once():
    assert check_launches(2, [0, 0]) == ["two processes have the index 0"] * 2


def test_processes_that_count_otherwise_are_told_at_once():
    sentence = "process 1 is told of 3 processes, process 0 of 2"
    assert check_launches(2, [0, 1], counts=[2, 3]) == [sentence] * 2


@pytest.mark.parametrize("index", [0, 1])
def test_one_that_comes_alone_gives_up(index):
    assert check_launches(2, [index], patience=0.5) == ["not all processes came within 0.5 s"]


@pytest.mark.parametrize("index", [0, 1])
def test_a_stranger_at_the_port(index):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            with server.accept()[0] as talk:
                talk.sendall(b"\x00\x00\xff HTTP\n")

        threading.Thread(target=answer, daemon=True).start()
        address = "{}:{}".format(*server.getsockname())
        said = rendezvous.check_launch(address, 2, index, 60)
    assert said.startswith(f"what answers at {address} does not wait for a process {index}")


@pytest.mark.parametrize(
    ("address", "count", "index", "sentence"),
    [
        ("127.0.0.1:port", "2", "0", "JAX_COORDINATOR_ADDRESS=127.0.0.1:port is not HOST:PORT"),
        ("127.0.0.1", "2", "0", "JAX_COORDINATOR_ADDRESS=127.0.0.1 is not HOST:PORT"),
        ("127.0.0.1:0", "2", "0", "JAX_COORDINATOR_ADDRESS=127.0.0.1:0 is not HOST:PORT"),
        ("127.0.0.1:99999", "2", "0", "JAX_COORDINATOR_ADDRESS=127.0.0.1:99999 is not HOST:PORT"),
        ("127.0.0.1:1", "-2", "0", "JAX_NUM_PROCESSES=-2 is not a whole number"),
        ("127.0.0.1:1", "2", "²", "JAX_PROCESS_ID=² is not a whole number"),
        ("127.0.0.1:1", "2", "2", "there is no process 2 of 2"),
    ],
)
def test_variables_that_cannot_be(monkeypatch, address, count, index, sentence, capsys):
    for name, value in zip(distributed.VARIABLES, (address, count, index), strict=True):
        monkeypatch.setenv(name, value)
    assert helpers.status(main, "--distributed") == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"compare: --distributed: {sentence}")


def test_what_the_first_has_goes_everywhere_unchanged():
    assert distributed.broadcast_first(lambda: {"a": -0.0}) == {"a": -0.0}
    distributed.require_same_arguments({"--epochs": 3})


def test_other_arguments_are_named(monkeypatch):
    monkeypatch.setattr(distributed, "broadcast_first", lambda make: {"--epochs": 2, "data": "x"})
    with pytest.raises(cli.UsageError, match="^--distributed: process 0 has --epochs 2, here 3$"):
        distributed.require_same_arguments({"--epochs": 3, "data": "x"})


def job(patch, folder, *arguments, fatal=None, fate=None):
    """The main job on a few digits; it meets its fate when it has done `fatal` epochs."""
    helpers.make_small(patch)
    patch.setattr(distributed, "LOST", 5)
    train = run.training.train

    def mortal(*arguments):
        for epoch in train(*arguments):
            if epoch.number == fatal:
                fate()
            yield epoch

    patch.setattr(run.training, "train", mortal)
    return helpers.status(main, *JOB, "--out", folder, *arguments)


def die(number):
    os.kill(os.getpid(), number)


def sleep():
    threading.Event().wait()


def ends(tmp_path, *fates, environments=environments, arguments=((), ())):
    """The statuses and last sentences of the job's processes, each with a fate of its own."""
    functions = [
        functools.partial(job, fatal=fate and 2, fate=fate and functools.partial(*fate))
        for fate in fates
    ]

    command_lines = [
        (function, tmp_path / str(i), "--distributed", *more)
        for i, (function, more) in enumerate(zip(functions, arguments, strict=True))
    ]
    found = launch(tmp_path, call, command_lines, environments())
    return [(status, error.splitlines()[-1] if error else "") for status, error in found]


def call(patch, function, *arguments):
    return function(patch, *arguments)


def test_processes_of_other_arguments_do_not_start(tmp_path):
    arguments = [(), ("--epochs", "4", "--learning-rate", "sghmc=0.02")]
    first, second = ends(tmp_path, None, None, arguments=arguments)
    assert first == (2, "compare: another process cannot start, and says why")
    assert second[0] == 2 and second[1].startswith("compare: --distributed: process 0 has ")
    assert "--epochs 3, here 4; --learning-rate sghmc=0.01, here sghmc=0.02" in second[1]
    assert not list(tmp_path.glob("*/metrics.json"))


@pytest.mark.slow  # two processes each
@pytest.mark.parametrize("other", [None, (sleep,)], ids=["waits for it", "is busy"])
@pytest.mark.parametrize("index", [0, 1])
def test_one_that_is_killed_ends_the_other(tmp_path, index, other):
    fates = [other, other]
    fates[index] = die, signal.SIGKILL
    found = ends(tmp_path, *fates)
    assert found[index] == (137, "compare: --distributed: this process was killed")
    status, sentence = found[1 - index]
    assert status == 2
    assert sentence.startswith(
        (
            "compare: --distributed: cannot go on",
            "compare: --distributed: another process has ended",
        )
    )


@pytest.mark.slow  # two processes each
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("index", [0, 1])
def test_one_that_is_stopped_ends_the_other(tmp_path, index, number, status):
    fates = [None, None]
    fates[index] = die, number
    found = ends(tmp_path, *fates)
    names = {143: "terminated", 130: "interrupted"}
    assert found[index] == (status, f"compare: {names[status]}")
    assert found[1 - index][0] == 2 and "--distributed: " in found[1 - index][1]


@pytest.mark.slow  # three processes
def test_real_processes_of_one_index(tmp_path):
    one, other = environments()
    for environment in (
        [one, one],
        [one | {"NUM_PROCESSES": 3}, *[other | {"NUM_PROCESSES": 3}] * 2],
    ):
        found = ends(
            tmp_path,
            *[None] * len(environment),
            environments=lambda: environment,
            arguments=[()] * len(environment),
        )
        for status, sentence in found:
            assert status == 2
            assert sentence.startswith("compare: --distributed: two processes have the index ")
