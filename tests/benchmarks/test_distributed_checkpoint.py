"""Nothing is lost in many processes: killed in either, they go on to the same bits."""

import json
import os
import signal

import pytest

from benchmarks.compare import distributed
from benchmarks.lib import training
from tests.benchmarks import saves
from tests.benchmarks.saves import last_states, results
from tests.benchmarks.test_distributed import environments, launch

pytestmark = pytest.mark.slow  # many processes

ONE = [{}]  # no launcher


def job(patch, cache, arguments, noted=None, fatal=None, epoch=None):
    """The job of `saves`, which dies in a place of its second save or after an epoch."""
    patch.setattr(distributed, "LOST", 5)
    train = training.train

    def mortal(*arguments):
        for number, done in enumerate(train(*arguments)):
            yield done
            if number == epoch:
                os.kill(os.getpid(), signal.SIGKILL)

    patch.setattr(training, "train", mortal)
    return saves.job(patch, cache, arguments, noted, fatal)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function that runs the job in two processes, or in one; their statuses and last words."""
    folder = tmp_path_factory.mktemp("processes")

    def run(kept, *fates, where=environments):
        many = ["--distributed"] if where is environments else []
        out = kept.with_name("out")
        arguments = *many, "--out", out, "--checkpoint", kept
        calls = [(folder / f"cache{i}", arguments, *fate) for i, fate in enumerate(fates)]
        found = launch(folder, job, calls, where() if callable(where) else where)
        return [(status, error.splitlines()[-1:]) for status, error in found]

    return run


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """The checkpoints of an uninterrupted run of two processes, and the places of a save."""
    folder = tmp_path_factory.mktemp("whole")
    noted = folder / "places.txt"
    (first, second) = run(folder / "kept", (noted,), ())
    assert first[0] == second[0] == 0, (first, second)
    places = [line.split(" ", 1) for line in noted.read_text().splitlines()]
    return folder / "kept", [place for save, place in places if save == "3"]


def test_killed_in_either_process_they_end_with_the_same_bits(run, whole, tmp_path):
    kept = tmp_path / "kept"
    for place in whole[1][3::7]:
        first, second = run(kept, (None, place), ())
        assert first[0] == 128 + signal.SIGKILL and second[0] == 2, (place, first, second)
        assert second[1][0].startswith("compare: --distributed: ")
    for epoch in (0, 1):
        first, second = run(kept, (), (None, None, epoch))
        assert second[0] == 128 + signal.SIGKILL and first[0] == 2, (epoch, first, second)
        assert first[1][0].startswith("compare: --distributed: ")
    assert last_states(kept) != last_states(whole[0])
    found = run(kept, (), ())
    assert [status for status, _ in found] == [0, 0], found
    assert last_states(kept) == last_states(whole[0])
    assert results(tmp_path / "out") == results(whole[0].with_name("out"))


@pytest.mark.parametrize("ways", [(environments, ONE), (ONE, environments)], ids=["one", "many"])
def test_begun_on_other_devices_they_go_on(run, whole, tmp_path, ways):
    kept, out = tmp_path / "kept", tmp_path / "out"
    fates = {True: [(None, None, 5), ()], False: [(None, None, 5)]}
    first, *_ = run(kept, *fates[ways[0] is environments], where=ways[0])
    assert first[0] in (128 + signal.SIGKILL, -signal.SIGKILL)
    (saved,) = kept.glob("*/6/record/metadata")
    history = json.loads(saved.read_text())["record"]["history"]
    found = run(kept, *[()] * (1 + (ways[1] is environments)), where=ways[1])
    assert [status for status, _ in found] == [0] * len(found), found
    assert "was made on" in found[0][1][0] and "continues on" in found[0][1][0]
    ended = json.loads((out / "metrics.json").read_text())["runs"][0]
    assert ended["history"][:6] == history and len(ended["history"]) == 14
    there = results(whole[0].with_name("out"))[0]  # the same but for roundings
    for a, b in zip(ended["history"], there["history"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
