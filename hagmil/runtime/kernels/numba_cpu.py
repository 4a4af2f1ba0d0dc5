"""The compiled set of mask kernels: one CPU core, and the interpreter's lock released for other threads.

Only what NumPy is slow at is compiled (saturation, median, joining of runs), for each kernel costs part of a
second to compile; histogram and closing are the plain set's, which run at the speed of memory as they are.
Machine code is kept in numba's cache (where ``NUMBA_CACHE_DIR`` says, else beside the module, else in the
user's cache folder), so that a second process does not compile again. A kernel compiles at its first call,
and for one kind of argument only: the methods hand over plain row-major arrays.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from hagmil.runtime.kernels.protocol import DARKEST_LIT
from hagmil.runtime.kernels.reference import ReferenceKernels
from hagmil.runtime.kernels.runs import Runs, large_objects, small_holes

_log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile a function at its first call, and keep the machine code for later processes where possible.

    Args:
        function: what numba can compile.

    Returns:
        The compiled function. Where no folder can hold the cache, as in a read-only container without a home,
        each process compiles for itself, and the log says so.
    """
    try:
        kernel: F = numba.njit(function, cache=True, nogil=True)
    except RuntimeError as error:
        _log.warning("%s; it is compiled anew in each process; NUMBA_CACHE_DIR can name a folder", error)
        kernel = numba.njit(function, nogil=True)
    return kernel


@dataclass(frozen=True, slots=True)
class NumbaKernels(ReferenceKernels):
    """Mask kernels compiled by numba; see ``MaskKernels`` for what each does."""

    name: str = "numba"

    def saturation(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Saturation of HSV, 0 to 255; 0 where there is no light."""
        result = np.empty(rgb.shape[:2], dtype=np.uint8)
        plain = np.require(rgb, requirements=("C", "W"))
        _saturation(plain.reshape(-1, 3), result.reshape(-1))  # (pixels, 3), (pixels,)
        return result

    def median(self, image: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
        """Median over a square around each pixel."""
        if side_px == 1 or image.size == 0:
            return image.copy()
        result = np.empty(image.shape, dtype=np.uint8)
        _median(np.pad(image, side_px // 2, mode="edge"), side_px, result)
        return result

    def remove_small_objects(self, mask: NDArray[np.bool_], min_area_px: int) -> NDArray[np.bool_]:
        """Drop True components of fewer pixels, 8-connected."""
        return large_objects(mask, min_area_px, join_runs)

    def fill_small_holes(self, mask: NDArray[np.bool_], min_area_px: int) -> NDArray[np.bool_]:
        """Fill enclosed False components of fewer pixels, 4-connected."""
        return mask | small_holes(mask, min_area_px, join_runs)


def join_runs(runs: Runs, reach: int) -> NDArray[np.int64]:
    """Step 3 of ``runs``, compiled.

    Args:
        runs: of one mask.
        reach: ``SIDES`` or ``CORNERS``.

    Returns:
        int64 (runs,), for each run the least index of a run of its component.
    """
    root = np.arange(runs.start.size)
    ends = np.stack([runs.start, runs.stop])  # (2, runs)
    _join(ends, runs.stride, reach, root)
    return root


@compiled
def _saturation(rgb: NDArray[np.uint8], result: NDArray[np.uint8]) -> None:
    """255·(max - min)/max, rounded half up, of (pixels, 3) into (pixels,)."""
    for pixel in range(rgb.shape[0]):
        red, green, blue = np.int32(rgb[pixel, 0]), np.int32(rgb[pixel, 1]), np.int32(rgb[pixel, 2])
        brightest = max(red, green, blue)
        if brightest < DARKEST_LIT:
            result[pixel] = 0
        else:
            spread = brightest - min(red, green, blue)
            result[pixel] = (510 * spread + brightest) // (2 * brightest)


@compiled
def _median(padded: NDArray[np.uint8], side_px: int, result: NDArray[np.uint8]) -> None:
    """The median of each window of ``padded``, from a histogram that slides along the row (Huang 1979)."""
    height, width = result.shape
    middle = side_px * side_px // 2
    counts = np.empty(256, dtype=np.int32)
    for y in range(height):
        counts[:] = 0
        for row in range(y, y + side_px):
            for column in range(side_px):
                counts[padded[row, column]] += 1
        value = 0
        below = 0  # how many pixels of the window are less than value
        for x in range(width):
            if x > 0:
                for row in range(y, y + side_px):
                    gone = padded[row, x - 1]
                    come = padded[row, x + side_px - 1]
                    counts[gone] -= 1
                    counts[come] += 1
                    below += int(come < value) - int(gone < value)
            while below > middle:
                value -= 1
                below -= counts[value]
            while below + counts[value] <= middle:
                below += counts[value]
                value += 1
            result[y, x] = value


@compiled
def _join(ends: NDArray[np.int64], stride: int, reach: int, root: NDArray[np.int64]) -> None:
    """Union-find over runs, ``root`` being its own index for each at first; smaller indices become roots."""
    first = 0
    for run in range(root.size):
        left, right = ends[0, run] - stride - reach, ends[1, run] - stride + reach
        while ends[1, first] <= left:  # ends at the latest at the run itself
            first += 1
        other = first
        while ends[0, other] < right:  # ends at the latest at the run itself
            one, two = run, other
            while root[one] != one:
                root[one] = root[root[one]]
                one = root[one]
            while root[two] != two:
                root[two] = root[root[two]]
                two = root[two]
            root[max(one, two)] = min(one, two)
            other += 1
    for run in range(root.size):
        root[run] = root[root[run]]  # roots come before what hangs on them
