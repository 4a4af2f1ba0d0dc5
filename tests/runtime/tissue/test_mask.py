"""Tissue shares of squares on a slide."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from hagmil.runtime.slides.overview import pixel_edges
from hagmil.runtime.tissue.mask import TissueMask
from tests.runtime.array_slide import NO_FILTERS, STROMA, ArraySlide, glass, tissue_of


@st.composite
def masks_on_slides(draw: st.DrawFn) -> TissueMask:
    width, height = draw(st.integers(8, 60)), draw(st.integers(8, 60))
    tissue = draw(hnp.arrays(np.bool_, st.tuples(st.integers(1, 8), st.integers(1, 8))))
    return TissueMask(
        mask=tissue,
        column_edges=pixel_edges(width, tissue.shape[1], 1),
        row_edges=pixel_edges(height, tissue.shape[0], 1),
        downsample=width / tissue.shape[1],
        spacing_um=8.0,
        threshold=8,
    )


@given(
    mask=masks_on_slides(),
    coords=hnp.arrays(np.int64, st.tuples(st.integers(0, 12), st.just(2)), elements=st.integers(-30, 70)),
    side=st.integers(1, 40),
)
def test_a_share_counts_only_the_part_inside_the_slide(mask: TissueMask, coords: NDArray[np.int64], side: int) -> None:
    rows = np.repeat(mask.mask, np.diff(mask.row_edges), axis=0)
    level0 = np.repeat(rows, np.diff(mask.column_edges), axis=1)
    expected = []
    for x, y in coords:
        part = level0[max(y, 0) : max(y + side, 0), max(x, 0) : max(x + side, 0)]
        expected.append(np.count_nonzero(part) / part.size if part.size else 0.0)
    shares = mask.shares(coords, side)
    assert shares.dtype == np.float64
    np.testing.assert_array_equal(shares, np.array(expected, dtype=np.float64))


def test_tissue_in_the_last_corner_of_a_slide_of_odd_size_is_found() -> None:
    pixels = glass(1003, 1501)
    pixels[-30:, -45:] = STROMA
    mask = tissue_of(ArraySlide([pixels], spacing_um=0.5), NO_FILTERS)
    assert mask.mask.shape == (63, 94)
    assert (mask.column_edges[-1], mask.row_edges[-1]) == (1501, 1003)
    corner, far = mask.shares(np.array([[1460, 980], [0, 0]]), 64)
    assert corner == 1.0
    assert far == 0.0
