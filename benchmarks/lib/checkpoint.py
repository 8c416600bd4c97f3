"""Checkpoints of a run with Orbax: one after every epoch, the last two kept, each with a digest.

A folder holds `settings.json`, what its runs were asked for, and a folder for each run. Of many
processes the first alone writes and reads: all have the same state.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import args as ocp_args
from orbax.checkpoint.checkpoint_managers import preservation_policy
from orbax.checkpoint.options import MultiprocessingOptions

from . import files
from .cli import UsageError, differences, first_line


def match_settings(folder: Path, settings: dict[str, Any], devices: str) -> None:
    """Claim the existing `folder` for runs with `settings`, or check that it has them.

    Runs that began on other `devices` go on, which is printed.

    Raises:
      UsageError: it was made with other settings, or cannot be read or written.
    """
    file = folder / "settings.json"
    try:
        if not file.exists():
            files.write_json(file, settings | {"devices": devices})
        made = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"--checkpoint {folder} cannot be used: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"--checkpoint {folder}: {file} is damaged: {error}") from error
    if not isinstance(made, dict):
        raise UsageError(f"--checkpoint {folder}: {file} is damaged: it holds no settings")
    before = made.pop("devices", devices)
    different = differences(made, settings, "now")
    if different:
        raise UsageError(f"--checkpoint {folder} was made with {different}")
    if before != devices:
        print(
            f"--checkpoint {folder} was made on {before} and continues on {devices},"
            " equal up to rounding",
            file=sys.stderr,
        )


def open_manager(folder: Path) -> ocp.CheckpointManager:
    """Orbax's manager of the checkpoints of one run: each appears whole or not at all.

    Raises:
      UsageError: the folder cannot be used.
    """
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.LatestN(2),
        cleanup_tmp_directories=True,
        enable_async_checkpointing=False,
        lightweight_initialize=True,
        create=False,
        multiprocessing_options=MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix=folder.name
        ),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return ocp.CheckpointManager(folder.resolve(), options=options)
    except OSError as error:
        raise UsageError(f"--checkpoint: {folder} cannot be used: {error.strerror}") from error


def save(checkpoints: ocp.CheckpointManager, epoch: int, state: Any, record: Any) -> None:
    """Keep `state`, a tree of arrays and PRNG keys, and `record`, anything that JSON can hold.

    Raises:
      UsageError: the disk is full, for example; the checkpoints before are as they were.
    """
    state = strip_keys(state)
    kept = {"record": record, "digest": digest(state, record)}
    items = ocp_args.Composite(
        state=ocp_args.StandardSave(state),  # type: ignore[call-arg]
        record=ocp_args.JsonSave(kept),  # type: ignore[call-arg]
    )
    try:
        checkpoints.save(epoch, args=items)
    except Exception as error:  # as in `restore`
        reason = first_line(error)
        folder = checkpoints.directory
        raise UsageError(f"--checkpoint: {folder}: epoch {epoch} is not saved: {reason}") from error


def restore(checkpoints: ocp.CheckpointManager, like: Any) -> tuple[Any, Any] | None:
    """The newest plain state, in the structure of `like`, and record that are whole, if any are.

    Damaged checkpoints are reported, and renamed so that their epochs can be saved again.
    """
    like = strip_keys(like)
    for epoch in sorted(checkpoints.all_steps(), reverse=True):
        items = ocp_args.Composite(
            state=ocp_args.StandardRestore(like),  # type: ignore[call-arg]
            record=ocp_args.JsonRestore(),
        )
        try:
            got = checkpoints.restore(epoch, args=items)
            if got.record["digest"] == digest(got.state, got.record["record"]):
                return got.state, got.record["record"]
            reason = "its digest differs"
        except Exception as error:  # a damaged file shows in as many types as there are formats
            reason = first_line(error)
        folder = checkpoints.directory / str(epoch)
        aside = folder.with_name(f"{epoch}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        folder.replace(aside)
        print(
            f"{folder} is damaged (now {aside.name}), going on from the one before: {reason}",
            file=sys.stderr,
        )
        checkpoints.reload()
    return None


def strip_keys(state: Any) -> Any:
    """A state with its arrays in the memory of this host and its keys as their data."""
    data = lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf
    return jax.tree.map(lambda leaf: np.asarray(data(leaf)), state)


def restore_keys(state: Any, like: Any) -> Any:
    """A plain state with keys where `like` has them."""

    def typed(leaf: Any, like: Any) -> Any:
        impl = jax.random.key_impl(like) if is_key(like) else None
        return leaf if impl is None else jax.random.wrap_key_data(leaf, impl=impl)

    return jax.tree.map(typed, state, like)


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of typed PRNG keys."""
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def digest(state: Any, record: Any) -> str:
    """SHA-256 of every bit of a state and its record."""
    sha = hashlib.sha256(json.dumps(record).encode())
    for leaf in jax.tree.leaves(strip_keys(state)):
        sha.update(leaf.tobytes())
    return sha.hexdigest()
