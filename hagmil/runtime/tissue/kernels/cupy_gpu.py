"""Mask kernels for NVIDIA GPUs: the array operations of the NumPy kernels, on cupy arrays.

Components come from ``cupyx.scipy.ndimage.label``, because joining runs does not suit a GPU. Each method copies its
arguments and results between host and device, as ``MaskKernels`` requires. The bands bound the memory on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagmil._nvidia.driver import find_gpus
from hagmil._optional import require
from hagmil.errors import EnvironmentLacks
from hagmil.runtime.tissue.kernels import arrays

_BAND_PX = 1 << 24
"""Pixels per band; a median of 5 by 5 needs fourteen bands, 0.25 GB."""


@dataclass(frozen=True, slots=True)
class CupyKernels:
    """Mask kernels on the arrays of one module; see ``MaskKernels`` for the methods.

    Args:
        xp: the array module: cupy, or NumPy in tests without a device.
        ndimage: the module that provides ``label`` for these arrays.
        to_host: converts an array of the module to a NumPy array.
        band_px: pixels per band.
        name: name in logs and benchmarks.
    """

    xp: Any
    ndimage: Any
    to_host: Callable[[Any], NDArray[Any]]
    band_px: int = _BAND_PX
    name: str = "cupy"

    def brightness(self, rgb: NDArray[np.uint8]) -> NDArray[np.int64]:
        """See ``MaskKernels.brightness``."""
        return self.to_host(arrays.brightest(self.xp, self.xp.asarray(rgb), self.band_px))

    def saturation(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """See ``MaskKernels.saturation``."""
        return self.to_host(arrays.saturation(self.xp, self.xp.asarray(rgb), self.band_px))

    def median(self, image: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
        """See ``MaskKernels.median``."""
        return self.to_host(arrays.median(self.xp, self.xp.asarray(image), side_px, self.band_px))

    def median_above(self, image: NDArray[np.uint8], side_px: int, threshold: int) -> NDArray[np.bool_]:
        """See ``MaskKernels.median_above``."""
        return self.to_host(arrays.median_above(self.xp, self.xp.asarray(image), side_px, threshold, self.band_px))

    def histogram(self, image: NDArray[np.uint8]) -> NDArray[np.int64]:
        """See ``MaskKernels.histogram``."""
        return self.to_host(arrays.histogram(self.xp, self.xp.asarray(image), self.band_px))

    def close(self, mask: NDArray[np.bool_], side_px: int) -> NDArray[np.bool_]:
        """See ``MaskKernels.close``."""
        return self.to_host(arrays.close(self.xp, self.xp.asarray(mask), side_px, self.band_px))

    def remove_small_objects(self, mask: NDArray[np.bool_], min_area_px: int) -> NDArray[np.bool_]:
        """See ``MaskKernels.remove_small_objects``."""
        if mask.size == 0:
            return mask.copy()
        on_device = self.xp.asarray(mask)
        labels, area = self._components(on_device, corners=True)
        return self.to_host(on_device & (area[labels] >= min_area_px))

    def fill_small_holes(self, mask: NDArray[np.bool_], min_area_px: int) -> NDArray[np.bool_]:
        """See ``MaskKernels.fill_small_holes``."""
        if mask.size == 0:
            return mask.copy()
        on_device = self.xp.asarray(mask)
        labels, area = self._components(~on_device, corners=False)
        small = area < min_area_px
        for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
            small[edge] = False  # components at the edge of the image are not enclosed
        small[0] = False  # label 0 is the mask itself
        return self.to_host(on_device | small[labels])

    def _components(self, mask: Any, *, corners: bool) -> tuple[Any, Any]:
        """Label the components: labels (height, width), 0 outside, and the area of each label (labels + 1,)."""
        reach = np.ones((3, 3), dtype=np.bool_)
        if not corners:
            reach[::2, ::2] = False
        labels, count = self.ndimage.label(mask, structure=self.xp.asarray(reach))
        return labels, self.xp.bincount(labels.reshape(-1), minlength=int(count) + 1)


def open_cupy() -> CupyKernels:
    """Return the kernels for the GPU of this machine.

    Raises:
        EnvironmentLacks: cupy is not installed, or there is no driver or GPU.
    """
    cupy = require("cupy", extra="gpu")
    try:
        find_gpus()
    except EnvironmentLacks as lack:
        raise EnvironmentLacks(
            f"tissue masks on a GPU were requested, but {lack.message}; --mask-device cpu gives the same masks",
            code=lack.code,
        ) from lack
    ndimage = require("cupyx.scipy.ndimage", extra="gpu")
    return CupyKernels(xp=cupy, ndimage=ndimage, to_host=cupy.asnumpy)
