"""Comparison of the spacings of stages."""

from __future__ import annotations

from hagmil.errors import DataError

SPACING_TOLERANCE = 0.02
"""Relative difference up to which spacings are regarded as equal, as in the rest of the package."""


def stage_factor(coarse_um: float, fine_um: float) -> int:
    """The ratio f of the spacing of a stage to that of the next finer stage.

    Raises:
        DataError: the ratio is not an integer of at least 2.
    """
    ratio = coarse_um / fine_um
    factor = round(ratio)
    if factor < 2 or abs(ratio / factor - 1) > SPACING_TOLERANCE:
        raise DataError(
            "the ratio of successive spacings, coarse to fine, must be an integer of at least 2; "
            f"{coarse_um:g} and {fine_um:g} um/px have the ratio {ratio:g}"
        )
    return factor
