"""Versions of the packages that take part in an export."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from hagmil import __version__

_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "timm")


def export_versions() -> dict[str, str]:
    """Package name to version, of those that are installed."""
    versions = {"hagmil": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
