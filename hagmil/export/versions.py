"""Versions of the packages that take part in an export."""

from __future__ import annotations

from hagmil._versions import versions_of


def export_versions() -> dict[str, str]:
    """Package name to version, of those that are installed."""
    return versions_of("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "timm")
