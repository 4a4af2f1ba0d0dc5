"""Fixtures of the tests of the command line."""

from tests.export.shared import backbone_dir, checkpoint_dir, share_stage_graphs

__all__ = ["backbone_dir", "checkpoint_dir", "share_stage_graphs"]
