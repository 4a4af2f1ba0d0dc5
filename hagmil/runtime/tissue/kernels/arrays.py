"""The pixel steps of a tissue mask as array operations: NumPy's on the CPU, cupy's on a GPU.

The first argument of each function, ``xp``, is the array module whose arrays it takes and gives. Images go through in
bands of rows: ``band_px`` pixels at a time, which on a CPU stay in its cache (three to five times as fast as the image
at once) and on a GPU bound the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from hagmil.runtime.tissue.kernels.protocol import DARKEST_LIT

_FORGET_UP_TO_PX = 7
"""Medians of squares up to this side forget extremes, wider ones go bit by bit. On one core a pixel costs 16 ns against
50 at side 5, 134 against 108 at side 9."""

Array: TypeAlias = Any
"""An array of the module that is given as ``xp``."""


def saturation(xp: Any, rgb: Array, band_px: int) -> Array:
    """See ``MaskKernels.saturation``; single precision suffices, for no quotient lies nearer than 1/510 to a whole one.

    Args:
        xp: the array module.
        rgb: uint8 (height, width, 3).
        band_px: pixels that are worked on at once.

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
        xp.multiply(share.astype(xp.uint8), peak >= DARKEST_LIT, out=result[top:stop])
    return result


def brightest(xp: Any, rgb: Array, band_px: int) -> Array:
    """See ``MaskKernels.brightness``: how often each value is a pixel's brightest channel.

    Args:
        xp: the array module.
        rgb: uint8 (height, width, 3).
        band_px: pixels that are worked on at once.

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
        band_px: pixels that are worked on at once.

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
        side_px: the square's side, odd.
        band_px: pixels that are worked on at once.

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
        result[top:stop] = _middle(xp, square) if side_px <= _FORGET_UP_TO_PX else _middle_by_bits(xp, square)
    return result


def median_above(xp: Any, image: Array, side_px: int, threshold: int, band_px: int) -> Array:
    """See ``MaskKernels.median_above``: a median is above what more than half of the values are above.

    Args:
        xp: the array module.
        image: uint8 (height, width).
        side_px: the square's side, odd.
        threshold: 0 to 255.
        band_px: pixels that are worked on at once.

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
        side_px: the square's side, odd.
        band_px: pixels that are worked on at once.

    Returns:
        bool (height, width).
    """
    if side_px == 1 or mask.size == 0:
        return mask.copy()
    dilated = at_least(xp, xp.pad(mask, side_px - 1), side_px, 1, band_px)
    return at_least(xp, dilated, side_px, side_px * side_px, band_px)


def at_least(xp: Any, mask: Array, side_px: int, least: int, band_px: int) -> Array:
    """Where the square below and right of a pixel holds at least so many that are True.

    Args:
        xp: the array module.
        mask: bool (height, width), no smaller than the square.
        side_px: the square's side.
        least: how many.
        band_px: pixels that are worked on at once.

    Returns:
        bool (height - side + 1, width - side + 1).
    """
    bits = mask.astype(xp.uint8 if side_px * side_px < 256 else xp.uint32)  # no sum goes beyond its type
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
    """The median of an odd number of arrays, element by element, by forgetting extremes.

    Of more than half of the values neither the least nor the greatest is the median: both are dropped, and one value
    that was not looked at comes in, until one is left.
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
    """The same from the highest bit down: the median is at least v exactly if more than half of the values are."""
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
    """First row and row after the last of each band; the last one is shorter."""
    height, width = shape[:2]
    step = max(1, band_px // max(width, 1))
    for top in range(0, height, step):
        yield top, min(top + step, height)
