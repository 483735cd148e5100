"""Benchmarks: what the product costs and gains beside the same work without it.

`python -m bench` runs them; `docs/how-to/benchmark.md` says how to read them.
"""
