"""Nothing is lost: a killed run goes on to the same bits, and a bad checkpoint is told apart."""

import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.compare.__main__ import main
from benchmarks.lib import checkpoint
from tests.benchmarks import helpers
from tests.benchmarks.saves import JOB, job, last_states, make_job_small, results

# Orbax leaves calls to an event loop that it has closed where it cannot restore a file.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def run_here(monkeypatch):
    """A function that runs the job in this process; its exit status."""
    make_job_small(monkeypatch)
    return lambda *arguments: helpers.status(main, *JOB, *arguments)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function that runs the job in a process; its exit status, and what it said."""
    folder = tmp_path_factory.mktemp("processes")
    errors = folder / "errors.txt"

    def run(*arguments, noted=None, fatal=None):
        process = helpers.start(job, (folder / "cache", arguments, noted, fatal), errors)
        process.join(helpers.TIMEOUT)
        return process.exitcode, errors.read_text()

    return run


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """The folders of an uninterrupted run: what it reports, and its checkpoints; its places."""
    out, kept = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("kept")
    noted = out / "places.txt"
    status, error = run("--out", out, "--checkpoint", kept, noted=noted)
    assert status == 0, error
    places = [line.split(" ", 1) for line in noted.read_text().splitlines()]
    return out, kept, [place for save, place in places if save == "3"]


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_in_each_place_of_a_save_it_ends_with_the_same_bits(run, whole, tmp_path, step):
    out, kept = tmp_path / "out", tmp_path / "kept"
    places = whole[2]
    assert len(set(places)) == len(places) >= 20
    for place in places[step // 2 :: step]:
        status, error = run("--out", out, "--checkpoint", kept, fatal=place)
        assert status == -signal.SIGKILL, (place, error)
    assert last_states(kept) != last_states(whole[1])
    status, error = run("--out", out, "--checkpoint", kept)
    assert status == 0, error
    assert last_states(kept) == last_states(whole[1])
    assert results(out) == results(whole[0])


def test_a_checkpoint_changes_nothing(run_here, whole, tmp_path):
    assert run_here("--out", tmp_path) == 0
    assert results(tmp_path) == results(whole[0])


def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(
    run_here, whole, tmp_path, capsys
):
    kept = tmp_path / "kept"
    shutil.copytree(whole[1], kept)
    folder = kept / "sghmc 0.01 seed 1"
    assert {path.name for path in folder.iterdir()} == {"13", "14"}
    for file in (folder / "14").rglob("d/*"):
        os.truncate(file, 10)
    assert run_here("--out", tmp_path / "out", "--checkpoint", kept) == 0
    said = f"{folder / '14'} is damaged (now 14.damaged), going on from the one before"
    assert said in capsys.readouterr().err
    assert (folder / "14.damaged").is_dir()
    assert last_states(kept) == last_states(whole[1])
    assert results(tmp_path / "out") == results(whole[0])


def changes(kept):
    return {path: path.stat().st_mtime_ns for path in kept.glob("*/*")}


@pytest.mark.parametrize(
    "arguments,difference",
    [
        (["--batch-size", "64"], "--batch-size 16, now 64"),
        (["--learning-rate", "sghmc=0.2"], "--learning-rate sghmc=0.01, now sghmc=0.2"),
        (["--temperature", "sghmc=0"], "--temperature sghmc=1e-05, now sghmc=0.0"),
        (["--epochs", "3", "--sweep"], "--epochs 14, now 3; --sweep False, now True"),
    ],
)
def test_another_configuration_is_refused_with_the_difference(
    run_here, whole, arguments, difference, capsys
):
    out, kept, _ = whole
    before = changes(kept), (out / "metrics.json").read_bytes()
    assert run_here(*arguments, "--out", out, "--checkpoint", kept) == 2
    sentence = f"compare: --checkpoint {kept} was made with {difference}\n"
    assert capsys.readouterr().err == sentence
    assert (changes(kept), (out / "metrics.json").read_bytes()) == before


def test_a_folder_that_cannot_be_used(run_here, tmp_path, capsys):
    (tmp_path / "file").touch()
    for folder, reason in (
        (tmp_path / "file", "File exists"),
        (tmp_path / "file" / "below", "Not a directory"),
        ("/proc/nowhere", "No such file or directory"),
    ):
        assert run_here("--out", tmp_path, "--checkpoint", folder) == 2
        sentence = f"compare: --checkpoint {folder} cannot be written: {reason}\n"
        assert capsys.readouterr().err == sentence
    (tmp_path / "settings.json").write_text("{")
    assert run_here("--out", tmp_path, "--checkpoint", tmp_path) == 2
    assert f"{tmp_path / 'settings.json'} is damaged" in capsys.readouterr().err


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
    checkpoints = checkpoint.open_manager(folder)
    checkpoint.save(checkpoints, 1, OLDER, {"loss": 0.1})
    checkpoint.save(checkpoints, 2, STATE, {"loss": float("nan")})
    return folder


def test_keys_are_saved_as_their_data_and_come_back_as_keys(two_epochs):
    found, _ = checkpoint.restore(checkpoint.open_manager(two_epochs), STATE)
    assert found["keys"].dtype == np.uint32
    state = checkpoint.restore_keys(found, STATE)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(STATE), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
    np.testing.assert_array_equal(
        jax.random.bits(state["keys"][1]), jax.random.bits(STATE["keys"][1])
    )


def test_other_devices_go_on_and_say_so(tmp_path, capsys):
    for devices in ("4 x cpu of 2 processes", "4 x cpu of 2 processes", "1 x cpu of 1 processes"):
        assert not capsys.readouterr().err
        checkpoint.match_settings(tmp_path, {"--epochs": 3}, devices)
    said = f"--checkpoint {tmp_path} was made on 4 x cpu of 2 processes and continues on 1 x cpu"
    assert capsys.readouterr().err.startswith(said)


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
        checkpoints = checkpoint.open_manager(folder)
        state, record = checkpoint.restore(checkpoints, STATE)
        said = capsys.readouterr().err
        older = bool(state["count"] == 6)
        fell_back += older
        expected = OLDER if older else STATE
        assert checkpoint.digest(state, None) == checkpoint.digest(expected, None), name
        assert np.isnan(record["loss"]) != older
        assert ("2 is damaged" in said) == older, name
        checkpoint.save(checkpoints, 2 if older else 3, STATE, {})
        assert checkpoint.restore(checkpoints, OLDER)[1] == {}
    assert len(files) >= 10 and fell_back >= 4


def test_where_every_checkpoint_is_damaged_the_run_starts_anew(two_epochs, tmp_path, capsys):
    shutil.copytree(two_epochs, tmp_path, dirs_exist_ok=True)
    for file in tmp_path.glob("*/record/metadata"):
        file.unlink()
    assert checkpoint.restore(checkpoint.open_manager(tmp_path), OLDER) is None
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"1.damaged", "2.damaged"}
