"""What a set of mask kernels must do, and the two conventions that every set shares.

All arrays are host arrays in row-major order; a set that works on another device copies inside its methods.
Any shape with two axes is valid, also without a row or a column. No method changes its argument or returns
it.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

DARKEST_LIT = 8
"""A pixel whose brightest channel is below this shows no light at all: a region that was not scanned, black
padding."""


class MaskKernels(Protocol):
    """The steps of a tissue mask that touch every pixel."""

    @property
    def name(self) -> str:
        """What logs and benchmarks call this set."""
        ...

    def brightness(self, rgb: NDArray[np.uint8]) -> NDArray[np.int64]:
        """How often each value is the brightest channel of a pixel.

        Args:
            rgb: uint8 (height, width, 3).

        Returns:
            int64 (256,).
        """
        ...

    def saturation(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Saturation of HSV, 255·(max - min)/max of the three channels, rounded half up.

        A pixel whose brightest channel is below ``DARKEST_LIT`` counts as 0: hue and saturation of black are
        the noise of its encoding, (2, 0, 1) would be fully saturated.

        Args:
            rgb: uint8 (height, width, 3).

        Returns:
            uint8 (height, width).
        """
        ...

    def median(self, image: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
        """Median over a square around each pixel; beyond the edge the edge's pixels are repeated.

        Args:
            image: uint8 (height, width).
            side_px: the square's side, odd; 1 copies.

        Returns:
            uint8 (height, width).
        """
        ...

    def median_above(self, image: NDArray[np.uint8], side_px: int, threshold: int) -> NDArray[np.bool_]:
        """Where the median over a square lies strictly above a threshold: ``median(image, side_px) > threshold``.

        It is its own step because it needs no median: that more than half of the square is above says the same.

        Args:
            image: uint8 (height, width).
            side_px: the square's side, odd.
            threshold: 0 to 255.

        Returns:
            bool (height, width).
        """
        ...

    def histogram(self, image: NDArray[np.uint8]) -> NDArray[np.int64]:
        """How often each value occurs.

        Args:
            image: uint8 (height, width).

        Returns:
            int64 (256,).
        """
        ...

    def close(self, mask: NDArray[np.bool_], side_px: int) -> NDArray[np.bool_]:
        """Morphological closing by a square: dilation, then erosion, on an endless plane that is False
        outside.

        So it only ever adds pixels, adds nothing the second time, and does not glue objects to the image's
        edge.

        Args:
            mask: bool (height, width).
            side_px: the square's side, odd; 1 copies.

        Returns:
            bool (height, width).
        """
        ...

    def remove_small_objects(self, mask: NDArray[np.bool_], min_area_px: int) -> NDArray[np.bool_]:
        """Drop True components of fewer pixels; pixels that touch at a side or a corner belong together (8).

        Args:
            mask: bool (height, width).
            min_area_px: the least number of pixels that stays.

        Returns:
            bool (height, width).
        """
        ...

    def fill_small_holes(self, mask: NDArray[np.bool_], min_area_px: int) -> NDArray[np.bool_]:
        """Fill enclosed False components of fewer pixels; only pixels that touch at a side belong together
        (4).

        What touches the image's edge is not enclosed, and stays.

        Args:
            mask: bool (height, width).
            min_area_px: the least number of pixels of a hole that stays a hole.

        Returns:
            bool (height, width).
        """
        ...
