import json
import sys

import pytest

from benchmarks import noise_map


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["noise_map", *arguments])
    return noise_map.main()


def test_a_map_is_written_once_and_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    settings = [("sghmc", 200, 0.03, (0.0,), 3), ("cyclical sghmc", 700, 0.03, (1e-5,), 20)]
    monkeypatch.setattr(noise_map, "QUICK", settings[:1])
    assert run(monkeypatch, "--quick", "--out", str(tmp_path)) == 0
    monkeypatch.setattr(noise_map, "QUICK", settings)
    trained = []
    train = noise_map.train
    monkeypatch.setattr(noise_map, "train", lambda *a: trained.append(a[0]) or train(*a))
    for _ in range(2):
        assert run(monkeypatch, "--quick", "--out", str(tmp_path)) == 0
    assert [setting.sampler for setting in trained] == ["cyclical sghmc"]

    records = [json.loads(line) for line in (tmp_path / "noise_map.jsonl").read_text().splitlines()]
    assert [r["sampler"] for r in records] == ["sghmc", "cyclical sghmc"]
    assert list(records[0]["averages_of_the_last"]) == ["1", "2"]
    assert list(records[1]["averages_of_the_last"]) == ["1", "2", "4"]
    for record in records:
        assert record["averages_of_the_last"]["1"] == pytest.approx(record["last"])
    assert records[1]["train"]["accuracy"] > 0.3
    assert (tmp_path / "noise_map.png").read_bytes().startswith(b"\x89PNG")


def test_a_cyclical_sampler_averages_the_end_of_each_cycle():
    setting = noise_map.Setting("cyclical sghmc", 2000, 0.2, 0.0, 60)
    kept = [epoch for epoch in range(1, 61) if noise_map.sampled(setting, epoch)]
    assert kept == [13, 14, 15, 28, 29, 30, 43, 44, 45, 58, 59, 60]
    kept = [e for e in range(1, 61) if noise_map.sampled(setting._replace(sampler="sghmc"), e)]
    assert kept == list(range(31, 61))


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--part", "3/2"], "'3/2' is not I/N with I from 1 to N"),
        (["--seeds", "0"], "'0' is not a whole number from 1"),
        (["--data-dir", "/nowhere"], "--data-dir /nowhere is not a folder"),
        (["--quick", "--out", "/proc/x"], "--out /proc/x cannot be written"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, monkeypatch, capsys, arguments, sentence):
    with pytest.raises(SystemExit) as error:
        run(monkeypatch, "--out", str(tmp_path), *arguments)
    assert error.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_line_that_was_cut_off_counts_as_none(tmp_path):
    path = tmp_path / "noise_map.jsonl"
    setting = noise_map.Setting("sghmc", 100, 0.1, 0.0, 2)
    whole = json.dumps(setting._asdict() | {"seed": 0})
    path.write_text(f"{whole}\n{whole[:9]}")
    assert noise_map.read(path).keys() == {(setting, 0)}
