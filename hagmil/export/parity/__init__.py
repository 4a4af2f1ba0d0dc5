"""Comparison of exported graphs with the models that they were made from."""
