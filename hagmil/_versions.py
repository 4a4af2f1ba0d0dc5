"""The package's version, and the versions of installed packages that hagmil's files record."""

from __future__ import annotations

__version__ = "0.1.0"
"""Read by the build from this line, without importing the package."""


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version  # takes longer than the rest of the package's root

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def versions_of(*distributions: str) -> dict[str, str]:
    """Return the version of hagmil and of each given distribution that is installed, by name."""
    found = {name: installed_version(name) for name in distributions}
    return {"hagmil": __version__, **{name: text for name, text in found.items() if text is not None}}


def export_versions() -> dict[str, str]:
    """The versions of hagmil and of the installed packages that an export depends on, by name."""
    return versions_of("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "timm")
