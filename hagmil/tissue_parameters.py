"""What the tissue mask is made with; part of a bundle's manifest and of a feature file's header."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class TissueParameters(BaseModel):
    """How tissue is told from glass; lengths in um, areas in um², so that they mean the same on every
    scanner.

    Lengths become the nearest odd number of the mask's pixels, so that no filter shifts the image.

    Args:
        spacing_um: the spacing that the mask is wanted at; the slide is read as near to it as whole pixels
            allow.
        method: "fixed" takes ``threshold`` as it is. "otsu" takes Otsu's threshold of the slide's own
            saturation, but never one below ``threshold``, so that the noise of an all-glass slide is not
            split into two classes.
        threshold: saturation, 0 to 255; tissue is what lies strictly above it.
        median_um: side of the square median filter over saturation; 0 for none.
        closing_um: side of the square that closes gaps; 0 for none.
        min_object_um2: connected tissue smaller than this is dropped; the default is a square of 100 um.
        min_hole_um2: holes smaller than this are filled, others are kept out; the default is a square of 200
            um.
        min_share: the share of a coarse patch that must be tissue for it to be read; a patch without any
            never is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spacing_um: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 8.0
    method: Literal["otsu", "fixed"] = "fixed"
    threshold: Annotated[int, Field(ge=0, le=255)] = 8
    median_um: NotNegative = 40.0
    closing_um: NotNegative = 40.0
    min_object_um2: NotNegative = 10_000.0
    min_hole_um2: NotNegative = 40_000.0
    min_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
