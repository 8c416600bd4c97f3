"""Who may import whom among the programs, and what a program is called."""

import ast
import re
from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks.lib.tables import RESULTS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
MODULES = sorted(FOLDER.rglob("*.py"))
SHARED = ("lib", "trial", "tables", "headline")  # no programs that measure
PROGRAMS = sorted(
    {file.relative_to(FOLDER).parts[0].removesuffix(".py") for file in MODULES}
    - {"__init__", *SHARED}
)
IMPORTS = {
    "lib": {"lib"},
    "trial/protocol": {"lib", "trial/protocol"},
    "trial/problems": {"lib", "trial/protocol", "trial/problems"},
    "trial/claims": {"lib", "trial/protocol", "trial/problems"},  # and no other claim
    "trial": {"lib", "trial", "trial/protocol", "trial/problems", "trial/claims"},
    "headline": {"lib", "trial", "trial/protocol"},
    "compare": {"lib", "compare", "trial", "trial/protocol", "trial/claims"},
    "tables": {"lib", "compare", "trial", "headline", *PROGRAMS},
}


def room(parts):
    """The room of a module, of which its folders and its name are the parts."""
    if parts[0] == "trial" and parts[1:2] and (FOLDER / "trial" / parts[1]).is_dir():
        return f"trial/{parts[1]}"
    return parts[0]


def imported_rooms(file):
    """The rooms that a module imports from."""
    package = file.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            paths = [name.name.split(".") for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base = [*base, *(node.module.split(".") if node.module else ())]
            paths = [[*base, name.name] for name in node.names]
        else:
            continue
        yield from (room(path[1:]) for path in paths if path[0] == "benchmarks" and path[1:])


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(FOLDER)))
def test_imports_point_down(file):
    own = room([part.removesuffix(".py") for part in file.relative_to(FOLDER).parts])
    assert set(imported_rooms(file)) <= IMPORTS.get(own, {"lib"})


def test_nothing_in_the_library_imports_a_program():
    for file in sorted((ROOT / "diffopt").rglob("*.py")):
        assert not list(imported_rooms(file)), file


def test_imports_are_seen_however_they_are_written(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    folder = tmp_path / "benchmarks" / "trial" / "claims"
    folder.mkdir(parents=True)
    file = folder / "cost.py"
    file.write_text(
        "import benchmarks.mixture\nfrom benchmarks import resnet\nfrom ... import gpu\n"
        "from . import escapes\nfrom .stable import run\nfrom ...lib import cli\nimport jax\n"
        "def f():\n    from ..problems import glass\n"
    )
    rooms = list(imported_rooms(file))
    assert rooms == [
        "mixture", "resnet", "gpu", "trial/claims", "trial/claims", "lib", "trial/problems"
    ]  # fmt: skip


def test_no_program_has_the_name_of_a_module_of_the_library():
    library = {file.stem for file in (ROOT / "diffopt").rglob("*.py")}
    library |= {folder.name for folder in (ROOT / "diffopt").rglob("*") if folder.is_dir()}
    assert not library & set(PROGRAMS)


def test_all_that_have_tables_are_asked_for_them():
    having = {
        file for file in MODULES if re.search(r"^def tables\(", file.read_text("utf-8"), re.M)
    }
    assert having == {Path(module.__file__) for module in tables.PROGRAMS}
    assert len(tables.TABLES) == sum(len(module.tables()) for module in tables.PROGRAMS)


def test_the_readme_has_a_row_for_each_program_and_each_file_of_results():
    text = (FOLDER / "README.md").read_text("utf-8")
    assert sorted(re.findall(r"^\| `(\w+)` \|", text, re.M)) == PROGRAMS
    assert {f"`{file.name}`" for file in RESULTS.iterdir()} == set(
        re.findall(r"`\w+\.jsonl?`", text)
    )
    for page in re.findall(r"\]\(([^)#]+)", text):
        assert (FOLDER / page).exists(), page
