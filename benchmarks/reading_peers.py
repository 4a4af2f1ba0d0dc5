"""Other readers, each used as its documentation recommends; benchmarks/requirements.txt installs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import cucim
import fastslide
import imagecodecs
import numpy as np
import openslide
import pyvips
import simplejpeg
import tifffile
import tiffslide
from numpy.typing import NDArray
from PIL import Image

from benchmarks.reading_case import ReadingCase

APERIO_TILE_PX = 240

Read = Callable[[int, int], NDArray[np.uint8]]
"""Reads the region at a level-0 corner (x, y): uint8 (region_px, region_px, 3 or 4)."""


@contextmanager
def by_openslide(case: ReadingCase) -> Iterator[Read]:
    size = (case.region_px, case.region_px)
    with openslide.OpenSlide(case.path) as slide:
        yield lambda x, y: np.asarray(slide.read_region((x, y), 0, size))


@contextmanager
def by_tiffslide(case: ReadingCase) -> Iterator[Read]:
    size = (case.region_px, case.region_px)
    with tiffslide.TiffSlide(case.path) as slide:
        yield lambda x, y: slide.read_region((x, y), 0, size, as_array=True)


@contextmanager
def by_cucim(case: ReadingCase) -> Iterator[Read]:
    size = (case.region_px, case.region_px)
    image = cucim.CuImage(str(case.path))
    yield lambda x, y: np.asarray(image.read_region((x, y), size, level=0))


@contextmanager
def by_fastslide(case: ReadingCase) -> Iterator[Read]:
    size = (case.region_px, case.region_px)
    with fastslide.FastSlide.from_file_path(str(case.path)) as slide:
        yield lambda x, y: slide.read_region((x, y), 0, size).numpy()


@contextmanager
def by_pyvips(case: ReadingCase) -> Iterator[Read]:
    side = case.region_px
    region = pyvips.Region.new(pyvips.Image.tiffload(str(case.path)))
    yield lambda x, y: np.frombuffer(region.fetch(x, y, side, side), np.uint8).reshape(side, side, -1)


PEERS: dict[str, Callable[[ReadingCase], AbstractContextManager[Read]]] = {
    "OpenSlide read_region": by_openslide,
    "tiffslide": by_tiffslide,
    "fastslide": by_fastslide,
    "cuCIM (CPU)": by_cucim,
    "pyvips Region.fetch": by_pyvips,
}

DECODERS: dict[str, Callable[[bytes], object]] = {
    "bare decoder: simplejpeg": simplejpeg.decode_jpeg,
    "bare decoder: imagecodecs": imagecodecs.jpeg8_decode,
}


def encoded_tiles(case: ReadingCase) -> list[bytes]:
    """Return the complete JPEG streams of all tiles that the patches touch."""
    with tifffile.TiffFile(case.path) as file:
        page = file.pages[0]
        across = -(-page.imagewidth // page.tilewidth)
        touched = sorted(
            {
                row * across + column
                for x, y in case.corners.tolist()
                for row in range(y // page.tilelength, (y + case.region_px - 1) // page.tilelength + 1)
                for column in range(x // page.tilewidth, (x + case.region_px - 1) // page.tilewidth + 1)
            }
        )
        tables = page.jpegtables or b""
        data = case.path.read_bytes()
        places = [(page.dataoffsets[tile], page.databytecounts[tile]) for tile in touched]
        return [tables[:-2] + data[start + (2 if tables else 0) : start + size] for start, size in places]


def write_aperio(path: Path, phantom: Path, spacing_um: float) -> None:
    """Write a file as Aperio does: tiles of 240 px, levels a factor of 4 apart, spacing in the description."""
    pixels = pyvips.Image.tiffload(str(phantom)).numpy()
    size = f"{pixels.shape[1]}x{pixels.shape[0]} ({APERIO_TILE_PX}x{APERIO_TILE_PX})"
    text = f"Aperio Image Library v12.0\r\n{size} JPEG/RGB Q=80|AppMag = 20|MPP = {spacing_um}"
    with tifffile.TiffWriter(path) as writer:
        for factor in (1, 4, 16):
            level = pixels if factor == 1 else np.asarray(Image.fromarray(pixels).reduce(factor))
            writer.write(
                level,
                tile=(APERIO_TILE_PX, APERIO_TILE_PX),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 80},
                subsampling=(2, 2),
                description=text,
                metadata=None,
            )
