"""Every measurement for a GPU, one program after another, in ten minutes and one file.

    python -m benchmarks.gpu --json FILE [--data-dir DIR]

It runs `benchmarks.step_cost` (the cost of an update of ResNet-18, of a transformer and of a
billion parameters, beside the bandwidth of a copy), `benchmarks.train_cost` (the cost of a training
step; needs PyTorch) and `benchmarks.resnet` (ResNet-18 on CIFAR-10 in bfloat16). If a program
fails, the end of its output is reported and the others go on.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax

from .lib import cli, files, machine


def programs(folder: Path, data_dir: str | None) -> dict[str, tuple[list[str], Path]]:
    """The arguments of each program, and the file that it writes."""
    step, train = folder / "step_cost.json", folder / "train_cost.json"
    trees = ["resnet18", "transformer", "billion"]
    where = [] if data_dir is None else ["--data-dir", data_dir]
    return {
        "step_cost": (["--trees", *trees, "--json", str(step)], step),
        "train_cost": (["--json", str(train)], train),
        "resnet": (["--out", str(folder), *where], folder / "resnet.json"),
    }


def run(name: str, arguments: list[str], file: Path) -> dict[str, Any]:
    """What one program has measured; where it has failed, its status and what it said."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    result = json.loads(file.read_text("utf-8")) if file.exists() and file.stat().st_size else {}
    if done.returncode:
        print(f"{name} has failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        result |= {"status": done.returncode, "stderr": done.stderr[-2000:]}
    return result


@cli.program("gpu")
def main(argv: list[str] | None = None) -> int:
    """Run the programs; the status is 1 where one has failed."""
    parser = cli.parser("gpu", __doc__, out=False)
    parser.add_argument("--json", type=cli.writable, required=True, help="file to write")
    parser.add_argument("--data-dir", help="TensorFlow Datasets folder that holds cifar10")
    args = parser.parse_args(argv)
    # JAX would take most of the memory, here and in the programs, where PyTorch needs some too
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if jax.default_backend() != "gpu":
        raise cli.UsageError(f"JAX has no GPU here, only {machine.device()}")
    result: dict[str, Any] = {"machine": machine.describe()}
    with tempfile.TemporaryDirectory() as folder:
        for name, (arguments, file) in programs(Path(folder), args.data_dir).items():
            result[name] = run(name, arguments, file)
            files.write_json(args.json, result)  # whatever comes after
    return int(any("status" in each for each in result.values()))


if __name__ == "__main__":
    sys.exit(main())
