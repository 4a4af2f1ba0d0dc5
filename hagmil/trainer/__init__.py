"""Training with torch: models, losses, data, the training loop, metrics and checkpoints."""
