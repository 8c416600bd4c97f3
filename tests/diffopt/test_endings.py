"""How a run ends: by what on_draw raises, Ctrl-C, warnings that are errors, chains that diverge."""

import contextlib
import io
import signal
import sys
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffopt
from diffopt.run import progress

TX = diffopt.sgld(0.1, temperature=1.0)
bowl = lambda p: jnp.sum(p**2) / 2
run = partial(diffopt.sample, TX, bowl, jnp.zeros(3))


def test_what_on_draw_raises_has_the_draws_until_then():
    def write(step, draw):
        if step == 20:
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left") as caught:
        run(num_steps=10_000, every=10, on_draw=write)
    samples = caught.value.samples
    steps = int(samples.state.step)
    assert steps > 20 and samples.draws.shape[1] == -(-steps // 10)
    whole = run(num_steps=steps, every=10)
    np.testing.assert_array_equal(samples.draws, whole.draws)
    np.testing.assert_array_equal(samples.params, whole.params)


@pytest.mark.slow
def test_a_warning_that_is_an_error_has_the_result():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="not finite") as caught:
            diffopt.sample(
                TX, lambda p: jnp.sum(p**4), jnp.array([[0.1], [1e3]]), num_steps=9, num_chains=None
            )
    assert caught.value.samples.diverged.tolist()[0] == -1


@pytest.mark.slow
def test_the_run_stops_where_every_chain_has_diverged():
    with pytest.warns(UserWarning, match="2 chains .0, 1. were not finite.*, where the run ended"):
        samples = diffopt.sample(
            diffopt.sgld(1e3, 1.0), bowl, jnp.ones(3), num_steps=10**8, every=10**6, num_chains=2
        )
    assert (samples.diverged > 0).all() and int(samples.state.step) < 10**8


@pytest.mark.slow
def test_many_diverged_chains_are_one_sentence():
    starts = jnp.full((64, 2), 1e9).at[0].set(0.0)
    with pytest.warns(UserWarning) as caught:
        samples = diffopt.sample(
            diffopt.sgld(0.01, 0.01), lambda p: jnp.sum(p**4), starts, num_steps=20, num_chains=None
        )
        diffopt.predictive(jnp.sin, samples)
    assert len(caught) == 1 and "63 chains (1, 2, 3, 4, 5, 6, 7, 8, …) were" in str(
        caught[0].message
    )


@pytest.mark.parametrize("stream", [None, "ascii", "full", "closed"])
def test_a_bar_never_ends_a_run(monkeypatch, stream):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    streams = {
        None: None,
        "ascii": io.TextIOWrapper(io.BytesIO(), "ascii"),
        "full": Full(),
        "closed": io.StringIO(),
    }
    if stream == "closed":
        streams["closed"].close()
    monkeypatch.setattr(sys, "stderr", streams[stream])
    samples = run(num_steps=5, progress=True)
    assert samples.draws.shape == (1, 5, 3)
    if stream == "ascii":
        sys.stderr.seek(0)
        assert "5/5" in sys.stderr.read()


def test_ctrl_c_is_heard_between_draws_that_take_long(monkeypatch):
    """A chunk is as long as its draws let it be, so few of them stand between it and Ctrl-C."""
    seconds = iter(np.arange(0, 1e6, 0.3))  # each look at the clock is 0.3 s later
    monkeypatch.setattr(diffopt.run.sample.time, "perf_counter", lambda: float(next(seconds)))
    seen = []

    def slow(step, draw):
        seen.append(step)
        if len(seen) == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.warns(UserWarning, match="interrupted after 3 of 1000 steps"):
        run(num_steps=1000, on_draw=slow)
    assert seen == [0, 1, 2]


def test_sample_inside_another_program_is_refused():
    with pytest.raises(
        TypeError, match="sample .* cannot run inside jit, vmap.*: params is traced"
    ):
        jax.jit(lambda p: diffopt.sample(TX, bowl, p, num_steps=2).draws)(jnp.zeros(3))
    with pytest.raises(TypeError, match="find_step_size .* cannot run inside"):
        jax.vmap(lambda p: diffopt.find_step_size(diffopt.sgld, bowl, p, temperature=1.0))(
            jnp.zeros((2, 3))
        )


def test_the_line_of_progress_counts_hours():
    assert progress._clock(3 * 3600 + 62) == "3:01:02"


class Heard(list):
    """Ctrl-C that is heard at the second look."""

    def __bool__(self):
        self.append(True)
        return len(self) > 1


@pytest.mark.filterwarnings("ignore:the chains read the temperature")
def test_an_interrupt_before_the_first_draw_gives_the_place_to_go_on_from(monkeypatch):
    interrupts = lambda: contextlib.nullcontext(Heard())
    monkeypatch.setattr(diffopt.run.sample, "hear_interrupts", interrupts)
    with pytest.warns(UserWarning, match="interrupted after 1 of 50 steps"):
        samples = diffopt.sample(
            TX, lambda p, x: bowl(p) + 0 * x.mean(), jnp.zeros(3), jnp.ones((4, 1)),
            num_steps=50, burn_in=40,
        )  # fmt: skip
    assert samples.draws.shape == (1, 0, 3) and int(samples.state.step) == 1
