"""Benchmarks: ratios and counts measured in one run, against the goals of the project."""
