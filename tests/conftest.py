"""Fixtures of all tests: the folder of test data and the repository's root."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """tests/data: slides and outputs of the published implementations; its README describes each file."""
    return REPOSITORY / "tests" / "data"
