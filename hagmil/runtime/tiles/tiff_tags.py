"""Reads the tags of the directories of a TIFF file, without decoding pixels.

Supports classic TIFF and BigTIFF in both byte orders (TIFF 6.0, section 2; BigTIFF as libtiff writes it). Only tags
that determine how a slide is read are kept.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

_MAX_DIRECTORIES = 10_000
_MAX_ENTRIES = 4_096
_MAX_SAMPLES = 64
_MAX_NUMBERS = 65_536
_MAX_BYTES = 256 << 20
_MAX_TOTAL_BYTES = 512 << 20
_REDUCED_IMAGE = 1

_NEW_SUBFILE_TYPE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_DESCRIPTION, _SAMPLES, _X_RESOLUTION, _Y_RESOLUTION, _PLANAR, _UNIT = 270, 277, 282, 283, 284, 296
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES, _SUB_DIRECTORIES, _SAMPLE_FORMAT = 322, 323, 324, 325, 330, 339
_JPEG_TABLES = 347
_WANTED = frozenset(
    {_NEW_SUBFILE_TYPE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC}
    | {_SAMPLES, _X_RESOLUTION, _Y_RESOLUTION, _PLANAR, _UNIT}
    | {_TILE_WIDTH, _TILE_HEIGHT, _TILE_BYTES, _SUB_DIRECTORIES, _SAMPLE_FORMAT}
)

_BYTE, _ASCII, _RATIONAL, _UNDEFINED = 1, 2, 5, 7
_NUMBER_TYPES = {1: "u1", 3: "u2", 4: "u4", 5: "u4", 6: "i1", 8: "i2", 9: "i4", 11: "f4", 12: "f8"}
_NUMBER_TYPES |= {13: "u4", 16: "u8", 17: "i8", 18: "u8"}
_CODES = {"u1": "B", "u2": "H", "u4": "I", "u8": "Q", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "f4": "f", "f8": "d"}
"""The same types as the struct module names them. For a few numbers, it is several times as fast as NumPy."""

_Numbers = dict[int, tuple[float, ...]]


class TiffError(ValueError):
    """A TIFF file whose directories are damaged, or a file that is not TIFF."""


class TiffLimitError(TiffError):
    """A TIFF file whose tags exceed a limit of docs/reliability.md."""


class NotTiffError(TiffError):
    """A file that is not TIFF."""


@dataclass(frozen=True, slots=True)
class TiffDirectory:
    """One image inside a TIFF file, as its tags describe it.

    Args:
        offset: position of its tags in the file, in bytes.
        page: index in the chain of directories.
        subifd: index among the SubIFDs of the page; None for the page itself.
        width: width in pixels.
        height: height in pixels.
        tile_width: width of a tile in pixels; None if the image is stored in strips.
        tile_height: height of a tile in pixels; None if the image is stored in strips.
        bits: bits of each sample.
        sample_format: 1 unsigned integer, 2 signed, 3 float, 4 undefined; if samples differ, the first other than 1.
        compression: code of the TIFF specification; 7 is JPEG.
        photometric: code of the TIFF specification; 2 is RGB, 6 is YCbCr.
        planar: 1 for interleaved samples, 2 for one plane per sample.
        reduced: whether the tags mark it as a smaller version of another image.
        description: value of ImageDescription.
        resolution: pixels per unit along x and y; None if a tag is missing or not positive.
        resolution_unit: 1 none, 2 inch, 3 centimetre.
        missing_tiles: whether some tiles have no bytes.
        subdirectories: its SubIFDs.
    """

    offset: int
    page: int
    subifd: int | None
    width: int
    height: int
    tile_width: int | None
    tile_height: int | None
    bits: tuple[int, ...]
    sample_format: int
    compression: int
    photometric: int
    planar: int
    reduced: bool
    description: str
    resolution: tuple[float, float] | None
    resolution_unit: int
    missing_tiles: bool
    subdirectories: tuple[TiffDirectory, ...] = ()

    @property
    def samples(self) -> int:
        """Number of samples per pixel."""
        return len(self.bits)

    @property
    def tiled(self) -> bool:
        """Whether the image is stored in tiles, so that a part of it can be decoded separately."""
        return self.tile_width is not None and self.tile_height is not None


@dataclass(frozen=True, slots=True)
class TileIndex:
    """Positions of the encoded tiles of one image in the file, row by row.

    Args:
        offsets: int64 (tiles,), bytes from the start of the file.
        sizes: int64 (tiles,), size of each tile in bytes.
        jpeg_tables: JPEG stream of the tables that all tiles share; empty if each tile contains its own.
    """

    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    jpeg_tables: bytes


def read_tile_index(path: Path, directory: TiffDirectory) -> TileIndex:
    """Read the positions of the tiles of one image.

    Args:
        path: the file.
        directory: a tiled image in it.

    Raises:
        TiffError: the tags are damaged, or list fewer tiles than the image has.
        OSError: the file cannot be read.
    """
    assert directory.tile_width is not None
    assert directory.tile_height is not None
    tiles = -(-directory.width // directory.tile_width) * -(-directory.height // directory.tile_height)
    with _parsing(path) as parser:
        index = parser.tile_index(directory.offset)
    if min(len(index.offsets), len(index.sizes)) < tiles:
        listed = min(len(index.offsets), len(index.sizes))
        raise TiffError(f"the TIFF tags list {listed} tiles, but the image has {tiles}")
    return index


def read_directories(path: Path) -> tuple[TiffDirectory, ...]:
    """Read the tags of every page of a TIFF file, in file order.

    Raises:
        TiffError: the file is not TIFF, or its directories are damaged.
        OSError: the file cannot be read.
    """
    with _parsing(path) as parser:
        return tuple(parser.pages())


@contextmanager
def _parsing(path: Path) -> Iterator[_Parser]:
    """Yield a parser of the file; errors that damage causes in Python become a TiffError."""
    with path.open("rb") as file:
        try:
            yield _Parser(file)
        except TiffError:
            raise
        except (struct.error, ValueError, OverflowError, MemoryError) as error:
            raise TiffError(f"damaged TIFF directory: {error}") from error


class _Parser:
    """Reads the directories of one open file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._total_bytes = 0
        head = file.read(8)
        if len(head) < 8 or head[:2] not in (b"II", b"MM"):
            raise NotTiffError("not a TIFF file")
        self._order: Literal["<", ">"] = "<" if head[:2] == b"II" else ">"
        magic = self._unpack("H", head[2:4])
        if magic not in (42, 43):
            raise NotTiffError("not a TIFF file")
        self._big = magic == 43
        self._size = file.seek(0, os.SEEK_END)
        self._first = self._offset(self._read(8, 8) if self._big else head[4:])
        self._seen: set[int] = set()

    def pages(self) -> Iterator[TiffDirectory]:
        offset, page = self._first, 0
        while offset:
            directory, offset = self._directory(offset, page, None)
            yield directory
            page += 1

    def tile_index(self, offset: int) -> TileIndex:
        """Return the positions of all tiles of the directory at an offset."""
        values = {
            tag: self._integers(kind, value)
            for tag, kind, value in self._entries(offset)[0]
            if tag in (_TILE_OFFSETS, _TILE_BYTES, _JPEG_TABLES)
        }
        none = np.empty(0, np.int64)
        tables = values.get(_JPEG_TABLES, none).astype(np.uint8).tobytes()
        return TileIndex(values.get(_TILE_OFFSETS, none), values.get(_TILE_BYTES, none), tables)

    def _directory(self, offset: int, page: int, subifd: int | None) -> tuple[TiffDirectory, int]:
        if offset in self._seen:
            raise TiffError("the chain of TIFF directories does not end")
        if len(self._seen) >= _MAX_DIRECTORIES:
            raise TiffLimitError(f"the file has more than {_MAX_DIRECTORIES} pages")
        self._seen.add(offset)
        numbers, description, following = self._tags(offset)
        children = numbers.get(_SUB_DIRECTORIES, ()) if subifd is None else ()
        inside = tuple(self._directory(int(child), page, index)[0] for index, child in enumerate(children))
        return _describe(numbers, description, offset, page, subifd, inside), following

    def _tags(self, offset: int) -> tuple[_Numbers, str, int]:
        entries, following = self._entries(offset)
        numbers: _Numbers = {}
        description = ""
        for tag, kind, value in entries:
            if tag == _DESCRIPTION and kind == _ASCII:
                text = self._value(np.dtype("u1"), value).tobytes()
                description = text.split(b"\0")[0].decode("utf-8", "replace")
            elif tag == _TILE_BYTES and kind in _NUMBER_TYPES:  # may have millions of values
                numbers[tag] = (float(self._integers(kind, value).min(initial=1)),)
            elif tag in _WANTED and kind in _NUMBER_TYPES:
                numbers[tag] = self._numbers(kind, value)
        return numbers, description, following

    def _entries(self, offset: int) -> tuple[list[tuple[int, int, bytes]], int]:
        """Read tag, type and value field of each entry of a directory, and the offset of the next directory."""
        count_code, link_bytes, entry_bytes = ("Q", 8, 20) if self._big else ("H", 4, 12)
        head_bytes = struct.calcsize(count_code)
        count = self._unpack(count_code, self._read(offset, head_bytes))
        if count > _MAX_ENTRIES:
            raise TiffLimitError(f"a page has {count} tags (at most {_MAX_ENTRIES})")
        block = self._read(offset + head_bytes, count * entry_bytes + link_bytes)
        following = self._offset(block[-link_bytes:])
        entries = [block[start : start + entry_bytes] for start in range(0, count * entry_bytes, entry_bytes)]
        return [(*struct.unpack(f"{self._order}HH", entry[:4]), entry[4:]) for entry in entries], following

    def _numbers(self, kind: int, entry: bytes) -> tuple[float, ...]:
        code = _CODES[_NUMBER_TYPES[kind]]
        count = self._offset(entry[: len(entry) // 2])
        if count > _MAX_NUMBERS:
            raise TiffLimitError(f"a tag has {count} values (at most {_MAX_NUMBERS})")
        parts = 2 if kind == _RATIONAL else 1
        numbers = struct.unpack(
            f"{self._order}{count * parts}{code}", self._bytes(count * parts * struct.calcsize(f"={code}"), entry)
        )
        if kind != _RATIONAL:
            return numbers
        pairs = zip(numbers[::2], numbers[1::2], strict=True)  # numerator, denominator
        return tuple(top / bottom if bottom else 0.0 for top, bottom in pairs)

    def _integers(self, kind: int, entry: bytes) -> NDArray[np.int64]:
        """Read integers of any type; UNDEFINED and ASCII are read as bytes."""
        if kind in (_UNDEFINED, _ASCII):
            kind = _BYTE
        if kind not in _NUMBER_TYPES:
            raise TiffError(f"a TIFF tag has the unknown type {kind}")
        return self._value(np.dtype(_NUMBER_TYPES[kind]).newbyteorder(self._order), entry).astype(np.int64)

    def _value(self, number: np.dtype[Any], entry: bytes) -> NDArray[Any]:
        """Read the value of an entry as an array."""
        count = self._offset(entry[: len(entry) // 2])
        return np.frombuffer(self._bytes(count * number.itemsize, entry), number)

    def _bytes(self, size: int, entry: bytes) -> bytes:
        """Read the value of an entry, which contains the count and the value itself if it fits, else its offset."""
        width = len(entry) // 2
        if size <= width:
            return entry[width : width + size]
        return self._read(self._offset(entry[width:]), size)

    def _read(self, offset: int, size: int) -> bytes:
        if offset + size > self._size or size > _MAX_BYTES:
            raise TiffError("the TIFF tags point beyond the end of the file, or to a value of more than 256 MiB")
        self._total_bytes += size
        if self._total_bytes > _MAX_TOTAL_BYTES:
            raise TiffLimitError(f"the tags have more than {_MAX_TOTAL_BYTES >> 20} MiB")
        self._file.seek(offset)
        return self._file.read(size)

    def _offset(self, data: bytes) -> int:
        return self._unpack("Q" if self._big else "I", data)

    def _unpack(self, code: str, data: bytes) -> int:
        return int(struct.unpack(f"{self._order}{code}", data)[0])


def _describe(
    numbers: _Numbers,
    description: str,
    offset: int,
    page: int,
    subifd: int | None,
    inside: tuple[TiffDirectory, ...],
) -> TiffDirectory:
    def first(tag: int, default: int) -> int:
        return int(numbers.get(tag, ())[0]) if numbers.get(tag) else default

    samples = first(_SAMPLES, 1)
    if samples > _MAX_SAMPLES:
        raise TiffLimitError(f"page {page} has {samples} samples per pixel (at most {_MAX_SAMPLES})")
    bits = tuple(int(value) for value in numbers.get(_BITS, (1,)))
    if first(_WIDTH, 0) <= 0 or first(_HEIGHT, 0) <= 0:
        raise TiffError(f"page {page} has no size")
    return TiffDirectory(
        offset=offset,
        page=page,
        subifd=subifd,
        width=first(_WIDTH, 0),
        height=first(_HEIGHT, 0),
        tile_width=first(_TILE_WIDTH, 0) or None,
        tile_height=first(_TILE_HEIGHT, 0) or None,
        bits=bits if len(bits) == samples else bits[:1] * samples,
        sample_format=next((int(value) for value in numbers.get(_SAMPLE_FORMAT, ()) if value != 1), 1),
        compression=first(_COMPRESSION, 1),
        photometric=first(_PHOTOMETRIC, -1),
        planar=first(_PLANAR, 1),
        reduced=bool(first(_NEW_SUBFILE_TYPE, 0) & _REDUCED_IMAGE),
        description=description,
        resolution=_resolution(numbers),
        resolution_unit=first(_UNIT, 2),
        missing_tiles=0 in numbers.get(_TILE_BYTES, ()),
        subdirectories=inside,
    )


def _resolution(numbers: _Numbers) -> tuple[float, float] | None:
    x, y = ((numbers.get(tag) or (0.0,))[0] for tag in (_X_RESOLUTION, _Y_RESOLUTION))
    return (x, y) if x > 0 and y > 0 else None
