"""Stage geometry: sides, levels and rejected slides, for the pyramids that scanners and converters write."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hagmil.errors import SlideRejected, UsageError
from hagmil.runtime.patches.geometry import StageGeometry, finest_ratio, plan_stages
from hagmil.units import Level

STAGES = [("coarse", 2.0), ("middle", 1.0), ("fine", 0.5)]
PATCH_PX = 256


def pyramid(*downsamples: float) -> tuple[Level, ...]:
    return tuple(
        Level(index, int(100_000 / downsample), int(80_000 / downsample), downsample)
        for index, downsample in enumerate(downsamples)
    )


def plan(
    levels: tuple[Level, ...], spacing_um: float, stages: list[tuple[str, float]] = STAGES
) -> list[tuple[int, int, bool]]:
    """Plan the stages and return side in level-0 pixels, level and ``resample`` of each."""
    planned = plan_stages(levels, spacing_um, stages, PATCH_PX)
    return [(stage.patch_level0, stage.level, stage.resample) for stage in planned]


def test_each_stage_has_a_level_in_a_pyramid_of_factor_two() -> None:
    assert plan(pyramid(1, 2, 4, 8), 0.25) == [(2048, 3, False), (1024, 2, False), (512, 1, False)]


def test_stages_between_the_levels_of_a_pyramid_of_factor_four_read_the_finer_level() -> None:
    assert plan(pyramid(1, 4, 16), 0.25) == [(2048, 1, True), (1024, 1, False), (512, 0, True)]


def test_all_stages_read_the_only_level() -> None:
    assert plan(pyramid(1), 0.25) == [(2048, 0, True), (1024, 0, True), (512, 0, True)]


def test_the_finest_stage_reads_the_pixels_of_a_20x_slide_without_resampling() -> None:
    assert plan(pyramid(1, 4, 16), 0.499) == [(1024, 1, False), (512, 0, True), (256, 0, False)]


def test_the_side_is_rounded_at_the_finest_stage_and_doubled_for_coarser_stages() -> None:
    # 256 * 0.5 / 0.22817506 = 560.97
    assert plan(pyramid(1, 2, 4, 8, 16), 0.2281750559) == [(2244, 3, True), (1122, 2, True), (561, 1, True)]


def test_a_ratio_within_two_percent_of_a_whole_number_is_rounded_to_it() -> None:
    assert plan(pyramid(1, 2), 0.2455, [("fine", 0.5)]) == [(512, 1, False)]
    assert plan(pyramid(1, 2), 0.2548, [("fine", 0.5)]) == [(512, 1, False)]
    assert plan(pyramid(1, 2), 0.2440, [("fine", 0.5)]) == [(525, 1, True)]


def test_levels_may_have_downsamples_that_are_almost_whole_numbers() -> None:
    levels = pyramid(1, 4.000067, 16.00134)
    assert plan(levels, 0.25) == [(2048, 1, True), (1024, 1, False), (512, 0, True)]


@pytest.mark.parametrize("ratio", [0.95, 0.96, 0.979, 0.99, 1.0, 1.02])
def test_a_slide_that_is_at_most_five_percent_too_coarse_is_read_without_resampling(ratio: float) -> None:
    assert plan(pyramid(1, 2), 0.5 / ratio, [("fine", 0.5)]) == [(256, 0, False)]
    assert finest_ratio(0.5 / ratio, STAGES) == pytest.approx(ratio)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.949])
def test_a_slide_that_is_too_coarse_is_rejected(ratio: float) -> None:
    with pytest.raises(SlideRejected, match="too coarse for stage fine") as caught:
        plan(pyramid(1, 2), 0.5 / ratio)
    assert caught.value.code == "spacing_too_coarse"


def test_geometries_are_in_the_order_of_the_stages() -> None:
    shuffled = [STAGES[1], STAGES[2], STAGES[0]]
    planned = plan_stages(pyramid(1, 2, 4), 0.5, shuffled, PATCH_PX)
    assert [stage.name for stage in planned] == ["middle", "fine", "coarse"]
    assert [stage.patch_level0 for stage in planned] == [512, 256, 1024]


def test_a_geometry_gives_the_region_that_is_read() -> None:
    (stage,) = plan_stages(pyramid(1, 2, 4), 0.25, [("only", 0.75)], 224)
    assert stage == StageGeometry("only", 0.75, 224, 672, 1, 2.0, True)
    assert stage.region_px == 336


@pytest.mark.parametrize("spacings", [(1.5, 1.0), (1.0, 1.0), (1.0, 0.4), (3.0, 2.0, 1.0)])
def test_spacings_that_do_not_form_a_quadtree_are_a_usage_error(spacings: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="do not form a quadtree"):
        plan(pyramid(1), 0.25, [(f"stage-{index}", um) for index, um in enumerate(spacings)])


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_spacings_must_be_positive_numbers(bad: float) -> None:
    with pytest.raises(UsageError, match="above 0"):
        plan(pyramid(1), bad)
    with pytest.raises(UsageError, match="stage fine"):
        plan(pyramid(1), 0.5, [("fine", bad)])


def test_invalid_stages_levels_and_sizes_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="one level and one stage"):
        plan_stages(pyramid(1), 0.5, [], PATCH_PX)
    with pytest.raises(UsageError, match="one level"):
        plan_stages((), 0.5, STAGES, PATCH_PX)
    with pytest.raises(UsageError, match="patch_px"):
        plan_stages(pyramid(1), 0.5, STAGES, 0)
    with pytest.raises(UsageError, match="same name"):
        plan_stages(pyramid(1), 0.5, [("a", 1.0), ("a", 2.0)], PATCH_PX)


@st.composite
def pyramids(draw: st.DrawFn) -> tuple[Level, ...]:
    factors = draw(st.lists(st.floats(1.5, 4.5), max_size=6))
    downsamples = [1.0]
    for factor in factors:
        downsamples.append(downsamples[-1] * factor)
    return pyramid(*downsamples)


@given(
    levels=pyramids(),
    slide_um=st.floats(0.1, 4.0),
    finest_um=st.floats(0.1, 8.0),
    factors=st.lists(st.integers(2, 5), max_size=4),
    patch_px=st.integers(1, 1024),
)
def test_the_quadtree_is_exact_for_all_slides_and_stages(
    levels: tuple[Level, ...], slide_um: float, finest_um: float, factors: list[int], patch_px: int
) -> None:
    assume(finest_um / slide_um >= 0.95)
    spacings = [finest_um]
    for factor in factors:
        spacings.append(spacings[-1] * factor)
    coarse_first = [(f"stage-{um}", um) for um in reversed(spacings)]
    planned = plan_stages(levels, slide_um, coarse_first, patch_px)
    for (coarser, finer), factor in zip(pairwise(planned), reversed(factors), strict=True):
        assert coarser.patch_level0 == factor * finer.patch_level0
    for stage in planned:
        wanted = stage.patch_level0 / patch_px
        assert stage.downsample == levels[stage.level].downsample
        assert stage.downsample <= wanted * 1.0200001  # never upsampled
        coarser_levels = [level for level in levels if level.downsample > stage.downsample]
        assert all(level.downsample > wanted * 1.02 for level in coarser_levels)
        assert stage.resample == (abs(stage.region_px / patch_px - 1) > 0.02 + 1e-9)


@given(slide_um=st.floats(0.1, 4.0), ratio=st.floats(0.95, 40.0))
def test_the_area_of_a_patch_matches_its_spacing_within_the_tolerance(slide_um: float, ratio: float) -> None:
    (stage,) = plan_stages(pyramid(1, 2, 4, 8), slide_um, [("only", slide_um * ratio)], PATCH_PX)
    covered_um = stage.patch_level0 * slide_um / PATCH_PX
    limit = 0.021 if ratio >= 1 else 0.053
    assert covered_um == pytest.approx(stage.spacing_um, rel=limit)
