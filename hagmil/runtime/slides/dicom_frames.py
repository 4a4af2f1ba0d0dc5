"""The colours of DICOM frames: those of the tags, unless the frames contradict them.

OpenSlide follows the tag PhotometricInterpretation. Frames may prove it wrong, and what is right cannot then be known
without looking at the picture:

- A JPEG stream has a marker that gives other colours, or subsampled chroma although the tag is RGB.
- A JPEG 2000 stream has no colour transform although the tag is YBR_ICT or YBR_RCT.

The first frame of each file of the series is compared, since one encoder writes all frames of a file.

The table of the frames' offsets is checked too, because OpenSlide's library crashes if an offset leads to no frame.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hagmil.errors import SlideFailed, SlideRejected
from hagmil.runtime.tiles.jpeg_colours import has_subsampled_colours, stream_colours

_PREAMBLE = 132
_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_TRANSFER_SYNTAX, _IMAGE_TYPE, _PHOTOMETRIC = b"\x02\0\x10\0", b"\x08\0\x08\0", b"\x28\0\x04\0"
_PIXELS = b"\xe0\x7f\x10\0"
_NO_LEVEL = frozenset({"LABEL", "OVERVIEW"})
_ITEM, _END_OF_SEQUENCE, _END_OF_ITEM = b"\xfe\xff\0\xe0", b"\xfe\xff\xdd\xe0", b"\xfe\xff\x0d\xe0"
_UNDEFINED = 0xFFFFFFFF
_MOST_ELEMENTS = 200_000
_SHORT_TEXT = 128
_FRAME_BYTES = 4096
_MOST_TABLE_BYTES = 64 << 20
_JPEG = "1.2.840.10008.1.2.4.50"
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_CODING_STYLE, _TRANSFORM_AT = b"\xff\x52", 8


class _TableError(Exception):
    """The table of offsets does not fit the frames."""


def check_dicom_frames(paths: Iterable[Path]) -> None:
    """Compare the tags of DICOM files with their first frames, and check where the frames are.

    Args:
        paths: the files of one series.

    Raises:
        SlideRejected: a frame contradicts the tags (code ``pixel_format``).
        SlideFailed: the table of offsets does not fit the frames (code ``unreadable``).
    """
    for path in paths:
        try:
            with path.open("rb") as file:
                texts, frame = _read(file)
        except _TableError as error:
            problem = "its table of frames is damaged; copy it again"
            raise SlideFailed(f'slide "{path.name}" cannot be opened: {problem}', code="unreadable") from error
        except (OSError, ValueError):  # OpenSlide reports a damaged file
            continue
        if _NO_LEVEL & set(texts.get(_IMAGE_TYPE, "").split("\\")):
            continue
        problem = contradiction(texts.get(_TRANSFER_SYNTAX, ""), texts.get(_PHOTOMETRIC, ""), frame)
        if problem:
            raise SlideRejected(f'slide "{path.name}" {problem}; export or convert it again', code="pixel_format")


def contradiction(transfer_syntax: str, photometric: str, frame: bytes) -> str:
    """How a frame contradicts the tags; empty if it does not.

    Args:
        transfer_syntax: UID of the encoding.
        photometric: value of PhotometricInterpretation.
        frame: the begin of the frame.
    """
    if transfer_syntax in _JPEG_2000 and photometric in ("YBR_ICT", "YBR_RCT"):
        at = frame.find(_CODING_STYLE)
        if 0 <= at < len(frame) - _TRANSFORM_AT and frame[at + _TRANSFORM_AT] == 0:
            return f"is {photometric} in its tags, but its JPEG 2000 frames have no colour transform"
    if transfer_syntax == _JPEG:
        colours = set(stream_colours(frame)) | ({"YCbCr"} if has_subsampled_colours(frame) else set())
        expected = {"RGB": "RGB", "YBR_FULL_422": "YCbCr", "YBR_FULL": "YCbCr"}.get(photometric)
        if expected and colours - {expected}:
            return f"is {photometric} in its tags, but its JPEG frames are {' and '.join(sorted(colours))}"
    return ""


def _read(file: BinaryIO) -> tuple[dict[bytes, str], bytes]:
    """Read the three tags, and the begin of the first frame; empty if the pixels are not encapsulated."""
    file.seek(_PREAMBLE)
    texts: dict[bytes, str] = {}
    for _ in range(_MOST_ELEMENTS):
        tag, size = _next_element(file)
        if tag == _PIXELS:
            return texts, _first_frame(file) if size == _UNDEFINED else b""
        if size == _UNDEFINED:
            _skip_sequence(file)
        elif tag in (_TRANSFER_SYNTAX, _IMAGE_TYPE, _PHOTOMETRIC) and size <= _SHORT_TEXT:
            texts[tag] = file.read(size).decode("ascii", "replace").rstrip("\0 ")
        else:
            file.seek(size, 1)
    raise ValueError("too many elements")


def _next_element(file: BinaryIO) -> tuple[bytes, int]:
    """Tag and size of the next element, in explicit little-endian encoding."""
    head = file.read(8)
    if len(head) < 8:
        raise ValueError("the file ends before the pixels")
    if head[:4] in (_ITEM, _END_OF_ITEM, _END_OF_SEQUENCE):
        return head[:4], int.from_bytes(head[4:], "little")
    if head[4:6] in _LONG:
        return head[:4], int.from_bytes(file.read(4), "little")
    return head[:4], int.from_bytes(head[6:], "little")


def _skip_sequence(file: BinaryIO) -> None:
    """Skip a sequence of undefined length, with the sequences in it."""
    depth = 1
    for _ in range(_MOST_ELEMENTS):
        tag, size = _next_element(file)
        if tag == _END_OF_SEQUENCE:
            depth -= 1
            if not depth:
                return
        elif tag not in (_ITEM, _END_OF_ITEM):
            if size == _UNDEFINED:
                depth += 1
            else:
                file.seek(size, 1)
    raise ValueError("a sequence does not end")


def _first_frame(file: BinaryIO) -> bytes:
    """Check the table of offsets, and return the begin of the first frame."""
    tag, size = _next_element(file)
    table = file.read(size) if tag == _ITEM and size <= _MOST_TABLE_BYTES else b""
    if tag != _ITEM or len(table) < size or size % 4:
        raise _TableError
    start = file.tell()
    for offset in dict.fromkeys([0, *np.frombuffer(table, "<u4").tolist()]):
        file.seek(start + offset)
        if file.read(4) != _ITEM:
            raise _TableError
    file.seek(start + 8)
    return file.read(_FRAME_BYTES)
