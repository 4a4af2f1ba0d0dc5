"""DICOM slides whose tags contradict their frames are rejected."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hagmil.errors import SlideFailed, SlideRejected
from hagmil.runtime.slides.dicom_frames import contradiction
from hagmil.runtime.slides.open import open_slide

PHOTOMETRIC, PIXELS, ITEM = b"\x28\0\x04\0CS", b"\xe0\x7f\x10\0OB", b"\xfe\xff\0\xe0"


def with_photometric(data: bytes, name: str) -> bytes:
    """Replace the tag PhotometricInterpretation."""
    value = name.encode() + b" " * (len(name) % 2)
    at = data.index(PHOTOMETRIC) + 6
    (size,) = struct.unpack_from("<H", data, at)
    return data[:at] + struct.pack("<H", len(value)) + value + data[at + 2 + size :]


def with_frames(data: bytes, encode: Callable[[Image.Image], bytes]) -> bytes:
    """Encode the frames again, and leave the table of their offsets empty."""
    at = data.index(PIXELS) + 12
    found = data[:at] + ITEM + bytes(4)
    at += 8 + struct.unpack_from("<I", data, at + 4)[0]
    while data[at : at + 4] == ITEM:
        (size,) = struct.unpack_from("<I", data, at + 4)
        frame = encode(Image.open(io.BytesIO(data[at + 8 : at + 8 + size])).convert("RGB"))
        frame += bytes(len(frame) % 2)
        found += ITEM + struct.pack("<I", len(frame)) + frame
        at += 8 + size
    return found + data[at:]


def _jpeg(image: Image.Image, subsampling: int, *, marker: bool) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, subsampling=subsampling)
    return file.getvalue() if marker else file.getvalue()[:2] + file.getvalue()[20:]


@pytest.mark.parametrize(
    ("photometric", "encode", "words"),
    [
        ("RGB", None, ""),  # RGB with an Adobe marker
        ("YBR_FULL_422", None, "are RGB"),
        ("RGB", lambda image: _jpeg(image, 0, marker=True), "are YCbCr"),
        ("RGB", lambda image: _jpeg(image, 2, marker=False), "are YCbCr"),
        ("YBR_FULL_422", lambda image: _jpeg(image, 2, marker=True), ""),
        ("YBR_FULL_422", lambda image: _jpeg(image, 0, marker=False), ""),
    ],
)
def test_tags_that_contradict_the_frames_are_rejected_and_others_give_the_picture(
    photometric: str,
    encode: Callable[[Image.Image], bytes] | None,
    words: str,
    data_folder: Path,
    tmp_path: Path,
) -> None:
    original = data_folder / "slides" / "boxes_0.dcm"
    data = with_photometric(original.read_bytes(), photometric)
    path = tmp_path / "slide.dcm"
    path.write_bytes(with_frames(data, encode) if encode else data)
    if words:
        with pytest.raises(SlideRejected, match=words) as caught:
            open_slide(path)
        assert caught.value.code == "pixel_format"
        return
    with open_slide(path) as slide, open_slide(original) as right:
        pixels, expected = (each.read_region(0, 0, 0, 150, 100).astype(int) for each in (slide, right))
    assert np.abs(pixels - expected).mean() < 4


@pytest.mark.parametrize(("photometric", "transform", "right"), [("YBR_ICT", 1, True), ("YBR_ICT", 0, False)])
def test_jpeg_2000_needs_the_colour_transform_of_its_tag(photometric: str, transform: int, right: bool) -> None:
    frame = b"\xff\x4f\xff\x51" + bytes(40) + b"\xff\x52\0\x0c\0\0\0\1" + bytes([transform]) + bytes(8)
    assert (contradiction("1.2.840.10008.1.2.4.91", photometric, frame) == "") == right


@pytest.mark.parametrize("place", [3, 7, 9999])
def test_offsets_that_lead_to_no_frame_are_refused_before_a_library_follows_them(
    place: int, data_folder: Path, tmp_path: Path
) -> None:
    """``place`` is the high byte of the first or second offset, or the first byte of the first frame."""
    data = bytearray((data_folder / "slides" / "boxes_0.dcm").read_bytes())
    table = data.index(PIXELS) + 20
    size = int.from_bytes(data[table - 4 : table], "little")
    data[table + min(place, size)] ^= 0x60
    (tmp_path / "a.dcm").write_bytes(data)
    with pytest.raises(SlideFailed, match="table of frames is damaged") as caught:
        open_slide(tmp_path / "a.dcm")
    assert caught.value.code == "unreadable"
