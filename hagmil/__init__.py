"""Hierarchical multiple-instance learning on whole-slide images, from training to deployment."""

from __future__ import annotations

__version__ = "0.1.0"
