"""Which versions of which packages are installed: what a reader of any of hagmil's files may ask."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from hagmil._version import __version__


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def versions_of(*distributions: str) -> dict[str, str]:
    """hagmil's own version, and those of the distributions that are installed, by name."""
    found = {name: installed_version(name) for name in distributions}
    return {"hagmil": __version__, **{name: text for name, text in found.items() if text is not None}}
