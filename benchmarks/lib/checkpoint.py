"""Checkpoints of a run with Orbax: one after every epoch, the last two kept, each with a digest.

A folder holds `settings.json`, what its runs were asked for, and a folder for each run.
"""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import args as ocp_args
from orbax.checkpoint.checkpoint_managers import preservation_policy

from .cli import Refusal


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Make `folder` that of runs with `settings`, or see that it is.

    Raises:
      Refusal: it was made with other settings, or cannot be read or written.
    """
    file = folder / "settings.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(settings, indent=2) + "\n")
        if file.exists():
            part.unlink()
        else:
            part.replace(file)
        made = json.loads(file.read_text())
    except OSError as error:
        raise Refusal(f"--checkpoint {folder} cannot be used: {error.strerror}") from error
    except ValueError as error:
        raise Refusal(f"--checkpoint {folder}: {file} is damaged: {error}") from error
    differences = [
        f"{name} {made.get(name)}, now {settings.get(name)}"
        for name in {**made, **settings}
        if made.get(name) != settings.get(name)
    ]
    if differences:
        raise Refusal(f"--checkpoint {folder} was made with {'; '.join(differences)}")


def manager(folder: Path) -> ocp.CheckpointManager:
    """Orbax's manager of the checkpoints of one run: each appears whole or not at all."""
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.LatestN(2),
        cleanup_tmp_directories=True,
        enable_async_checkpointing=False,
        lightweight_initialize=True,
    )
    return ocp.CheckpointManager(folder.resolve(), options=options)


def save(checkpoints: ocp.CheckpointManager, epoch: int, state: Any, record: Any) -> None:
    """Keep `state`, a tree of arrays and PRNG keys, and `record`, anything that JSON can hold."""
    kept = {"record": record, "digest": digest(state, record)}
    items = ocp_args.Composite(
        state=ocp_args.StandardSave(state),  # type: ignore[call-arg]
        record=ocp_args.JsonSave(kept),  # type: ignore[call-arg]
    )
    checkpoints.save(epoch, args=items)


def restore(checkpoints: ocp.CheckpointManager, like: Any, record: Any) -> tuple[Any, Any]:
    """The newest state and record that are whole; `like` and `record` where there are none.

    A state has the structure, dtypes and devices of `like`. Damaged checkpoints are reported, and
    renamed so that their epochs can be saved again.
    """
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
            reason = (str(error) or repr(error)).splitlines()[0][:200]
        folder = checkpoints.directory / str(epoch)
        aside = folder.with_name(f"{epoch}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        folder.replace(aside)
        print(
            f"{folder} is damaged (now {aside.name}), going on from the one before: {reason}",
            file=sys.stderr,
        )
        checkpoints.reload()
    return like, record


def digest(state: Any, record: Any) -> str:
    """SHA-256 of every bit of a state and its record."""
    sha = hashlib.sha256(json.dumps(record).encode())
    for leaf in jax.tree.leaves(state):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        sha.update(np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes())
    return sha.hexdigest()
