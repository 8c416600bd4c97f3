"""The Python of `docs/sampling.md`, run as it stands there."""

import re
from pathlib import Path

import numpy as np
import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "sampling.md").read_text()


@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom(capsys):
    names = {}
    snippets = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    first, *others = snippets
    assert len([line for line in first.splitlines() if line.strip()]) <= 10
    exec(first, names)
    x, y = (np.asarray(a, float) for a in names["data"])
    covariance = np.linalg.inv(x.T @ x / 0.5)
    draws = np.asarray(names["samples"].draws, float)
    assert draws.shape == (4, 1000, 10)
    sd = np.sqrt(np.diag(covariance))
    assert (np.abs(draws.mean((0, 1)) - covariance @ x.T @ y / 0.5) < 0.2 * sd).all()
    for snippet in others:
        exec(snippet, names)
    assert "stiffest direction" in capsys.readouterr().out
    assert names["mean"].shape == (442,) and 0.85 < names["coverage"] < 0.95
    np.testing.assert_allclose(names["lines"].mean(0), names["mean"], atol=1e-5)
    corrected = np.asarray(names["corrected"].draws, float)
    assert (np.abs(corrected.std((0, 1)) / sd - 1) < 0.1).all()
