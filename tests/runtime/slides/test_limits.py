"""Files that describe more work or memory than any slide needs are refused before a library opens them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from hagmil.errors import SlideFailed
from hagmil.runtime.slides import limits
from hagmil.runtime.slides import open as slide_opening
from hagmil.runtime.slides.open import open_slide
from hagmil.runtime.tiles import tiff_tags
from tests.conftest import REPOSITORY
from tests.runtime import slide_files
from tests.runtime.slide_files import TiffPage, picture, write_tiff

Tag = tuple[int, str, list[int]]
OVERSIZED: dict[str, tuple[list[Tag], str]] = {
    "20,000 repeated tags": ([(305, "s", [0])] * 20_000, r"a page has 200\d\d tags \(at most 4096\)"),
    "7e8 samples": ([(277, "I", [700_000_000])], r"700000000 samples per pixel \(at most 64\)"),
    "a tag of 100,000 values": ([(258, "H", [8] * 100_000)], r"a tag has 100000 values"),
    "a tile of 6 GB": ([(322, "I", [45_000]), (323, "I", [45_000])], r"tiles of 5793 MiB \(at most 256\) on page 0"),
    "400,000 x 400,000 pixels": (
        [(256, "I", [400_000]), (257, "I", [400_000])],
        r"400000 x 400000 px in a file of \d+ bytes \(at most 2000 pixels per byte\)",
    ),
}


@pytest.mark.parametrize("kind", OVERSIZED)
def test_an_oversized_slide_is_refused_before_a_library_opens_it(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed, message = OVERSIZED[kind]
    append = slide_files._append_directory

    def with_changed(body: bytearray, tags: Any, *rest: Any) -> tuple[int, int]:
        numbers = {tag for tag, *_ in changed}
        return append(body, sorted([*(tag for tag in tags if tag[0] not in numbers), *changed]), *rest)

    monkeypatch.setattr(slide_files, "_append_directory", with_changed)
    monkeypatch.setattr(slide_opening, "detect_vendor", lambda _: pytest.fail("a library opened the file"))
    path = write_tiff(tmp_path / "a.tif", [TiffPage(picture(64, 64))])
    with pytest.raises(SlideFailed, match=message) as caught:
        open_slide(path)
    assert caught.value.code == "too_large"
    assert '"a.tif"' in caught.value.message


def test_a_pipe_or_device_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.svs")
    for path in (tmp_path / "pipe.svs", Path("/dev/zero")):
        with pytest.raises(SlideFailed, match="not a regular file") as caught:
            open_slide(path)
        assert caught.value.code == "unreadable"


def test_documented_limits_are_those_of_the_source() -> None:
    page = (REPOSITORY / "docs" / "reliability.md").read_text()
    page = page.partition("Numbers of a manifest")[0]  # the first table
    rows = dict(re.findall(r"^\| ([^|]+) \| ([\d,]+)[^|]* \|", page, re.MULTILINE))
    assert {name: int(value.replace(",", "")) for name, value in rows.items()} == {
        "tags of a TIFF page": tiff_tags._MAX_ENTRIES,
        "pages of a TIFF file": tiff_tags._MAX_DIRECTORIES,
        "values of a TIFF tag, except offsets and sizes of tiles": tiff_tags._MAX_NUMBERS,
        "size of one tag": tiff_tags._MAX_BYTES >> 20,
        "size of all tags of a file": tiff_tags._MAX_TOTAL_BYTES >> 20,
        "samples per pixel": tiff_tags._MAX_SAMPLES,
        "size of a decoded tile": limits.MAX_TILE_BYTES >> 20,
        "pixels per byte of the file, for images of more than 10⁹ pixels": limits.MAX_PIXELS_PER_BYTE,
    }
