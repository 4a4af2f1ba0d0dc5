"""Parameters of the tissue mask, stored in bundle manifests and feature files."""

from __future__ import annotations

from typing import Annotated, Literal

from hagmil._models import FrozenModel, Within

LengthUm = Annotated[float, Within(0, 1000)]
AreaUm2 = Annotated[float, Within(0, 10**9)]


class TissueParameters(FrozenModel):
    """Parameters of the tissue mask, in um and um², so that they mean the same on every scanner.

    Lengths are converted to the nearest odd number of mask pixels, so that no filter shifts the image.

    Args:
        spacing_um: spacing of the mask; the slide is read as close to it as whole pixels allow.
        method: "fixed" uses ``threshold``. "otsu" uses Otsu's threshold of the slide's saturation, but never a value
            below ``threshold``, so that the noise of a slide without tissue is not split into two classes.
        threshold: saturation, 0 to 255; pixels strictly above it are tissue.
        median_um: side of the square median filter of the saturation; 0 for none.
        closing_um: side of the square of the morphological closing; 0 for none.
        min_object_um2: connected tissue smaller than this area is removed; the default is a square of 100 um.
        min_hole_um2: holes smaller than this area are filled; the default is a square of 200 um.
        min_share: minimum share of tissue in a patch of the coarsest stage; patches without tissue are never read.
    """

    spacing_um: Annotated[float, Within(0.25, 100)] = 8.0
    method: Literal["otsu", "fixed"] = "fixed"
    threshold: Annotated[int, Within(0, 255)] = 8
    median_um: LengthUm = 40.0
    closing_um: LengthUm = 40.0
    min_object_um2: AreaUm2 = 10_000.0
    min_hole_um2: AreaUm2 = 40_000.0
    min_share: Annotated[float, Within(0, 1)] = 0.1
