"""Checkpoint folders: card, weights and state of the training."""
