"""Training: models, losses, data, the loop, metrics and checkpoints. torch lives here."""
