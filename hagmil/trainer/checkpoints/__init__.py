"""Checkpoint folders: card, weights and how models are restored."""
