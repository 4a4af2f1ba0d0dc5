"""Comparison of exported graphs with their torch sources."""
