"""Two processes of two devices each train as one process does; what a launch gone wrong says."""

import json
import multiprocessing
import os
import socket
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks import compare, data, training

FORK = multiprocessing.get_context("forkserver")  # a start-up for all processes, not for each
FORK.set_forkserver_preload([__name__, "matplotlib.pyplot", "sklearn.model_selection"])
JOB = ["--optimizers", "sghmc", "--epochs", "1", "--seeds", "1", "--batch-size", "32"]
TIMEOUT = 300  # of a busy machine


def main(*arguments):
    """The exit status of the main job, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["compare", *map(str, arguments)])
        try:
            return compare.main()
        except SystemExit as stop:
            return stop.code


class Small(nnx.Module):
    """In the place of the CNN, which takes long to compile."""

    def __init__(self, channels, rngs):
        self.dense1 = nnx.Linear(1024 * channels, 16, rngs=rngs)
        self.dense2 = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x):
        return self.dense2(nnx.relu(self.dense1(x.reshape(len(x), -1))))


def train(folder, *arguments):
    """The main job on a few digits, then an epoch without gradients; keep what each ends with."""
    digits, trained = data.digits, []

    def few():
        return data.Data(*(x[:192] for x in digits()))

    def predict(graphdef, params, images):
        trained.append(params)
        return training.predict(graphdef, params, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "digits", few)
        patch.setattr(data, "out_of_distribution", lambda _: few().test_images)
        patch.setattr(compare, "predict", predict)
        patch.setattr(compare, "CNN", Small)
        status = main(*JOB, "--out", folder / "out", *arguments)
        np.savez(folder / "trained.npz", *jax.tree.leaves(trained[-1]))
        patch.setattr(training, "mean_loss", lambda *_: jax.numpy.zeros(()))
        noise = compare.trainer("sghmc", 1, 1, few(), few().test_images, 1, 32, lambda *_: None)
        noise(0)
        np.savez(folder / "noise.npz", *jax.tree.leaves(trained[-1]))
    return status


def child(function, arguments, variables, patience, errors):
    """Run `function` on two devices, in a process with these variables and standard error."""
    os.environ.clear()
    os.environ.update({f"JAX_{name}": str(value) for name, value in variables.items()})
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    compare.PATIENCE = patience
    with errors.open("w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    status = function(*arguments)
    jax.distributed.shutdown()
    sys.exit(status)


def launch(folder, function, command_lines, environments, patience=TIMEOUT):
    """Run `function` of each command line in each environment; their statuses and errors."""
    errors = [folder / f"errors{i}.txt" for i in range(len(command_lines))]
    cases = zip(command_lines, environments, errors, strict=True)
    processes = [
        FORK.Process(target=child, args=(function, arguments, variables, patience, file))
        for arguments, variables, file in cases
    ]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(TIMEOUT)
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


def test_two_processes_train_as_one_and_the_first_alone_reports(tmp_path):
    one, first, second = folders = [tmp_path / name for name in ("one", "first", "second")]
    for folder in folders:
        folder.mkdir()
    command_lines = [(first, "--distributed"), (second, "--distributed")]
    for status, error in launch(tmp_path, train, command_lines, environments()):
        assert status == 0, error
    assert train(one) == 0

    for name in ("trained", "noise"):
        for a, b in zip(parameters(first, name), parameters(second, name), strict=True):
            np.testing.assert_array_equal(a, b)
    for a, b in zip(parameters(one, "trained"), parameters(first, "trained"), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    for a, b in zip(parameters(one, "noise"), parameters(first, "noise"), strict=True):
        assert a.std() > 1
        np.testing.assert_array_equal(a, b)

    assert not (second / "out").exists()
    assert all((first / "out" / name).exists() for name in compare.report.FILES)
    a, b = (json.loads((folder / "out" / "metrics.json").read_text()) for folder in (one, first))
    assert b["versions"]["processes"] == 2 and b["versions"]["device"].startswith("4 x ")
    (r,), (s,) = a["runs"], b["runs"]
    for score in ("test_accuracy", "test_nll", "train_accuracy", "ood_auroc"):
        assert s[score] == pytest.approx(r[score], abs=1e-4), score
    assert s["history"][0]["loss"] == pytest.approx(r["history"][0]["loss"], rel=1e-5)


def test_where_one_process_cannot_start_none_does(tmp_path):
    command_lines = [("--distributed", "--out", "/proc/out"), ("--distributed",)]
    first, second = launch(tmp_path, main, command_lines, environments())
    assert first[0] == second[0] == 2
    assert first[1].splitlines()[-1].startswith("compare: --out /proc/out cannot be written")
    assert second[1].splitlines()[-1] == "compare: another process cannot start, and says why"


def test_a_process_that_never_comes_gives_one_sentence_and_status_2(tmp_path):
    alone = environments()[0], environments()[1]
    for status, error in launch(tmp_path, main, [("--distributed",)] * 2, alone, patience=3):
        assert status == 2
        sentence = error.splitlines()[-1]
        assert sentence.startswith("compare: --distributed: not all processes came within 3 s.")


def test_a_missing_launcher_gives_one_sentence_and_status_2(tmp_path):
    cases = {}, {"COORDINATOR_ADDRESS": "127.0.0.1:1", "NUM_PROCESSES": "two", "PROCESS_ID": 0}
    for status, error in launch(tmp_path, main, [("--distributed",)] * 2, cases):
        assert status == 2
        (sentence,) = error.splitlines()
        assert sentence.startswith("compare: --distributed: ")
        assert sentence.endswith(compare.HOW_TO_CONNECT)


def test_a_batch_that_the_devices_cannot_share_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(compare, "connect", lambda: None)
    monkeypatch.setattr(jax, "device_count", lambda: 12)
    assert main("--distributed", "--batch-size", "32") == 2
    sentence = "compare: --batch-size 32: must be a multiple of the 12 devices\n"
    assert capsys.readouterr().err == sentence


def test_checkpoints_of_many_processes_are_refused(tmp_path, capsys):
    assert main("--distributed", "--checkpoint", tmp_path) == 2
    assert "--checkpoint with --distributed: only a run of one" in capsys.readouterr().err
