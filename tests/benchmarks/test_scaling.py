"""The program that shows how cost grows: what is sent, who draws the noise, and its arithmetic."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import scaling

pytestmark = pytest.mark.slow


def test_a_diffusion_sends_nothing_and_shards_draw_their_part(tmp_path):
    arguments = ["--devices", "1", "2", "--width", "256", "--repeats", "1", "--out", tmp_path]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("XLA_")}
    command = [sys.executable, "-m", "benchmarks.scaling", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sent by each" in done.stdout and "done by each" in done.stdout
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    found = json.loads((tmp_path / "scaling.json").read_text())

    kernels, biases, loss = 4 * scaling.LAYERS * 256**2, 4 * scaling.LAYERS * 256, 4
    assert found["parameters"] == (kernels + biases) / 4
    one, _, parallel, sharded = found["rows"]
    assert one["none"]["collectives"] == {}
    gradients = {"count": 1, "bytes": kernels + biases + loss}
    assert parallel["none"]["collectives"] == {"all-reduce": gradients}
    assert sharded["none"]["collectives"] == {
        "all-gather": {"count": scaling.LAYERS, "bytes": kernels},
        "reduce-scatter": {"count": scaling.LAYERS, "bytes": kernels},
        "all-reduce": {"count": 1, "bytes": biases + loss},
    }
    for row in (parallel, sharded):
        assert row["none"]["sent"] == kernels + biases + loss  # by each of two
    for noise in ("gaussian", "rademacher"):
        for row in found["rows"]:
            assert row[noise]["collectives"] == row["none"]["collectives"], (row["way"], noise)
        alone, replica, shard = (
            scaling.increase(row, noise, "operations") for row in (one, parallel, sharded)
        )
        assert alone > found["parameters"]
        assert replica == pytest.approx(alone, rel=0.01)
        assert shard == pytest.approx(alone / 2, rel=0.01)


def test_the_formula():
    link = scaling.LINKS["NVLink 4, 450 GB/s"]
    examples = scaling.limits(158.0)["NVLink 4, 450 GB/s"]
    alone = scaling.step_time(examples, 1, link, 0.0)
    assert alone == pytest.approx(6 * examples / scaling.MATRIX)
    assert scaling.step_time(examples, 10**9, link, 0.0) == pytest.approx(2 * alone)
    examples = scaling.limits(158.0)["Gaussian noise"]
    alone = scaling.step_time(examples, 1, link, 0.0)
    assert scaling.step_time(examples, 1, link, 158.0) == pytest.approx(2 * alone)
    assert scaling.step_time(examples, 1, link, 158.0, shards=4) == pytest.approx(1.25 * alone)


def test_collectives_of_a_program_text():
    hlo = """
  %all-reduce.1 = (f32[512]{0}, f32[2,3]{1,0}, f32[]) all-reduce(%a, %b, %c), channel_id=1
  %all-gather = bf16[8,4]{1,0} all-gather(%p), dimensions={0}
  ROOT %reduce-scatter.2 = f32[2]{0} reduce-scatter(%g), dimensions={0}
  %fusion = f32[9]{0} fusion(%all-reduce.1), calls=%all-gather.clone
"""
    assert scaling.collectives(hlo, 4) == {
        "all-reduce": {"count": 1, "bytes": 4 * 519},
        "all-gather": {"count": 1, "bytes": 64},
        "reduce-scatter": {"count": 1, "bytes": 32},
    }


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--devices", "2", "4"], "--devices: the least must be 1"),
        (["--devices", "1", "3"], "--width must be at least 256 and a multiple of every count"),
        (["--width", "128"], "--width must be at least 256"),
        (["--repeats", "0"], "'0' is not a whole number from 1"),
        (["--devices", "one"], "invalid int value: 'one'"),
    ],
)
def test_bad_arguments_give_one_sentence_and_status_2(arguments, sentence, capsys):
    with pytest.raises(SystemExit, match="2"):
        scaling.main(arguments)
    assert sentence in capsys.readouterr().err
