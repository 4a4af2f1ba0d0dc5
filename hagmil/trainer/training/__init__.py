"""The training loop, its state, schedules, sampling, run folder and cross-validation."""
