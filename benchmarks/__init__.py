"""Programs that measure diffopt: `python -m benchmarks.NAME --help`."""
