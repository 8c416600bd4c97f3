import subprocess
import sys
from pathlib import Path

import diffopt
from diffopt._clash import warn_of_another_diffopt

PACKAGE = Path(diffopt.__file__).parent


def test_the_library_alone_is_silent():
    warn_of_another_diffopt()


def test_files_of_another_diffopt_are_told_at_import(tmp_path):
    """As pip leaves them: both projects in one folder, ours last."""
    folder = tmp_path / "diffopt"
    folder.mkdir()
    for inner in PACKAGE.iterdir():
        (folder / inner.name).symlink_to(inner)
    for name in ("multigrad", "kdescent"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "-c", "import diffopt; print(diffopt.sgld.__name__)"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "sgld\n"
    (warning,) = [line for line in done.stderr.splitlines() if "UserWarning" in line]
    assert "another project called diffopt (kdescent, multigrad)" in warning
    assert "install diffopt-jax alone" in warning and "<string>:1" in warning
