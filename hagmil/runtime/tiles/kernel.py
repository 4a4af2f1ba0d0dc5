"""Selects the tile kernel: the compiled one if it was built, else its NumPy equivalent.

Both give the same pixels; docs/decisions/0012-tile-engine.md gives the difference in speed. The compiled kernel decodes
with the libjpeg-turbo in Pillow's wheel, which is recent, or with that of the system.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import features

from hagmil.runtime.tiles import kernel_numpy
from hagmil.runtime.tiles.filter_weights import linear_filter

_SYSTEM_LIBRARIES = ("libjpeg.so.62", "libjpeg.so.8")  # the two interfaces in use: Debian and Ubuntu

why_not_compiled: str | None = None
"""Reason why the compiled kernel is not used; None if it is used."""
try:
    from hagmil.runtime.tiles import _tile_kernel as compiled
except ImportError as error:
    why_not_compiled = f"not compiled ({error})"


def libraries() -> list[str]:
    """Return the libraries to try, in order of preference: libjpeg-turbo of Pillow, then of the system."""
    package = Path(PIL.__file__).parent
    own = [*package.parent.glob("pillow.libs/libjpeg*"), *package.glob(".dylibs/libjpeg*")]
    return [*sorted(map(str, own)), *_SYSTEM_LIBRARIES]


def open_first(paths: list[str]) -> str:
    """Let the compiled kernel use the first library that has the interface the kernel was compiled for.

    Args:
        paths: paths or names of shared libraries.

    Returns:
        The library that is used.

    Raises:
        OSError: no library is suitable.
    """
    errors = []
    for path in paths:
        try:
            compiled.open_library(path)
        except OSError as error:
            errors.append(str(error))
        else:
            return path
    raise OSError("; ".join(errors))


library: str | None = None
"""The libjpeg-turbo that the compiled kernel uses; None if that kernel is not used."""
if why_not_compiled is None:
    try:
        library = open_first(libraries())
    except OSError as error:
        why_not_compiled = f"no suitable libjpeg-turbo ({error})"
if why_not_compiled is None:
    start_patches, read_tiles = compiled.start_patches, compiled.read_tiles
else:
    start_patches, read_tiles = kernel_numpy.start_patches, kernel_numpy.read_tiles

REMEDY = "install a C compiler and the headers of libjpeg-turbo (Debian, Ubuntu: gcc, libjpeg-dev); reinstall hagmil"
"""Instructions for getting the compiled kernel."""

MAX_REDUCTION = 256
"""Side of the largest square that the compiled kernel can reduce to a pixel."""


def reduce_pixels(pixels: NDArray[np.uint8], factor: int, means: NDArray[np.uint8]) -> None:
    """Compute means of squares of pixels, rounded as in Pillow's ``Image.reduce``.

    Args:
        pixels: uint8 (height * factor, width * factor, 3).
        factor: side of the squares.
        means: uint8 (height, width, 3), contiguous; overwritten.
    """
    if why_not_compiled is None and factor <= MAX_REDUCTION:
        compiled.reduce_pixels(np.ascontiguousarray(pixels), factor, means)
    else:
        kernel_numpy.reduce_pixels(pixels, factor, means)


def resample_pixels(pixels: NDArray[np.uint8], box: tuple[float, float, float, float], out: NDArray[np.uint8]) -> None:
    """Resample a square of an image with Pillow's antialiasing linear filter.

    Args:
        pixels: uint8 (side, side, 3).
        box: left, upper, right and lower edge of the square in pixels, fractions included, within the image.
        out: uint8 (patch_px, patch_px, 3), contiguous; overwritten.
    """
    if why_not_compiled is None:
        across, down = (linear_filter(len(pixels), box[axis], box[axis + 2], len(out)) for axis in (0, 1))
        if across is not None and down is not None:
            filters = across.first, across.weights, down.first, down.weights
            compiled.resample_pixels(np.ascontiguousarray(pixels), *filters, out)
            return
    kernel_numpy.resample_pixels(pixels, box, out)


def kernel_name() -> str:
    """Return the name of the tile kernel and its JPEG decoder, for reports."""
    if library is None:
        return "NumPy, simplejpeg"
    if library in _SYSTEM_LIBRARIES:
        return f"compiled, libjpeg-turbo of the system ({library})"
    return f"compiled, libjpeg-turbo {features.version('libjpeg_turbo')} of Pillow"
