"""Where a slide shows tissue: a mask near 8 um/px, made by arithmetic on colour alone.

1. Refuse what is not brightfield.
2. Take the saturation.
3. Median filter.
4. Threshold: fixed, or Otsu's (1979) of the filtered saturation, but never below the parameters' floor.
5. Closing by a square.
6. Drop small objects (8-connected).
7. Fill small holes (4-connected, enclosed by tissue); larger holes stay out.

What is coloured counts as tissue: also pen marks, ink on the margin, and stained debris. What has no colour
counts as glass: also black regions that were never scanned, and grey dust.
"""

from __future__ import annotations

import logging
import math

import numpy as np
from numpy.typing import NDArray

from hagmil.errors import SlideRejected
from hagmil.runtime.slides.overview import Overview
from hagmil.runtime.tissue.kernels import kernels_for
from hagmil.runtime.tissue.kernels.protocol import DARKEST_LIT, MaskKernels
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

DARKEST_BRIGHTFIELD = 80
"""The least median of the brightest channel, over lit pixels, of a brightfield slide.

Brightfield is transmitted light: glass is near 240 in all channels, and even dense haematoxylin, DAB or
Giemsa leaves 120 and more in its brightest one, averaged over a pixel of 8 um. Fluorescence is emitted light
on black: its pixels trail off towards 0, with a median of 10 to 50. Pixels below ``DARKEST_LIT`` have no say,
so that a brightfield slide with large regions that were not scanned passes, and one that is black all over
does not.
"""


def find_tissue(overview: Overview, parameters: TissueParameters, kernels: MaskKernels | None = None) -> TissueMask:
    """Make a slide's tissue mask.

    Args:
        overview: the whole slide, read near ``parameters.spacing_um``.
        parameters: what counts as tissue.
        kernels: the set of kernels that does it; by default the one that is done first. All give one mask.

    Returns:
        The mask, of the overview's shape; without any True where the slide shows glass alone.

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
    """Step 1: refuse a slide that no light shines through; see ``DARKEST_BRIGHTFIELD`` for the rule.

    Args:
        brightness: int64 (256,), how many pixels have each value of their brightest channel.
        name: the slide's, for the message.

    Raises:
        SlideRejected: it is not brightfield (``not_brightfield``).
    """
    lit = np.cumsum(np.where(np.arange(256) < DARKEST_LIT, 0, brightness))
    median = int(np.searchsorted(lit, (lit[-1] + 1) // 2))
    if median < DARKEST_BRIGHTFIELD:
        raise SlideRejected(
            f'slide "{name}" is dark, as fluorescence is: half of its lit area is at most {median} of 255 '
            f"(brightfield: {DARKEST_BRIGHTFIELD} or more); give stained slides scanned in transmitted light",
            code="not_brightfield",
        )


def segment(
    saturation: NDArray[np.uint8], spacing_um: float, parameters: TissueParameters, kernels: MaskKernels
) -> tuple[NDArray[np.bool_], int]:
    """Steps 3 to 7: from saturation to the mask.

    Args:
        saturation: uint8 (height, width).
        spacing_um: um per pixel.
        parameters: what counts as tissue.
        kernels: the set of kernels that does it.

    Returns:
        bool (height, width), and the threshold that tissue lies above.
    """
    threshold, median_px = parameters.threshold, _odd_px(parameters.median_um, spacing_um)
    if parameters.method == "otsu":
        smooth = kernels.median(saturation, median_px)  # step 3
        threshold = max(threshold, otsu_threshold(kernels.histogram(smooth)))  # step 4
        above = smooth > threshold
    else:
        above = kernels.median_above(saturation, median_px, threshold)  # steps 3 and 4, without making the median
    mask = kernels.close(above, _odd_px(parameters.closing_um, spacing_um))  # step 5
    mask = kernels.remove_small_objects(mask, _area_px(parameters.min_object_um2, spacing_um))  # step 6
    return kernels.fill_small_holes(mask, _area_px(parameters.min_hole_um2, spacing_um)), threshold  # step 7


def otsu_threshold(histogram: NDArray[np.int64]) -> int:
    """The threshold whose two classes differ most (Otsu 1979), the first of several.

    Args:
        histogram: int64 (256,).

    Returns:
        0 to 255; the upper class lies strictly above it. 0 where there are not two classes.
    """
    total = max(int(histogram.sum()), 1)
    weight = np.cumsum(histogram) / total
    moment = np.cumsum(histogram * np.arange(256)) / total
    spread = weight * (1.0 - weight)
    between = np.zeros(256)
    np.divide((moment[-1] * weight - moment) ** 2, spread, out=between, where=spread > 0.0)
    return int(np.argmax(between))


def _odd_px(length_um: float, spacing_um: float) -> int:
    """The odd number of pixels nearest to a length, the larger of two."""
    return 2 * math.floor(length_um / spacing_um / 2.0) + 1


def _area_px(area_um2: float, spacing_um: float) -> int:
    """The least number of pixels that make an area."""
    return math.ceil(area_um2 / spacing_um**2 - 1e-9)
