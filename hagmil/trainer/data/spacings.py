"""Spacings of neighbouring stages: what is the same, and what factor lies between two."""

from __future__ import annotations

from hagmil.errors import DataError

SPACING_TOLERANCE = 0.02
"""By how much spacings may differ and still be the same, as everywhere in this package."""


def stage_factor(coarse_um: float, fine_um: float) -> int:
    """f, the whole factor between a stage's spacing and the next finer one's.

    Raises:
        DataError: the stages do not run from coarse to fine by a whole factor from 2.
    """
    ratio = coarse_um / fine_um
    factor = round(ratio)
    if factor < 2 or abs(ratio / factor - 1) > SPACING_TOLERANCE:
        raise DataError(
            "stages must run from coarse to fine by whole factors; "
            f"{coarse_um:g} um/px is {ratio:g} times as coarse as {fine_um:g} um/px"
        )
    return factor
