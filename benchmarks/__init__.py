"""Benchmarks: `latency`, `quality`, `serving` and `gpu`, a folder and a command each, and what they share.

`machine` states what a result was measured on, `children` starts processes that end with the benchmark, `figures` holds what
all plots have in common, and `schema/` describes every result file.
"""
