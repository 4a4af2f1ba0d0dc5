"""Workflows that combine training, export and inference for the command line."""
