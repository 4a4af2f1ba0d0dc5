"""Tiny slide files for tests: pyramids written by pyvips, and TIFF files with arbitrary tags."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyvips
from numpy.typing import NDArray
from PIL import Image

ByteOrder = Literal["<", ">"]
APERIO_TEXT = "Aperio Image Library v12.0\r\n1000x700 [0,0 1000x700] (240x240) JPEG/RGB Q=70"
JPEG, RAW, JPEG_2000_RGB = 7, 1, 33005


def picture(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """Make smooth colours, uint8 (height, width, 3), that survive JPEG and differ from place to place."""
    rng = np.random.default_rng(seed)
    blots = rng.integers(0, 256, (max(height // 16, 2), max(width // 16, 2), 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(blots).resize((width, height), Image.Resampling.BICUBIC))


def save_pyramid(
    path: Path,
    pixels: NDArray[np.uint8],
    *,
    spacing_um: float | None = 0.5,
    compression: str = "jpeg",
    tile_px: int = 64,
    pyramid: bool = True,
    subifd: bool = False,
    tiled: bool = True,
) -> Path:
    """Write a TIFF file by pyvips. Without a spacing it has libvips's default of one pixel per millimetre."""
    colours = {1: "b-w", 2: "b-w", 3: "srgb", 4: "srgb"}[pixels.shape[2]]
    per_mm = 1.0 if spacing_um is None else 1000 / spacing_um
    pyvips.Image.new_from_array(pixels).copy(interpretation=colours).tiffsave(
        str(path),
        tile=tiled,
        tile_width=tile_px,
        tile_height=tile_px,
        pyramid=pyramid,
        subifd=subifd,
        compression=compression,
        Q=85,
        xres=per_mm,
        yres=per_mm,
    )
    return path


@dataclass(frozen=True)
class TiffPage:
    """A page for ``write_tiff``.

    Args:
        pixels: (height, width, channels).
        tile_px: side of a tile, a multiple of 16; None for one strip.
        compression: ``RAW``, ``JPEG`` or ``JPEG_2000_RGB``.
        photometric: PhotometricInterpretation; None for the one that fits the pixels.
        reduced: whether to mark the page as a smaller version of another.
        description: ImageDescription.
        resolution: pixels per unit along x and y.
        unit: ResolutionUnit; None to omit the tag.
        missing: indices of tiles without bytes.
        cut: indices of tiles without the second half of their bytes.
        sample_format: SampleFormat of all samples; None to omit the tag.
        options: options of Pillow's JPEG encoder.
    """

    pixels: NDArray[Any]
    tile_px: int | None = 64
    compression: int = RAW
    photometric: int | None = None
    reduced: bool = False
    description: str = ""
    resolution: tuple[float, float] | None = None
    unit: int | None = 3
    missing: Sequence[int] = ()
    cut: Sequence[int] = ()
    sample_format: int | None = None
    options: Mapping[str, Any] = field(default_factory=lambda: {"subsampling": 2})


def write_tiff(path: Path, pages: Sequence[TiffPage], *, big: bool = False, order: ByteOrder = "<") -> Path:
    """Write a classic TIFF or BigTIFF file in either byte order."""
    body = bytearray((b"II" if order == "<" else b"MM") + struct.pack(f"{order}H", 43 if big else 42))
    body += struct.pack(f"{order}HHQ", 8, 0, 0) if big else struct.pack(f"{order}I", 0)
    link = len(body) - (8 if big else 4)
    for page in pages:
        directory, following = _append_page(body, page, big, order)
        struct.pack_into(f"{order}{'Q' if big else 'I'}", body, link, directory)
        link = following
    path.write_bytes(body)
    return path


def aperio_pages(pixels: NDArray[np.uint8], text: str = "|AppMag = 20|MPP = 0.4990") -> list[TiffPage]:
    """Make the pages of an Aperio file: level 0, thumbnail, a level of a quarter of the size, label and macro."""
    height, width = pixels.shape[:2]
    small = np.asarray(Image.fromarray(pixels).resize((width // 4, height // 4), Image.Resampling.BOX))
    thumbnail = np.asarray(Image.fromarray(pixels).resize((width // 8, height // 8), Image.Resampling.BOX))
    return [
        TiffPage(pixels, 240, JPEG, description=APERIO_TEXT + text),
        TiffPage(thumbnail, None, description=f"{APERIO_TEXT} -> thumbnail"),
        TiffPage(small, 240, JPEG, description=APERIO_TEXT + text),
        TiffPage(picture(48, 60, 5), None, reduced=True, description="Aperio Image Library\r\nlabel 48x60"),
        TiffPage(picture(130, 43, 6), None, reduced=True, description="Aperio Image Library\r\nmacro 130x43"),
    ]


def _append_page(body: bytearray, page: TiffPage, big: bool, order: ByteOrder) -> tuple[int, int]:
    """Append a page; return the offsets of its directory and of the link to the next directory."""
    height, width, channels = page.pixels.shape
    blocks = [_encode(block, page, order) for block in _blocks(page)]
    offsets, sizes = [], []
    for index, block in enumerate(blocks):
        data = b"" if index in page.missing else block[: len(block) // 2] if index in page.cut else block
        offsets.append(len(body) if data else 0)
        sizes.append(len(data))
        body += data
    default = 6 if page.compression == JPEG and channels == 3 else 2 if channels >= 3 else 1
    photometric = default if page.photometric is None else page.photometric
    bits = [page.pixels.dtype.itemsize * 8] * channels
    tags: list[tuple[int, str, Sequence[float]]] = [
        (254, "I", [int(page.reduced)]),
        (256, "I", [width]),
        (257, "I", [height]),
        (258, "H", bits),
        (259, "H", [page.compression]),
        (262, "H", [photometric]),
        (270, "s", list(page.description.encode() + b"\0")),
        (277, "H", [channels]),
        (284, "H", [1]),
    ]
    if page.tile_px is None:
        tags += [(273, "I", offsets), (278, "I", [height]), (279, "I", sizes)]
    else:
        tags += [
            (322, "I", [page.tile_px]),
            (323, "I", [page.tile_px]),
            (324, "I", offsets),
            (325, "I", sizes),
        ]
    if page.resolution is not None:
        tags += [(282, "R", [page.resolution[0]]), (283, "R", [page.resolution[1]])]
        tags += [] if page.unit is None else [(296, "H", [page.unit])]
    if page.sample_format is not None:
        tags.append((339, "H", [page.sample_format] * channels))
    if channels in (2, 4) and photometric in (1, 2):
        tags.append((338, "H", [2]))
    return _append_directory(body, sorted(tags), big, order)


def _append_directory(
    body: bytearray, tags: Sequence[tuple[int, str, Sequence[float]]], big: bool, order: ByteOrder
) -> tuple[int, int]:
    entries = b""
    word, room = ("Q", 8) if big else ("I", 4)
    for tag, code, values in tags:
        kind = {"s": 2, "H": 3, "I": 4, "R": 5}[code]
        if code == "R":
            data = b"".join(struct.pack(f"{order}II", round(value * 1000), 1000) for value in values)
        else:
            data = struct.pack(f"{order}{len(values)}{'B' if code == 's' else code}", *(int(v) for v in values))
        if len(data) > room:
            body += b"\0" * (len(body) % 2)
            place = len(body)
            body += data
            data = struct.pack(f"{order}{word}", place)
        entries += struct.pack(f"{order}HH{word}", tag, kind, len(values)) + data.ljust(room, b"\0")
    body += b"\0" * (len(body) % 2)
    start = len(body)
    body += struct.pack(f"{order}{'Q' if big else 'H'}", len(tags)) + entries + b"\0" * room
    return start, len(body) - room


def _blocks(page: TiffPage) -> list[NDArray[Any]]:
    if page.tile_px is None:
        return [page.pixels]
    side = page.tile_px
    height, width, _ = page.pixels.shape
    padded = np.pad(page.pixels, ((0, -height % side), (0, -width % side), (0, 0)), mode="edge")
    rows, columns = padded.shape[0] // side, padded.shape[1] // side
    return [
        padded[row * side : (row + 1) * side, column * side : (column + 1) * side]
        for row in range(rows)
        for column in range(columns)
    ]


def _encode(block: NDArray[Any], page: TiffPage, order: ByteOrder) -> bytes:
    if page.compression in (JPEG, JPEG_2000_RGB):
        stream = io.BytesIO()
        image = Image.fromarray(np.ascontiguousarray(block))
        if page.compression == JPEG:
            image.save(stream, "JPEG", quality=85, **page.options)
        else:
            image.save(stream, "JPEG2000", no_jp2=True, mct=0)
        return stream.getvalue()
    return block.astype(block.dtype.newbyteorder(order)).tobytes()


DARKEST_XY = (640, 384)
"""Top-left corner (x, y) of the darkest square in ``tissue_picture``, which is 128 pixels wide."""


def tissue_picture(width: int = 1200, height: int = 900) -> NDArray[np.uint8]:
    """Draw stained tissue on glass, uint8 (height, width, 3). Green decreases towards a square of 128 pixels."""
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    pixels = np.full((height, width, 3), 243.0)
    inside = ((columns - 600) / 450) ** 2 + ((rows - 450) / 330) ** 2 < 1
    x, y = DARKEST_XY
    distance = np.hypot(columns - x - 64, rows - y - 64)
    stain = np.stack([np.full_like(rows, 190.0), 90 + np.minimum(distance, 500) / 8, np.full_like(rows, 200.0)], -1)
    pixels[inside] = stain[inside]
    pixels[y : y + 128, x : x + 128] = (120, 40, 150)
    return np.rint(pixels).astype(np.uint8)
