"""Mask kernels compiled by numba, which use all CPU cores and release the GIL.

A kernel processes one band of rows, and a thread pool processes the bands. numba's parallel loops would do the same,
but compile three times as slowly, use spin waits that are slow when cores are busy, and not all of their threading
layers support concurrent calls (docs/decisions/0011-masks.md). Each pixel is written by one band and counts are
integers, so the result does not depend on the number of threads.

The machine code is stored in numba's cache (``NUMBA_CACHE_DIR``, else the folder of the module, else the user's cache
folder), so that a second process does not compile again. A kernel is compiled at its first call, for one type of
arguments: the methods pass row-major arrays.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from hagmil.runtime.tissue.kernels.protocol import MIN_LIT_BRIGHTNESS
from hagmil.runtime.tissue.kernels.reference import ReferenceKernels
from hagmil.runtime.tissue.kernels.runs import Runs, large_objects, small_holes

_log = logging.getLogger(__name__)
_BAND_PX = 1 << 18
"""Pixels per band of rows: large enough for the overhead of a call, small enough to balance the threads."""

_WIDEST_COUNTED_PX = 255
"""Side of the largest square whose pixels can be counted in 16 bits."""

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile a function at its first call, and store the machine code for later processes if possible.

    Args:
        function: a function that numba can compile.

    Returns:
        The compiled function. If no folder is writable, as in a read-only container without a home folder, each
        process compiles it again, and a warning is logged.
    """
    try:
        kernel: F = numba.njit(function, cache=True, nogil=True)
    except RuntimeError as error:
        _log.warning("%s; it is compiled again in each process; set NUMBA_CACHE_DIR to a writable folder", error)
        kernel = numba.njit(function, nogil=True)
    return kernel


@dataclass(frozen=True, slots=True)
class NumbaKernels(ReferenceKernels):
    """Mask kernels compiled by numba; see ``MaskKernels`` for the methods.

    Args:
        name: name in logs and benchmarks.
        threads: number of threads; by default the number of cores that the process may use.
    """

    name: str = "numba"
    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))

    def brightness(self, rgb: NDArray[np.uint8]) -> NDArray[np.int64]:
        """See ``MaskKernels.brightness``."""
        image = _row_major(rgb)
        counts = np.zeros((rgb.shape[0], 256), dtype=np.int64)  # each band counts in its first row
        self._over_bands(rgb.shape, lambda top, stop: _brightness(image[top:stop], counts[top]))
        total: NDArray[np.int64] = counts.sum(axis=0)
        return total

    def saturation(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """See ``MaskKernels.saturation``."""
        image, result = _row_major(rgb), np.empty(rgb.shape[:2], dtype=np.uint8)
        self._over_bands(rgb.shape, lambda top, stop: _saturation(image[top:stop], result[top:stop]))
        return result

    def median(self, image: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
        """See ``MaskKernels.median``."""
        if side_px == 1 or image.size == 0:
            return image.copy()
        if side_px > _WIDEST_COUNTED_PX:
            return ReferenceKernels().median(image, side_px)
        padded, result = np.pad(image, side_px // 2, mode="edge"), np.empty(image.shape, dtype=np.uint8)
        self._over_bands(
            image.shape,
            lambda top, stop: _median(padded[top : stop + side_px - 1], side_px, result[top:stop]),
        )
        return result

    def median_above(self, image: NDArray[np.uint8], side_px: int, threshold: int) -> NDArray[np.bool_]:
        """See ``MaskKernels.median_above``."""
        if side_px == 1 or image.size == 0:
            return image > threshold
        above = np.pad(image > threshold, side_px // 2, mode="edge")
        return self._at_least(above, side_px, side_px * side_px // 2 + 1)

    def close(self, mask: NDArray[np.bool_], side_px: int) -> NDArray[np.bool_]:
        """See ``MaskKernels.close``."""
        if side_px == 1 or mask.size == 0:
            return mask.copy()
        dilated = self._at_least(np.pad(mask, side_px - 1), side_px, 1)
        return self._at_least(dilated, side_px, side_px * side_px)

    def remove_small_objects(self, mask: NDArray[np.bool_], min_area_px: int) -> NDArray[np.bool_]:
        """See ``MaskKernels.remove_small_objects``."""
        return large_objects(mask, min_area_px, join_runs)

    def fill_small_holes(self, mask: NDArray[np.bool_], min_area_px: int) -> NDArray[np.bool_]:
        """See ``MaskKernels.fill_small_holes``."""
        return mask | small_holes(mask, min_area_px, join_runs)

    def _at_least(self, mask: NDArray[np.bool_], side_px: int, least: int) -> NDArray[np.bool_]:
        """Return where a square, given by its top-left corner, has at least ``least`` True pixels."""
        result = np.empty((mask.shape[0] - side_px + 1, mask.shape[1] - side_px + 1), dtype=np.bool_)
        self._over_bands(
            result.shape,
            lambda top, stop: _at_least(mask[top : stop + side_px - 1], side_px, least, result[top:stop]),
        )
        return result

    def _over_bands(self, shape: tuple[int, ...], work: Callable[[int, int], None]) -> None:
        """Call ``work`` for each band, with its first row and the row after its last."""
        height, width = shape[:2]
        step = max(1, _BAND_PX // max(width, 1))
        tops = range(0, height, step)
        with ThreadPoolExecutor(self.threads) as threads:
            for _ in threads.map(lambda top: work(top, min(top + step, height)), tops):
                pass  # raises the error of a band


def join_runs(runs: Runs, reach: int) -> NDArray[np.int64]:
    """Join runs (step 3 of ``runs``).

    Args:
        runs: the runs of a mask.
        reach: ``SIDES`` or ``CORNERS``.

    Returns:
        int64 (runs,), for each run the smallest index of a run in its component.
    """
    root = np.arange(runs.start.size)
    ends = np.stack([runs.start, runs.stop])  # (2, runs)
    _join(ends, runs.stride, reach, root)
    return root


def _row_major(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a row-major, writeable array, the only type that the kernels are compiled for."""
    return np.require(array, requirements=("C", "W"))


@compiled
def _brightness(rgb: NDArray[np.uint8], counts: NDArray[np.int64]) -> None:
    """Count the brightest channel of (height, width, 3) into (256,)."""
    for row in rgb:
        for x in range(row.shape[0]):
            counts[max(row[x, 0], row[x, 1], row[x, 2])] += 1


@compiled
def _saturation(rgb: NDArray[np.uint8], result: NDArray[np.uint8]) -> None:
    """255·(max - min)/max, rounded half up, of (height, width, 3) into (height, width)."""
    for y in range(rgb.shape[0]):
        row, line = rgb[y], result[y]
        for x in range(row.shape[0]):
            red, green, blue = row[x, 0], row[x, 1], row[x, 2]
            peak = np.float32(max(red, green, blue))
            spread = peak - np.float32(min(red, green, blue))
            share = (np.float32(510) * spread + peak) / (np.float32(2) * max(peak, np.float32(1)))
            line[x] = np.uint8(share) if peak >= MIN_LIT_BRIGHTNESS else 0


@compiled
def _median(padded: NDArray[np.uint8], side_px: int, result: NDArray[np.uint8]) -> None:
    """Median of each window of ``padded``, row by row and bit by bit: it is at least v if more than half are."""
    height, width = result.shape
    middle = side_px * side_px // 2
    candidate = np.empty(width, dtype=np.uint8)
    counts = np.empty(width, dtype=np.uint16)  # small types, so that the loops are vectorised
    for y in range(height):
        found = result[y]
        found[:] = 0
        for bit in range(7, -1, -1):
            for x in range(width):
                candidate[x] = found[x] | np.uint8(1 << bit)
                counts[x] = 0
            for down in range(side_px):
                for right in range(side_px):
                    line = padded[y + down, right : right + width]
                    for x in range(width):
                        counts[x] += np.uint16(line[x] >= candidate[x])
            for x in range(width):
                if counts[x] > middle:
                    found[x] = candidate[x]


@compiled
def _at_least(mask: NDArray[np.bool_], side_px: int, least: int, result: NDArray[np.bool_]) -> None:
    """Whether each square of ``mask`` has at least ``least`` True pixels, from running sums of columns."""
    height, width = result.shape
    columns = np.zeros(width + side_px - 1, dtype=np.int32)
    for y in range(side_px - 1):
        line = mask[y]
        for x in range(columns.size):
            columns[x] += line[x]
    for y in range(height):
        added, removed, row = mask[y + side_px - 1], mask[y], result[y]
        for x in range(columns.size):
            columns[x] += added[x]
        count = 0
        for x in range(side_px - 1):
            count += columns[x]
        for x in range(width):
            count += columns[x + side_px - 1]
            row[x] = count >= least
            count -= columns[x]
        for x in range(columns.size):
            columns[x] -= removed[x]


@compiled
def _join(ends: NDArray[np.int64], stride: int, reach: int, root: NDArray[np.int64]) -> None:
    """Union-find over runs. ``root`` is initially the index of each run; smaller indices become roots."""
    first = 0
    for run in range(root.size):
        left, right = ends[0, run] - stride - reach, ends[1, run] - stride + reach
        while ends[1, first] <= left:  # stops at the run itself at the latest
            first += 1
        other = first
        while ends[0, other] < right:  # stops at the run itself at the latest
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
        root[run] = root[root[run]]  # a root precedes its members
