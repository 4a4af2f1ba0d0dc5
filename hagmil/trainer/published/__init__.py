"""Import of checkpoints of the published HAG-MIL and HMIL code: safe reading, names of weights and defaults."""
