"""The interface of a slide: each reader agrees with OpenSlide, on generated and on real files."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import numpy as np
import openslide
import pytest
from numpy.typing import NDArray

from hagmil.errors import SlideRejected
from hagmil.runtime.slides.open import open_slide
from hagmil.runtime.slides.slide import Slide, require_spacing
from tests.runtime.slides.generated_slides import GENERATED, write_slide

REAL = ("CMU-1-Small-Region.svs", "boxes.tiff", "fluorescence.ndpi", "boxes_0.dcm", "boxes_1.dcm")


@pytest.fixture(params=[*GENERATED, *REAL])
def any_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Each slide that both this package and OpenSlide can open."""
    if request.param in GENERATED:
        return write_slide(tmp_path, request.param)
    data_folder: Path = request.getfixturevalue("data_folder")
    return data_folder / "slides" / str(request.param)


def by_openslide(
    slide: openslide.OpenSlide, level: int, x: int, y: int, width: int, height: int
) -> NDArray[np.float64]:
    """Read a region with OpenSlide and composite it over white; x and y are in pixels of the level."""
    downsample = slide.level_downsamples[level]
    rgba = np.asarray(slide.read_region((round(x * downsample), round(y * downsample)), level, (width, height)))
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


def test_metadata_agree_with_openslide(any_path: Path) -> None:
    with openslide.OpenSlide(any_path) as theirs, open_slide(any_path) as ours:
        assert [(level.width, level.height) for level in ours.levels] == list(theirs.level_dimensions)
        assert [level.downsample for level in ours.levels] == list(theirs.level_downsamples)
        assert [level.index for level in ours.levels] == list(range(theirs.level_count))
        assert (ours.size.width, ours.size.height) == theirs.dimensions
        assert ours.vendor == theirs.properties["openslide.vendor"]
        properties = theirs.properties
        power = properties.get("openslide.objective-power")
        assert ours.objective_power == (None if power is None else float(power))
        spacing = [properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
        if spacing[0] is None:
            assert ours.metadata.spacing_xy_um is None
        else:
            assert ours.metadata.spacing_xy_um == pytest.approx([float(value) for value in spacing if value], rel=1e-9)


def test_pixels_agree_with_openslide(any_path: Path) -> None:
    with openslide.OpenSlide(any_path) as theirs, open_slide(any_path) as ours:
        for level in ours.levels:
            width, height = min(level.width, 700), min(level.height, 600)
            mine = ours.read_region(level.index, 0, 0, width, height)
            assert mine.shape == (height, width, 3)
            assert mine.dtype == np.uint8
            assert np.abs(mine - by_openslide(theirs, level.index, 0, 0, width, height)).max() <= 2


def test_regions_across_the_edge_agree_with_openslide(any_path: Path) -> None:
    with openslide.OpenSlide(any_path) as theirs, open_slide(any_path) as ours:
        width, height = theirs.dimensions
        for x, y in [
            (-37, -20),
            (width - 50, height - 41),
            (-30, height - 10),
            (width // 2 + 3, height // 3 + 1),
        ]:
            mine = ours.read_region(0, x, y, 90, 77)
            assert np.abs(mine - by_openslide(theirs, 0, x, y, 90, 77)).max() <= 2


def test_a_region_outside_the_slide_is_white(pyramid_path: Path) -> None:
    with open_slide(pyramid_path) as slide:
        for x, y in [(-64, 0), (0, -64), (420, 0), (0, 300), (10**9, -(10**9))]:
            assert (slide.read_region(0, x, y, 64, 64) == 255).all()


def test_a_region_larger_than_the_slide_has_a_white_margin(exact_path: Path, pixels: NDArray[np.uint8]) -> None:
    with open_slide(exact_path) as slide:
        region = slide.read_region(0, -5, -7, 440, 320)
    assert (region[7:307, 5:425] == pixels).all()
    region[7:307, 5:425] = 255
    assert (region == 255).all()


def test_forks_read_the_same_pixels_in_parallel_after_their_parent_is_closed(any_path: Path) -> None:
    slide = open_slide(any_path)
    size = (min(slide.size.width, 300), min(slide.size.height, 300))
    expected = slide.read_region(0, 0, 0, *size)
    forks = [slide.fork() for _ in range(4)]
    slide.close()
    same: list[bool] = []

    def read(fork: Slide) -> None:
        with fork:
            same.extend(bool((fork.read_region(0, 0, 0, *size) == expected).all()) for _ in range(3))

    threads = [threading.Thread(target=read, args=(fork,)) for fork in forks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same == [True] * 12


def test_using_a_closed_slide_is_an_error_and_closing_twice_is_not(any_path: Path) -> None:
    slide = open_slide(any_path)
    slide.close()
    slide.close()
    with pytest.raises(ValueError, match="is closed"):
        slide.read_region(0, 0, 0, 8, 8)
    with pytest.raises(ValueError, match="is closed"):
        slide.fork()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_closing_all_readers_closes_the_file(any_path: Path) -> None:
    slide = open_slide(any_path)
    fork = slide.fork()
    for each in (slide, fork):
        each.read_region(0, 0, 0, 8, 8)
        each.close()
    assert str(any_path.resolve()) not in open_files()


def open_files() -> set[str]:
    folder = Path("/proc/self/fd")
    names = set()
    for descriptor in os.listdir(folder):  # noqa: PTH208 - iterdir fails if a descriptor is closed meanwhile
        try:
            names.add(str((folder / descriptor).readlink()))
        except OSError:
            continue
    return names


def test_require_spacing_rejects_a_slide_without_spacing(tmp_path: Path) -> None:
    implausible = "gives an implausible spacing of 1000 x 1000 um/px (plausible: 0.05 to 50)"  # libvips's default
    for kind, problem in (("no-spacing", implausible), ("unit-none", "gives no spacing")):
        with open_slide(write_slide(tmp_path, kind)) as slide:
            assert slide.spacing_um is None
            assert slide.spacing_source is None
            with pytest.raises(SlideRejected) as caught:
                require_spacing(slide)
        assert str(caught.value) == f'slide "{kind}.tif" {problem}; pass --spacing-um'
        assert caught.value.code == "spacing_missing"
