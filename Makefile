# What to run before a commit: make check. In an environment of your own: make check PYTHON=python
PYTHON ?= .venv/bin/python

.PHONY: check lint types test slow job docs

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

# the site in site/; its tables are those of benchmarks/results, by python -m benchmarks.tables
docs:
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict
