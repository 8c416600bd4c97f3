"""The pages of the documentation: their Python runs as it stands, their tables are the results."""

import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import arviz
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import xarray

import diffopt
from benchmarks import tables
from tests.helpers import assert_equal

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"


def blocks(page: Path) -> list[str]:
    """The Python of a page, in order."""
    return re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


PAGES = [p for p in sorted(DOCS.glob("**/*.md")) if blocks(p) and p.parent.name != "zh"]
LONG = [pytest.param(p, id=p.stem, marks=pytest.mark.slow) for p in PAGES if p.stem != "quickstart"]


def run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The names that a page leaves, run from top to bottom in an empty folder."""
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for number, block in enumerate(blocks(page)):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)
    return names


@pytest.mark.slow
def test_the_quickstart_runs(tmp_path, monkeypatch):
    """And with it the README, whose Python it is."""
    assert blocks(README) == blocks(DOCS / "quickstart.md")[:1]
    names = run(DOCS / "quickstart.md", tmp_path, monkeypatch)
    assert (tmp_path / "diabetes.png").exists()
    assert 0.85 < names["covered"] < 0.95
    plain, noisy = names["accuracy"].values()
    assert noisy > plain + 0.05


@pytest.mark.filterwarnings("ignore:chains do not agree")  # as the page on networks says
@pytest.mark.parametrize("page", LONG)
def test_a_page_runs(page, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    try:
        names = run(page, tmp_path, monkeypatch)
        CHECKS.get(page.stem, lambda names: None)(names)
    finally:
        signal.signal(signal.SIGTERM, before)


def sampling(names):
    """Draws of the regression are those of its exact posterior, intervals cover, regret falls."""
    x, y = (np.asarray(a, float) for a in names["data"])
    covariance = np.linalg.inv(x.T @ x / 0.5)
    draws = np.asarray(names["samples"].draws, float)
    assert draws.shape == (4, 1000, 10)
    sd = np.sqrt(np.diag(covariance))
    assert (np.abs(draws.mean((0, 1)) - covariance @ x.T @ y / 0.5) < 0.2 * sd).all()
    assert names["mean"].shape == (442,) and 0.85 < names["coverage"] < 0.95
    np.testing.assert_allclose(names["lines"].mean(0), names["mean"], atol=1e-5)
    corrected = np.asarray(names["corrected"].draws, float)
    assert (np.abs(corrected.std((0, 1)) / sd - 1) < 0.1).all()
    assert names["regret"][-1] < names["regret"][0] / 4


def temperature(names):
    """What the page says of each chain, to 4.5 standard errors of 20,000 chains and the step."""
    D, lr, m, found = names["D"], names["lr"], names["m"], names["found"]
    error = 4.5 * np.sqrt(2 / 20_000)
    plain, heavy = 1 / (1 - lr / 2), 1 / (1 - lr / (2 * (1 + m)))
    exact = {
        "D": D * plain, "D, in one piece": D * plain, "D·lr": D * lr * plain,
        "D / (1 - m)": D / (1 - m) * heavy, "D, with momentum": D * heavy,
    }  # fmt: skip
    assert found.keys() == exact.keys()
    for name, variance in exact.items():
        assert abs(found[name] / variance - 1) < error, name


def from_optimizers(names):
    """The wrong chains are as wrong as the page says."""
    right, adam, uphill, decay = names["found"].values()
    assert abs(right * (1 - names["lr"] / 2) - 1) < 4.5 * np.sqrt(2 / 20_000)
    assert uphill > 100 and decay > 1e20
    expected = np.sqrt(names["T"] * names["lr"] / 2) / names["T"]
    assert 0.8 < adam / expected < 1.2 and 0.8 < names["hotter"] / (10 * expected) < 1.2


def frameworks(names):
    """Networks train with statistics of batches, and their chains stay there with fixed ones."""
    for framework in ("nnx", "linen", "equinox", "haiku"):
        losses = names[f"{framework}_losses"]
        assert losses[-1] < 0.2 * losses[0], framework
        samples = names[f"{framework}_samples"]
        assert samples.losses.shape == (1, 10) and samples.losses.max() < losses[-1], framework
        kept = str(jax.tree_util.tree_leaves_with_path(samples.draws)).lower()
        assert not any(word in kept for word in ("mean", "var'", "ema", "batchstat")), framework
    assert names["dropout_samples"].losses.shape == (1, 10)


def frozen(names):
    """Both ways keep nothing but adapters, and their temperature is that of what moves."""
    closed, part = names["samples"], names["part"]
    assert jax.tree.structure(closed.draws) == jax.tree.structure(part.draws)
    for a, b in zip(jax.tree.leaves(closed.draws), jax.tree.leaves(part.draws), strict=True):
        assert a.shape == b.shape
    for samples in (closed, part, names["some"]):
        assert abs(samples.temperatures.average().kinetic.mean * names["N"] - 1) < 0.05
    some = names["some"].draws
    assert some["hidden"].shape == (2, 300, 64) and some["out"] is None
    residual = lambda f: float(jnp.mean((f - names["y"]) ** 2))
    assert residual(names["mean"]) < names["noise"] ** 2
    assert residual(names["predict"](names["adapters"], names["x"])) > 5 * names["noise"] ** 2


def constraints(names):
    """The law is Gamma(2 + N, 1 + Σy) both ways; a chain in the rate itself is told."""
    shape, scale = 2 + names["N"], 1 / float(1 + names["y"].sum())
    for draws in (names["rates"], names["again"]):
        draws = np.asarray(draws, float)
        ess = float(arviz.ess(draws))
        assert (draws > 0).all() and ess > 500
        assert abs(draws.mean() - shape * scale) < 4.5 * draws.std() / np.sqrt(ess)
        # of a Gamma variable the variance of the squared deviation is (2 + 6/shape) var²
        error = 4.5 * np.sqrt((2 + 6 / shape) / float(arviz.ess(draws**2)))
        assert abs(draws.var() / (shape * scale**2) - 1) < error
    plain = lambda rate: -names["T"] * names["log_density"](rate)
    with pytest.warns(UserWarning, match="loss was not finite at .* support"):
        diffopt.sample(diffopt.sgld(20.0, names["T"]), plain, jnp.ones([]), num_steps=300)
    numpyro(names)


def numpyro(names):
    """The posterior is that of NUTS."""
    from numpyro.infer import MCMC, NUTS

    reference = MCMC(
        NUTS(names["model"]), num_warmup=500, num_samples=1000, num_chains=1, progress_bar=False
    )
    reference.run(jax.random.key(3), names["x"], names["targets"])
    draws = names["samples"].draws
    assert (draws["noise"] > 0).all()
    for name, exact in reference.get_samples(group_by_chain=True).items():
        for i in np.ndindex(exact.shape[2:]):
            ours, theirs = (np.asarray(d[(..., *i)], float) for d in (draws[name], exact))
            sizes = [float(arviz.ess(d)) for d in (ours, theirs)]
            error = 4.5 * theirs.std() * np.sqrt(sum(1 / size for size in sizes))
            assert abs(ours.mean() - theirs.mean()) < error, name
            assert abs(ours.std() / theirs.std() - 1) < 4.5 * np.sqrt(
                sum(1 / (2 * size) for size in sizes)
            ), name


def loaders(names):
    """The loop is at T and the heat of independent batches, η C/(2 (1 - m) B); epochs heat less."""
    heat = 0.002 / (2 * 0.1 * names["size"])
    mode = np.linalg.lstsq(names["x"], names["y"])[0]
    for draws, most in ((names["draws"], 0), (names["samples"].draws, heat)):
        assert draws.shape == (names["chains"], 200, 3)
        draws = np.asarray(draws, float) - mode
        ess = sum(float(arviz.ess(draws[..., i])) for i in range(3))
        assert ess > 100
        variance, error = (draws**2).mean(), 4.5 * np.sqrt(2 / ess)
        expected = 1 / names["N"] + heat
        assert (expected - most) * (1 - error) < variance < expected * (1 + error)


def network(names):
    """Colder posteriors predict clean labels better, and the loss of the chains agrees."""
    assert names["by_temperature"][0.1] < names["by_temperature"][1.0]
    assert names["of_loss"].rhat < 1.1 and names["of_loss"].ess > 50
    assert names["of_probabilities"].rhat.shape == (300, 10)
    assert 0 <= names["settled"] < 5000


def loops(names):
    """What the page says of each, to 4.5 standard errors of 20,000 chains."""
    T, lr, error = names["T"], names["lr"], 4.5 * np.sqrt(2 / names["wells"])
    plain = 1 / (1 - lr / 2)
    for part in (names["z"].real, names["z"].imag):
        assert abs(part.var() / (T * plain) - 1) < error
    s = names["clip"] * names["multiplier"] / names["batch"]
    assert abs((names["updates"] / lr).var() / s**2 - 1) < error
    kept, k = 1 - lr, 5
    factor = (0.5 + 0.5 * kept**k) ** 2
    exact = 0.25 * (1 - kept ** (2 * k)) * plain / (1 - factor)
    assert abs(names["ahead"].slow.var() / (T * exact) - 1) < error and round(exact, 2) == 0.47
    assert abs(names["y"].var() / T - 0.34) < 0.34 * error
    assert abs(names["average"].var() / T - 0.28) < 0.28 * error
    many_chains(names)
    sharpness_aware(names)


def sharpness_aware(names):
    """A key needs `opaque_mode`, and the step takes the gradient at the perturbed point."""
    tx, ascent, start, gradient = (names[n] for n in ("tx", "ascent", "start", "gradient"))
    sam = optax.contrib.sam(tx, ascent)
    with pytest.raises(TypeError):
        sam.update(gradient(start, 0), sam.init(start), start)
    climb, _ = ascent.update(gradient(start, 0), ascent.init(start), start)
    expected, _ = tx.update(gradient(start - climb, 0), tx.init(start), start)
    np.testing.assert_array_equal(names["sam_updates"], expected)
    later, _ = names["sam"].update(gradient(start, 0), names["sam_state"], start, grad_fn=gradient)
    assert (later != expected).any()


def many_chains(names):
    """The posterior is N(μ, A⁻¹), and SGHMC samples it with a covariance within O(η)."""
    x, y = (np.asarray(names[name], float) for name in ("images", "targets"))
    samples = np.asarray(names["samples"]["w"])
    assert samples.shape == (4, 100, 3)
    precision = x.T @ x + np.eye(3)
    center = np.linalg.solve(precision, x.T @ y)
    std = np.sqrt(np.diag(np.linalg.inv(precision)))
    ess = np.array([arviz.ess(samples[:, :, i]) for i in range(3)], float)
    assert (ess > 200).all()
    assert (np.abs(samples.mean((0, 1)) - center) < 4.5 * std / np.sqrt(ess)).all()
    np.testing.assert_allclose(samples.std((0, 1)), std, rtol=4.5 / np.sqrt(2 * ess.min()))
    np.testing.assert_allclose(names["probs"], x @ samples.mean((0, 1)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(names["mean"], x @ samples[0, 1:11].mean(0), rtol=1e-4, atol=1e-4)
    assert "'w'" in str(names["named"].keys()) and "w" in str(names["idata"])


def checkpoints(names):
    """Draws outlive a full disk and a SIGTERM made a Ctrl-C; writers take what is logged."""
    draws = names["samples"].draws["w"]
    assert 4 <= draws.shape[1] <= 10 and np.isfinite(draws).all()

    def terminate(step, draw):
        if step == 100:
            signal.raise_signal(signal.SIGTERM)

    with pytest.warns(UserWarning, match="interrupted after"):
        samples = diffopt.sample(
            names["tx"], names["loss"], {"w": jnp.ones(3)}, num_steps=10**6, every=100,
            on_draw=terminate,
        )  # fmt: skip
    assert 100 < int(samples.state.step) < 10**6

    said = []

    class Writer:
        def add_scalar(self, tag, value, step):
            said.append((tag, float(value), step))

        def add_histogram(self, tag, values, step):
            assert values.shape == (3,)

        def log(self, values, step):
            said.extend((tag, float(value), step) for tag, value in values.items())

    draw = {"w": np.ones((2, 3))}
    names["to_tensorboard"](Writer())(7, draw)
    names["to_wandb"](Writer())(7, draw)
    assert {step for *_, step in said} == {7} and len(said) == 4
    with xarray.open_dataset("traces.nc", engine="h5netcdf") as traces:
        both = np.concatenate([names["first"].draws, names["then"].draws], axis=1)
        np.testing.assert_array_equal(traces["losses"], both)
        np.testing.assert_array_equal(traces["step"], np.arange(0, 200, 10))


def annealing(names):
    assert np.median(names["annealed"].losses) < 0.25 * names["descended"].losses.min()
    assert names["samples"].draws.shape == (1, 200, 3)
    x = np.linspace(-3, 3, 10_001)
    density = np.exp(-names["uneven"](x) / 0.08)
    exact = density[x < 0].sum() / density.sum()
    assert abs((names["cold"] < 0).mean() - exact) < 0.05


def diagnostics(names):
    """No direction is far from its temperature at the step that was found."""
    kinetic = names["samples"].temperatures.kinetic.mean() / names["T"]
    assert names["step_size"] < 0.095 * 1.9 / 25 * 1.5 and abs(kinetic - 1) < 0.1


def bfloat16(names):
    """The average of the transformer's predictions is better than its last draw."""
    assert names["average"] < names["last"] < 4


CHECKS = {
    check.__name__: check
    for check in (
        sampling, temperature, from_optimizers, frameworks, frozen, constraints, loaders, network,
        loops, checkpoints, annealing, diagnostics, bfloat16,
    )
}  # fmt: skip


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_tables_are_those_of_the_results(page):
    """Where this fails: python -m benchmarks.tables."""
    text = page.read_text("utf-8")
    assert tables.fill(text) == text


def test_a_table_is_printed(capsys):
    assert tables.main(["rounding_cost"]) == 0
    assert capsys.readouterr().out.startswith("| update | ns per parameter | quartiles |\n| --- |")


def test_every_public_name_has_its_place_in_the_api():
    pages = "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    documented = re.findall(r"^::: diffopt\.[\w.]+\.(\w+)$", pages, re.MULTILINE)
    public = [
        name
        for name, value in vars(diffopt).items()
        if name[0] != "_" and not isinstance(value, ModuleType)
    ]
    assert sorted(documented) == sorted(public)


@pytest.mark.parametrize(
    "page",
    [README, DOCS / "quickstart.md", DOCS / "guides" / "questions.md"],
    ids=lambda page: page.stem,
)
def test_the_chinese_page_has_the_same_code(page):
    chinese = README.with_suffix(".zh-CN.md") if page == README else DOCS / "zh" / page.name
    fences = r"^```.*?^```$"
    code = [re.findall(fences, p.read_text("utf-8"), re.M | re.S) for p in (page, chinese)]
    assert code[0] == code[1]


@pytest.mark.parametrize("page", sorted(ROOT.glob("README*.md")), ids=lambda page: page.name)
def test_the_links_of_a_readme_lead_somewhere(page):
    """Those of the site are held by `mkdocs build --strict`."""
    links = re.findall(r"\]\(([^)#]+)", page.read_text("utf-8"))
    assert len(links) > 15
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_the_readme_and_the_site_are_short():
    assert len(README.read_text().splitlines()) <= 90
    assert len(list(DOCS.glob("**/*.md"))) <= 40


@pytest.mark.slow
def test_a_checkpoint_loses_nothing(tmp_path):
    """A run that is saved and restored goes on to the bits of one that is not."""
    tx, keep = diffopt.low_precision(diffopt.sghmc(0.1, 0.1)), diffopt.collect(9)
    (snippet,) = (b for b in blocks(DOCS / "guides" / "checkpoints.md") if "CheckpointManager" in b)

    @jax.jit
    def step(run):
        updates, opt_state = tx.update(run["params"], run["opt_state"], run["params"])
        params = optax.apply_updates(run["params"], updates)
        return {
            "params": params, "opt_state": opt_state, "kept": keep.update(params, run["kept"])
        }  # fmt: skip

    params = {"w": jnp.ones(3, jnp.bfloat16), "none": None}
    start = {"params": params, "opt_state": tx.init(params), "kept": keep.init(params)}
    state = start
    for count in range(1, 5):
        state = step(state)
        exec(snippet, {"ocp": ocp, "folder": tmp_path / f"of {count}", "count": count, **state})
    for count in range(1, 5):
        names = {"ocp": ocp, "folder": tmp_path / f"of {count}", "count": count + 1, **start}
        exec(snippet, names)
        restored = names["run"]
        for _ in range(count, 4):
            restored = step(restored)
        assert_equal(restored, state)
    assert not jnp.array_equal(state["params"]["w"], start["params"]["w"])


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    """SIGTERM before the second piece is saved, between its two files, and after it."""
    script = blocks(DOCS / "guides" / "checkpoints.md")[0]
    kill = """
import os, signal
before, calls = save, []
def save(path, value):
    calls.append(path)
    if len(calls) == {call}:
        os.kill(os.getpid(), signal.SIGTERM)
    before(path, value)
"""
    head, tail = script.split("\n\nrun(")
    commands = {name: f"{head}\n{kill.format(call=name)}\nrun({tail}" for name in (3, 4, 5)}
    start = lambda command, folder: (
        subprocess.run(
            [sys.executable, "-c", command], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}
        ).returncode
    )
    folders = {name: tmp_path / str(name) for name in (0, *commands)}
    for folder in folders.values():
        folder.mkdir()
    assert start(script, folders[0]) == 0
    whole = sorted((folders[0] / "run").iterdir())
    assert len(whole) == 6
    for name, command in commands.items():
        assert start(command, folders[name]) == -signal.SIGTERM
        assert not (folders[name] / "run" / whole[-2].name).exists()
        assert start(script, folders[name]) == 0
        for file in whole:
            resumed = folders[name] / "run" / file.name
            assert_equal(pickle.loads(resumed.read_bytes()), pickle.loads(file.read_bytes()))


def test_the_readme_shows_the_test_command_that_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text()
    (command,) = re.findall(r"^python3 -m venv .*pytest.*$", ci, re.MULTILINE)
    for page in (README, README.with_suffix(".zh-CN.md"), DOCS / "install.md"):
        assert f"```bash\n{command}\n```" in page.read_text("utf-8")
