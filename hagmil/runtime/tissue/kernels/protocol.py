"""Protocol of the mask kernels.

All arrays are host arrays in row-major order; kernels for another device copy inside their methods. Every shape with
two axes is valid, including shapes with no rows or no columns. No method modifies its argument or returns it.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

MIN_LIT_BRIGHTNESS = 8
"""Minimum of the brightest channel of a pixel that received light; darker pixels are unscanned regions or padding."""


class MaskKernels(Protocol):
    """The pixel operations of a tissue mask."""

    @property
    def name(self) -> str:
        """Name in logs and benchmarks."""
        ...

    def brightness(self, rgb: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the histogram of the brightest channel of each pixel.

        Args:
            rgb: uint8 (height, width, 3).

        Returns:
            int64 (256,).
        """
        ...

    def saturation(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the HSV saturation, 255·(max - min)/max of the three channels, rounded half up.

        It is 0 for a pixel whose brightest channel is below ``MIN_LIT_BRIGHTNESS``, because the saturation of black is
        noise of the encoding: (2, 0, 1) would be fully saturated.

        Args:
            rgb: uint8 (height, width, 3).

        Returns:
            uint8 (height, width).
        """
        ...

    def median(self, image: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
        """Return the median over a square around each pixel; pixels at the edge are repeated beyond it.

        Args:
            image: uint8 (height, width).
            side_px: side of the square, odd; 1 copies the image.

        Returns:
            uint8 (height, width).
        """
        ...

    def median_above(self, image: NDArray[np.uint8], side_px: int, threshold: int) -> NDArray[np.bool_]:
        """Return ``median(image, side_px) > threshold``.

        This is faster than the median itself: the median is above the threshold if more than half of the pixels are.

        Args:
            image: uint8 (height, width).
            side_px: side of the square, odd.
            threshold: 0 to 255.

        Returns:
            bool (height, width).
        """
        ...

    def histogram(self, image: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the histogram.

        Args:
            image: uint8 (height, width).

        Returns:
            int64 (256,).
        """
        ...

    def close(self, mask: NDArray[np.bool_], side_px: int) -> NDArray[np.bool_]:
        """Close by a square: dilation, then erosion, on an infinite plane that is False outside the image.

        Closing only adds pixels, is idempotent, and does not connect objects to the edge of the image.

        Args:
            mask: bool (height, width).
            side_px: side of the square, odd; 1 copies the image.

        Returns:
            bool (height, width).
        """
        ...

    def remove_small_objects(self, mask: NDArray[np.bool_], min_area_px: int) -> NDArray[np.bool_]:
        """Remove 8-connected True components that are smaller than ``min_area_px``.

        Args:
            mask: bool (height, width).
            min_area_px: minimum number of pixels of a component that is kept.

        Returns:
            bool (height, width).
        """
        ...

    def fill_small_holes(self, mask: NDArray[np.bool_], min_area_px: int) -> NDArray[np.bool_]:
        """Fill enclosed 4-connected False components that are smaller than ``min_area_px``.

        Components that touch the edge of the image are not enclosed, and remain.

        Args:
            mask: bool (height, width).
            min_area_px: minimum number of pixels of a hole that is not filled.

        Returns:
            bool (height, width).
        """
        ...
