"""The structure of the library: arrows only point down, and rooms are reached by nobody outside."""

import ast
from pathlib import Path

import pytest

import diffopt
from diffopt._clash import ROOMS

PACKAGE = Path(diffopt.__file__).parent
ROOT = PACKAGE.parent
# From the bottom up: a file may import from its own room and from those before it.
ORDER = [
    "_types",
    "inputs",
    "noise",
    "samplers",
    "perturb",
    "temperature",
    "run",
    "estimate",
    "__init__",
]
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(file):
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts)


def imports_of(file):
    """The modules of diffopt that a file imports, as `room.module`."""
    parts = ("diffopt", *file.relative_to(PACKAGE).with_suffix("").parts)
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = parts[1 : len(parts) - node.level]
            yield ".".join((*base, node.module or "__init__"))


def test_the_rooms_are_those_that_are_there():
    assert {p.parent.name for p in PACKAGE.glob("*/__init__.py")} == ROOMS
    assert {name_of(f).split(".")[0] for f in FILES} == {*ORDER, "_clash"}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_arrows_point_down(file):
    room = name_of(file).split(".")[0]
    if room == "_clash":
        assert list(imports_of(file)) == []
        return
    above = ORDER[ORDER.index(room) + 1 :]
    assert [m for m in imports_of(file) if m.split(".")[0] in above] == []


def test_no_circle():
    graph = {name_of(f): set(imports_of(f)) for f in FILES if f.name != "__init__.py"}
    while leaves := {name for name, imported in graph.items() if not imported & graph.keys()}:
        for leaf in leaves:
            del graph[leaf]
    assert graph == {}


def test_users_import_from_diffopt_alone():
    programs = [*ROOT.glob("benchmarks/**/*.py"), *ROOT.glob("notebooks/*.ipynb")]
    pages = [*ROOT.glob("README*.md"), *ROOT.glob("docs/**/*.md")]
    for file in programs + pages:
        text = file.read_text("utf-8")
        for room in [*ROOMS, "temperature"]:
            for reach in (f"from diffopt.{room}", f"import diffopt.{room}"):
                assert reach not in text, file
