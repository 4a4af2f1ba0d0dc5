"""Checkpoints of the published HAG-MIL and HMIL code: safe reading, names, defaults and import."""
