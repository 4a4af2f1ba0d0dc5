"""Evaluation of checkpoints and bundles: inputs, predictions, report and page."""
