"""Every case of the table in docs/reliability.md ends as expected, and the table is current."""

from __future__ import annotations

import pytest

from tests.conftest import REPOSITORY
from tests.faults.report import Row, page_with, run_cases


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return run_cases(tmp_path_factory.mktemp("cases"))


def test_every_case_ends_as_expected(rows: list[Row]) -> None:
    assert [row for row in rows if row.actual != row.expected] == []


def test_the_table_of_the_page_is_current(rows: list[Row]) -> None:
    page = (REPOSITORY / "docs" / "reliability.md").read_text()
    assert page_with(page, rows) == page, "run python scripts/make_reliability_page.py"
