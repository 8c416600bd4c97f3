"""The main job end to end, and what it says when something is wrong."""

import base64
import json
import math
import signal

import numpy as np
import pytest

from benchmarks.compare import metrics, options, plots, report, run
from benchmarks.compare.__main__ import main
from benchmarks.lib import data
from tests.benchmarks import helpers

JOB = ["--epochs", "2", "--batch-size", "40", "--seeds", "2", "--optimizers", "sgd", "langevin"]
JOB += ["--no-claims"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folder of one small run with two optimizers and two seeds."""
    folder = tmp_path_factory.mktemp("out")
    arguments = ["--learning-rate", "langevin=0.2", "--temperature", "langevin=0.001"]
    with pytest.MonkeyPatch.context() as patch:
        helpers.make_small(patch, 200)
        assert helpers.status(main, *JOB, *arguments, "--out", folder) == 0
    return folder


def test_metrics_have_every_run_and_its_history(out):
    found = json.loads((out / "metrics.json").read_text())
    assert set(found) == {"config", "machine", "runs", "claims"}
    assert found["claims"] == []
    langevin = {"learning_rate": 0.2, "temperature": 0.001}
    assert found["config"]["optimizers"]["langevin"] == langevin
    assert {"date", "cpu", "cores", "device"} <= set(found["machine"])
    assert {"python", "jax", "optax", "flax", "diffopt"} <= set(found["machine"]["versions"])
    assert len(found["runs"]) == 4
    for r in found["runs"]:
        assert 0 <= r["test_accuracy"] <= 1 and 0 <= r["train_accuracy"] <= 1
        assert r["step_time"] > 0
        assert 0 <= r["average"]["ood_auroc"] <= 1 and 0 <= r["average"]["brier"] <= 2
        assert [h["epoch"] for h in r["history"]] == [1, 2]
        assert [h["step"] for h in r["history"]] == [5, 10]
        assert r["history"][-1]["test_accuracy"] == r["test_accuracy"]
    first, second = found["runs"][:2]
    assert (first["seed"], second["seed"]) == (0, 1)
    assert first["history"] != second["history"]


def test_report_is_one_self_contained_page(out):
    page = (out / "report.html").read_text()
    assert "http" not in page
    texts = ("train-test gap", "jaxlib", "What langevin is most and least")
    assert all(text in page for text in texts)
    for picture in ("curves.png", "calibration.png", "certainty.png"):
        content = (out / picture).read_bytes()
        assert len(content) > 10_000
        assert f"data:image/png;base64,{base64.b64encode(content).decode()}" in page


def test_a_run_evaluates_what_it_predicts(monkeypatch):
    helpers.make_small(monkeypatch, 60)
    few = data.digits()
    optimizer = options.Optimizer("sgd", 0.05, 0.0)
    program = run.compile_epoch(optimizer, 10, few)
    chosen = options.parse(["--epochs", "1"], "doc")
    shown = []
    record, predicted = run.train(program, 0, chosen, few, few.test_images[:9], shown.append)
    assert shown == record["history"]
    assert predicted.last.shape == predicted.average.shape == (60, 10)
    assert np.allclose(predicted.last, predicted.average)  # of a single epoch
    correct = predicted.last.argmax(1) == np.asarray(few.test_labels)
    assert record["test_accuracy"] == pytest.approx(correct.mean())


def test_the_loss_of_every_200_batches_is_kept_across_epochs():
    losses = np.arange(450.0)
    means, rest = run.means_of_200(losses[:150].tolist(), 150)
    assert (means, rest) == ([], losses[:150].tolist())
    means, rest = run.means_of_200(rest + losses[150:].tolist(), 450)
    assert means == [[200, 99.5], [400, 299.5]] and rest == losses[400:].tolist()


def test_the_loss_of_every_200_batches_is_where_in_the_epochs_it_ends():
    records = [run_record("sgd", [0.1, 0.2], 1.0, seed) for seed in range(2)]
    for seed, record in enumerate(records):
        for number, entry in enumerate(record["history"]):
            entry |= {"step": 250 * (number + 1), "loss_every_200": []}
        record["history"][0]["loss_every_200"] = [[200, 3.0 + seed]]
        record["history"][1]["loss_every_200"] = [[400, 1.0 + seed]]
    config = {"optimizers": {"sgd": {"learning_rate": 0.1}}}
    epochs, losses = plots.loss_every_200({"config": config, "runs": records}, "sgd")
    assert epochs.tolist() == [0.8, 1.6] and losses.tolist() == [3.5, 1.5]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--dataset", "mnist"], "unknown dataset 'mnist'"),
        (["--temperature", "sgd=1"], "--temperature sgd=1: sgd has no temperature"),
        (["--learning-rate", "psgld=1"], "psgld, which is not among --optimizers"),
        (["--dataset", "cifar10", "--data-dir", "/nowhere"], "--data-dir /nowhere is not a folder"),
        (["--out", "/proc/out"], "--out /proc/out cannot be written"),
        (["--optimizers", "sgdd"], "invalid choice: 'sgdd'"),
        (["--learning-rate", "sgd=0"], "sgd: learning_rate must be finite and > 0, got 0.0"),
        (["--temperature", "langevin=-1"], "langevin: diffusion must be finite and ≥ 0, got -1.0"),
        (["--temperature", "langevin=hot"], "'hot' is not a number"),
        (["--epochs", "0"], "'0' is not a whole number from 1"),
        (["--batch-size", "5000"], "--batch-size 5000: must be from 1 to 1437"),
    ],
)
def test_bad_arguments_give_one_sentence_and_status_2(arguments, sentence, capsys):
    assert helpers.status(main, *arguments) == 2
    assert sentence in capsys.readouterr().err


def test_each_optimizer_is_built_to_see_that_it_can_be():
    with pytest.raises(ValueError, match="temperature must be finite and ≥ 0, got -1"):
        options.build(options.Optimizer("baoab", 0.1, -1.0), 0)
    for name in options.BUILDERS:
        for defaults in options.DEFAULTS.values():
            options.build(options.Optimizer(name, *defaults.optimizers[name]), 0)


def test_an_empty_data_dir_says_what_to_install(tmp_path, capsys):
    arguments = ["--dataset", "cifar10", "--data-dir", tmp_path, "--out", tmp_path]
    assert helpers.status(main, *arguments) == 2
    error = capsys.readouterr().err
    assert f"cifar10 is not in {tmp_path}" in error and "TensorFlow" in error


def test_an_interrupt_keeps_what_was_finished(tmp_path, monkeypatch, capsys):
    train = run.train

    def interrupted(program, seed, *rest):
        if seed == 1:
            signal.raise_signal(signal.SIGINT)
        return train(program, seed, *rest)

    helpers.make_small(monkeypatch)
    monkeypatch.setattr(run, "train", interrupted)
    # a process started with `&` ignores interrupts
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert helpers.status(main, *JOB, "--out", tmp_path) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    output = capsys.readouterr().out
    assert "Interrupted: keeping the 1 finished runs" in output
    assert "accuracy" in output and "ms/step" in output
    (kept,) = json.loads((tmp_path / "metrics.json").read_text())["runs"]
    assert (kept["optimizer"], kept["seed"]) == ("sgd", 0)
    assert all((tmp_path / name).exists() for name in report.FILES)


def run_record(name, accuracies, step_time, seed=0):
    history = [
        {
            "epoch": i + 1,
            "step": i + 1,
            "loss": 1.0,
            "loss_every_200": [],
            "test_accuracy": a,
            "test_nll": 1.0,
        }
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
    return run.Predictions(probs, probs)


def test_a_sweep_trains_once_more_at_other_learning_rates(tmp_path, monkeypatch):
    def train(optimizer, seed, *_):
        name, lr, _ = optimizer
        errors = {"sgd": 0.168, "langevin": 0.01}
        record = run_record(name, [0.5, 1 - errors[name]], 1.0, seed) | {"learning_rate": lr}
        return record, predictions(lr / (1 + seed))

    written = []
    write = report.write
    monkeypatch.setattr(run, "compile_epoch", lambda optimizer, *_: optimizer)
    monkeypatch.setattr(run, "train", train)
    monkeypatch.setattr(report, "write", lambda *args: (written.append(args), write(*args)))
    assert helpers.status(main, *JOB, "--sweep", "--out", tmp_path) == 0
    _, _, shown, _ = written[0]  # seed 0 at the optimizer's own learning rate
    assert {name: p.average[0, 0] for name, p in shown.items()} == {"sgd": 0.05, "langevin": 0.05}
    found = json.loads((tmp_path / "metrics.json").read_text())
    rates = [r["learning_rate"] for r in found["runs"] if r["optimizer"] == "sgd"]
    assert np.allclose(rates, [0.05, 0.05, 0.005, 0.05 / 3, 0.15, 0.5])


def test_a_diverged_run_is_reported_not_hidden(tmp_path):
    bad = run_record("sgd", [0.1, 0.1], 1.0)
    bad |= {"test_nll": math.nan, "ece": math.nan}
    bad["history"][1] |= {"loss": math.nan, "test_nll": math.nan}
    config = {"epochs": 2, "batch_size": 1, "seeds": 2, "sweep": False, "dataset": "digits"}
    config["optimizers"] = {"sgd": {"learning_rate": 0.1, "temperature": 0.0}}
    found = {
        "config": config,
        "machine": {"versions": {}},
        "runs": [bad, bad | {"seed": 1}],
        "claims": [],
    }
    few = data.Data(*(x[:20] for x in helpers.digits()))
    report.write(tmp_path, found, {"sgd": predictions(math.nan, 20)}, few)
    assert json.loads((tmp_path / "metrics.json").read_text())["runs"][0]["test_nll"] is None
    assert "nan" in (tmp_path / "report.html").read_text()


def test_the_most_and_least_certain_images_say_what_they_are(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots.plt, "close", figures.append)
    probs = np.eye(10)[np.arange(20) % 10] * np.linspace(0.5, 1, 20)[:, None]
    labels = np.arange(20) % 10
    labels[0] = 9
    plots.plot_certainty(
        probs, np.zeros((20, 32, 32, 3)), labels, report.CLASSES["cifar10"], tmp_path / "x.png"
    )
    axes = figures[0].axes
    said = [(ax.get_title(), ax.get_xlabel()) for ax in axes]
    assert [axes[0].get_ylabel(), axes[8].get_ylabel()] == ["most certain", "least certain"]
    assert said[:2] == [("truck\n> 99.9 %", "right"), ("ship\n97.4 %", "right")]
    assert said[8:10] == [("airplane\n50.0 %", "is truck"), ("automobile\n52.6 %", "right")]


def table(runs, columns):
    optimizers = {r["optimizer"]: {"learning_rate": 0.1} for r in runs}
    return report.rows({"config": {"optimizers": optimizers}, "runs": runs}, columns)


def test_a_diverged_network_is_never_best():
    runs = [run_record("sgd", [0.1], 1.0) | {"test_nll": math.nan}, run_record("adam", [0.1], 2.0)]
    nll = next(column for column in report.COLUMNS if column.short == "NLL")
    cells = table(runs, (nll,))
    assert cells == {"sgd": [report.Cell("nan", False)], "adam": [report.Cell("1.000", True)]}


def test_a_table_has_deviations_over_seeds_and_the_best_of_those_that_learned():
    runs = [run_record("sgd", [a], 1e-3, seed) for seed, a in enumerate((0.9, 0.92))]
    runs += [run_record("adam", [0.5], 2e-3, seed) | {"test_nll": 0.1} for seed in range(2)]
    cells = table(runs, report.COLUMNS)
    accuracy, nll, *_, step_time = cells["sgd"]
    assert accuracy == report.Cell("91.0 ± 1.4", True)
    assert nll == report.Cell("1.000 ± 0.000", True)
    assert step_time == report.Cell("1.00", True)
    assert not any(cell.best for cell in cells["adam"])


def test_the_page_escapes_what_it_is_given(out):
    found = json.loads((out / "metrics.json").read_text())
    found["config"]["command"] = "python <script>"
    page = report.page(found, dict.fromkeys(report.FIGURES, ""), "langevin")
    assert "python &lt;script&gt;" in page and "<script" not in page


def test_numbers_that_are_not_finite_become_null(tmp_path):
    metrics.save(tmp_path, {"a": [1.0, math.nan], "b": {"c": math.inf}})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {
        "a": [1.0, None],
        "b": {"c": None},
    }
