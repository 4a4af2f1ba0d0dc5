"""Which tile kernel is used, and which libjpeg-turbo: the compiled one where it was built, else its plain twin.

Both give the same pixels; docs/decisions/0012-tile-engine.md says what the compiled one saves. It decodes by the
libjpeg-turbo that lies in Pillow's wheel, which is a new one, or else by the system's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import features

from hagmil.runtime.tiles import kernel_numpy
from hagmil.runtime.tiles.filter_weights import linear_filter

_SYSTEM_LIBRARIES = ("libjpeg.so.62", "libjpeg.so.8")  # of the two interfaces in use: Debian's and Ubuntu's

why_not_compiled: str | None = None
"""Why the compiled kernel is not used; None where it is."""
try:
    from hagmil.runtime.tiles import _tile_kernel as compiled
except ImportError as error:
    why_not_compiled = f"not compiled ({error})"


def libraries() -> list[str]:
    """Where libjpeg-turbo may be, the one to be preferred first: Pillow's own, then the system's."""
    package = Path(PIL.__file__).parent
    own = [*package.parent.glob("pillow.libs/libjpeg*"), *package.glob(".dylibs/libjpeg*")]
    return [*sorted(map(str, own)), *_SYSTEM_LIBRARIES]


def open_first(paths: list[str]) -> str:
    """Have the compiled kernel decode by the first of some libraries that has the interface it was compiled for.

    Args:
        paths: of shared libraries, or their names.

    Returns:
        The one that was taken.

    Raises:
        OSError: none will do.
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
"""The libjpeg-turbo of the compiled kernel, where that is used."""
if why_not_compiled is None:
    try:
        library = open_first(libraries())
    except OSError as error:
        why_not_compiled = f"no libjpeg-turbo for it ({error})"
if why_not_compiled is None:
    start_patches, read_tiles = compiled.start_patches, compiled.read_tiles
else:
    start_patches, read_tiles = kernel_numpy.start_patches, kernel_numpy.read_tiles

REMEDY = "install a C compiler and libjpeg-turbo's headers (Debian, Ubuntu: gcc, libjpeg-dev), then hagmil once more"
"""How to get the compiled kernel."""

MAX_REDUCTION = 256
"""Side of the largest square that the compiled kernel reduces to a pixel."""


def reduce_pixels(pixels: NDArray[np.uint8], factor: int, means: NDArray[np.uint8]) -> None:
    """Means of squares of pixels, rounded as Pillow rounds them.

    Args:
        pixels: uint8 (height * factor, width * factor, 3).
        factor: side of a square.
        means: uint8 (height, width, 3), contiguous; overwritten.
    """
    if why_not_compiled is None and factor <= MAX_REDUCTION:
        compiled.reduce_pixels(np.ascontiguousarray(pixels), factor, means)
    else:
        kernel_numpy.reduce_pixels(pixels, factor, means)


def resample_pixels(pixels: NDArray[np.uint8], box: tuple[float, float, float, float], out: NDArray[np.uint8]) -> None:
    """Resample a square of a picture by Pillow's antialiasing linear filter.

    Args:
        pixels: uint8 (side, side, 3).
        box: left, upper, right and lower edge of the square, in pixels and within them; fractions count.
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
    """What reads JPEG tiles here, for reports."""
    if library is None:
        return "plain, simplejpeg"
    if library in _SYSTEM_LIBRARIES:
        return f"compiled, libjpeg-turbo of the system ({library})"
    return f"compiled, libjpeg-turbo {features.version('libjpeg_turbo')} of Pillow"
