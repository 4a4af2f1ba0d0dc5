"""Comparison of graphs: tolerances, references and errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hagmil.errors import ParityError
from hagmil.export.parity.compare import (
    TOLERANCES,
    GraphUnderTest,
    ParityCase,
    ParityReport,
    ParityRow,
    Run,
    SourceModel,
    Tolerance,
    compare,
    enforce_parity,
    worst_by_tensor,
)

STATED = Tolerance(absolute=1e-4, relative=1e-3)


def _gives(**tensors: object) -> Run:
    def run(_: dict[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        return {name: np.asarray(values) for name, values in tensors.items()}

    return run


def _row(wanted: object, given: object, own: object | None = None, tolerance: Tolerance = STATED) -> ParityRow:
    case = ParityCase("clustered", {"patches": 5}, {})
    source = None if own is None else _gives(logits=own)
    held = compare(
        "coarse",
        [case],
        graph=GraphUnderTest(_gives(logits=given)),
        source=SourceModel(_gives(logits=wanted), source),
        tolerance=tolerance,
    )
    ((row,),) = held
    return row


def test_an_error_within_the_stated_tolerance_passes() -> None:
    row = _row([10.0, -2.0], [10.0, -2.01])

    assert row.error == pytest.approx(0.01)
    assert row.largest == 10.0
    assert row.allowed == pytest.approx(1e-4 + 1e-3 * 10)
    assert row.passed


def test_an_error_above_the_stated_tolerance_fails() -> None:
    assert not _row([10.0, -2.0], [10.0, -2.011]).passed


def test_an_ill_conditioned_case_allows_four_times_the_float32_error() -> None:
    assert _row([1.0], [1.0035], own=[1.001]).passed
    assert not _row([1.0], [1.0045], own=[1.001]).passed


def test_a_row_states_whether_its_allowed_error_was_raised() -> None:
    assert _row([1.0], [1.0], own=[1.001]).is_raised
    assert not _row([1.0], [1.0], own=[1.0001]).is_raised
    assert not _row([1.0], [1.0]).is_raised
    assert not _row([0.0], [0.0], own=[0.0], tolerance=Tolerance(absolute=0, relative=1)).is_raised


def test_the_tolerance_of_evidence_follows_the_largest_share_of_the_attention() -> None:
    outputs = _gives(attention=[0.0, 0.0, 0.0, 0.0], evidence=[[0.5, 0.25, 0.25, 0.0]])
    case = ParityCase("clustered", {"patches": 4}, {})
    (rows,) = compare(
        "fine", [case], graph=GraphUnderTest(outputs), source=SourceModel(outputs, None), tolerance=STATED
    )
    (evidence,) = (row for row in rows if row.tensor == "evidence")
    expected = STATED.absolute * 0.25 + (STATED.absolute + 2 * STATED.relative) * 0.5
    assert evidence.allowed == pytest.approx(expected)


def test_the_allowed_error_never_exceeds_a_hundredth_of_the_largest_value() -> None:
    assert not _row([1.0], [1.02], own=[1.5]).passed


@pytest.mark.parametrize("given", [[np.nan, 1.0], [np.inf, 1.0], [1.0], [[1.0, 1.0]]])
def test_infinite_values_and_other_shapes_never_pass(given: object) -> None:
    row = _row([1.0, 1.0], given, own=[np.nan, 1.0])

    assert row.error is None
    assert not row.passed


def test_an_infinite_reference_never_passes() -> None:
    assert not _row([np.nan, 1.0], [np.nan, 1.0]).passed


def test_rows_of_a_feature_matrix_are_also_compared_by_cosine() -> None:
    row = _row([[1.0, 0.0], [1.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]])

    assert row.cosine == pytest.approx(np.sqrt(0.5))
    assert _row([[0.0, 0.0]], [[0.0, 0.0]]).cosine is None
    assert _row([1.0, 2.0], [1.0, 2.0]).cosine is None


def test_the_error_names_the_worst_tensor_its_case_and_its_error() -> None:
    rows = [_row([1.0], [1.1]), _row([1.0], [1.5]), _row([1.0], [1.0])]

    with pytest.raises(ParityError) as caught:
        enforce_parity(rows)

    assert caught.value.message.startswith(
        "coarse: logits is off by 0.5 at patches 5 (clustered input); 0.0011 is allowed"
    )
    assert "2 of 3 comparisons failed" in caught.value.message
    assert caught.value.exit_code == 4


def test_an_infinite_value_is_worse_than_any_error() -> None:
    with pytest.raises(ParityError, match="is not finite or has another shape"):
        enforce_parity([_row([1.0], [99.0]), _row([1.0], [np.nan])])


def test_no_error_is_raised_if_all_rows_pass() -> None:
    enforce_parity([_row([1.0], [1.0])])
    enforce_parity([])


def test_a_report_is_unchanged_after_writing_and_reading() -> None:
    report = ParityReport(
        precision="fp32", tolerance=TOLERANCES["fp32"], rows=(_row([1.0], [np.nan]), _row([1.0], [1.0], own=[1.0]))
    )

    assert ParityReport.model_validate_json(report.model_dump_json()) == report


def _held(given: object, own: object, wanted: object, *, exact: bool, rounded: object | None = None) -> list[ParityRow]:
    graph = GraphUnderTest(_gives(logits=given), None if rounded is None else _gives(logits=rounded))
    source = SourceModel(_gives(logits=wanted), _gives(logits=own))
    case = ParityCase("clustered", {"patches": 5}, {}, exact=exact)
    return [row for rows in compare("fine", [case], graph=graph, source=source, tolerance=STATED) for row in rows]


def test_float32_is_the_reference_if_the_graph_is_close_to_it() -> None:
    (row,) = _held([1.0004], [1.0], [7.0], exact=False)

    assert (row.reference, row.source_error, row.passed) == ("float32", None, True)


def test_float64_is_the_reference_if_the_graph_is_not_close_to_float32() -> None:
    (row,) = _held([1.0009], [1.0], [1.0009], exact=False)

    assert (row.reference, row.passed) == ("float64", True)
    assert row.source_error == pytest.approx(0.0009)


def test_float64_is_the_reference_of_exact_cases() -> None:
    (row,) = _held([1.0], [1.0], [1.0001], exact=True)

    assert row.reference == "float64"
    assert row.error == pytest.approx(0.0001)


def test_a_rounded_graph_runs_on_every_case_and_the_unrounded_one_on_exact_cases() -> None:
    assert [(row.rounded, row.passed) for row in _held([1.0], [1.0], [1.0], exact=False, rounded=[2.0])] == [
        (True, False)
    ]
    assert [(row.rounded, row.passed) for row in _held([1.0], [1.0], [1.0], exact=True, rounded=[2.0])] == [
        (True, False),
        (False, True),
    ]


def test_tensors_of_shares_have_a_relative_tolerance() -> None:
    case = ParityCase("clustered", {"patches": 10_000}, {})
    source = SourceModel(_gives(fine_attention=[[1e-4]]), None)
    graph = GraphUnderTest(_gives(fine_attention=[[0.0]]))
    for shares, passed in (((), True), (("fine_attention",), False)):
        held = compare("fine", [case], graph=graph, source=source, tolerance=STATED, shares=shares)
        assert [row.passed for rows in held for row in rows] == [passed]


def test_the_comparison_closest_to_its_tolerance_represents_a_tensor() -> None:
    rows = [_row([100.0], [100.05]), _row([1.0], [1.001]), _row([1.0], [1.0])]

    assert worst_by_tensor(rows) == [(rows[1], 3)]


def test_an_error_of_a_rounded_graph_mentions_the_rounding() -> None:
    with pytest.raises(ParityError, match="clustered input, every operation rounded"):
        enforce_parity(_held([1.0], [1.0], [1.0], exact=True, rounded=[2.0]))
