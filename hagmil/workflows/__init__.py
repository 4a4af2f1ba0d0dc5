"""Workflows that combine training, export and inference; the command line and the benchmarks use them."""
