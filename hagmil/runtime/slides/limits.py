"""Limits on the size of a TIFF file's images, checked before any library opens the file.

A few damaged bytes can describe an image that takes hours to decode or more memory than the machine has.
docs/reliability.md lists all limits.
"""

from __future__ import annotations

from pathlib import Path

from hagmil.errors import SlideFailed
from hagmil.runtime.tiles.tiff_tags import TiffDirectory

MAX_TILE_BYTES = 256 << 20
"""Size of a decoded tile; those of scanners have 1 MB or less."""

MAX_PIXELS_PER_BYTE = 2_000
"""Pixels of an image per byte of the file. Glass has about 100 with JPEG and 350 with Deflate."""

ALWAYS_ALLOWED_PIXELS = 1_000_000_000
"""Images of this size may have any number of pixels per byte."""


def check_limits(path: Path, directories: tuple[TiffDirectory, ...]) -> None:
    """Check the size of tiles and images.

    Args:
        path: the file.
        directories: the pages of the file.

    Raises:
        SlideFailed: an image exceeds a limit (code ``too_large``).
    """
    size = path.stat().st_size
    for page in directories:
        for image in (page, *page.subdirectories):
            problem = _problem(image, size)
            if problem:
                raise SlideFailed(
                    f'slide "{path.name}" has {problem} on page {image.page}; the file is damaged, or convert it to a '
                    "tiled pyramid",
                    code="too_large",
                )


def _problem(image: TiffDirectory, file_bytes: int) -> str:
    tile_bytes = (image.tile_width or 0) * (image.tile_height or 0) * image.samples
    if tile_bytes > MAX_TILE_BYTES:
        return f"tiles of {tile_bytes >> 20} MiB (at most {MAX_TILE_BYTES >> 20})"
    pixels = image.width * image.height
    if pixels > ALWAYS_ALLOWED_PIXELS and pixels > file_bytes * MAX_PIXELS_PER_BYTE:
        return (
            f"an image of {image.width} x {image.height} px in a file of {file_bytes} bytes "
            f"(at most {MAX_PIXELS_PER_BYTE} pixels per byte)"
        )
    return ""
