"""Tissue mask of a slide near 8 um/px, from colour only.

1. Reject slides that are not brightfield.
2. Compute the saturation.
3. Apply a median filter.
4. Apply a threshold: fixed, or Otsu's (1979) of the filtered saturation, but never below the minimum in the parameters.
5. Close by a square.
6. Remove small objects (8-connected).
7. Fill small holes (4-connected, enclosed by tissue). Larger holes remain.

Coloured pixels count as tissue, including pen marks, ink on the margin and stained debris. Pixels without colour count
as glass, including black regions that were not scanned and grey dust.
"""

from __future__ import annotations

import logging
import math

import numpy as np
from numpy.typing import NDArray

from hagmil.errors import SlideRejected
from hagmil.runtime.slides.overview import Overview
from hagmil.runtime.tissue.kernels import kernels_for
from hagmil.runtime.tissue.kernels.protocol import MIN_LIT_BRIGHTNESS, MaskKernels
from hagmil.runtime.tissue.mask import TissueMask
from hagmil.tissue_parameters import TissueParameters

__all__ = [
    "TissueMask",
    "find_tissue",
    "otsu_threshold",
    "require_brightfield",
    "segment",
]

_log = logging.getLogger(__name__)

MIN_BRIGHTFIELD_MEDIAN = 80
"""Minimum of the median brightness of a brightfield slide: the brightest channel, over pixels that are not black.

Brightfield is transmitted light. Glass is near 240 in all channels, and even dense haematoxylin, DAB or Giemsa leaves
at least 120 in the brightest channel, averaged over a pixel of 8 um. Fluorescence is emitted light on black: most
pixels are near 0, and their median is 10 to 50. Pixels below ``MIN_LIT_BRIGHTNESS`` are not counted, so that a
brightfield slide with large unscanned regions is accepted, and an entirely black slide is rejected.
"""


def find_tissue(overview: Overview, parameters: TissueParameters, kernels: MaskKernels | None = None) -> TissueMask:
    """Compute the tissue mask of a slide.

    Args:
        overview: the whole slide, read near ``parameters.spacing_um``.
        parameters: parameters of the mask.
        kernels: kernels to use; by default those of ``kernels_for``. All kernels give the same mask.

    Returns:
        The mask, with the shape of the overview. It is entirely False if the slide shows only glass.

    Raises:
        SlideRejected: the slide is not brightfield (``not_brightfield``).
    """
    rows, columns, _ = overview.pixels.shape
    if kernels is None:
        kernels = kernels_for(rows * columns)
    require_brightfield(kernels.brightness(overview.pixels), overview.slide_name)  # step 1
    saturation = kernels.saturation(overview.pixels)  # step 2
    mask, threshold = segment(saturation, overview.spacing_um, parameters, kernels)
    _log.info(
        'slide "%s": mask of %d x %d at %.3g um/px, tissue above %d, %.3g of it tissue (%s kernels)',
        *(overview.slide_name, columns, rows, overview.spacing_um, threshold, mask.mean(), kernels.name),
    )
    return TissueMask(
        mask=mask,
        column_edges=overview.column_edges,
        row_edges=overview.row_edges,
        downsample=overview.downsample,
        spacing_um=overview.spacing_um,
        threshold=threshold,
    )


def require_brightfield(brightness: NDArray[np.int64], name: str) -> None:
    """Reject a slide that is not brightfield (step 1); see ``MIN_BRIGHTFIELD_MEDIAN``.

    Args:
        brightness: int64 (256,), histogram of the brightest channel of each pixel.
        name: name of the slide, for the message.

    Raises:
        SlideRejected: the slide is not brightfield (``not_brightfield``).
    """
    lit = np.cumsum(np.where(np.arange(256) < MIN_LIT_BRIGHTNESS, 0, brightness))
    median = int(np.searchsorted(lit, (lit[-1] + 1) // 2))
    if median < MIN_BRIGHTFIELD_MEDIAN:
        raise SlideRejected(
            f'slide "{name}" is not a brightfield slide: its median brightness is {median} of 255, as in fluorescence '
            f"(brightfield: {MIN_BRIGHTFIELD_MEDIAN} or more); use stained slides scanned in transmitted light",
            code="not_brightfield",
        )


def segment(
    saturation: NDArray[np.uint8], spacing_um: float, parameters: TissueParameters, kernels: MaskKernels
) -> tuple[NDArray[np.bool_], int]:
    """Compute the mask from the saturation (steps 3 to 7).

    Args:
        saturation: uint8 (height, width).
        spacing_um: um per pixel.
        parameters: parameters of the mask.
        kernels: kernels to use.

    Returns:
        The mask, bool (height, width), and the threshold; saturation strictly above it is tissue.
    """
    threshold, median_px = parameters.threshold, _odd_px(parameters.median_um, spacing_um)
    if parameters.method == "otsu":
        smooth = kernels.median(saturation, median_px)  # step 3
        threshold = max(threshold, otsu_threshold(kernels.histogram(smooth)))  # step 4
        above = smooth > threshold
    else:
        above = kernels.median_above(saturation, median_px, threshold)  # steps 3 and 4, without computing the median
    mask = kernels.close(above, _odd_px(parameters.closing_um, spacing_um))  # step 5
    mask = kernels.remove_small_objects(mask, _area_px(parameters.min_object_um2, spacing_um))  # step 6
    return kernels.fill_small_holes(mask, _area_px(parameters.min_hole_um2, spacing_um)), threshold  # step 7


def otsu_threshold(histogram: NDArray[np.int64]) -> int:
    """Return the threshold that maximises the variance between two classes (Otsu 1979); the lowest one if tied.

    Args:
        histogram: int64 (256,).

    Returns:
        0 to 255; the upper class is strictly above it. 0 if there are not two classes.
    """
    total = max(int(histogram.sum()), 1)
    weight = np.cumsum(histogram) / total
    moment = np.cumsum(histogram * np.arange(256)) / total
    spread = weight * (1.0 - weight)
    between = np.zeros(256)
    np.divide((moment[-1] * weight - moment) ** 2, spread, out=between, where=spread > 0.0)
    return int(np.argmax(between))


def _odd_px(length_um: float, spacing_um: float) -> int:
    """Nearest odd number of pixels; the larger one if two are equally near."""
    return 2 * math.floor(length_um / spacing_um / 2.0) + 1


def _area_px(area_um2: float, spacing_um: float) -> int:
    """Minimum number of pixels that cover an area."""
    return math.ceil(area_um2 / spacing_um**2 - 1e-9)
