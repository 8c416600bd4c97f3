"""A job with checkpoints: where in a save it is, how it dies there, and what it ends with."""

import json
import os
import re
import signal
import sys
from collections import Counter

import jax
import orbax.checkpoint as ocp

from benchmarks.compare import report
from benchmarks.compare.__main__ import main
from benchmarks.lib import checkpoint
from tests.benchmarks import helpers

JOB = [
    "--epochs",
    "14",
    "--batch-size",
    "16",
    "--seeds",
    "2",
    "--optimizers",
    "sghmc",
    "--no-claims",
]
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


def watch(folder, note):
    """Call `note(save, place)` before each change to a checkpoint below `folder`.

    Saves are counted from 1. A place is an operation, its path, and how many like it the save has
    had.
    """
    save, seen = 0, Counter()

    def hook(event, arguments):
        nonlocal save
        if event in CHANGES or (event == "open" and set(str(arguments[1])) & set("wax+")):
            path = re.fullmatch(f"{re.escape(str(folder))}/[^/]+/[0-9]+(.*)", str(arguments[0]))
            if not path:
                return
            place = f"{event} N{path[1]}"
            if place == "os.mkdir N.orbax-checkpoint-tmp":
                save += 1
                seen.clear()
            seen[place] += 1
            note(save, f"{place} {seen[place]}")

    sys.addaudithook(hook)


def job(patch, cache, arguments, noted=None, fatal=None):
    """The job on a small network; it notes where a save is, or dies in a place of its second."""
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    make_job_small(patch)
    if noted:
        file = noted.open("a")
        watch(arguments[-1], lambda *place: print(*place, file=file, flush=True))
    if fatal:
        die = lambda: os.kill(os.getpid(), signal.SIGKILL)
        watch(arguments[-1], lambda *place: place == (2, fatal) and die())
    return helpers.status(main, *JOB, *arguments)


def make_job_small(patch):
    helpers.make_small(patch)
    patch.setattr(report, "write", lambda *_: None)


def results(out):
    """All that metrics.json reports, but times."""
    runs = json.loads((out / "metrics.json").read_text())["runs"]
    for record in runs:
        del record["step_time"], record["compile_time"]
        for entry in record["history"]:
            del entry["step_time"]
    return runs


def last_states(kept):
    """The last epoch of each run, and a digest of all its arrays and keys."""
    found = {}
    for folder in filter(os.path.isdir, kept.iterdir()):
        checkpoints = checkpoint.open_manager(folder)
        epoch = checkpoints.latest_step()
        items = ocp.args.Composite(state=ocp.args.StandardRestore())
        state = checkpoints.restore(epoch, args=items).state
        found[folder.name] = epoch, checkpoint.digest(state, None)
    return found
