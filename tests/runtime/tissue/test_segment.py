"""Tissue masks of synthetic images and real slides, and comparison with the patches of CLAM."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import ndimage

from hagmil.errors import SlideRejected
from hagmil.runtime.slides.open import open_slide
from hagmil.runtime.tissue.kernels.cupy_gpu import CupyKernels
from hagmil.runtime.tissue.kernels.numba_cpu import NumbaKernels
from hagmil.runtime.tissue.kernels.reference import ReferenceKernels
from hagmil.runtime.tissue.segment import otsu_threshold
from hagmil.tissue_parameters import TissueParameters
from tests.runtime.array_slide import GLASS, NO_FILTERS, STROMA, ArraySlide, glass, noisy, patterned, tissue_of

Method = Literal["otsu", "fixed"]
METHODS: list[Method] = ["fixed", "otsu"]


# Tissue and glass.


@pytest.mark.parametrize("method", METHODS)
def test_a_square_of_tissue_is_found_where_it_is(method: Method) -> None:
    pixels = glass(60, 80)
    pixels[20:40, 10:50] = STROMA
    mask = tissue_of(ArraySlide([noisy(pixels, 2.0)]), TissueParameters(method=method, min_hole_um2=0))
    expected = np.zeros((60, 80), dtype=np.bool_)
    expected[20:40, 10:50] = True
    assert np.count_nonzero(mask.mask ^ expected) <= 4 * 8  # the median rounds the four corners
    assert mask.area_um2 == pytest.approx(20 * 40 * 64, rel=0.05)
    assert mask.threshold >= 8


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("deviation", [0.0, 1.0, 3.0])
def test_a_slide_of_glass_only_has_no_tissue(method: Method, deviation: float) -> None:
    slide = ArraySlide([noisy(glass(100, 120), deviation)], spacing_um=4.0)
    assert not tissue_of(slide, TissueParameters(method=method)).mask.any()


def test_pure_white_has_no_tissue() -> None:
    white = np.full((30, 30, 3), 255, dtype=np.uint8)
    assert not tissue_of(ArraySlide([white]), TissueParameters(method="otsu")).mask.any()


def test_the_mask_of_a_slide_of_tissue_only_is_all_tissue() -> None:
    pixels = noisy(np.full((50, 50, 3), STROMA, dtype=np.uint8), 5.0)
    assert tissue_of(ArraySlide([pixels]), TissueParameters()).mask.all()


def test_small_objects_are_removed_and_large_ones_kept() -> None:
    pixels = glass(40, 60)
    pixels[5:15, 5:15] = STROMA  # 6400 um²
    pixels[20:33, 30:43] = STROMA  # 10816 um²
    parameters = NO_FILTERS.model_copy(update={"min_object_um2": 10_000.0})
    mask = tissue_of(ArraySlide([pixels]), parameters).mask
    assert not mask[:16, :16].any()
    assert mask[20:33, 30:43].all()


def test_small_holes_are_filled_and_large_ones_kept() -> None:
    pixels = np.full((60, 60, 3), STROMA, dtype=np.uint8)
    pixels[5:15, 5:15] = GLASS  # 6400 um²
    pixels[20:50, 20:50] = GLASS  # 57600 um²
    parameters = NO_FILTERS.model_copy(update={"min_hole_um2": 40_000.0})
    mask = tissue_of(ArraySlide([pixels]), parameters).mask
    assert mask[5:15, 5:15].all()
    assert not mask[20:50, 20:50].any()
    assert mask.sum() == 60 * 60 - 30 * 30


def test_areas_and_lengths_mean_the_same_at_every_spacing() -> None:
    pixels = glass(80, 80)
    pixels[16:64, 16:64] = STROMA
    pixels[28:36, 28:36] = GLASS  # wider than the closing at 8 um/px, but smaller than the minimum hole
    fine = np.kron(pixels, np.ones((4, 4, 1), dtype=np.uint8))
    at_8 = tissue_of(ArraySlide([pixels], spacing_um=8.0), TissueParameters(spacing_um=8.0))
    at_2 = tissue_of(ArraySlide([fine], spacing_um=2.0), TissueParameters(spacing_um=2.0))
    coarse_of_2 = at_2.mask.reshape(80, 4, 80, 4).mean(axis=(1, 3)) >= 0.5
    assert at_2.mask.shape == (320, 320)
    assert at_8.mask[28:36, 28:36].all()
    assert np.count_nonzero(at_8.mask ^ coarse_of_2) <= 4 * 4  # the four corners


def test_pale_tissue_is_found_only_above_the_threshold() -> None:
    pale = np.full((30, 30, 3), (240, 228, 236), dtype=np.uint8)  # saturation 13
    assert tissue_of(ArraySlide([pale]), NO_FILTERS).mask.all()
    strict = NO_FILTERS.model_copy(update={"threshold": 13})
    assert not tissue_of(ArraySlide([pale]), strict).mask.any()


def test_a_black_region_that_was_not_scanned_is_glass_despite_its_noise() -> None:
    generator = np.random.default_rng(0)
    pixels = np.concatenate([glass(40, 40), generator.integers(0, 7, (40, 40, 3), dtype=np.uint8)], axis=1)
    assert not tissue_of(ArraySlide([pixels]), NO_FILTERS).mask.any()


def test_otsus_threshold_of_stained_tissue_is_above_the_minimum() -> None:
    pixels = glass(40, 40)
    pixels[:20, :, 1] = np.linspace(230, 60, 40)  # from pale to deep
    slide = ArraySlide([noisy(pixels, 2.0)])
    mask = tissue_of(slide, TissueParameters(method="otsu"))
    assert 40 < mask.threshold < 120
    assert mask.mask.sum() < tissue_of(slide, TissueParameters()).mask.sum()
    assert tissue_of(ArraySlide([pixels]), TissueParameters(method="otsu", threshold=150)).threshold == 150


@settings(deadline=None)
@given(histogram=hnp.arrays(np.int64, 256, elements=st.sampled_from([0, 0, 0, 1, 5, 400])))
def test_otsus_threshold_maximises_the_variance_between_the_classes(histogram: NDArray[np.int64]) -> None:
    values = np.arange(256)

    def between(threshold: int) -> float:
        low, high = histogram[: threshold + 1], histogram[threshold + 1 :]
        if low.sum() == 0 or high.sum() == 0:
            return 0.0
        means = (low @ values[: threshold + 1]) / low.sum(), (high @ values[threshold + 1 :]) / high.sum()
        return float(low.sum()) * float(high.sum()) * float(means[0] - means[1]) ** 2

    best = max(between(threshold) for threshold in range(256))
    assert between(otsu_threshold(histogram)) == pytest.approx(best, rel=1e-9)


def test_otsus_threshold_of_a_single_value_is_zero() -> None:
    assert otsu_threshold(np.zeros(256, dtype=np.int64)) == 0
    assert otsu_threshold(np.bincount([77] * 9, minlength=256)) == 0


# Rejected slides and parameters.


def test_a_slide_without_spacing_is_rejected_with_the_option_that_gives_one() -> None:
    with pytest.raises(SlideRejected, match=r"made\.tif.*--spacing-um") as rejected:
        tissue_of(ArraySlide([glass(9, 9)], spacing_um=None), TissueParameters())
    assert rejected.value.code == "spacing_missing"


def test_bright_cells_on_black_are_not_brightfield() -> None:
    pixels = np.random.default_rng(0).integers(0, 30, (60, 60, 3), dtype=np.uint8)
    pixels[::7, ::7] = (20, 40, 250)
    with pytest.raises(
        SlideRejected, match=r'"made\.tif" is not a brightfield slide: .* as in fluorescence'
    ) as rejected:
        tissue_of(ArraySlide([pixels]), TissueParameters())
    assert rejected.value.code == "not_brightfield"


def test_an_entirely_black_slide_is_not_brightfield() -> None:
    with pytest.raises(SlideRejected, match="is not a brightfield slide"):
        tissue_of(ArraySlide([np.zeros((20, 20, 3), dtype=np.uint8)]), TissueParameters())


def test_a_brightfield_slide_with_large_unscanned_regions_is_accepted() -> None:
    pixels = np.zeros((100, 100, 3), dtype=np.uint8)
    pixels[:30, :30] = STROMA
    mask = tissue_of(ArraySlide([pixels]), TissueParameters())
    assert mask.mask[5:25, 5:25].all()
    assert not mask.mask[40:, 40:].any()


@pytest.mark.parametrize("colour", [(120, 70, 140), (110, 70, 45), (150, 60, 130)])
def test_a_slide_full_of_dense_stain_is_brightfield(colour: tuple[int, int, int]) -> None:
    pixels = noisy(np.full((40, 40, 3), colour, dtype=np.uint8), 15.0)
    assert tissue_of(ArraySlide([pixels]), TissueParameters()).mask.all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"spacing_um": 0.0},
        {"threshold": 256},
        {"min_share": 1.5},
        {"method": "guess"},
        {"median_um": -1.0},
        {"typo": 1},
    ],
)
def test_invalid_parameters_are_rejected(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TissueParameters.model_validate(wrong)


@pytest.mark.parametrize("method", METHODS)
def test_all_kernels_give_the_same_mask(method: Method) -> None:
    slide = ArraySlide([patterned(200, 300)], spacing_um=4.0)
    parameters = TissueParameters(spacing_um=4.0, method=method, min_object_um2=5_000.0, min_hole_um2=5_000.0)
    plain = tissue_of(slide, parameters, ReferenceKernels())
    assert 0 < plain.mask.sum() < plain.mask.size
    for kernels in (NumbaKernels(), CupyKernels(xp=np, ndimage=ndimage, to_host=np.asarray)):
        other = tissue_of(slide, parameters, kernels)
        np.testing.assert_array_equal(other.mask, plain.mask)
        assert other.threshold == plain.threshold


# Real slides.


def test_the_fluorescence_slide_is_rejected(data_folder: Path) -> None:
    with (
        open_slide(data_folder / "slides" / "fluorescence.ndpi") as slide,
        pytest.raises(SlideRejected, match=r"fluorescence\.ndpi.*transmitted light") as rejected,
    ):
        tissue_of(slide, TissueParameters())
    assert rejected.value.code == "not_brightfield"


@pytest.mark.parametrize("method", METHODS)
def test_a_third_of_the_skin_slide_is_tissue(data_folder: Path, method: Method) -> None:
    with open_slide(data_folder / "slides" / "CMU-1-Small-Region.svs") as slide:
        mask = tissue_of(slide, TissueParameters(method=method))
        again = tissue_of(slide, TissueParameters(method=method), NumbaKernels())
    assert mask.mask.shape == (186, 139)
    assert mask.spacing_um == pytest.approx(0.499 * 16)
    assert 0.30 < mask.mask.mean() < 0.45
    np.testing.assert_array_equal(again.mask, mask.mask)
    epidermis, glass_left = mask.shares(np.array([[1200, 1100], [200, 1600]]), 256)
    assert epidermis > 0.9
    assert glass_left == 0.0


def test_a_crop_of_stained_skin_only_is_brightfield_and_tissue(data_folder: Path) -> None:
    with open_slide(data_folder / "slides" / "CMU-1-Small-Region.svs") as slide:
        pixels = slide.read_region(0, 850, 2200, 500, 500)
    mask = tissue_of(ArraySlide([pixels], spacing_um=0.499), TissueParameters())
    assert mask.mask.mean() > 0.98


LIKE_CLAM = TissueParameters(
    spacing_um=0.499,
    median_um=7 * 0.499,
    closing_um=4 * 0.499,
    min_object_um2=65_300.0,
    min_hole_um2=65_300.0,
)


@pytest.mark.parametrize(
    ("parameters", "method", "least"),
    [
        (LIKE_CLAM, "fixed", 0.95),  # measured 0.954
        (LIKE_CLAM, "otsu", 0.96),  # measured 0.971
        (TissueParameters(), "fixed", 0.94),  # measured 0.954
        (TissueParameters(), "otsu", 0.93),  # measured 0.943
    ],
    ids=["clams-fixed", "clams-otsu", "defaults-fixed", "defaults-otsu"],
)
def test_patches_agree_with_those_of_clam(
    data_folder: Path, parameters: TissueParameters, method: Method, least: float
) -> None:
    """Jaccard index of our patches, on the grid of CLAM, and the patches of CLAM.

    They cannot be identical. CLAM keeps a patch if one of four points around its centre lies within a contour; we keep
    it by its share of tissue. CLAM considers at most 8 holes per contour, and tests whether the centre of a patch lies
    in one. Its closing is 4 pixels wide; ours is an odd number of pixels wide. With the parameters of CLAM at level 0,
    we miss one of its 186 patches (fixed) and one of its 171 patches (Otsu), and have 8 and 4 more at the outline. With
    the defaults at 8 um/px, we miss 1 and 7 and have 8 and 3 more.
    """
    name = {"fixed": "threshold", "otsu": "otsu"}[method]
    with h5py.File(data_folder / "conformance" / f"clam_coords_{name}.h5") as file:
        theirs = np.asarray(file["coords"], dtype=np.int64)
    with open_slide(data_folder / "slides" / "CMU-1-Small-Region.svs") as slide:
        mask = tissue_of(slide, parameters.model_copy(update={"method": method}))
        size = slide.size
    first_x, first_y = theirs[0] % 128  # the grid of CLAM starts at the corner of the bounding box
    x, y = np.meshgrid(np.arange(first_x, size.width, 128), np.arange(first_y, size.height, 128))
    grid = np.stack([x.ravel(), y.ravel()], axis=1)  # two (rows, columns) -> (rows · columns, 2)
    ours = {(int(x), int(y)) for x, y in grid[mask.shares(grid, 128) >= parameters.min_share]}
    clams = {(int(x), int(y)) for x, y in theirs}
    assert len(ours & clams) / len(ours | clams) >= least
