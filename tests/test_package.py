"""What stands in more than one file of the package."""

import re
from pathlib import Path

import diffopt

ROOT = Path(__file__).parents[1]


def test_the_citation_and_the_package_have_one_version():
    (cited,) = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited == diffopt.__version__
