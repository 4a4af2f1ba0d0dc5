"""Faults of inputs, disks and signals: each case with what it must end in."""
