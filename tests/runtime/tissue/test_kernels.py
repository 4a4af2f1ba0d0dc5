"""One contract over all sets of mask kernels, and the plain set against independent implementations."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
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

from hagmil.errors import EnvironmentLacks, UsageError
from hagmil.runtime.tissue.kernels import COMPILED_FROM_PX, cupy_gpu, kernels_for, kernels_on
from hagmil.runtime.tissue.kernels import numba_cpu as numba_module
from hagmil.runtime.tissue.kernels.cupy_gpu import CupyKernels, open_cupy
from hagmil.runtime.tissue.kernels.numba_cpu import NumbaKernels
from hagmil.runtime.tissue.kernels.protocol import MIN_LIT_BRIGHTNESS, MaskKernels
from hagmil.runtime.tissue.kernels.reference import ReferenceKernels

REPOSITORY = Path(__file__).resolve().parents[3]
REFERENCE = ReferenceKernels()
HOST_TWIN = CupyKernels(xp=np, ndimage=ndimage, to_host=np.asarray, band_px=30, name="cupy's steps on NumPy")


def gpu_set() -> tuple[MaskKernels | None, str]:
    """The set on this machine's GPU, or why there is none."""
    try:
        return open_cupy(), ""
    except EnvironmentLacks as lacks:
        return None, lacks.message


GPU, WHY_NO_GPU = gpu_set()
NO_GPU = pytest.mark.skipif(GPU is None, reason=WHY_NO_GPU or "there is one")
OTHERS = [
    pytest.param(NumbaKernels(), id="numba"),
    pytest.param(HOST_TWIN, id="cupy's steps on NumPy"),
    pytest.param(GPU, id="cupy", marks=[pytest.mark.gpu, NO_GPU]),
]

each_other_set = pytest.mark.parametrize("kernels", OTHERS)
each_set = pytest.mark.parametrize("kernels", [pytest.param(REFERENCE, id="reference"), *OTHERS])

planes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=14)
sides = st.sampled_from([1, 3, 5, 9])
areas = st.integers(0, 30)
thresholds = st.sampled_from([0, 7, 8, 120, 254, 255])
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


@each_other_set
@patient
@given(rgb=colours)
def test_every_set_has_the_plain_saturation(kernels: MaskKernels, rgb: NDArray[np.uint8]) -> None:
    assert_same(kernels.saturation(rgb), REFERENCE.saturation(rgb))


@each_other_set
def test_every_set_has_the_plain_saturation_for_every_brightest_and_darkest_channel(
    kernels: MaskKernels,
) -> None:
    one, other = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    rgb = np.stack([one, other, np.minimum(one, other)], axis=2)
    assert_same(kernels.saturation(rgb), REFERENCE.saturation(rgb))


@each_other_set
@patient
@given(image=images | few_values, side_px=sides)
def test_every_set_has_the_plain_median(kernels: MaskKernels, image: NDArray[np.uint8], side_px: int) -> None:
    assert_same(kernels.median(image, side_px), REFERENCE.median(image, side_px))


@each_other_set
@patient
@given(image=images | few_values, side_px=sides, threshold=thresholds)
def test_every_set_has_the_plain_median_above_a_threshold(
    kernels: MaskKernels, image: NDArray[np.uint8], side_px: int, threshold: int
) -> None:
    assert_same(kernels.median_above(image, side_px, threshold), REFERENCE.median_above(image, side_px, threshold))


@each_other_set
@patient
@given(image=images)
def test_every_set_has_the_plain_histogram(kernels: MaskKernels, image: NDArray[np.uint8]) -> None:
    assert_same(kernels.histogram(image), REFERENCE.histogram(image))


@each_other_set
@patient
@given(rgb=colours)
def test_every_set_counts_the_plain_brightness(kernels: MaskKernels, rgb: NDArray[np.uint8]) -> None:
    assert_same(kernels.brightness(rgb), REFERENCE.brightness(rgb))


@each_other_set
def test_every_set_agrees_on_squares_whose_pixels_eight_bits_cannot_count(kernels: MaskKernels) -> None:
    image = np.random.default_rng(4).integers(0, 20, (40, 37), dtype=np.uint8)
    assert_same(kernels.median(image, 17), REFERENCE.median(image, 17))
    assert_same(kernels.median_above(image, 17, 9), REFERENCE.median_above(image, 17, 9))
    assert_same(kernels.close(image > 18, 17), REFERENCE.close(image > 18, 17))


@each_other_set
@patient
@given(mask=masks, side_px=sides)
def test_every_set_has_the_plain_closing(kernels: MaskKernels, mask: NDArray[np.bool_], side_px: int) -> None:
    assert_same(kernels.close(mask, side_px), REFERENCE.close(mask, side_px))


@each_other_set
@patient
@given(mask=masks, min_area_px=areas)
def test_every_set_drops_the_plain_set_of_objects(
    kernels: MaskKernels, mask: NDArray[np.bool_], min_area_px: int
) -> None:
    assert_same(kernels.remove_small_objects(mask, min_area_px), REFERENCE.remove_small_objects(mask, min_area_px))


@each_other_set
@patient
@given(mask=masks, min_area_px=areas)
def test_every_set_fills_the_plain_set_of_holes(
    kernels: MaskKernels, mask: NDArray[np.bool_], min_area_px: int
) -> None:
    assert_same(kernels.fill_small_holes(mask, min_area_px), REFERENCE.fill_small_holes(mask, min_area_px))


@each_other_set
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
    kernels.brightness(rgb)
    kernels.saturation(rgb)
    kernels.histogram(image)
    results = [
        (image, kernels.median_above(image, side_px, 100)),
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
    assert_same(kernels.brightness(rgb_view), REFERENCE.brightness(rgb_view.copy()))
    assert_same(kernels.median_above(image_view, 3, 99), REFERENCE.median_above(image_view.copy(), 3, 99))
    assert_same(kernels.close(mask_view, 3), REFERENCE.close(mask_view.copy(), 3))
    assert_same(kernels.remove_small_objects(mask_view, 4), REFERENCE.remove_small_objects(mask_view.copy(), 4))
    assert_same(kernels.fill_small_holes(mask_view, 4), REFERENCE.fill_small_holes(mask_view.copy(), 4))


# The plain set against others' implementations.


@given(rgb=colours)
def test_saturation_is_pillows_of_hsv_but_for_rounding_and_black(rgb: NDArray[np.uint8]) -> None:
    if rgb.size == 0:
        return
    theirs = np.asarray(Image.fromarray(rgb).convert("HSV"))[..., 1].astype(int)
    lit = rgb.max(axis=2) >= MIN_LIT_BRIGHTNESS
    difference = REFERENCE.saturation(rgb) - theirs
    assert set(np.unique(difference[lit])) <= {0, 1}  # Pillow rounds down
    assert not REFERENCE.saturation(rgb)[~lit].any()


def test_saturation_is_rounded_half_up_for_every_brightest_and_darkest_channel() -> None:
    brightest, darkest = np.meshgrid(np.arange(256), np.arange(256))
    lit = (brightest >= darkest) & (brightest >= MIN_LIT_BRIGHTNESS)
    rgb = np.stack([darkest, brightest, darkest], axis=2).astype(np.uint8)
    exact = (510 * (brightest - darkest) + brightest) // np.maximum(2 * brightest, 1)  # whole numbers alone
    np.testing.assert_array_equal(REFERENCE.saturation(rgb)[lit], exact[lit])


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


@pytest.mark.parametrize("side_px", [7, 9, 17])  # by forgetting extremes, bit by bit, and in wider counts
def test_median_of_wide_squares_is_scipys(side_px: int) -> None:
    image = np.random.default_rng(5).integers(0, 256, (31, 45), dtype=np.uint8)
    theirs = ndimage.median_filter(image, size=side_px, mode="nearest")
    np.testing.assert_array_equal(REFERENCE.median(image, side_px), theirs)


@given(image=images | few_values, side_px=sides, threshold=thresholds)
def test_where_the_median_is_above_a_threshold_needs_no_median(
    image: NDArray[np.uint8], side_px: int, threshold: int
) -> None:
    assert_same(REFERENCE.median_above(image, side_px, threshold), REFERENCE.median(image, side_px) > threshold)


def test_median_of_an_image_of_several_bands_has_no_seams() -> None:
    image = np.random.default_rng(3).integers(0, 256, (150, 1000), dtype=np.uint8)
    np.testing.assert_array_equal(REFERENCE.median(image, 5), ndimage.median_filter(image, size=5, mode="nearest"))


def test_brightness_counts_the_brightest_of_three_channels() -> None:
    rgb = np.array([[[1, 2, 3], [9, 0, 3]], [[3, 3, 0], [0, 0, 0]]], np.uint8)
    counts = REFERENCE.brightness(rgb)
    assert {int(value): int(counts[value]) for value in np.flatnonzero(counts)} == {0: 1, 3: 2, 9: 1}


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
        "import sys; from hagmil.runtime.tissue.kernels import kernels_for; import hagmil.runtime.tissue.segment; "
        "print(kernels_for(36_000_000).name, 'numba' in sys.modules, 'cupy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["reference", "False", "False"]


def test_large_masks_are_made_by_compiled_kernels() -> None:
    assert isinstance(kernels_for(COMPILED_FROM_PX), NumbaKernels)
    assert kernels_for(COMPILED_FROM_PX - 1) == ReferenceKernels()


CALL_EVERY_KERNEL = """
import json
import numpy as np
from hagmil.runtime.tissue.kernels import numba_cpu as module
kernels = module.NumbaKernels()
saturation = kernels.saturation(np.full((8, 8, 3), 200, np.uint8))
kernels.median(saturation, 3)
mask = kernels.close(kernels.median_above(saturation, 3, 8), 3)
kernels.fill_small_holes(kernels.remove_small_objects(mask, 2), 2)
kernels.histogram(saturation)
read_only = np.full((8, 8, 3), 200, np.uint8)
read_only.flags.writeable = False
kernels.saturation(read_only)
kernels.brightness(read_only)
compiled = [module._brightness, module._saturation, module._median, module._at_least, module._join]
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
    assert call_every_kernel(tmp_path) == {"hits": [0] * 5, "misses": [1] * 5}
    assert call_every_kernel(tmp_path) == {"hits": [1] * 5, "misses": [0] * 5}


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


def test_calls_from_several_threads_at_once_give_one_result() -> None:
    rgb = np.random.default_rng(6).integers(0, 256, (120, 130, 3), dtype=np.uint8)
    kernels = NumbaKernels()
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: kernels.median(kernels.saturation(rgb), 5), range(12)))
    for result in results:
        assert_same(result, REFERENCE.median(REFERENCE.saturation(rgb), 5))


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_does_not_show(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba_module, "_BAND_PX", 500)
    rgb = np.random.default_rng(7).integers(0, 256, (61, 70, 3), dtype=np.uint8)
    kernels, image = NumbaKernels(threads=threads), rgb[..., 0]
    assert_same(kernels.brightness(rgb), REFERENCE.brightness(rgb))
    assert_same(kernels.saturation(rgb), REFERENCE.saturation(rgb))
    assert_same(kernels.median(image, 5), REFERENCE.median(image, 5))
    assert_same(kernels.median_above(image, 5, 99), REFERENCE.median_above(image, 5, 99))
    assert_same(kernels.close(image > 200, 5), REFERENCE.close(image > 200, 5))


# The GPU that was asked for.


class CudaFailed(RuntimeError):
    """Stands for cupy's own."""


def fake_cupy(devices: int | Exception) -> SimpleNamespace:
    def count() -> int:
        if isinstance(devices, Exception):
            raise devices
        return devices

    runtime = SimpleNamespace(getDeviceCount=count)
    return SimpleNamespace(cuda=SimpleNamespace(runtime=runtime), asnumpy=np.asarray)


def test_on_the_cpu_each_mask_chooses_by_its_size() -> None:
    assert kernels_on("cpu") is None


def test_a_device_of_another_name_is_a_wrong_usage() -> None:
    with pytest.raises(UsageError, match='"gpu" is not one of cpu, cuda'):
        kernels_on("gpu")


def test_a_gpu_without_cupy_is_told_with_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(EnvironmentLacks, match=r"hagmil\[gpu\]") as lacks:
        kernels_on("cuda")
    assert (lacks.value.code, lacks.value.exit_code) == ("package_missing", 5)


@pytest.mark.parametrize("devices", [0, CudaFailed("cudaErrorNoDevice: no CUDA-capable device is detected")])
def test_cupy_without_a_gpu_is_told_and_never_made_up_for(
    monkeypatch: pytest.MonkeyPatch, devices: int | Exception
) -> None:
    monkeypatch.setattr(cupy_gpu, "require", lambda *_, **__: fake_cupy(devices))
    with pytest.raises(EnvironmentLacks, match=r"no CUDA-capable device|no device is visible") as lacks:
        kernels_on("cuda")
    assert (lacks.value.code, lacks.value.exit_code) == ("mask_device_missing", 5)


def test_a_gpu_that_is_there_makes_the_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {"cupy": fake_cupy(1), "cupyx.scipy.ndimage": ndimage}
    monkeypatch.setattr(cupy_gpu, "require", lambda module, **_: modules[module])
    kernels = kernels_on("cuda")
    assert kernels is not None
    assert kernels.name == "cupy"
