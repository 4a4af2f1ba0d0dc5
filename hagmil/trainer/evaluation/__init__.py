"""Evaluation of checkpoints and bundles: inputs, scoring, report and page."""
