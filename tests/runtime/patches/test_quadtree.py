"""The quadtree: nesting, coverage and the order of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from hagmil.errors import UsageError
from hagmil.runtime.patches.quadtree import child_rows, children, coarse_grid
from hagmil.runtime.slides.overview import pixel_edges
from hagmil.runtime.tissue.mask import TissueMask
from hagmil.units import Size


def mask_of(tissue: NDArray[np.bool_], size: Size) -> TissueMask:
    """Make a mask whose pixels cover a slide evenly."""
    return TissueMask(
        mask=tissue,
        column_edges=pixel_edges(size.width, tissue.shape[1], 1),
        row_edges=pixel_edges(size.height, tissue.shape[0], 1),
        downsample=size.width / tissue.shape[1],
        spacing_um=8.0,
        threshold=8,
    )


def covered(coords: NDArray[np.int64], side: int, size: Size) -> NDArray[np.int64]:
    """Count the squares that cover each level-0 pixel."""
    count = np.zeros((size.height, size.width), dtype=np.int64)
    for x, y in coords:
        count[y : y + side, x : x + side] += 1
    return count


def at_level0(mask: TissueMask) -> NDArray[np.bool_]:
    """Resize the mask to one pixel per level-0 pixel."""
    rows = np.repeat(mask.mask, np.diff(mask.row_edges), axis=0)
    return np.repeat(rows, np.diff(mask.column_edges), axis=1)


@st.composite
def slides(draw: st.DrawFn) -> tuple[Size, TissueMask]:
    size = Size(draw(st.integers(6, 70)), draw(st.integers(6, 70)))
    shape = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    return size, mask_of(draw(hnp.arrays(np.bool_, shape)), size)


factors = st.integers(1, 4)
patch_sides = st.integers(1, 8)
corners = hnp.arrays(np.int64, st.tuples(st.integers(0, 8), st.just(2)), elements=st.integers(0, 20))


@given(cells=corners, side=patch_sides, factor=factors)
def test_every_child_lies_inside_its_parent(cells: NDArray[np.int64], side: int, factor: int) -> None:
    parent_side = side * factor
    coords = cells * parent_side
    families = children(coords, parent_side, factor).reshape(-1, factor * factor, 2)
    assert (families >= coords[:, np.newaxis]).all()
    assert (families + side <= coords[:, np.newaxis] + parent_side).all()


@given(side=patch_sides, factor=factors)
def test_children_tile_their_parent_once(side: int, factor: int) -> None:
    parent_side = side * factor
    parent = np.array([[parent_side, 2 * parent_side]])
    count = covered(children(parent, parent_side, factor), side, Size(3 * parent_side, 4 * parent_side))
    np.testing.assert_array_equal(count, covered(parent, parent_side, Size(3 * parent_side, 4 * parent_side)))


@settings(deadline=None)
@given(slide=slides(), side=patch_sides, factor=factors)
def test_children_and_grandchildren_cover_the_same_area_as_the_grid(
    slide: tuple[Size, TissueMask], side: int, factor: int
) -> None:
    size, mask = slide
    coarse_side = side * factor * factor
    coarse = coarse_grid(size, coarse_side, mask, 0.0)
    middle = children(coarse, coarse_side, factor)
    fine = children(middle, side * factor, factor)
    assert len(fine) * side**2 == len(middle) * (side * factor) ** 2 == len(coarse) * coarse_side**2
    np.testing.assert_array_equal(covered(fine, side, size), covered(coarse, coarse_side, size))
    assert covered(fine, side, size).max(initial=0) <= 1


def test_four_children_are_in_column_order() -> None:
    assert children(np.array([[512, 1024]]), 256, 2).tolist() == [
        [512, 1024],
        [512, 1152],
        [640, 1024],
        [640, 1152],
    ]


@given(cells=corners, side=patch_sides, factor=factors, data=st.data())
def test_child_rows_are_the_rows_of_the_children(
    cells: NDArray[np.int64], side: int, factor: int, data: st.DataObject
) -> None:
    coords = cells * side * factor
    row = st.integers(0, max(len(coords) - 1, 0))
    rows = np.array(data.draw(st.lists(row, max_size=5 if len(coords) else 0)), dtype=np.int64)
    table = children(coords, side * factor, factor)
    chosen = child_rows(rows, factor)
    np.testing.assert_array_equal(table[chosen], children(coords[rows], side * factor, factor))
    np.testing.assert_array_equal(chosen // factor**2, np.repeat(rows, factor**2))


def test_child_rows_of_patch_i_are_four_i_and_the_next_three() -> None:
    assert child_rows(np.array([5, 0]), 2).tolist() == [20, 21, 22, 23, 0, 1, 2, 3]


@settings(deadline=None)
@given(slide=slides(), side=st.integers(1, 30))
def test_the_grid_covers_all_tissue_and_has_no_empty_patch(slide: tuple[Size, TissueMask], side: int) -> None:
    size, mask = slide
    coords = coarse_grid(size, side, mask, 0.0)
    tissue = at_level0(mask)
    assert (covered(coords, side, size)[tissue] == 1).all()
    assert all(tissue[y : y + side, x : x + side].any() for x, y in coords)


@settings(deadline=None)
@given(slide=slides(), side=st.integers(1, 30), min_share=st.floats(0.0, 1.0))
def test_a_patch_is_in_the_grid_if_enough_of_its_part_inside_the_slide_is_tissue(
    slide: tuple[Size, TissueMask], side: int, min_share: float
) -> None:
    size, mask = slide
    tissue = at_level0(mask)
    expected = []
    for x in range(0, size.width, side):  # x outside, y inside: column order
        for y in range(0, size.height, side):
            inside = tissue[y : y + side, x : x + side]
            if inside.any() and np.count_nonzero(inside) / inside.size >= min_share:
                expected.append([x, y])
    assert coarse_grid(size, side, mask, min_share).tolist() == expected


def test_only_the_part_inside_the_slide_counts_for_a_patch_across_the_edge() -> None:
    size = Size(110, 100)
    mask = mask_of(np.ones((10, 11), dtype=np.bool_), size)
    assert coarse_grid(size, 100, mask, 1.0).tolist() == [[0, 0], [100, 0]]


@pytest.mark.parametrize("min_share", [0.0, 0.5])
def test_a_slide_without_tissue_has_no_rows_in_any_stage(min_share: float) -> None:
    size = Size(640, 480)
    coarse = coarse_grid(size, 64, mask_of(np.zeros((6, 8), dtype=np.bool_), size), min_share)
    fine = children(coarse, 64, 2)
    for coords in (coarse, fine):
        assert coords.shape == (0, 2)
        assert coords.dtype == np.int64
    assert child_rows(np.zeros(0, dtype=np.int64), 2).shape == (0,)


def test_a_side_that_is_not_divisible_by_the_factor_is_an_error() -> None:
    with pytest.raises(UsageError, match="257 level-0 pixels is not divisible into 2"):
        children(np.array([[0, 0]]), 257, 2)
