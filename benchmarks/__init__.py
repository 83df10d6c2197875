"""Benchmarks: ratios measured in one interleaved run, refused where parity fails. See `python -m benchmarks --help`."""
