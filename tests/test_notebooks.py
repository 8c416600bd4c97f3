"""Every notebook runs from top to bottom, away from the repository, and is stored with outputs."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFOPT_FAST", "1")
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": tmp_path}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_with_its_outputs(path):
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert all(output.output_type != "error" for output in outputs)
    assert "/root" not in path.read_text()


def install_cell(path: Path) -> str:
    """The first code of a notebook, without what it alone needs."""
    code = next(c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code")
    return re.sub(r"packages = \{.*?\}", "packages = {}", code.source, flags=re.DOTALL)


def test_the_notebooks_install_alike_from_the_address_of_the_project():
    (cell,) = {install_cell(path) for path in NOTEBOOKS}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    address = project.get("urls", {}).get("Repository", "")
    assert f'REPOSITORY = "{address}"' in cell and f'"{project["name"]}"' in cell
    (marker,) = re.findall(r'\(f / "(\w+)" / "(\w+)"\)', cell)
    assert ROOT.joinpath(*marker).exists()


OURS, ANOTHER = "def sgld(): ...", "from ._version import __version__"
PIP = """
import json, pathlib, sys
place = pathlib.Path(__file__).parents[1]
with (place / "asked").open("a") as asked:
    print(json.dumps(sys.argv[1:]), file=asked)
if sys.argv[-1] not in json.loads((place / "has").read_text()):
    sys.exit("No matching distribution found")
(place / "diffopt").mkdir(exist_ok=True)
(place / "diffopt" / "__init__.py").write_text("def sgld(): ...")
"""


@pytest.mark.parametrize(
    ("there", "has", "asked", "status"),
    [
        (OURS, [], [], 0),
        (None, ["diffopt-jax", "git+URL", "CHECKOUT"], ["diffopt-jax"], 0),
        (ANOTHER, ["diffopt-jax", "git+URL", "CHECKOUT"], ["diffopt-jax"], 0),
        (None, ["git+URL", "CHECKOUT"], ["diffopt-jax", "git+URL"], 0),
        (None, ["CHECKOUT"], ["diffopt-jax", "git+URL", "CHECKOUT"], 0),
        (None, [], ["diffopt-jax", "git+URL", "CHECKOUT"], 1),
    ],
)
def test_a_notebook_installs_diffopt_from_where_it_can_be_had(tmp_path, there, has, asked, status):
    """On a machine whose pip is a stand-in and that has nothing else."""
    checkout, place = tmp_path / "checkout", tmp_path / "place"
    named = lambda names: [name.replace("CHECKOUT", str(checkout)) for name in names]
    for folder in (checkout / "diffopt", checkout / "notebooks", place / "pip"):
        folder.mkdir(parents=True)
    (checkout / "diffopt" / "samplers").mkdir()
    (place / "pip" / "__init__.py").touch()
    (place / "pip" / "__main__.py").write_text(PIP)
    (place / "asked").touch()
    (place / "has").write_text(json.dumps(named(has)))
    if there:
        (place / "diffopt").mkdir()
        (place / "diffopt" / "__init__.py").write_text(there)
    cell = re.sub(r'REPOSITORY = ".*"', 'REPOSITORY = "URL"', install_cell(NOTEBOOKS[0]))
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"{cell}\nimport diffopt\ndiffopt.sgld()"],
        cwd=checkout / "notebooks", env={"PYTHONPATH": str(place)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    asked_for = [json.loads(line) for line in (place / "asked").read_text().splitlines()]
    assert asked_for == [["install", "-q", name] for name in named(asked)]
    assert not status or "RuntimeError: diffopt-jax is not on the package index" in done.stderr
