"""Two processes of two devices each train as one process does; what a launch gone wrong says."""

import json
import socket

import jax
import numpy as np
import pytest

from benchmarks.compare import distributed, report, run
from benchmarks.compare.__main__ import main
from benchmarks.compare.options import Optimizer, parse
from benchmarks.lib import data, training
from tests.benchmarks import helpers

pytestmark = pytest.mark.slow

JOB = [
    "--optimizers",
    "sghmc",
    "--epochs",
    "1",
    "--seeds",
    "1",
    "--batch-size",
    "32",
    "--no-claims",
]


def train(patch, folder, *arguments):
    """The main job on a few digits, then an epoch without gradients; keep what each ends with."""
    helpers.make_small(patch)
    trained, predict = [], training.predict

    def noted(graphdef, params, images):
        trained.append(params)
        return predict(graphdef, params, images)

    patch.setattr(training, "predict", noted)
    status = helpers.status(main, *JOB, "--out", folder / "out", *arguments)
    np.savez(folder / "trained.npz", *jax.tree.leaves(trained[-1]))
    patch.setattr(training, "mean_loss", lambda *_: jax.numpy.zeros(()))
    few = data.digits()
    program = run.compile_epoch(Optimizer("sghmc", 1.0, 1.0), 32, few)
    run.train(program, 0, parse(JOB, main.__doc__), few, few.test_images, lambda entry: None)
    np.savez(folder / "noise.npz", *jax.tree.leaves(trained[-1]))
    return status


def job(patch, *arguments):
    return helpers.status(main, *arguments)


def on_two_devices(patch, function, arguments, patience):
    """Run `function` on two devices, as one of the processes that a launcher started."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    distributed.PATIENCE = patience
    distributed.end_process(function(patch, *arguments))


def launch(folder, function, command_lines, environments, patience=helpers.TIMEOUT):
    """Run `function` of each command line in each environment; their statuses and errors."""
    errors = [folder / f"errors{i}.txt" for i in range(len(command_lines))]
    processes = []
    try:
        for arguments, variables, file in zip(command_lines, environments, errors, strict=True):
            of_jax = {f"JAX_{name}": value for name, value in variables.items()}
            call = function, arguments, patience
            processes.append(helpers.start(on_two_devices, call, file, of_jax))
        for process in processes:
            process.join(helpers.TIMEOUT)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [(p.exitcode, file.read_text()) for p, file in zip(processes, errors, strict=True)]


def coordinator():
    """The address of a coordinator to be, on a port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def environments():
    """Those of two processes that know of each other."""
    address = coordinator()
    return [{"COORDINATOR_ADDRESS": address, "NUM_PROCESSES": 2, "PROCESS_ID": i} for i in range(2)]


def parameters(folder, name):
    with np.load(folder / f"{name}.npz") as arrays:
        return list(arrays.values())


@pytest.mark.slow  # three processes
def test_two_processes_train_as_one_and_the_first_alone_reports(tmp_path, monkeypatch):
    one, first, second = folders = [tmp_path / name for name in ("one", "first", "second")]
    for folder in folders:
        folder.mkdir()
    command_lines = [(first, "--distributed"), (second, "--distributed")]
    for status, error in launch(tmp_path, train, command_lines, environments()):
        assert status == 0, error
    assert train(monkeypatch, one) == 0

    for name in ("trained", "noise"):
        for a, b in zip(parameters(first, name), parameters(second, name), strict=True):
            np.testing.assert_array_equal(a, b)
    for a, b in zip(parameters(one, "trained"), parameters(first, "trained"), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    for a, b in zip(parameters(one, "noise"), parameters(first, "noise"), strict=True):
        assert a.std() > 1
        np.testing.assert_array_equal(a, b)

    assert not (second / "out").exists()
    assert all((first / "out" / name).exists() for name in report.FILES)
    a, b = (json.loads((folder / "out" / "metrics.json").read_text()) for folder in (one, first))
    assert b["machine"]["processes"] == 2 and b["machine"]["device"].startswith("4 x ")
    (r,), (s,) = a["runs"], b["runs"]
    for score in ("test_accuracy", "test_nll", "train_accuracy", "ood_auroc"):
        assert s[score] == pytest.approx(r[score], abs=1e-4), score
    assert s["history"][0]["loss"] == pytest.approx(r["history"][0]["loss"], rel=1e-5)


def test_where_one_process_cannot_start_none_does(tmp_path):
    command_lines = [("--distributed", "--out", "/proc/out"), ("--distributed",)]
    first, second = launch(tmp_path, job, command_lines, environments())
    assert first[0] == second[0] == 2
    assert first[1].splitlines()[-1].startswith("compare: --out /proc/out cannot be written")
    assert second[1].splitlines()[-1] == "compare: another process cannot start, and says why"


def test_a_process_that_never_comes_gives_one_sentence_and_status_2(tmp_path):
    alone = environments()[0], environments()[1]
    for status, error in launch(tmp_path, job, [("--distributed",)] * 2, alone, patience=3):
        assert status == 2
        sentence = error.splitlines()[-1]
        assert sentence.startswith("compare: --distributed: not all processes came within 3 s.")


def test_a_missing_launcher_gives_one_sentence_and_status_2(tmp_path):
    cases = {}, {"COORDINATOR_ADDRESS": "127.0.0.1:1", "NUM_PROCESSES": "two", "PROCESS_ID": 0}
    for status, error in launch(tmp_path, job, [("--distributed",)] * 2, cases):
        assert status == 2
        (sentence,) = error.splitlines()
        assert sentence.startswith("compare: --distributed: ")
        assert sentence.endswith(distributed.HOW_TO_CONNECT)


def test_a_batch_that_the_devices_cannot_share_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(distributed, "connect", lambda: None)
    monkeypatch.setattr(jax, "device_count", lambda: 12)
    assert helpers.status(main, "--distributed", "--batch-size", "32") == 2
    sentence = "compare: --batch-size 32: must be a multiple of the 12 devices\n"
    assert capsys.readouterr().err == sentence
