"""Generated slides of all kinds that the readers support."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.runtime.slide_files import JPEG, JPEG_2000_RGB, TiffPage, aperio_pages, picture, save_pyramid, write_tiff

PIXELS = picture(500, 330, seed=3)
GENERATED = (
    "jpeg", "deflate", "lzw", "one-level", "no-spacing", "rgba", "grey", "inverted-grey",
    "aperio", "aperio-big-endian-bigtiff", "aperio-jpeg2000", "aperio-gap", "gap", "no-unit", "unit-none",
)  # fmt: skip
"""Kinds of slides that ``write_slide`` writes."""


def write_slide(folder: Path, kind: str) -> Path:
    """Write a slide of one of the kinds in ``GENERATED``; the picture is ``PIXELS``."""
    path = folder / f"{kind}.tif"
    resolution = (20_000.0, 20_000.0)
    pages = aperio_pages(PIXELS)
    match kind:
        case "jpeg" | "deflate" | "lzw":
            return save_pyramid(path, PIXELS, compression=kind)
        case "one-level":
            return save_pyramid(path, PIXELS, pyramid=False)
        case "no-spacing":
            return save_pyramid(path, PIXELS, spacing_um=None)
        case "rgba":
            return save_pyramid(path, np.dstack([PIXELS, PIXELS[..., ::-1][..., :1]]), compression="deflate")
        case "grey":
            return save_pyramid(path, PIXELS[..., :1])
        case "inverted-grey":
            return write_tiff(path, [TiffPage(PIXELS[..., :1], photometric=0)])
        case "aperio":
            return write_tiff(path, pages)
        case "aperio-big-endian-bigtiff":
            return write_tiff(path, pages, big=True, order=">")
        case "aperio-jpeg2000":
            levels = {0, 2}
            return write_tiff(
                path,
                [replace(p, compression=JPEG_2000_RGB) if i in levels else p for i, p in enumerate(pages)],
            )
        case "aperio-gap":
            return write_tiff(path, [replace(pages[0], missing=[0]), *pages[1:]])
        case "gap":
            return write_tiff(path, [TiffPage(PIXELS, 64, JPEG, missing=[1, 9], resolution=resolution)])
        case "no-unit":
            return write_tiff(path, [TiffPage(PIXELS, resolution=(50_800, 50_800), unit=None)])
        case "unit-none":
            return write_tiff(path, [TiffPage(PIXELS, resolution=resolution, unit=1)])
    raise AssertionError(kind)
