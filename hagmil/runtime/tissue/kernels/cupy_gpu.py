"""The set of mask kernels on an NVIDIA GPU: the plain set's array operations on cupy's arrays.

Components come from ``cupyx.scipy.ndimage.label``, for joining runs is no work for a GPU. Arrays come and go through
the host with every step, as ``MaskKernels`` says; the bands bound what the device must hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagmil._optional import require
from hagmil.errors import EnvironmentLacks
from hagmil.runtime.tissue.kernels import arrays

_BAND_PX = 1 << 24
"""Pixels of a band: a median of 5 by 5 holds fourteen bands, 0.25 GB."""


@dataclass(frozen=True, slots=True)
class CupyKernels:
    """Mask kernels on the arrays of one module; see ``MaskKernels`` for what each does.

    Args:
        xp: the array module: cupy, or NumPy where its logic is tested without a device.
        ndimage: the module of ``label`` for these arrays.
        to_host: from an array of the module to NumPy's.
        band_px: pixels that are worked on at once.
        name: what logs and benchmarks call this set.
    """

    xp: Any
    ndimage: Any
    to_host: Callable[[Any], NDArray[Any]]
    band_px: int = _BAND_PX
    name: str = "cupy"

    def brightness(self, rgb: NDArray[np.uint8]) -> NDArray[np.int64]:
        """How often each value is a pixel's brightest channel."""
        return self.to_host(arrays.brightest(self.xp, self.xp.asarray(rgb), self.band_px))

    def saturation(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Saturation of HSV, 0 to 255; 0 where there is no light."""
        return self.to_host(arrays.saturation(self.xp, self.xp.asarray(rgb), self.band_px))

    def median(self, image: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
        """Median over a square around each pixel."""
        return self.to_host(arrays.median(self.xp, self.xp.asarray(image), side_px, self.band_px))

    def median_above(self, image: NDArray[np.uint8], side_px: int, threshold: int) -> NDArray[np.bool_]:
        """Where the median over a square is above a threshold."""
        return self.to_host(arrays.median_above(self.xp, self.xp.asarray(image), side_px, threshold, self.band_px))

    def histogram(self, image: NDArray[np.uint8]) -> NDArray[np.int64]:
        """How often each value occurs."""
        return self.to_host(arrays.histogram(self.xp, self.xp.asarray(image), self.band_px))

    def close(self, mask: NDArray[np.bool_], side_px: int) -> NDArray[np.bool_]:
        """Morphological closing by a square."""
        return self.to_host(arrays.close(self.xp, self.xp.asarray(mask), side_px, self.band_px))

    def remove_small_objects(self, mask: NDArray[np.bool_], min_area_px: int) -> NDArray[np.bool_]:
        """Drop True components of fewer pixels, 8-connected."""
        if mask.size == 0:
            return mask.copy()
        on_device = self.xp.asarray(mask)
        labels, area = self._components(on_device, corners=True)
        return self.to_host(on_device & (area[labels] >= min_area_px))

    def fill_small_holes(self, mask: NDArray[np.bool_], min_area_px: int) -> NDArray[np.bool_]:
        """Fill enclosed False components of fewer pixels, 4-connected."""
        if mask.size == 0:
            return mask.copy()
        on_device = self.xp.asarray(mask)
        labels, area = self._components(~on_device, corners=False)
        small = area < min_area_px
        for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
            small[edge] = False  # what touches the image's edge is not enclosed
        small[0] = False  # label 0 is the mask itself
        return self.to_host(on_device | small[labels])

    def _components(self, mask: Any, *, corners: bool) -> tuple[Any, Any]:
        """Labels from 1, 0 outside (height, width), and each label's area (labels + 1,)."""
        reach = np.ones((3, 3), dtype=np.bool_)
        if not corners:
            reach[::2, ::2] = False
        labels, count = self.ndimage.label(mask, structure=self.xp.asarray(reach))
        return labels, self.xp.bincount(labels.reshape(-1), minlength=int(count) + 1)


def open_cupy() -> CupyKernels:
    """The set on this machine's GPU.

    Raises:
        EnvironmentLacks: cupy is not installed (``package_missing``), or there is no GPU that it can use
            (``mask_device_missing``).
    """
    cupy = require("cupy", extra="gpu")
    try:
        devices = int(cupy.cuda.runtime.getDeviceCount())
    except (RuntimeError, ImportError, OSError) as error:  # cupy's CUDARuntimeError is a RuntimeError
        raise _no_device(str(error)) from error
    if devices == 0:
        raise _no_device("no device is visible")
    ndimage = require("cupyx.scipy.ndimage", extra="gpu")
    return CupyKernels(xp=cupy, ndimage=ndimage, to_host=cupy.asnumpy)


def _no_device(why: str) -> EnvironmentLacks:
    return EnvironmentLacks(
        f"tissue masks were asked for on a GPU, but cupy finds none here ({why}); "
        "hagmil doctor tells more; --mask-device cpu makes the same masks",
        code="mask_device_missing",
    )
