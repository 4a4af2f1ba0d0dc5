"""The pixel operations of a tissue mask as array operations, for NumPy on the CPU and cupy on a GPU.

The first argument of each function, ``xp``, is the array module of its arguments and results. Images are processed in
bands of rows, ``band_px`` pixels at a time. On a CPU a band fits into the cache (three to five times as fast as
processing the whole image at once); on a GPU the bands bound the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from hagmil.runtime.tissue.kernels.protocol import MIN_LIT_BRIGHTNESS

_MAX_EXTREMES_PX = 7
"""Largest side of a median square for which extremes are removed; larger medians are computed bit by bit. On one core
the two methods take 16 and 50 ns per pixel at side 5, and 134 and 108 ns at side 9."""

Array: TypeAlias = Any
"""An array of the module ``xp``."""


def saturation(xp: Any, rgb: Array, band_px: int) -> Array:
    """See ``MaskKernels.saturation``. Single precision is exact: other quotients are at least 1/510 from an integer.

    Args:
        xp: the array module.
        rgb: uint8 (height, width, 3).
        band_px: pixels per band.

    Returns:
        uint8 (height, width).
    """
    result = xp.empty(rgb.shape[:2], dtype=xp.uint8)
    for top, stop in _bands(rgb.shape, band_px):
        red, green, blue = (xp.ascontiguousarray(rgb[top:stop, :, channel]) for channel in range(3))
        peak = xp.maximum(xp.maximum(red, green), blue)
        share = (peak - xp.minimum(xp.minimum(red, green), blue)).astype(xp.float32)
        share *= 510
        share += peak
        share /= 2 * xp.maximum(peak, 1).astype(xp.float32)
        xp.multiply(share.astype(xp.uint8), peak >= MIN_LIT_BRIGHTNESS, out=result[top:stop])
    return result


def brightest(xp: Any, rgb: Array, band_px: int) -> Array:
    """See ``MaskKernels.brightness``.

    Args:
        xp: the array module.
        rgb: uint8 (height, width, 3).
        band_px: pixels per band.

    Returns:
        int64 (256,).
    """
    counts = xp.zeros(256, dtype=xp.int64)
    for top, stop in _bands(rgb.shape, band_px):
        part = rgb[top:stop]
        counts += _counted(xp, xp.maximum(xp.maximum(part[..., 0], part[..., 1]), part[..., 2]))
    return counts


def histogram(xp: Any, image: Array, band_px: int) -> Array:
    """See ``MaskKernels.histogram``.

    Args:
        xp: the array module.
        image: uint8 (height, width).
        band_px: pixels per band.

    Returns:
        int64 (256,).
    """
    counts = xp.zeros(256, dtype=xp.int64)
    for top, stop in _bands(image.shape, band_px):
        counts += _counted(xp, image[top:stop])
    return counts


def median(xp: Any, image: Array, side_px: int, band_px: int) -> Array:
    """See ``MaskKernels.median``.

    Args:
        xp: the array module.
        image: uint8 (height, width).
        side_px: side of the square, odd.
        band_px: pixels per band.

    Returns:
        uint8 (height, width).
    """
    if side_px == 1 or image.size == 0:
        return image.copy()
    width = image.shape[1]
    padded = xp.pad(image, side_px // 2, mode="edge")
    result = xp.empty_like(image)
    for top, stop in _bands(image.shape, band_px):
        square = [
            padded[top + down : stop + down, right : right + width]
            for down in range(side_px)
            for right in range(side_px)
        ]
        result[top:stop] = _middle(xp, square) if side_px <= _MAX_EXTREMES_PX else _middle_by_bits(xp, square)
    return result


def median_above(xp: Any, image: Array, side_px: int, threshold: int, band_px: int) -> Array:
    """See ``MaskKernels.median_above``. A median is above a threshold if more than half of the values are.

    Args:
        xp: the array module.
        image: uint8 (height, width).
        side_px: side of the square, odd.
        threshold: 0 to 255.
        band_px: pixels per band.

    Returns:
        bool (height, width).
    """
    above = image > threshold
    if side_px == 1 or image.size == 0:
        return above
    return at_least(xp, xp.pad(above, side_px // 2, mode="edge"), side_px, side_px * side_px // 2 + 1, band_px)


def close(xp: Any, mask: Array, side_px: int, band_px: int) -> Array:
    """See ``MaskKernels.close``.

    Args:
        xp: the array module.
        mask: bool (height, width).
        side_px: side of the square, odd.
        band_px: pixels per band.

    Returns:
        bool (height, width).
    """
    if side_px == 1 or mask.size == 0:
        return mask.copy()
    dilated = at_least(xp, xp.pad(mask, side_px - 1), side_px, 1, band_px)
    return at_least(xp, dilated, side_px, side_px * side_px, band_px)


def at_least(xp: Any, mask: Array, side_px: int, least: int, band_px: int) -> Array:
    """Return where a square, given by its top-left corner, contains at least ``least`` True pixels.

    Args:
        xp: the array module.
        mask: bool (height, width), at least as large as the square.
        side_px: side of the square.
        least: minimum number of True pixels.
        band_px: pixels per band.

    Returns:
        bool (height - side + 1, width - side + 1).
    """
    bits = mask.astype(xp.uint8 if side_px * side_px < 256 else xp.uint32)  # the type holds the largest sum
    height, width = mask.shape[0] - side_px + 1, mask.shape[1] - side_px + 1
    result = xp.empty((height, width), dtype=xp.bool_)
    for top, stop in _bands(result.shape, band_px):
        rows = bits[top:stop].copy()
        for offset in range(1, side_px):
            rows += bits[top + offset : stop + offset]
        count = rows[:, :width].copy()
        for offset in range(1, side_px):
            count += rows[:, offset : offset + width]
        result[top:stop] = count >= least
    return result


def _middle(xp: Any, values: list[Array]) -> Array:
    """Element-wise median of an odd number of arrays, by removing extremes.

    Neither the minimum nor the maximum of more than half of the values is the median. Both are removed and the next
    value is added, until one value is left.
    """
    kept = values[: len(values) // 2 + 2]
    for coming in [*values[len(kept) :], None]:
        last = len(kept) - 1
        for one in range(len(kept) // 2):
            _exchange(xp, kept, one, last - one)
        for one in range(1, (len(kept) + 1) // 2):
            _exchange(xp, kept, 0, one)
        for one in range(len(kept) // 2, last):
            _exchange(xp, kept, one, last)
        kept = kept[1:-1] if coming is None else [*kept[1:-1], coming]
    return kept[0]


def _middle_by_bits(xp: Any, values: list[Array]) -> Array:
    """Element-wise median, from the highest bit down: the median is at least v if more than half of the values are."""
    found = xp.zeros(values[0].shape, dtype=xp.uint8)
    for bit in (128, 64, 32, 16, 8, 4, 2, 1):
        candidate = found | bit
        count = xp.zeros(found.shape, dtype=xp.uint8 if len(values) < 256 else xp.uint32)
        for value in values:
            count += value >= candidate
        found = xp.where(count > len(values) // 2, candidate, found)
    return found


def _exchange(xp: Any, values: list[Array], low: int, high: int) -> None:
    one, other = values[low], values[high]
    values[low], values[high] = xp.minimum(one, other), xp.maximum(one, other)


def _counted(xp: Any, part: Array) -> Array:
    return xp.bincount(part.reshape(-1).astype(xp.int64), minlength=256)


def _bands(shape: tuple[int, ...], band_px: int) -> Iterator[tuple[int, int]]:
    """First row, and row after the last, of each band; the last band may be shorter."""
    height, width = shape[:2]
    step = max(1, band_px // max(width, 1))
    for top in range(0, height, step):
        yield top, min(top + step, height)
