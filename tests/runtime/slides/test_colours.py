"""One contract for all readers: JPEG tiles have the colours of the TIFF tags, or all readers refuse them.

For every combination of TIFF tag, JPEG marker, component identifiers and subsampling, libvips, OpenSlide and both tile
kernels give the same picture, or the slide is rejected when it is opened and both kernels refuse the tile.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
from numpy.typing import NDArray
from PIL import Image

from hagmil.errors import SlideRejected
from hagmil.runtime.slides.open import open_slide
from hagmil.runtime.slides.vips_reader import open_page
from hagmil.runtime.tiles import kernel, kernel_numpy
from hagmil.runtime.tiles.jpeg import JpegTiles
from hagmil.runtime.tiles.jpeg_colours import CONTRADICTION, stream_colours
from hagmil.runtime.tiles.tiff_tags import TiffDirectory, read_directories
from tests.runtime import slide_files
from tests.runtime.slide_files import JPEG, TiffPage, picture, write_tiff
from tests.runtime.tiles.encoded_level import compiled_only

PIXELS = picture(64, 64)
RGB, YCBCR = 2, 6
MARKERS = {
    "none": b"",
    "JFIF": b"\xff\xe0\x00\x10JFIF\0\1\1\0\0\1\0\1\0\0",
    "Adobe RGB": b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0\0",
    "Adobe YCbCr": b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0\1",
}
EVIDENCE = {"none": None, "JFIF": YCBCR, "Adobe RGB": RGB, "Adobe YCbCr": YCBCR}


def stream(marker: str, identifiers: bytes, *, rgb: bool, subsampling: int) -> bytes:
    """Encode the picture, with the given markers and component identifiers only."""
    encoded = io.BytesIO()
    Image.fromarray(PIXELS).save(encoded, "JPEG", quality=90, keep_rgb=rgb, subsampling=subsampling)
    data = bytearray(encoded.getvalue())
    kept, at = bytearray(data[:2] + MARKERS[marker]), 2
    while True:
        size = 2 + int.from_bytes(data[at + 2 : at + 4])
        segment = data[at : at + size]
        if segment[1] == 0xC0:
            segment[10::3] = identifiers
        elif segment[1] == 0xDA:
            segment[5:11:2] = identifiers
            return bytes(kept + segment + data[at + size :])
        if not 0xE0 <= segment[1] <= 0xEF:
            kept += segment
        at += size


def write_slide(path: Path, tag: int, data: bytes, monkeypatch: pytest.MonkeyPatch) -> TiffDirectory:
    monkeypatch.setattr(slide_files, "_encode", lambda *_: data)
    write_tiff(path, [TiffPage(PIXELS, 64, JPEG, photometric=tag, resolution=(20_000, 20_000))])
    return read_directories(path)[0]


def read_by_kernel(read_tiles: Any, path: Path, directory: TiffDirectory) -> NDArray[np.uint8] | str:
    """Read the slide's only tile; return its pixels, or the reason why the kernel refuses it."""
    tiles = JpegTiles(path, 0, directory)
    out = np.zeros((1, 64, 64, 3), np.uint8)
    index, corners = tiles._index, np.zeros((1, 2), np.int64)
    arguments = tiles._head, index.offsets, index.sizes, (64, 64), (64, 64), [0], [None], 0, corners, 1, out
    try:
        read_tiles(tiles._descriptor, *arguments, np.zeros((64, 64, 3), np.uint8), False)
    except ValueError as error:
        return str(error.args[1])
    finally:
        tiles.close()
    return out[0]


@compiled_only
@pytest.mark.parametrize("identifiers", [b"\0\1\2", b"\1\2\3", b"RGB"], ids=["012", "123", "RGB"])
@pytest.mark.parametrize("marker", MARKERS)
@pytest.mark.parametrize("tag", [RGB, YCBCR])
@pytest.mark.parametrize(("rgb", "subsampling"), [(True, 0), (False, 0), (False, 1), (False, 2)])
def test_all_readers_give_the_colours_of_the_tag_or_refuse(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rgb: bool,
    subsampling: int,
    tag: int,
    marker: str,
    identifiers: bytes,
) -> None:
    data = stream(marker, identifiers, rgb=rgb, subsampling=subsampling)
    path = tmp_path / "a.tif"
    directory = write_slide(path, tag, data, monkeypatch)
    kernels = [read_by_kernel(one.read_tiles, path, directory) for one in (kernel, kernel_numpy)]
    contradiction = EVIDENCE[marker] not in (None, tag) or (identifiers == b"RGB" and tag == YCBCR)
    if contradiction:
        assert kernels == [CONTRADICTION, CONTRADICTION]
        with pytest.raises(
            SlideRejected, match=rf"a\.tif.*photometric {tag}.*level 0.*colours are uncertain"
        ) as caught:
            open_slide(path)
        assert caught.value.code == "pixel_format"
        return
    theirs = np.asarray(openslide.OpenSlide(path).read_region((0, 0), 0, (64, 64)))[..., :3]
    vips = np.asarray(open_page(path, directory))
    with open_slide(path) as slide:
        ours = slide.read_region(0, 0, 0, 64, 64)
    for pixels in (*kernels, vips, ours):
        assert np.abs(np.subtract(pixels, theirs, dtype=int)).max() <= 2
    if rgb == (tag == RGB):
        assert np.abs(np.subtract(theirs, PIXELS, dtype=int)).mean() < 6


def test_a_contradiction_in_the_shared_tables_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = stream("none", b"\0\1\2", rgb=True, subsampling=0)
    append = slide_files._append_directory

    def with_tables(body: bytearray, tags: Any, *rest: Any) -> tuple[int, int]:
        return append(body, [*tags, (347, "s", list(b"\xff\xd8" + MARKERS["JFIF"] + b"\xff\xd9"))], *rest)

    monkeypatch.setattr(slide_files, "_append_directory", with_tables)
    write_slide(tmp_path / "a.tif", RGB, data, monkeypatch)
    with pytest.raises(SlideRejected, match="colours are uncertain"):
        open_slide(tmp_path / "a.tif")


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff\xee\x00", b"\xff\xd8" + b"\xff" * 9])
def test_an_incomplete_stream_gives_no_colours(data: bytes) -> None:
    assert stream_colours(data) == frozenset()
