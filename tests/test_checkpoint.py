"""Nothing is lost: a killed run goes on to the same bits, and a bad checkpoint is told apart."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from benchmarks import checkpoint

# Imports what the main job needs, keeps a few images, and forks for each command line it reads:
# start-up and compilation would take most of the time of a test of 20 kills.
SERVER = """
import os, sys
import matplotlib.pyplot, PIL.Image, sklearn.datasets, sklearn.model_selection
from benchmarks import compare
digits = compare.data.digits
compare.data.digits = lambda: compare.data.Data(*(x[:64] for x in digits()))
for line in sys.stdin:
    child = os.fork()
    if not child:
        sys.argv = ["compare", *line.split()]
        status = compare.main()
        sys.stdout.flush()
        os._exit(status)
    print("child", child, flush=True)
    _, status = os.waitpid(child, 0)
    print("status", os.waitstatus_to_exitcode(status), flush=True)
"""
JOB = ["--epochs", "21", "--batch-size", "16", "--seeds", "2", "--optimizers", "sghmc"]


class Server:
    """Runs command lines of the main job in processes that share their imports."""

    def __init__(self, folder):
        self.errors = folder / "errors.txt"
        environment = {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors.open("w"),
            text=True,
            env=os.environ | environment,
        )

    def answer(self, word):
        """What it says after `word`; its children print too."""
        for line in self.process.stdout:
            if line.startswith(word + " "):
                return int(line.split()[1])
        raise AssertionError(self.errors.read_text())

    def start(self, *arguments):
        """The process that runs a command line."""
        self.process.stdin.write(" ".join(map(str, arguments)) + "\n")
        self.process.stdin.flush()
        return self.answer("child")

    def run(self, *arguments):
        self.start(*arguments)
        return self.answer("status")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.process.stdin.close()
    server.process.wait()


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """The folders of an uninterrupted run: what it reports, and its checkpoints."""
    out, kept = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("kept")
    assert server.run(*JOB, "--out", out, "--checkpoint", kept) == 0
    return out, kept


def results(out):
    """All that metrics.json reports, but times."""
    runs = json.loads((out / "metrics.json").read_text())["runs"]
    for record in runs:
        del record["step_time"], record["compile_time"]
        for entry in record["history"]:
            del entry["step_time"]
    return runs


def last_states(kept):
    """The last epoch of each run, and a digest of all its arrays and keys."""
    found = {}
    for folder in filter(os.path.isdir, kept.iterdir()):
        checkpoints = checkpoint.manager(folder)
        epoch = checkpoints.latest_step()
        items = ocp.args.Composite(state=ocp.args.StandardRestore())
        state = checkpoints.restore(epoch, args=items).state
        found[folder.name] = epoch, checkpoint.digest(state, None)
    return found


def changes(kept):
    return {path: path.stat().st_mtime_ns for path in kept.glob("*/*")}


def test_killed_20_times_it_ends_with_the_same_bits(server, whole, tmp_path):
    out, kept = tmp_path / "out", tmp_path / "kept"
    ends = sorted(path.stat().st_mtime for path in whole[1].glob("*/*"))
    epoch_time = ends[-1] - ends[-2]
    moments = random.Random(0)
    for _ in range(20):
        child = server.start(*JOB, "--out", out, "--checkpoint", kept)
        before, deadline = changes(kept), time.monotonic() + 60
        while changes(kept) == before and time.monotonic() < deadline:
            time.sleep(epoch_time / 100)
        time.sleep(moments.random() * epoch_time)
        os.kill(child, signal.SIGKILL)
        assert server.answer("status") == -signal.SIGKILL
    assert last_states(kept) != last_states(whole[1])
    assert server.run(*JOB, "--out", out, "--checkpoint", kept) == 0
    assert last_states(kept) == last_states(whole[1])
    assert results(out) == results(whole[0])


def test_a_checkpoint_changes_nothing(server, whole, tmp_path):
    assert server.run(*JOB, "--out", tmp_path) == 0
    assert results(tmp_path) == results(whole[0])


def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(server, whole, tmp_path):
    kept = tmp_path / "kept"
    shutil.copytree(whole[1], kept)
    folder = kept / "sghmc 0.01 seed 1"
    assert {path.name for path in folder.iterdir()} == {"20", "21"}
    for file in (folder / "21").rglob("d/*"):
        os.truncate(file, 10)
    assert server.run(*JOB, "--out", tmp_path / "out", "--checkpoint", kept) == 0
    said = f"{folder / '21'} is damaged (now 21.damaged), going on from the one before"
    assert said in server.errors.read_text()
    assert (folder / "21.damaged").is_dir()
    assert last_states(kept) == last_states(whole[1])
    assert results(tmp_path / "out") == results(whole[0])


def refused(server, *arguments):
    """The one sentence with which a command line is refused."""
    size = len(server.errors.read_text())
    assert server.run(*arguments) == 2
    (sentence,) = server.errors.read_text()[size:].splitlines()
    return sentence


@pytest.mark.parametrize(
    "arguments,difference",
    [
        (["--batch-size", "64"], "--batch-size 16, now 64"),
        (["--learning-rate", "sghmc=0.2"], "--learning-rate sghmc=0.01, now sghmc=0.2"),
        (["--temperature", "sghmc=0"], "--temperature sghmc=1e-05, now sghmc=0.0"),
        (["--epochs", "3", "--sweep"], "--epochs 21, now 3; --sweep False, now True"),
    ],
)
def test_another_configuration_is_refused_with_the_difference(server, whole, arguments, difference):
    out, kept = whole
    before = changes(kept), (out / "metrics.json").read_bytes()
    sentence = refused(server, *JOB, *arguments, "--out", out, "--checkpoint", kept)
    assert sentence == f"compare: --checkpoint {kept} was made with {difference}"
    assert (changes(kept), (out / "metrics.json").read_bytes()) == before


def test_a_folder_that_cannot_be_used(server, tmp_path):
    (tmp_path / "file").touch()
    for folder, reason in (
        (tmp_path / "file", "File exists"),
        (tmp_path / "file" / "below", "Not a directory"),
        ("/proc/nowhere", "No such file or directory"),
    ):
        sentence = refused(server, *JOB, "--out", tmp_path, "--checkpoint", folder)
        assert sentence == f"compare: --checkpoint {folder} cannot be used: {reason}"
    (tmp_path / "settings.json").write_text("{")
    sentence = refused(server, *JOB, "--out", tmp_path, "--checkpoint", tmp_path)
    assert f"{tmp_path / 'settings.json'} is damaged" in sentence


KEY = jax.random.key(3)
STATE = {
    "weights": jax.random.normal(KEY, (100, 3)),
    "half": jnp.linspace(-1, 1, 7, dtype="bfloat16"),
    "keys": jax.random.split(KEY),
    "none": None,
    "empty": optax.EmptyState(),
    "count": jnp.array(7),
}
OLDER = jax.tree.map(lambda x: jnp.roll(x, 1), STATE) | {"count": jnp.array(6)}


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    checkpoints = checkpoint.manager(folder)
    checkpoint.save(checkpoints, 1, OLDER, {"loss": 0.1})
    checkpoint.save(checkpoints, 2, STATE, {"loss": float("nan")})
    return folder


def harm(file, how):
    content = bytearray(file.read_bytes())
    if how == "deleted":
        file.unlink()
    elif how == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif content:
        content[len(content) // 2] ^= 0x10
        file.write_bytes(content)


@pytest.mark.parametrize("how", ["deleted", "cut", "one bit turned"])
def test_any_file_damaged_gives_one_epoch_or_the_other_and_never_a_mixture(
    two_epochs, tmp_path, how, capsys
):
    files = [path.relative_to(two_epochs) for path in (two_epochs / "2").rglob("*")]
    files = [name for name in files if (two_epochs / name).is_file()]
    fell_back = 0
    for i, name in enumerate(files):
        folder = tmp_path / str(i)
        shutil.copytree(two_epochs, folder)
        harm(folder / name, how)
        checkpoints = checkpoint.manager(folder)
        state, record = checkpoint.restore(checkpoints, STATE, None)
        said = capsys.readouterr().err
        older = bool(state["count"] == 6)
        fell_back += older
        expected = OLDER if older else STATE
        assert checkpoint.digest(state, None) == checkpoint.digest(expected, None), name
        assert np.isnan(record["loss"]) != older
        assert ("2 is damaged" in said) == older, name
        checkpoint.save(checkpoints, 2 if older else 3, STATE, {})
        assert checkpoint.restore(checkpoints, OLDER, None)[1] == {}
    assert len(files) >= 10 and fell_back >= 4


def test_where_every_checkpoint_is_damaged_the_run_starts_anew(two_epochs, tmp_path, capsys):
    shutil.copytree(two_epochs, tmp_path, dirs_exist_ok=True)
    for file in tmp_path.glob("*/record/metadata"):
        file.unlink()
    state, record = checkpoint.restore(checkpoint.manager(tmp_path), OLDER, "start")
    assert state is OLDER and record == "start"
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"1.damaged", "2.damaged"}
