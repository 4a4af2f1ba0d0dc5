"""One contract over all sets of mask kernels, and the plain set against independent implementations."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from hagmil.runtime.kernels import COMPILED_FROM_PX, kernels_for
from hagmil.runtime.kernels import numba_cpu as numba_module
from hagmil.runtime.kernels.numba_cpu import NumbaKernels
from hagmil.runtime.kernels.protocol import DARKEST_LIT, MaskKernels
from hagmil.runtime.kernels.reference import ReferenceKernels

REPOSITORY = Path(__file__).resolve().parents[2]
REFERENCE = ReferenceKernels()
COMPILED: list[MaskKernels] = [NumbaKernels()]
ALL: list[MaskKernels] = [REFERENCE, *COMPILED]

each_compiled_set = pytest.mark.parametrize("kernels", COMPILED, ids=lambda kernels: kernels.name)
each_set = pytest.mark.parametrize("kernels", ALL, ids=lambda kernels: kernels.name)

planes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=14)
sides = st.sampled_from([1, 3, 5, 9])
areas = st.integers(0, 30)
images = hnp.arrays(np.uint8, planes)
few_values = hnp.arrays(np.uint8, planes, elements=st.sampled_from([0, 7, 8, 254, 255]))
colours = planes.flatmap(lambda plane: hnp.arrays(np.uint8, (*plane, 3)))
masks = hnp.arrays(np.bool_, planes) | planes.flatmap(
    lambda plane: st.sampled_from([np.zeros(plane, np.bool_), np.ones(plane, np.bool_)])
)
patient = settings(deadline=None)


def assert_same(one: NDArray[Any], other: NDArray[Any]) -> None:
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one, other, strict=True)


@each_compiled_set
@patient
@given(rgb=colours)
def test_every_set_has_the_plain_saturation(kernels: MaskKernels, rgb: NDArray[np.uint8]) -> None:
    assert_same(kernels.saturation(rgb), REFERENCE.saturation(rgb))


@each_compiled_set
def test_every_set_has_the_plain_saturation_for_every_brightest_and_darkest_channel(
    kernels: MaskKernels,
) -> None:
    one, other = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    rgb = np.stack([one, other, np.minimum(one, other)], axis=2)
    assert_same(kernels.saturation(rgb), REFERENCE.saturation(rgb))


@each_compiled_set
@patient
@given(image=images | few_values, side_px=sides)
def test_every_set_has_the_plain_median(kernels: MaskKernels, image: NDArray[np.uint8], side_px: int) -> None:
    assert_same(kernels.median(image, side_px), REFERENCE.median(image, side_px))


@each_compiled_set
@patient
@given(image=images)
def test_every_set_has_the_plain_histogram(kernels: MaskKernels, image: NDArray[np.uint8]) -> None:
    assert_same(kernels.histogram(image), REFERENCE.histogram(image))


@each_compiled_set
@patient
@given(mask=masks, side_px=sides)
def test_every_set_has_the_plain_closing(kernels: MaskKernels, mask: NDArray[np.bool_], side_px: int) -> None:
    assert_same(kernels.close(mask, side_px), REFERENCE.close(mask, side_px))


@each_compiled_set
@patient
@given(mask=masks, min_area_px=areas)
def test_every_set_drops_the_plain_set_of_objects(
    kernels: MaskKernels, mask: NDArray[np.bool_], min_area_px: int
) -> None:
    assert_same(kernels.remove_small_objects(mask, min_area_px), REFERENCE.remove_small_objects(mask, min_area_px))


@each_compiled_set
@patient
@given(mask=masks, min_area_px=areas)
def test_every_set_fills_the_plain_set_of_holes(
    kernels: MaskKernels, mask: NDArray[np.bool_], min_area_px: int
) -> None:
    assert_same(kernels.fill_small_holes(mask, min_area_px), REFERENCE.fill_small_holes(mask, min_area_px))


@each_compiled_set
def test_every_set_agrees_on_a_large_noisy_mask(kernels: MaskKernels) -> None:
    generator = np.random.default_rng(0)
    for share in (0.1, 0.4, 0.6, 0.9):
        mask = generator.random((300, 401)) < share
        assert_same(kernels.remove_small_objects(mask, 20), REFERENCE.remove_small_objects(mask, 20))
        assert_same(kernels.fill_small_holes(mask, 20), REFERENCE.fill_small_holes(mask, 20))


@each_set
@pytest.mark.parametrize("side_px", [1, 3])
def test_no_kernel_changes_or_returns_its_argument(kernels: MaskKernels, side_px: int) -> None:
    generator = np.random.default_rng(1)
    rgb = generator.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    image, mask = rgb[..., 0].copy(), rgb[..., 1] > 100
    for array in (rgb, image, mask):
        array.flags.writeable = False  # any write raises
    kernels.saturation(rgb)
    kernels.histogram(image)
    results = [
        (image, kernels.median(image, side_px)),
        (mask, kernels.close(mask, side_px)),
        (mask, kernels.remove_small_objects(mask, 0)),
        (mask, kernels.fill_small_holes(mask, 0)),
    ]
    for given_array, result in results:
        assert not np.shares_memory(given_array, result)


@each_set
def test_arrays_that_are_views_of_others_are_read_aright(kernels: MaskKernels) -> None:
    rgb = np.random.default_rng(2).integers(0, 256, (20, 22, 3), dtype=np.uint8)
    rgb_view, mask_view = rgb[::2, ::-2], (rgb[..., 0] > 90).T[::2]
    image_view = rgb_view[..., 1]
    assert_same(kernels.saturation(rgb_view), REFERENCE.saturation(rgb_view.copy()))
    assert_same(kernels.median(image_view, 3), REFERENCE.median(image_view.copy(), 3))
    assert_same(kernels.histogram(image_view), REFERENCE.histogram(image_view.copy()))
    assert_same(kernels.close(mask_view, 3), REFERENCE.close(mask_view.copy(), 3))
    assert_same(kernels.remove_small_objects(mask_view, 4), REFERENCE.remove_small_objects(mask_view.copy(), 4))
    assert_same(kernels.fill_small_holes(mask_view, 4), REFERENCE.fill_small_holes(mask_view.copy(), 4))


# The plain set against others' implementations.


@given(rgb=colours)
def test_saturation_is_pillows_of_hsv_but_for_rounding_and_black(rgb: NDArray[np.uint8]) -> None:
    if rgb.size == 0:
        return
    theirs = np.asarray(Image.fromarray(rgb).convert("HSV"))[..., 1].astype(int)
    lit = rgb.max(axis=2) >= DARKEST_LIT
    difference = REFERENCE.saturation(rgb) - theirs
    assert set(np.unique(difference[lit])) <= {0, 1}  # Pillow rounds down
    assert not REFERENCE.saturation(rgb)[~lit].any()


@each_set
def test_saturation_of_known_colours(kernels: MaskKernels) -> None:
    rgb = np.array([[[255, 255, 255], [200, 100, 150], [255, 0, 0], [0, 0, 0], [2, 0, 1], [240, 239, 240]]], np.uint8)
    assert kernels.saturation(rgb).tolist() == [[0, 128, 255, 0, 0, 1]]


@patient
@given(image=images | few_values, side_px=sides)
def test_median_is_scipys_with_repeated_edges(image: NDArray[np.uint8], side_px: int) -> None:
    if image.size:
        theirs = ndimage.median_filter(image, size=side_px, mode="nearest")
        np.testing.assert_array_equal(REFERENCE.median(image, side_px), theirs)


def test_median_of_an_image_of_several_bands_has_no_seams() -> None:
    image = np.random.default_rng(3).integers(0, 256, (150, 1000), dtype=np.uint8)
    np.testing.assert_array_equal(REFERENCE.median(image, 5), ndimage.median_filter(image, size=5, mode="nearest"))


@given(mask=masks, side_px=sides)
def test_closing_is_scipys_on_a_wide_frame_of_glass(mask: NDArray[np.bool_], side_px: int) -> None:
    framed = np.pad(mask, 2 * side_px)
    theirs = ndimage.binary_closing(framed, structure=np.ones((side_px, side_px), np.bool_))
    inside = theirs[2 * side_px : theirs.shape[0] - 2 * side_px, 2 * side_px : theirs.shape[1] - 2 * side_px]
    np.testing.assert_array_equal(REFERENCE.close(mask, side_px), inside)


@given(mask=masks, side_px=sides)
def test_closing_only_adds_and_adds_nothing_the_second_time(mask: NDArray[np.bool_], side_px: int) -> None:
    closed = REFERENCE.close(mask, side_px)
    assert (closed | mask == closed).all()
    np.testing.assert_array_equal(REFERENCE.close(closed, side_px), closed)


@given(mask=masks, min_area_px=areas)
def test_objects_are_scipys_components_over_sides_and_corners(mask: NDArray[np.bool_], min_area_px: int) -> None:
    if mask.size:
        labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
        area = np.bincount(labels.ravel())
        theirs = mask & (area[labels] >= min_area_px)
        np.testing.assert_array_equal(REFERENCE.remove_small_objects(mask, min_area_px), theirs)


@given(mask=masks, min_area_px=areas)
def test_holes_are_what_scipy_fills_in_components_over_sides(mask: NDArray[np.bool_], min_area_px: int) -> None:
    if mask.size:
        labels, _ = ndimage.label(ndimage.binary_fill_holes(mask) & ~mask)
        area = np.bincount(labels.ravel())
        theirs = mask | ((labels > 0) & (area[labels] < min_area_px))
        np.testing.assert_array_equal(REFERENCE.fill_small_holes(mask, min_area_px), theirs)


def from_picture(*rows: str) -> NDArray[np.bool_]:
    return np.array([[letter == "#" for letter in row] for row in rows])


@each_set
def test_objects_that_touch_at_a_corner_are_one(kernels: MaskKernels) -> None:
    mask = from_picture("##..", "..#.", "....", "#...")
    assert_same(kernels.remove_small_objects(mask, 3), from_picture("##..", "..#.", "....", "...."))


@each_set
def test_a_hole_does_not_leak_through_a_corner(kernels: MaskKernels) -> None:
    mask = from_picture(".###", "#.##", "###.")
    assert_same(kernels.fill_small_holes(mask, 2), from_picture(".###", "####", "###."))


@each_set
def test_glass_at_the_edge_is_no_hole_however_small(kernels: MaskKernels) -> None:
    mask = from_picture("#.##", "####", ".##.")
    assert_same(kernels.fill_small_holes(mask, 100), mask)


@each_set
def test_a_hole_of_the_least_area_stays(kernels: MaskKernels) -> None:
    mask = from_picture("#####", "#..##", "#####", "###.#", "#####")
    filled = from_picture("#####", "#..##", "#####", "#####", "#####")
    assert_same(kernels.fill_small_holes(mask, 2), filled)


@each_set
def test_closing_does_not_glue_tissue_to_the_edge(kernels: MaskKernels) -> None:
    mask = from_picture(".....", "..#.#", ".....")
    assert_same(kernels.close(mask, 3), from_picture(".....", "..###", "....."))


# What is compiled, and when.


def test_small_masks_are_made_without_numba() -> None:
    code = (
        "import sys; from hagmil.runtime.kernels import kernels_for; import hagmil.runtime.tissue; "
        "print(kernels_for(250_000).name, 'numba' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["reference", "False"]


def test_large_masks_are_made_by_compiled_kernels() -> None:
    assert isinstance(kernels_for(COMPILED_FROM_PX), NumbaKernels)
    assert kernels_for(COMPILED_FROM_PX - 1) == ReferenceKernels()


CALL_EVERY_KERNEL = """
import json
import numpy as np
from hagmil.runtime.kernels import numba_cpu as module
kernels = module.NumbaKernels()
saturation = kernels.saturation(np.full((8, 8, 3), 200, np.uint8))
mask = kernels.close(kernels.median(saturation, 3) > 8, 3)
kernels.fill_small_holes(kernels.remove_small_objects(mask, 2), 2)
kernels.histogram(saturation)
read_only = np.full((8, 8, 3), 200, np.uint8)
read_only.flags.writeable = False
kernels.saturation(read_only)
compiled = [module._saturation, module._median, module._join]
print(json.dumps({
    "hits": [sum(kernel.stats.cache_hits.values()) for kernel in compiled],
    "misses": [sum(kernel.stats.cache_misses.values()) for kernel in compiled],
}))
"""


def call_every_kernel(cache: Path) -> dict[str, list[int]]:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", CALL_EVERY_KERNEL]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    counts: dict[str, list[int]] = json.loads(done.stdout)
    return counts


def test_a_second_process_compiles_nothing_again(tmp_path: Path) -> None:
    assert call_every_kernel(tmp_path) == {"hits": [0, 0, 0], "misses": [1, 1, 1]}
    assert call_every_kernel(tmp_path) == {"hits": [1, 1, 1], "misses": [0, 0, 0]}


def test_without_a_folder_for_the_cache_kernels_still_compile_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    njit = numba.njit

    def no_folder(function: Any, *, cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(function, **options)

    monkeypatch.setattr(numba, "njit", no_folder)

    def double(number: int) -> int:
        return 2 * number

    with caplog.at_level(logging.WARNING):
        assert numba_module.compiled(double)(21) == 42
    assert "no locator available" in caplog.text
    assert "NUMBA_CACHE_DIR" in caplog.text
