"""The package index has another project called diffopt, which installs into the same folder."""

import warnings
from pathlib import Path

HERE = Path(__file__).parent
ROOMS = {"estimate", "inputs", "noise", "perturb", "run", "samplers"}


def warn_of_another_diffopt(folder: Path = HERE) -> None:
    """Warn in one sentence where `folder` holds packages of another project."""
    packages = {inner.parent.name for inner in folder.glob("*/__init__.py")}
    foreign = sorted(packages - ROOMS)
    if foreign:
        warnings.warn(
            f"the folder {folder} also holds files of another project called diffopt"
            f" ({', '.join(foreign)}): pip uninstall both diffopt and diffopt-jax, then install"
            " diffopt-jax alone",
            stacklevel=3,
        )
