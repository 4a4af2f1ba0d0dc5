"""Bad slides, and good slides with bad names, with the outcome that each must have in one run of ``hagmil infer``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from hagmil.runtime.inference.loaded_bundle import LoadedModel
from hagmil.runtime.inputs import SlideRequest, slide_requests
from hagmil.runtime.predict import PredictOptions, predict_requests
from tests.conftest import REPOSITORY
from tests.runtime import slide_files
from tests.runtime.slide_files import JPEG, TiffPage, tissue_picture, write_tiff
from tests.runtime.slides.test_dicom_frames import _jpeg, with_frames, with_photometric
from tests.runtime.slides.test_limits import OVERSIZED
from tests.runtime.slides.test_pixel_format import UNSUPPORTED

DATA = REPOSITORY / "tests" / "data" / "slides"
PIXELS = tissue_picture(600, 450)
PER_CM = (20_000.0, 20_000.0)
GOOD = TiffPage(PIXELS, 128, JPEG, resolution=PER_CM)
SMALL = PIXELS[::2, ::2]
HALF = TiffPage(SMALL, 128, JPEG, reduced=True, resolution=(10_000.0, 10_000.0))


@dataclass(frozen=True)
class SlideCase:
    """A slide and its outcome.

    Args:
        section: of the table.
        name: what the slide is.
        expected: ``ok``, or status and code.
        write: writes the slide into a folder and returns its path.
    """

    section: str
    name: str
    expected: str
    write: Callable[[Path], Path]


def _pages(*pages: TiffPage) -> Callable[[Path], Path]:
    return lambda folder: write_tiff(folder / "slide.tif", pages)


def _bytes(name: str, content: Callable[[], bytes]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content())
        return folder / name

    return write


def _named(name: bytes) -> Callable[[Path], Path]:
    return lambda folder: write_tiff(folder / os.fsdecode(name), [GOOD, HALF])


def _oversized(kind: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        changed, append = OVERSIZED[kind][0], slide_files._append_directory
        numbers = {tag for tag, *_ in changed}

        def with_changed(body: bytearray, tags: Any, *rest: Any) -> tuple[int, int]:
            return append(body, sorted([*(tag for tag in tags if tag[0] not in numbers), *changed]), *rest)

        with mock.patch.object(slide_files, "_append_directory", with_changed):
            return write_tiff(folder / "slide.tif", [TiffPage(PIXELS[:64, :64])])

    return write


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.svs")
    return folder / "pipe.svs"


def _folder(folder: Path) -> Path:
    (folder / "folder.svs").mkdir()
    return folder / "folder.svs"


def _cut(folder: Path) -> Path:
    path = write_tiff(folder / "cut.tif", [GOOD])
    os.truncate(path, path.stat().st_size // 2)
    return path


def _dicom(photometric: str, subsampling: int | None) -> bytes:
    data = with_photometric((DATA / "boxes_0.dcm").read_bytes(), photometric)
    return data if subsampling is None else with_frames(data, lambda image: _jpeg(image, subsampling, marker=False))


PIXEL, LIMIT, FILE, NAME = "Pixels", "Limits", "Files", "Names"
REJECTED, TOO_LARGE, UNREADABLE = "rejected: pixel_format", "failed: too_large", "failed: unreadable"
RGB_JPEG = {"keep_rgb": True, "subsampling": 0}
CASES = [
    SlideCase(FILE, "control: a JPEG pyramid", "ok", _pages(GOOD, HALF)),
    *(SlideCase(PIXEL, f"level 0: {kind}", REJECTED, _pages(page)) for kind, (page, _) in UNSUPPORTED.items()),
    *(
        SlideCase(PIXEL, f"level 1: {kind}", REJECTED, _pages(TiffPage(PIXELS, 128, JPEG, resolution=PER_CM), page))
        for kind, page in {
            "16 bits": TiffPage(SMALL.astype(np.uint16), 128, reduced=True),
            "float": TiffPage(SMALL.astype(np.float32), 128, reduced=True, sample_format=3),
            "CMYK": TiffPage(np.dstack([SMALL, SMALL[..., :1]]), 128, reduced=True, photometric=5),
            "two channels": TiffPage(SMALL[..., :2], 128, reduced=True),
        }.items()
    ),
    SlideCase(PIXEL, "tag RGB over a YCbCr JPEG", REJECTED, _pages(TiffPage(PIXELS, 128, JPEG, photometric=2))),
    SlideCase(PIXEL, "tag YCbCr over an RGB JPEG", REJECTED, _pages(TiffPage(PIXELS, 128, JPEG, options=RGB_JPEG))),
    SlideCase(PIXEL, "DICOM: tag YCbCr over RGB", REJECTED, _bytes("a.dcm", lambda: _dicom("YBR_FULL_422", None))),
    SlideCase(PIXEL, "DICOM: tag RGB over YCbCr", REJECTED, _bytes("a.dcm", lambda: _dicom("RGB", 2))),
    SlideCase(
        PIXEL,
        "tiles of tissue without bytes",
        "failed: tile_missing",
        _pages(TiffPage(PIXELS, 128, JPEG, resolution=PER_CM, missing=[7, 8]), HALF),
    ),
    SlideCase(
        PIXEL,
        "a tile cut off",
        UNREADABLE,
        _pages(TiffPage(PIXELS, 128, JPEG, resolution=PER_CM, cut=[7]), HALF),
    ),
    SlideCase(PIXEL, "smallest page first", UNREADABLE, _pages(HALF, GOOD)),
    SlideCase(
        PIXEL,
        "spacing of 0.025 um/px",
        "rejected: spacing_missing",
        _pages(TiffPage(PIXELS, 128, JPEG, resolution=(400_000.0, 400_000.0))),
    ),
    SlideCase(
        PIXEL,
        "glass only",
        "rejected: no_tissue",
        _pages(TiffPage(np.full_like(PIXELS, 244), 128, JPEG, resolution=PER_CM)),
    ),
    SlideCase(PIXEL, "dark", "rejected: not_brightfield", _pages(TiffPage(PIXELS // 16, 128, JPEG, resolution=PER_CM))),
    *(SlideCase(LIMIT, kind, TOO_LARGE, _oversized(kind)) for kind in OVERSIZED),
    SlideCase(LIMIT, "a pipe", UNREADABLE, _fifo),
    SlideCase(LIMIT, "a device", UNREADABLE, lambda _: Path("/dev/zero")),
    SlideCase(FILE, "no such file", "failed: not_found", lambda folder: folder / "gone.svs"),
    SlideCase(FILE, "a folder", UNREADABLE, _folder),
    SlideCase(FILE, "an empty file", UNREADABLE, _bytes("empty.svs", bytes)),
    SlideCase(FILE, "text", UNREADABLE, _bytes("text.svs", lambda: b"no slide\n" * 99)),
    SlideCase(FILE, "cut off in the middle", UNREADABLE, _cut),
    SlideCase(FILE, "an MRXS file without its folder", UNREADABLE, _bytes("alone.mrxs", lambda: b"\xff\xd8" * 9)),
    *(
        SlideCase(NAME, label, "ok", _named(name))
        for label, name in {
            "line break": b"a\nb.tif",
            "not UTF-8": b"a\xff.tif",
            "leading dash": b"-a.tif",
            "255 bytes": b"a" * 251 + b".tif",
            "dots only": b"...tif",
            "name of the table": b"results.csv.tif",
            "reserved by Windows": b"CON.tif",
            "formula": b"=1+1.tif",
        }.items()
    ),
]


def outcomes(folder: Path, model: LoadedModel) -> dict[str, str]:
    """Outcome of every case, by section and name, from one run over all of them."""
    requests: list[SlideRequest] = []
    for number, case in enumerate(CASES):
        own = folder / f"{number:03d}"
        own.mkdir()
        path = case.write(own)
        given = slide_requests([str(path)])[0] if case.section == NAME else None
        slide_id = given.slide_id if given else f"case_{number:03d}"
        requests.append(SlideRequest(slide_id, str(path), path, None))
    results = predict_requests(requests, model, folder / "out", PredictOptions())
    table = (folder / "out" / "results.csv").read_text()
    assert table.count("\n") == len(CASES) + 1
    return {
        f"{case.section}: {case.name}": "ok" if result.status == "ok" else f"{result.status}: {result.code}"
        for case, result in zip(CASES, results, strict=True)
    }
