"""Objects that other packages provide under an entry point, such as heads and losses."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from hagmil.errors import UsageError

HEADS = "hagmil.heads"
"""Group of entry points for heads."""
LOSSES = "hagmil.losses"
"""Group of entry points for losses."""


def provided_names(group: str) -> tuple[str, ...]:
    """Names of the entry points of a group in the installed packages, sorted."""
    return tuple(sorted({point.name for point in entry_points(group=group)}))


@cache
def load_provided(group: str, name: str) -> Any | None:
    """Load the object of an entry point.

    Args:
        group: group of the entry points.
        name: name of the entry point. In ``library:member``, the entry point ``library`` gives a function, which is
            called with ``member``.

    Returns:
        The object; None if no installed package provides the name.

    Raises:
        UsageError: several packages provide the name, or the object cannot be loaded.
    """
    library, colon, member = name.partition(":")
    points = tuple(entry_points(group=group, name=library))
    if not points:
        return None
    if len({point.value for point in points}) > 1:
        packages = ", ".join(sorted(_package(point) for point in points))
        raise UsageError(f'"{library}" is provided by several packages ({packages}); uninstall all but one')
    try:
        found = points[0].load()
    except Exception as error:  # a foreign package may raise anything
        raise UsageError(
            f'"{library}" of package "{_package(points[0])}" cannot be loaded: {type(error).__name__}: {error}'
        ) from error
    return found(member) if colon else found


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value
