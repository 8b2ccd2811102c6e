"""Measure fleece against other programs, by turns, on one workload (docs/benchmarks.rst)."""
