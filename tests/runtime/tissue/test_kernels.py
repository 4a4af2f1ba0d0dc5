"""One contract for all mask kernels, and the NumPy kernels against independent implementations."""

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
from tests.fakes.cuda_driver import install_gpu
from tests.fakes.gpu import Gpu

REPOSITORY = Path(__file__).resolve().parents[3]
REFERENCE = ReferenceKernels()
CUPY_ON_NUMPY = CupyKernels(xp=np, ndimage=ndimage, to_host=np.asarray, band_px=30, name="cupy operations on NumPy")


def gpu_kernels() -> tuple[MaskKernels | None, str]:
    """Kernels for the GPU of this machine, or the reason why there are none."""
    try:
        return open_cupy(), ""
    except EnvironmentLacks as lacks:
        return None, lacks.message


GPU, WHY_NO_GPU = gpu_kernels()
NO_GPU = pytest.mark.skipif(GPU is None, reason=WHY_NO_GPU or "there is a GPU")
OTHERS = [
    pytest.param(NumbaKernels(), id="numba"),
    pytest.param(CUPY_ON_NUMPY, id="cupy operations on NumPy"),
    pytest.param(GPU, id="cupy", marks=[pytest.mark.gpu, NO_GPU]),
]

each_other_kernels = pytest.mark.parametrize("kernels", OTHERS)
each_kernels = pytest.mark.parametrize("kernels", [pytest.param(REFERENCE, id="reference"), *OTHERS])

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
no_deadline = settings(deadline=None)


def assert_same(one: NDArray[Any], other: NDArray[Any]) -> None:
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one, other, strict=True)


@each_other_kernels
@no_deadline
@given(rgb=colours)
def test_saturation_equals_the_reference(kernels: MaskKernels, rgb: NDArray[np.uint8]) -> None:
    assert_same(kernels.saturation(rgb), REFERENCE.saturation(rgb))


@each_other_kernels
def test_saturation_equals_the_reference_for_all_brightest_and_darkest_channels(
    kernels: MaskKernels,
) -> None:
    one, other = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    rgb = np.stack([one, other, np.minimum(one, other)], axis=2)
    assert_same(kernels.saturation(rgb), REFERENCE.saturation(rgb))


@each_other_kernels
@no_deadline
@given(image=images | few_values, side_px=sides)
def test_median_equals_the_reference(kernels: MaskKernels, image: NDArray[np.uint8], side_px: int) -> None:
    assert_same(kernels.median(image, side_px), REFERENCE.median(image, side_px))


@each_other_kernels
@no_deadline
@given(image=images | few_values, side_px=sides, threshold=thresholds)
def test_median_above_a_threshold_equals_the_reference(
    kernels: MaskKernels, image: NDArray[np.uint8], side_px: int, threshold: int
) -> None:
    assert_same(kernels.median_above(image, side_px, threshold), REFERENCE.median_above(image, side_px, threshold))


@each_other_kernels
@no_deadline
@given(image=images)
def test_histogram_equals_the_reference(kernels: MaskKernels, image: NDArray[np.uint8]) -> None:
    assert_same(kernels.histogram(image), REFERENCE.histogram(image))


@each_other_kernels
@no_deadline
@given(rgb=colours)
def test_brightness_equals_the_reference(kernels: MaskKernels, rgb: NDArray[np.uint8]) -> None:
    assert_same(kernels.brightness(rgb), REFERENCE.brightness(rgb))


@each_other_kernels
def test_squares_of_more_than_255_pixels_equal_the_reference(kernels: MaskKernels) -> None:
    image = np.random.default_rng(4).integers(0, 20, (40, 37), dtype=np.uint8)
    assert_same(kernels.median(image, 17), REFERENCE.median(image, 17))
    assert_same(kernels.median_above(image, 17, 9), REFERENCE.median_above(image, 17, 9))
    assert_same(kernels.close(image > 18, 17), REFERENCE.close(image > 18, 17))


@each_other_kernels
@no_deadline
@given(mask=masks, side_px=sides)
def test_closing_equals_the_reference(kernels: MaskKernels, mask: NDArray[np.bool_], side_px: int) -> None:
    assert_same(kernels.close(mask, side_px), REFERENCE.close(mask, side_px))


@each_other_kernels
@no_deadline
@given(mask=masks, min_area_px=areas)
def test_removal_of_objects_equals_the_reference(
    kernels: MaskKernels, mask: NDArray[np.bool_], min_area_px: int
) -> None:
    assert_same(kernels.remove_small_objects(mask, min_area_px), REFERENCE.remove_small_objects(mask, min_area_px))


@each_other_kernels
@no_deadline
@given(mask=masks, min_area_px=areas)
def test_filling_of_holes_equals_the_reference(kernels: MaskKernels, mask: NDArray[np.bool_], min_area_px: int) -> None:
    assert_same(kernels.fill_small_holes(mask, min_area_px), REFERENCE.fill_small_holes(mask, min_area_px))


@each_other_kernels
def test_components_of_a_large_noisy_mask_equal_the_reference(kernels: MaskKernels) -> None:
    generator = np.random.default_rng(0)
    for share in (0.1, 0.4, 0.6, 0.9):
        mask = generator.random((300, 401)) < share
        assert_same(kernels.remove_small_objects(mask, 20), REFERENCE.remove_small_objects(mask, 20))
        assert_same(kernels.fill_small_holes(mask, 20), REFERENCE.fill_small_holes(mask, 20))


@each_kernels
@pytest.mark.parametrize("side_px", [1, 3])
def test_no_kernel_modifies_or_returns_its_argument(kernels: MaskKernels, side_px: int) -> None:
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


@each_kernels
def test_views_give_the_same_results_as_copies(kernels: MaskKernels) -> None:
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


# The NumPy kernels against other implementations.


@given(rgb=colours)
def test_saturation_equals_that_of_pillow_except_rounding_and_black(rgb: NDArray[np.uint8]) -> None:
    if rgb.size == 0:
        return
    theirs = np.asarray(Image.fromarray(rgb).convert("HSV"))[..., 1].astype(int)
    lit = rgb.max(axis=2) >= MIN_LIT_BRIGHTNESS
    difference = REFERENCE.saturation(rgb) - theirs
    assert set(np.unique(difference[lit])) <= {0, 1}  # Pillow rounds down
    assert not REFERENCE.saturation(rgb)[~lit].any()


def test_saturation_is_rounded_half_up() -> None:
    brightest, darkest = np.meshgrid(np.arange(256), np.arange(256))
    lit = (brightest >= darkest) & (brightest >= MIN_LIT_BRIGHTNESS)
    rgb = np.stack([darkest, brightest, darkest], axis=2).astype(np.uint8)
    exact = (510 * (brightest - darkest) + brightest) // np.maximum(2 * brightest, 1)  # integer arithmetic
    np.testing.assert_array_equal(REFERENCE.saturation(rgb)[lit], exact[lit])


@each_kernels
def test_saturation_of_known_colours(kernels: MaskKernels) -> None:
    rgb = np.array([[[255, 255, 255], [200, 100, 150], [255, 0, 0], [0, 0, 0], [2, 0, 1], [240, 239, 240]]], np.uint8)
    assert kernels.saturation(rgb).tolist() == [[0, 128, 255, 0, 0, 1]]


@no_deadline
@given(image=images | few_values, side_px=sides)
def test_median_equals_that_of_scipy_with_repeated_edges(image: NDArray[np.uint8], side_px: int) -> None:
    if image.size:
        theirs = ndimage.median_filter(image, size=side_px, mode="nearest")
        np.testing.assert_array_equal(REFERENCE.median(image, side_px), theirs)


@pytest.mark.parametrize("side_px", [7, 9, 17])  # by removing extremes, bit by bit, and with 32-bit counts
def test_median_of_large_squares_equals_that_of_scipy(side_px: int) -> None:
    image = np.random.default_rng(5).integers(0, 256, (31, 45), dtype=np.uint8)
    theirs = ndimage.median_filter(image, size=side_px, mode="nearest")
    np.testing.assert_array_equal(REFERENCE.median(image, side_px), theirs)


@given(image=images | few_values, side_px=sides, threshold=thresholds)
def test_median_above_a_threshold_equals_the_compared_median(
    image: NDArray[np.uint8], side_px: int, threshold: int
) -> None:
    assert_same(REFERENCE.median_above(image, side_px, threshold), REFERENCE.median(image, side_px) > threshold)


def test_median_of_several_bands_has_no_seams() -> None:
    image = np.random.default_rng(3).integers(0, 256, (150, 1000), dtype=np.uint8)
    np.testing.assert_array_equal(REFERENCE.median(image, 5), ndimage.median_filter(image, size=5, mode="nearest"))


def test_brightness_counts_the_brightest_of_three_channels() -> None:
    rgb = np.array([[[1, 2, 3], [9, 0, 3]], [[3, 3, 0], [0, 0, 0]]], np.uint8)
    counts = REFERENCE.brightness(rgb)
    assert {int(value): int(counts[value]) for value in np.flatnonzero(counts)} == {0: 1, 3: 2, 9: 1}


@given(mask=masks, side_px=sides)
def test_closing_equals_that_of_scipy_on_a_padded_mask(mask: NDArray[np.bool_], side_px: int) -> None:
    framed = np.pad(mask, 2 * side_px)
    theirs = ndimage.binary_closing(framed, structure=np.ones((side_px, side_px), np.bool_))
    inside = theirs[2 * side_px : theirs.shape[0] - 2 * side_px, 2 * side_px : theirs.shape[1] - 2 * side_px]
    np.testing.assert_array_equal(REFERENCE.close(mask, side_px), inside)


@given(mask=masks, side_px=sides)
def test_closing_only_adds_pixels_and_is_idempotent(mask: NDArray[np.bool_], side_px: int) -> None:
    closed = REFERENCE.close(mask, side_px)
    assert (closed | mask == closed).all()
    np.testing.assert_array_equal(REFERENCE.close(closed, side_px), closed)


@given(mask=masks, min_area_px=areas)
def test_objects_are_8_connected_components_of_scipy(mask: NDArray[np.bool_], min_area_px: int) -> None:
    if mask.size:
        labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
        area = np.bincount(labels.ravel())
        theirs = mask & (area[labels] >= min_area_px)
        np.testing.assert_array_equal(REFERENCE.remove_small_objects(mask, min_area_px), theirs)


@given(mask=masks, min_area_px=areas)
def test_holes_are_4_connected_components_that_scipy_fills(mask: NDArray[np.bool_], min_area_px: int) -> None:
    if mask.size:
        labels, _ = ndimage.label(ndimage.binary_fill_holes(mask) & ~mask)
        area = np.bincount(labels.ravel())
        theirs = mask | ((labels > 0) & (area[labels] < min_area_px))
        np.testing.assert_array_equal(REFERENCE.fill_small_holes(mask, min_area_px), theirs)


def from_picture(*rows: str) -> NDArray[np.bool_]:
    return np.array([[letter == "#" for letter in row] for row in rows])


@each_kernels
def test_objects_that_touch_at_a_corner_are_connected(kernels: MaskKernels) -> None:
    mask = from_picture("##..", "..#.", "....", "#...")
    assert_same(kernels.remove_small_objects(mask, 3), from_picture("##..", "..#.", "....", "...."))


@each_kernels
def test_holes_that_touch_glass_at_a_corner_are_enclosed(kernels: MaskKernels) -> None:
    mask = from_picture(".###", "#.##", "###.")
    assert_same(kernels.fill_small_holes(mask, 2), from_picture(".###", "####", "###."))


@each_kernels
def test_glass_at_the_edge_is_never_a_hole(kernels: MaskKernels) -> None:
    mask = from_picture("#.##", "####", ".##.")
    assert_same(kernels.fill_small_holes(mask, 100), mask)


@each_kernels
def test_a_hole_of_the_minimum_area_is_kept(kernels: MaskKernels) -> None:
    mask = from_picture("#####", "#..##", "#####", "###.#", "#####")
    filled = from_picture("#####", "#..##", "#####", "#####", "#####")
    assert_same(kernels.fill_small_holes(mask, 2), filled)


@each_kernels
def test_closing_does_not_connect_tissue_to_the_edge(kernels: MaskKernels) -> None:
    mask = from_picture(".....", "..#.#", ".....")
    assert_same(kernels.close(mask, 3), from_picture(".....", "..###", "....."))


# Choice and compilation of the numba kernels.


def test_small_masks_do_not_import_numba() -> None:
    code = (
        "import sys; from hagmil.runtime.tissue.kernels import kernels_for; import hagmil.runtime.tissue.segment; "
        "print(kernels_for(36_000_000).name, 'numba' in sys.modules, 'cupy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["reference", "False", "False"]


def test_large_masks_use_the_numba_kernels() -> None:
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


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    assert call_every_kernel(tmp_path) == {"hits": [0] * 5, "misses": [1] * 5}
    assert call_every_kernel(tmp_path) == {"hits": [1] * 5, "misses": [0] * 5}


def test_without_a_cache_folder_kernels_compile_and_a_warning_is_logged(
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


def test_concurrent_calls_give_the_same_result() -> None:
    rgb = np.random.default_rng(6).integers(0, 256, (120, 130, 3), dtype=np.uint8)
    kernels = NumbaKernels()
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: kernels.median(kernels.saturation(rgb), 5), range(12)))
    for result in results:
        assert_same(result, REFERENCE.median(REFERENCE.saturation(rgb), 5))


@pytest.mark.parametrize("threads", [1, 3])
def test_results_do_not_depend_on_the_number_of_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba_module, "_BAND_PX", 500)
    rgb = np.random.default_rng(7).integers(0, 256, (61, 70, 3), dtype=np.uint8)
    kernels, image = NumbaKernels(threads=threads), rgb[..., 0]
    assert_same(kernels.brightness(rgb), REFERENCE.brightness(rgb))
    assert_same(kernels.saturation(rgb), REFERENCE.saturation(rgb))
    assert_same(kernels.median(image, 5), REFERENCE.median(image, 5))
    assert_same(kernels.median_above(image, 5, 99), REFERENCE.median_above(image, 5, 99))
    assert_same(kernels.close(image > 200, 5), REFERENCE.close(image > 200, 5))


# Choice of the device.


def test_on_the_cpu_kernels_are_chosen_for_each_mask() -> None:
    assert kernels_on("cpu") is None


def test_an_unknown_device_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match='"gpu" is not one of cpu, cuda'):
        kernels_on("gpu")


def test_a_missing_cupy_is_reported_with_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(EnvironmentLacks, match=r"hagmil\[gpu\]") as lacks:
        kernels_on("cuda")
    assert (lacks.value.code, lacks.value.exit_code) == ("package_missing", 5)


def test_a_missing_gpu_is_an_error_without_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    install_gpu(monkeypatch, Gpu(capability=""))
    with pytest.raises(EnvironmentLacks, match=r"finds no NVIDIA GPU.*--mask-device cpu gives the same") as lacks:
        kernels_on("cuda")
    assert (lacks.value.code, lacks.value.exit_code) == ("no_gpu", 5)


def test_a_usable_gpu_makes_the_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    install_gpu(monkeypatch, Gpu())
    modules = {"cupy": SimpleNamespace(asnumpy=np.asarray), "cupyx.scipy.ndimage": ndimage}
    monkeypatch.setattr(cupy_gpu, "require", lambda module, **_: modules[module])
    kernels = kernels_on("cuda")
    assert kernels is not None
    assert kernels.name == "cupy"
