import json

import pytest

from benchmarks import noise_map
from tests.benchmarks import helpers

pytestmark = pytest.mark.slow


def test_a_map_is_written_once_and_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    helpers.make_small(monkeypatch, 800)
    places = [("sghmc", 200, 0.03, (0.0,), 3), ("cyclical sghmc", 400, 0.03, (1e-5,), 20)]
    monkeypatch.setattr(noise_map, "QUICK", places[:1])
    assert helpers.status(noise_map.main, "--quick", "--out", tmp_path) == 0
    monkeypatch.setattr(noise_map, "QUICK", places)
    trained = []
    train = noise_map.train
    monkeypatch.setattr(noise_map, "train", lambda *a: trained.append(a[0]) or train(*a))
    for _ in range(2):
        assert helpers.status(noise_map.main, "--quick", "--out", tmp_path) == 0
    assert [place.sampler for place in trained] == ["cyclical sghmc"]

    records = [json.loads(line) for line in (tmp_path / "noise_map.jsonl").read_text().splitlines()]
    assert [r["sampler"] for r in records] == ["sghmc", "cyclical sghmc"]
    assert list(records[0]["averages_of_the_last"]) == ["1", "2"]
    assert list(records[1]["averages_of_the_last"]) == ["1", "2", "4"]
    for record in records:
        assert set(record["last"]) == {"accuracy", "nll", "brier", "ece"}
        assert record["averages_of_the_last"]["1"] == pytest.approx(record["last"])
    assert records[1]["train"]["accuracy"] > 0.3
    assert (tmp_path / "noise_map.png").read_bytes().startswith(b"\x89PNG")


def test_a_cyclical_sampler_averages_the_end_of_each_cycle():
    place = noise_map.Place("cyclical sghmc", 2000, 0.2, 0.0, 60)
    kept = [epoch for epoch in range(1, 61) if noise_map.is_averaged(place, epoch)]
    assert kept == [13, 14, 15, 28, 29, 30, 43, 44, 45, 58, 59, 60]
    kept = [e for e in range(1, 61) if noise_map.is_averaged(place._replace(sampler="sghmc"), e)]
    assert kept == list(range(31, 61))


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--part", "3/2"], "'3/2' is not I/N with I from 1 to N"),
        (["--part", "²/2"], "'²/2' is not I/N with I from 1 to N"),
        (["--quick", "--part", "9/9"], "--part 9/9: the map has only 3 runs"),
        (["--seeds", "0"], "'0' is not a whole number from 1"),
        (["--data-dir", "/nowhere"], "--data-dir /nowhere is not a folder"),
        (["--quick", "--out", "/proc/x"], "--out /proc/x cannot be written"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, arguments, sentence, capsys):
    assert helpers.status(noise_map.main, "--out", tmp_path, *arguments) == 2
    assert sentence in capsys.readouterr().err


PLACE = noise_map.Place("sghmc", 100, 0.1, 0.0, 2)
SCORES = {"accuracy": 0.5, "nll": 1.0, "ece": 0.1}
RECORD = PLACE._asdict() | {"seed": 0, "kinetic_temperature": None}
RECORD |= dict.fromkeys(("train", "last", "average"), SCORES)


@pytest.mark.parametrize(
    "line",
    [
        json.dumps(RECORD)[:9],
        "3",
        "[]",
        "null",
        "{}",
        '"text"',
        "\xff\x00",
        json.dumps(RECORD | {"sampler": []}),
        json.dumps(RECORD | {"last": 3}),
        json.dumps(RECORD | {"last": {"accuracy": None}}),
    ],
)
def test_a_line_that_is_no_record_counts_as_none_and_is_named(tmp_path, line, monkeypatch, capsys):
    monkeypatch.setattr(noise_map, "QUICK", [("sghmc", 100, 0.1, (0.0,), 2)])
    monkeypatch.setattr(noise_map, "train", lambda *_: pytest.fail("it is finished"))
    path = tmp_path / "noise_map.jsonl"
    text = f"{json.dumps(RECORD)}\n{line}".encode("latin-1")
    path.write_bytes(text)
    assert noise_map.read(path).keys() == {(PLACE, 0)}
    assert helpers.status(noise_map.main, "--quick", "--out", tmp_path) == 0
    assert capsys.readouterr().err == f"{path}: no records in lines 2\n"
    assert path.read_bytes() == text
    noise_map.append(path, json.dumps(RECORD | {"seed": 1}))
    assert noise_map.read(path).keys() == {(PLACE, 0), (PLACE, 1)}
