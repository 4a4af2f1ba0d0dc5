"""The digest of a slide covers all its files, and a slide must not change while it is read."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hagmil.errors import SlideFailed
from hagmil.runtime.slides import slide_files
from hagmil.runtime.slides.slide_files import SlideFiles, slide_sha256


def _write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_the_digest_of_a_small_file_is_its_sha256(tmp_path: Path) -> None:
    data = bytes(range(256)) * 3000
    assert slide_sha256(_write(tmp_path / "a.tif", data)) == hashlib.sha256(data).hexdigest()


def test_the_digest_of_a_large_file_covers_its_size_and_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slide_files, "WHOLE_BYTES", 100)
    monkeypatch.setattr(slide_files, "BLOCK_BYTES", 10)
    monkeypatch.setattr(slide_files, "BLOCKS", 3)
    data = bytes(range(110))
    expected = b"hagmil-slide-digest 1 110\n" + data[:10] + data[50:60] + data[100:]
    assert slide_sha256(_write(tmp_path / "a.svs", data)) == hashlib.sha256(expected).hexdigest()


@pytest.mark.parametrize("limit", [1 << 20, 10])
def test_a_change_of_any_file_of_an_mrxs_slide_changes_its_digest(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slide_files, "WHOLE_BYTES", limit)
    slide = _write(tmp_path / "a.mrxs", b"picture")
    data = [_write(tmp_path / "a" / name, name.encode() * 3) for name in ("Slidedat.ini", "Data0000.dat")]
    _write(tmp_path / "b" / "Data0000.dat", b"of another slide")
    digests = {slide_sha256(slide)}
    for file in (slide, *data):
        file.write_bytes(file.read_bytes()[::-1])
        digests.add(slide_sha256(slide))
    assert len(digests) == 4
    shutil.copytree(tmp_path, tmp_path / "copy")
    assert slide_sha256(tmp_path / "copy" / "a.mrxs") in digests


def test_the_digest_of_a_vms_slide_covers_the_files_that_its_index_names(tmp_path: Path) -> None:
    index = "[Virtual Microscope Specimen]\nImageFile=a.jpg\nMapFile=a_map2.jpg\nComments=../b.jpg\n"
    slide = _write(tmp_path / "a.vms", index.encode())
    image, _ = _write(tmp_path / "a.jpg", b"image"), _write(tmp_path / "b.jpg", b"other")
    assert [state.path.name for state in SlideFiles.of(slide).states] == ["a.jpg", "a.vms"]
    before = slide_sha256(slide)
    image.write_bytes(b"egami")
    assert slide_sha256(slide) != before


def test_every_file_of_a_dicom_series_gives_the_digest_of_the_series(data_folder: Path, tmp_path: Path) -> None:
    for name in ("boxes_0.dcm", "boxes_1.dcm", "boxes.tiff"):
        shutil.copy(data_folder / "slides" / name, tmp_path)
    first, second = tmp_path / "boxes_0.dcm", tmp_path / "boxes_1.dcm"
    assert [state.path for state in SlideFiles.of(first).states] == [first, second]
    digest = slide_sha256(first)
    assert slide_sha256(second) == digest
    second.write_bytes(second.read_bytes()[:-1] + b"\x01")
    assert slide_sha256(first) != digest


@pytest.mark.parametrize("name", ["gone.tif", "a\0b.tif", "."])
def test_a_path_that_is_no_file_has_no_digest(name: str, tmp_path: Path) -> None:
    with pytest.raises(SlideFailed, match="does not exist"):
        slide_sha256(tmp_path / name)


def _rename_over(path: Path) -> None:
    other = _write(path.with_name("new.tif"), path.read_bytes())
    stat = path.stat()
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [_rename_over, lambda path: path.write_bytes(b"longer than before"), Path.unlink])
def test_a_slide_that_is_replaced_or_changed_while_it_is_read_fails(
    change: Callable[[Path], object], tmp_path: Path
) -> None:
    path = _write(tmp_path / "a.tif", b"before")
    files = SlideFiles.of(path)
    with pytest.raises(SlideFailed, match=r'slide "a\.tif" was changed or replaced') as caught, files.unchanged():
        change(path)
    assert caught.value.code == "slide_changed"
    with pytest.raises(SlideFailed) as caught, files.unchanged():
        raise SlideFailed("cut off", code="unreadable")
    assert caught.value.code == "slide_changed"


def test_an_error_of_an_unchanged_slide_is_raised_as_it_is(tmp_path: Path) -> None:
    files = SlideFiles.of(_write(tmp_path / "a.tif", b"before"))
    with pytest.raises(SlideFailed) as caught, files.unchanged():
        raise SlideFailed("cut off", code="unreadable")
    assert caught.value.code == "unreadable"
