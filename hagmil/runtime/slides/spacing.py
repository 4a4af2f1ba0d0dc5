"""The spacing of a slide: from its metadata or from the user, never guessed."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from hagmil.errors import SlideRejected, UsageError

SMALLEST_SPACING_UM, LARGEST_SPACING_UM = 0.05, 50.0
"""Plausible level-0 spacings. An objective of 100x gives 0.06 to 0.1 um/px; smaller values are mistakes, for example of
units. Larger values are defaults of other software: 352.8 and 84.7 um/px are a printer's 72 and 300 dots per inch, and
1000 um/px is an image library's one pixel per millimetre."""

_LARGEST_ANISOTROPY = 0.05

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Spacing:
    """A slide's spacing and its source.

    Args:
        um: micrometres per level-0 pixel; None if unknown.
        source: ``metadata`` or ``override``; None if the spacing is unknown.
    """

    um: float | None
    source: str | None


def is_plausible(spacing_xy_um: tuple[float, float]) -> bool:
    """Return whether micrometres per level-0 pixel along x and y lie in the plausible range."""
    return all(SMALLEST_SPACING_UM <= axis <= LARGEST_SPACING_UM for axis in spacing_xy_um)


def resolve_spacing(name: str, spacing_xy_um: tuple[float, float] | None, override_um: float | None) -> Spacing:
    """Choose the override if there is one, else the spacing in the file if it is plausible.

    Args:
        name: the slide's file name, for messages.
        spacing_xy_um: micrometres per level-0 pixel along x and y, as stored in the file.
        override_um: micrometres per level-0 pixel given by the user; takes precedence over the file.

    Returns:
        The mean of both axes if the file's spacing is used. The spacing is unknown if the file stores none, or one
        outside ``SMALLEST_SPACING_UM`` to ``LARGEST_SPACING_UM``.

    Raises:
        UsageError: the override is not a positive number.
        SlideRejected: the axes differ by more than 5 % (code ``spacing_anisotropic``).
    """
    if override_um is not None:
        if not (math.isfinite(override_um) and override_um > 0):
            raise UsageError(f"the spacing must be a number above 0 um/px, not {override_um}")
        return Spacing(override_um, "override")
    if spacing_xy_um is None:
        return Spacing(None, None)
    if not is_plausible(spacing_xy_um):
        _log.warning(
            'slide "%s": ignoring the spacing in its metadata, %.6g x %.6g um/px, which is not plausible for a scanner',
            name,
            *spacing_xy_um,
        )
        return Spacing(None, None)
    x, y = spacing_xy_um
    mean = (x + y) / 2
    if abs(x - y) > _LARGEST_ANISOTROPY * mean:
        raise SlideRejected(
            f'slide "{name}" has pixels that are not square, {x:.4g} x {y:.4g} um; '
            "resample it to square pixels, or pass --spacing-um to treat them as square",
            code="spacing_anisotropic",
        )
    return Spacing(mean, "metadata")
