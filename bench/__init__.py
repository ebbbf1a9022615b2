"""Benchmarks: `python -m bench.pipeline` or `bench.growth`."""
