"""Phantoms are reproducible, their truth is correct, and their files can be read by other tools."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import PIL.Image
import pytest
import pyvips
from numpy.typing import NDArray

from hagmil._files import sha256_of
from hagmil.errors import UsageError
from hagmil.phantom import (
    MASK_STEP_PX,
    PHANTOM_CLASSES,
    PHANTOM_HIERARCHY,
    PhantomSlide,
    PhantomSpec,
    files,
    write_cohort,
    write_phantom,
)
from hagmil.phantom.paint import Painter

COMPRESSION, TILE_OFFSETS, TILE_BYTE_COUNTS = 259, 324, 325  # TIFF tags
TUMOUR = PhantomSpec(seed=3, label="tumour", size_px=600)
PAINT_A_CORNER = """
import sys
import numpy as np
from hagmil.phantom import PhantomSpec
from hagmil.phantom.paint import Painter
x, y, size_px = map(int, sys.argv[1:4])
painter = Painter(PhantomSpec(seed=3, label=sys.argv[4], size_px=size_px))
np.save(sys.argv[5], painter.paint(x, y, 48, 40))
"""


def _pixels(path: Path, page: int = 0) -> NDArray[np.uint8]:
    """One page of a TIFF, uint8 (height, width, bands)."""
    image = pyvips.Image.tiffload(str(path), page=page)
    return np.asarray(image.numpy()).reshape(image.height, image.width, image.bands)


def _lesion_centre(painter: Painter) -> tuple[int, int]:
    """The lesion pixel nearest to the centre of all lesions, in level-0 pixels (x, y)."""
    side = -(-painter.spec.size_px // MASK_STEP_PX)
    rows, columns = np.nonzero(painter.paint_mask(0, 0, side, side, MASK_STEP_PX))
    middle = np.argmin(np.hypot(rows - rows.mean(), columns - columns.mean()))
    return int(columns[middle]) * MASK_STEP_PX, int(rows[middle]) * MASK_STEP_PX


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[PhantomSlide]]:
    """A cohort of six small slides, and its folder."""
    folder = tmp_path_factory.mktemp("cohort")
    return folder, write_cohort(folder, slides=6, size_px=512, seed=5)


def test_the_same_specification_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_phantom(TUMOUR, tmp_path / f"{name}.tif", tmp_path / f"{name}_mask.tif")
    assert sha256_of(tmp_path / "first.tif") == sha256_of(tmp_path / "second.tif")
    assert sha256_of(tmp_path / "first_mask.tif") == sha256_of(tmp_path / "second_mask.tif")


def test_another_process_paints_the_same_pixels(tmp_path: Path) -> None:
    out = tmp_path / "other.npy"
    arguments = ["220", "260", "600", "tumour", str(out)]
    subprocess.run([sys.executable, "-c", PAINT_A_CORNER, *arguments], check=True)
    assert np.array_equal(np.load(out), Painter(TUMOUR).paint(220, 260, 48, 40))


@pytest.mark.parametrize("label", ["tumour", "crowded_glands"])
def test_the_interpreted_painters_agree_with_the_compiled_ones(tmp_path: Path, label: str) -> None:
    painter = Painter(replace(TUMOUR, label=label))
    x, y = _lesion_centre(painter)
    out = tmp_path / "plain.npy"
    subprocess.run(
        [sys.executable, "-c", PAINT_A_CORNER, str(x), str(y), "600", label, str(out)],
        check=True,
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
    )
    compiled = painter.paint(x, y, 48, 40)
    difference = np.abs(np.load(out).astype(int) - compiled.astype(int))
    assert compiled.std() > 5
    assert np.mean(difference > 2) < 0.002


def test_another_seed_gives_another_slide() -> None:
    first, second = (Painter(replace(TUMOUR, seed=seed)).paint(0, 0, 600, 600) for seed in (3, 4))
    assert np.mean(np.abs(first.astype(int) - second.astype(int))) > 5


@pytest.mark.parametrize("label", ["tumour", "large_cell", "small_cell", "crowded_glands"])
def test_pixels_do_not_depend_on_the_painted_rectangle(label: str) -> None:
    painter = Painter(PhantomSpec(seed=8, label=label, size_px=700))
    whole = painter.paint(0, 0, 700, 700)
    for x, y, width, height in [(0, 0, 700, 37), (13, 101, 300, 290), (255, 250, 445, 17), (401, 3, 1, 697)]:
        assert np.array_equal(painter.paint(x, y, width, height), whole[y : y + height, x : x + width])


def test_slides_do_not_depend_on_strips_or_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_phantom(TUMOUR, tmp_path / "usual.tif", tmp_path / "usual_mask.tif")
    monkeypatch.setattr(files, "_STRIP_BYTES", 600 * 3 * 23)
    write_phantom(TUMOUR, tmp_path / "cut.tif", tmp_path / "cut_mask.tif", threads=1)
    assert sha256_of(tmp_path / "usual.tif") == sha256_of(tmp_path / "cut.tif")
    assert np.array_equal(_pixels(tmp_path / "usual_mask.tif"), _pixels(tmp_path / "cut_mask.tif"))


@pytest.mark.parametrize(("size_px", "spacing_um"), [(600, 0.25), (601, 0.5), (512, 0.502)])
def test_openslide_reads_the_requested_spacing(tmp_path: Path, size_px: int, spacing_um: float) -> None:
    write_phantom(PhantomSpec(1, "normal", size_px, spacing_um), tmp_path / "slide.tif")
    with openslide.OpenSlide(tmp_path / "slide.tif") as slide:
        assert slide.dimensions == (size_px, size_px)
        for axis in "xy":
            assert float(slide.properties[f"openslide.mpp-{axis}"]) == pytest.approx(spacing_um, rel=1e-5)


def test_slides_are_tiled_jpeg_pyramids_whose_levels_halve(tmp_path: Path) -> None:
    write_phantom(PhantomSpec(2, "normal", 1000), tmp_path / "slide.tif")
    with openslide.OpenSlide(tmp_path / "slide.tif") as slide:
        assert slide.level_dimensions == ((1000, 1000), (500, 500), (250, 250))
        for level in range(3):
            assert slide.properties[f"openslide.level[{level}].tile-width"] == "256"


def test_tiles_are_jpeg_with_chroma_at_half_resolution(tmp_path: Path) -> None:
    write_phantom(TUMOUR, tmp_path / "slide.tif")
    with PIL.Image.open(tmp_path / "slide.tif") as image:
        tags = dict(image.tag_v2)  # type: ignore[attr-defined]
    start, length = tags[TILE_OFFSETS][4], tags[TILE_BYTE_COUNTS][4]
    tile = (tmp_path / "slide.tif").read_bytes()[start : start + length]
    frame = tile.index(b"\xff\xc0")  # baseline frame header; sampling factors start 11 bytes later
    assert tags[COMPRESSION] == 7
    assert [tile[frame + 11 + 3 * component] for component in range(3)] == [0x22, 0x11, 0x11]


def test_level_0_contains_the_painted_pixels(tmp_path: Path) -> None:
    write_phantom(TUMOUR, tmp_path / "slide.tif")
    painted = Painter(TUMOUR).paint(0, 0, 600, 600)
    stored = _pixels(tmp_path / "slide.tif")
    assert np.mean(np.abs(painted.astype(int) - stored.astype(int))) < 6


@pytest.mark.parametrize("label", ["tumour", "large_cell", "small_cell", "crowded_glands"])
@pytest.mark.parametrize("seed", range(4))
def test_lesions_lie_in_tissue_and_have_their_share_of_it(label: str, seed: int) -> None:
    painter = Painter(PhantomSpec(seed, label, 1024))
    mask = painter.paint_mask(0, 0, 256, 256, MASK_STEP_PX) > 0
    coloured = np.ptp(painter.paint(0, 0, 1024, 1024).astype(int), axis=2) > 25
    share_coloured = coloured.reshape(256, 4, 256, 4).mean((1, 3))
    assert 0.01 < mask.sum() / (256 * 256 * painter.anatomy.tissue_share) < 0.1
    assert 1 <= painter.anatomy.lesions <= 4
    assert share_coloured[mask].mean() > 0.6


@pytest.mark.parametrize("size_px", [512, 1024, 2048])
def test_tissue_covers_a_third_to_a_half_of_the_slide_at_any_size(size_px: int) -> None:
    shares = [Painter(PhantomSpec(seed, "normal", size_px)).anatomy.tissue_share for seed in range(12)]
    assert all(0.28 < share < 0.6 for share in shares)
    assert np.std(shares) > 0.02


def test_tumour_is_darker_than_tissue_elsewhere() -> None:
    painter = Painter(PhantomSpec(4, "tumour", 1024))
    mask = painter.paint_mask(0, 0, 256, 256, MASK_STEP_PX).repeat(4, 0).repeat(4, 1) > 0
    pixels = painter.paint(0, 0, 1024, 1024)
    tissue = np.ptp(pixels.astype(int), axis=2) > 25
    assert pixels[mask & tissue][:, 0].mean() < pixels[~mask & tissue][:, 0].mean() - 40


def test_normal_slides_have_empty_masks(tmp_path: Path) -> None:
    truth = write_phantom(PhantomSpec(1, "normal", 512), tmp_path / "slide.tif", tmp_path / "slide_mask.tif")
    mask = _pixels(tmp_path / "slide_mask.tif")
    assert mask.shape == (512 // MASK_STEP_PX, 512 // MASK_STEP_PX, 1)
    assert not mask.any()
    assert (truth.lesions, truth.lesion_share) == (0, 0.0)


def test_masks_are_grey_and_lossless_with_their_own_spacing(tmp_path: Path) -> None:
    spec = replace(TUMOUR, size_px=601)
    truth = write_phantom(spec, tmp_path / "slide.tif", tmp_path / "slide_mask.tif")
    mask = _pixels(tmp_path / "slide_mask.tif")[..., 0]
    assert mask.shape == (151, 151)
    assert set(np.unique(mask)) == {0, 255}
    assert np.array_equal(mask, Painter(spec).paint_mask(0, 0, 151, 151, MASK_STEP_PX))
    assert np.mean(mask > 0) == pytest.approx(truth.lesion_share * truth.tissue_share, rel=0.25)
    image = pyvips.Image.tiffload(str(tmp_path / "slide_mask.tif"))
    assert 1000 / image.xres == pytest.approx(spec.spacing_um * MASK_STEP_PX)


def test_an_error_while_painting_is_raised_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("painting failed")

    monkeypatch.setattr(Painter, "paint", fail)
    with pytest.raises(RuntimeError, match="painting failed"):
        write_phantom(TUMOUR, tmp_path / "slide.tif")
    assert list(tmp_path.iterdir()) == []


def test_half_of_a_cohort_is_tumour_as_labels_csv_states(cohort: tuple[Path, list[PhantomSlide]]) -> None:
    folder, slides = cohort
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["slide_id", "case_id", "label"]
    assert [row["slide_id"] for row in rows] == [slide.slide_id for slide in slides]
    assert Counter(row["label"] for row in rows) == {"normal": 3, "tumour": 3}


def test_a_cohort_has_a_slide_and_a_mask_for_each_label(cohort: tuple[Path, list[PhantomSlide]]) -> None:
    folder, slides = cohort
    assert sorted((folder / "slides").iterdir()) == [slide.slide_path for slide in slides]
    assert sorted((folder / "masks").iterdir()) == [slide.mask_path for slide in slides]
    for slide in slides:
        assert slide.mask_path.name == f"{slide.slide_id}_mask.tif"
        assert _pixels(slide.mask_path).any() == (slide.label == "tumour")


def test_cases_have_one_or_two_slides_of_one_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hagmil.phantom.cohort.write_phantom", lambda *_: None)
    slides = write_cohort(tmp_path, slides=40, size_px=512)
    sizes = Counter(slide.case_id for slide in slides)
    assert set(sizes.values()) == {1, 2}
    assert len({(slide.case_id, slide.label) for slide in slides}) == len(sizes)
    assert len({slide.slide_id for slide in slides}) == 40
    assert [slide.label for slide in slides] != sorted(slide.label for slide in slides)


def test_a_cohort_is_reproduced_by_its_seed_and_differs_for_another(
    tmp_path: Path, cohort: tuple[Path, list[PhantomSlide]]
) -> None:
    folder, _ = cohort
    write_cohort(tmp_path / "same", slides=6, size_px=512, seed=5)
    write_cohort(tmp_path / "other", slides=6, size_px=512, seed=6)
    for name in ("labels.csv", "slides/phantom_001.tif", "masks/phantom_004_mask.tif"):
        assert sha256_of(tmp_path / "same" / name) == sha256_of(folder / name)
    slide = Path("slides/phantom_001.tif")
    assert sha256_of(tmp_path / "other" / slide) != sha256_of(folder / slide)


def test_a_cohort_with_a_hierarchy_has_all_fine_classes_and_their_map(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    slides = write_cohort(tmp_path, slides=5, size_px=512, classes="hierarchy", progress=lambda *at: seen.append(at))
    assert set(Counter(slide.label for slide in slides)) == set(PHANTOM_CLASSES["hierarchy"])
    assert seen == [(place + 1, 5, slide.slide_id) for place, slide in enumerate(slides)]
    table = json.loads((tmp_path / "hierarchy.json").read_text())
    assert table["coarse"] == ["benign", "malignant"]
    assert table["fine"] == list(PHANTOM_HIERARCHY)
    assert table["fine_to_coarse"] == dict(PHANTOM_HIERARCHY)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed -1"),
        ({"seed": 0, "label": "weasel"}, "weasel"),
        ({"seed": 0, "size_px": 100}, "50 um wide"),
        ({"seed": 0, "spacing_um": 0.0}, "0.05 to 8"),
    ],
)
def test_an_invalid_specification_is_rejected(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PhantomSpec(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"slides": 0}, "0 slides"), ({"classes": "ternary"}, "ternary"), ({"seed": -1}, "seed -1")],
)
def test_an_invalid_cohort_is_rejected(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        write_cohort(tmp_path, **arguments)  # type: ignore[arg-type]
