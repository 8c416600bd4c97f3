"""The main job end to end, and what it says when something is wrong."""

import base64
import json
import math
import os
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

from benchmarks import compare, data, report
from benchmarks.calibration import ood_auroc
from benchmarks.training import scores

COMMAND = [sys.executable, "-m", "benchmarks.compare"]
SMALL = ["--epochs", "2", "--batch-size", "256", "--seeds", "1"]


def run(*arguments):
    """The exit status of the main job, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["compare", *arguments])
        try:
            return compare.main()
        except SystemExit as stop:
            return stop.code


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folder of one small run with two optimizers and two seeds."""
    folder = tmp_path_factory.mktemp("out")
    arguments = [*SMALL, "--seeds", "2", "--optimizers", "sgd", "langevin", "--out", str(folder)]
    arguments += ["--learning-rate", "langevin=0.2", "--temperature", "langevin=0.001"]
    assert run(*arguments) == 0
    return folder


def test_metrics_have_every_run_and_its_history(out):
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics) == {"config", "versions", "runs"}
    langevin = {"learning_rate": 0.2, "temperature": 0.001}
    assert metrics["config"]["optimizers"]["langevin"] == langevin
    assert {"python", "jax", "optax", "flax", "diffopt", "device"} <= set(metrics["versions"])
    assert len(metrics["runs"]) == 4
    for r in metrics["runs"]:
        assert 0 <= r["test_accuracy"] <= 1 and 0 <= r["train_accuracy"] <= 1
        assert r["step_time"] > 0
        assert 0 <= r["average"]["ood_auroc"] <= 1 and 0 <= r["average"]["brier"] <= 2
        assert [h["epoch"] for h in r["history"]] == [1, 2]
        assert [h["step"] for h in r["history"]] == [5, 10]
        assert r["history"][-1]["test_accuracy"] == r["test_accuracy"]
    first, second = (r for r in metrics["runs"][:2])
    assert (first["seed"], second["seed"]) == (0, 1)
    assert first["history"] != second["history"]


def test_report_is_one_self_contained_page(out):
    page = (out / "report.html").read_text()
    assert "http" not in page
    texts = ("train-test gap", "faster convergence", "jaxlib", "What langevin is most and least")
    assert all(text in page for text in texts)
    for picture in ("curves.png", "calibration.png", "certainty.png"):
        content = (out / picture).read_bytes()
        assert len(content) > 10_000
        assert f"data:image/png;base64,{base64.b64encode(content).decode()}" in page


def test_the_loss_of_every_200_batches_is_kept():
    small = data.digits()
    images, labels = small.train_images[:450], small.train_labels[:450]
    train = compare.trainer(
        "sgd", 0.05, 0.0, data.Data(images, labels, images, labels), images[:9], 1, 1, lambda *_: 0
    )
    record, predicted = train(0)
    assert predicted.last.shape == predicted.average.shape == (450, 10)
    assert np.allclose(predicted.last, predicted.average)  # of a single epoch
    got = scores(jnp.asarray(predicted.last), labels)["accuracy"]
    assert got == record["test_accuracy"]
    entry = record["history"][0]
    steps, means = zip(*entry["loss_every_200"], strict=True)
    assert steps == (200, 400)
    assert math.isclose(entry["loss"] * 450, sum(means) * 200, rel_tol=0.3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--dataset", "mnist"], "unknown dataset 'mnist'"),
        (["--temperature", "sgd=1"], "--temperature sgd=1: sgd has no temperature"),
        (["--learning-rate", "psgld=1"], "psgld, which is not among --optimizers"),
        (["--dataset", "cifar10", "--data-dir", "/nowhere"], "--data-dir /nowhere is not a folder"),
        (["--out", "/proc/out"], "--out /proc/out cannot be written"),
        (["--optimizers", "sgdd"], "invalid choice: 'sgdd'"),
        (["--learning-rate", "sgd=0"], "learning_rate must be finite and > 0, got 0.0"),
        (["--temperature", "langevin=-1"], "temperature must be finite and ≥ 0, got -1.0"),
        (["--temperature", "langevin=hot"], "'hot' is not a number"),
        (["--epochs", "0"], "'0' is not a whole number from 1"),
        (["--batch-size", "5000"], "--batch-size 5000: must be from 1 to 1437"),
    ],
)
def test_bad_arguments_give_one_sentence_and_status_2(arguments, sentence, capsys):
    assert run(*arguments) == 2
    assert sentence in capsys.readouterr().err


def test_an_empty_data_dir_says_what_to_install(tmp_path, capsys):
    assert run("--dataset", "cifar10", "--data-dir", str(tmp_path)) == 2
    error = capsys.readouterr().err
    assert f"cifar10 is not in {tmp_path}" in error and "TensorFlow" in error


def test_an_interrupt_keeps_what_was_finished(tmp_path):
    arguments = [*COMMAND, *SMALL, "--epochs", "1", "--seeds", "1000", "--out", str(tmp_path)]
    metrics = tmp_path / "metrics.json"
    # A process started with `&` ignores interrupts, and so would its child.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        signal.signal(signal.SIGINT, before)
        try:
            deadline = time.monotonic() + 120
            while not metrics.exists() or not json.loads(metrics.read_text())["runs"]:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.2)
            os.kill(process.pid, signal.SIGINT)
            output, _ = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "Interrupted" in output and "accuracy" in output and "ms/step" in output
    kept = json.loads(metrics.read_text())
    assert 1 <= len(kept["runs"]) < 1000
    assert all((tmp_path / name).exists() for name in report.FILES)


def test_scores_of_known_predictions():
    probs = jnp.array([[0.8, 0.2], [0.8, 0.2], [0.8, 0.2], [0.3, 0.7]])
    got = scores(probs, jnp.array([0, 0, 1, 1]))
    assert got["accuracy"] == 0.75
    assert np.isclose(got["nll"], -(2 * np.log(0.8) + np.log(0.2) + np.log(0.7)) / 4)
    assert np.isclose(got["brier"], 2 * (2 * 0.2**2 + 0.8**2 + 0.3**2) / 4)
    assert np.isclose(got["ece"], abs(3 * 0.8 - 2) / 4 + 0.3 / 4)


def run_record(name, accuracies, step_time, seed=0):
    history = [
        {"epoch": i + 1, "step": i, "loss": 1.0, "test_accuracy": a, "test_nll": 1.0}
        for i, a in enumerate(accuracies)
    ]
    return {
        "optimizer": name, "seed": seed, "learning_rate": 0.1, "test_accuracy": accuracies[-1],
        "train_accuracy": 1.0, "test_nll": 1.0, "ece": 0.1, "step_time": step_time,
        "history": history,
        "average": dict.fromkeys(("test_accuracy", "test_nll", "brier", "ece", "ood_auroc"), 0.5),
    }  # fmt: skip


def predictions(confidence, examples=360):
    """Of class 0, all with the same confidence."""
    probs = np.full((examples, 10), (1 - confidence) / 9)
    probs[:, 0] = confidence
    return report.Predictions(probs, probs)


def test_claims_say_what_was_measured():
    config = {"epochs": 4, "sweep": False, "optimizers": {}}
    for name in ("sgd", "langevin"):
        config["optimizers"][name] = {"learning_rate": 0.1}
    sgd = [run_record("sgd", [0.1, 0.2, 0.5, 0.8], 1.0, s) for s in range(2)]
    better = [run_record("langevin", [0.1, 0.9, 0.9, 0.9], 1.05, s) for s in range(2)]
    verdicts = [c["verdict"] for c in report.claims({"config": config, "runs": sgd + better})]
    assert verdicts == ["holds", "holds", "holds", "open: 1.05 of sgd"]
    worse = [run_record("langevin", [0.1, 0.1, 0.6, 0.1], 2.0, s) for s in range(2)]
    verdicts = [c["verdict"] for c in report.claims({"config": config, "runs": sgd + worse})]
    assert verdicts == ["fails", "fails", "fails", "open: 2.00 of sgd"]
    lazy = [run_record("langevin", [0.1] * 4, 1.0, s) | {"train_accuracy": 0.1} for s in range(2)]
    verdicts = [c["verdict"] for c in report.claims({"config": config, "runs": sgd + lazy})]
    assert verdicts == ["fails", "fails", "fails", "open: 1.00 of sgd"]
    once = {"config": config, "runs": sgd[:1] + better[:1]}
    assert {c["verdict"] for c in report.claims(once)} == {"open", "open: 1.05 of sgd"}
    same = [{**r, "optimizer": "langevin"} for r in sgd]
    verdicts = [c["verdict"] for c in report.claims({"config": config, "runs": sgd + same})]
    assert verdicts == ["open", "open", "open", "open: 1.00 of sgd"]


def test_a_sweep_trains_once_more_at_other_learning_rates(tmp_path, monkeypatch):
    def trainer(name, lr, *_):
        errors = {"sgd": 0.168, "langevin": 0.01}
        record = run_record(name, [0.5, 1 - errors[name]], 1.0) | {"learning_rate": lr}
        return lambda seed: (record | {"seed": seed}, predictions(lr / (1 + seed)))

    written = []
    write = report.write
    monkeypatch.setattr(compare, "trainer", trainer)
    monkeypatch.setattr(report, "write", lambda *args: (written.append(args), write(*args)))
    assert (
        run("--optimizers", "sgd", "langevin", "--seeds", "2", "--sweep", "--out", str(tmp_path))
        == 0
    )
    _, _, shown, _ = written[0]  # seed 0 at the optimizer's own learning rate
    assert {name: p.average[0, 0] for name, p in shown.items()} == {"sgd": 0.05, "langevin": 0.05}
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    rates = [r["learning_rate"] for r in metrics["runs"] if r["optimizer"] == "sgd"]
    assert np.allclose(rates, [0.05, 0.05, 0.005, 0.05 / 3, 0.15, 0.5])
    sensitivity = next(c for c in report.claims(metrics) if "sensitive" in c["claim"])
    assert sensitivity["values"] == {"sgd": "16.8 %", "langevin": "1 %"}
    assert sensitivity["verdict"] == "holds"


def test_a_diverged_run_is_reported_not_hidden(tmp_path):
    bad = run_record("sgd", [0.1, 0.1], 1.0)
    bad |= {"test_nll": math.nan, "ece": math.nan}
    bad["history"][1] |= {"loss": math.nan, "test_nll": math.nan}
    config = {"epochs": 2, "batch_size": 1, "seeds": 2, "sweep": False, "dataset": "digits"}
    config["optimizers"] = {"sgd": {"learning_rate": 0.1, "temperature": 0.0}}
    metrics = {"config": config, "versions": {}, "runs": [bad, bad | {"seed": 1}]}
    few = data.Data(*(x[:20] for x in data.digits()))
    report.write(tmp_path, metrics, {"sgd": predictions(math.nan, 20)}, few)
    assert json.loads((tmp_path / "metrics.json").read_text())["runs"][0]["test_nll"] is None
    assert "nan" in (tmp_path / "report.html").read_text()


def test_the_most_and_least_certain_images_say_what_they_are(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    probs = np.eye(10)[np.arange(20) % 10] * np.linspace(0.5, 1, 20)[:, None]
    labels = np.arange(20) % 10
    labels[0] = 9
    report.draw_certainty(
        probs, np.zeros((20, 32, 32, 3)), labels, report.CLASSES["cifar10"], tmp_path / "x.png"
    )
    axes = figures[0].axes
    said = [(ax.get_title(), ax.get_xlabel()) for ax in axes]
    assert [axes[0].get_ylabel(), axes[8].get_ylabel()] == ["most certain", "least certain"]
    assert said[:2] == [("truck, > 99.9 %", "right"), ("ship, 97.4 %", "right")]
    assert said[8:10] == [("airplane, 50.0 %", "is truck"), ("automobile, 52.6 %", "right")]


def test_a_diverged_network_has_no_auroc_and_is_never_best():
    good, bad = np.full((2, 10), 0.1), np.full((2, 10), np.nan)
    assert math.isnan(ood_auroc(good, bad)) and math.isnan(ood_auroc(bad, good))
    runs = [run_record("sgd", [0.1], 1.0) | {"test_nll": math.nan}, run_record("adam", [0.1], 2.0)]
    optimizers = {"sgd": {"learning_rate": 0.1}, "adam": {"learning_rate": 0.1}}
    metrics = {"config": {"optimizers": optimizers}, "runs": runs}
    columns = {"test NLL, nats": report.COLUMNS["test NLL, nats"]}
    assert "<td class=best>1.000</td>" in report.html_table(metrics, columns)
