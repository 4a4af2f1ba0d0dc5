"""The colours of JPEG tiles: RGB or YCbCr, from the TIFF tags and from the markers of the JPEG streams.

The TIFF tag PhotometricInterpretation decides, as in libtiff, libvips and OpenSlide. A JPEG stream may contain a marker
that contradicts the tag: a JFIF marker means YCbCr, an Adobe marker gives the colours, and the component identifiers
"R", "G" and "B" mean RGB. Which of the two is right cannot be known without looking at the picture. Such tiles are
therefore refused by all readers. Aperio's RGB files have no such marker, or one that agrees with the tag.

1. When a slide is opened, the shared tables and the first, the middle and the last tile of every level are compared
   with the tag.
2. Both tile kernels compare every tile that they decode. The compiled kernel uses what libjpeg has parsed anyway.
"""

from __future__ import annotations

import os
from pathlib import Path

from hagmil.runtime.tiles.tiff_tags import TiffDirectory, read_tile_index

CONTRADICTION = "the JPEG stream and the TIFF tags give different colours"
"""Message of both tile kernels."""

_JPEG, _RGB, _YCBCR = 7, 2, 6
_MARKER, _SCAN, _JFIF, _ADOBE = 0xFF, 0xDA, 0xE0, 0xEE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STAND_ALONE = frozenset({0x01, *range(0xD0, 0xDA)})
_ADOBE_BYTES = 12  # payload up to and including the transform
_HEADER_BYTES = 4096


def stream_colours(stream: bytes) -> frozenset[str]:
    """Return the colours that the markers of a JPEG stream give: ``RGB``, ``YCbCr``, both, or neither.

    Args:
        stream: the stream from its start marker; only the markers before the first scan are read.
    """
    found: set[str] = set()
    adobe, at = "", 2
    while at + 4 <= len(stream) and stream[at] == _MARKER:
        kind = stream[at + 1]
        if kind == _MARKER:  # a fill byte
            at += 1
            continue
        if kind in _STAND_ALONE:
            at += 2
            continue
        size = int.from_bytes(stream[at + 2 : at + 4])
        payload = stream[at + 4 : at + 2 + size]
        if kind == _SCAN:
            break
        if kind == _JFIF and len(payload) >= 14 and payload.startswith(b"JFIF\0"):
            found.add("YCbCr")
        elif kind == _ADOBE and len(payload) >= _ADOBE_BYTES and payload.startswith(b"Adobe"):
            adobe = "YCbCr" if payload[_ADOBE_BYTES - 1] else "RGB"  # the last one counts
        elif kind in _FRAMES and payload[5:6] == b"\3" and payload[6::3] == b"RGB":
            found.add("RGB")
        at += 2 + size
    return frozenset(found | {adobe} - {""})


def has_subsampled_colours(stream: bytes) -> bool:
    """Whether the components of a JPEG stream differ in resolution, which is possible for YCbCr only.

    Args:
        stream: the stream from its start marker; only the markers before the first scan are read.
    """
    at = 2
    while at + 4 <= len(stream) and stream[at] == _MARKER and stream[at + 1] != _SCAN:
        size = int.from_bytes(stream[at + 2 : at + 4])
        if stream[at + 1] in _FRAMES:
            return len(set(stream[at + 11 : at + 2 + size : 3])) > 1
        at += 2 + size
    return False


def contradicts(stream: bytes, *, ycbcr: bool) -> bool:
    """Return whether the markers of a JPEG stream contradict the TIFF tags.

    Args:
        stream: the stream from its start marker.
        ycbcr: whether the tags give YCbCr; else RGB.
    """
    return ("RGB" if ycbcr else "YCbCr") in stream_colours(stream)


def find_contradiction(path: Path, directory: TiffDirectory) -> str:
    """Compare the TIFF tags of a level with its shared tables and some of its JPEG tiles (step 1).

    Args:
        path: the file.
        directory: the image of the level.

    Returns:
        A description of the contradiction; empty if there is none, or the level has no JPEG tiles in RGB or YCbCr.

    Raises:
        TiffError: the tags are damaged.
        OSError: the file cannot be read.
    """
    if not directory.tiled or directory.compression != _JPEG or directory.photometric not in (_RGB, _YCBCR):
        return ""
    index = read_tile_index(path, directory)
    stored = [tile for tile in (0, len(index.sizes) // 2, len(index.sizes) - 1) if index.sizes[tile] > 0]
    ycbcr = directory.photometric == _YCBCR
    streams = [index.jpeg_tables]
    with path.open("rb", buffering=0) as file:
        for tile in dict.fromkeys(stored):
            size = min(int(index.sizes[tile]), _HEADER_BYTES)
            streams.append(os.pread(file.fileno(), size, max(int(index.offsets[tile]), 0)))
    if not any(contradicts(stream, ycbcr=ycbcr) for stream in streams):
        return ""
    ours, theirs = ("YCbCr", "RGB") if ycbcr else ("RGB", "YCbCr")
    return f"{ours} in its TIFF tags (photometric {directory.photometric}) but {theirs} in its JPEG tiles"
