# What to run before a commit: make check. In an environment of your own: make check PYTHON=python
PYTHON ?= .venv/bin/python

.PHONY: check lint types test slow job

check: lint types test

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest -n 2

# what is long by nature: statistics over millions of steps, whole notebooks, many processes
slow:
	$(PYTHON) -m pytest -n 2 -m slow

# the main job at its shortest, in a folder of its own
job:
	$(PYTHON) -m benchmarks.compare --quick --out "$$(mktemp -d)"
