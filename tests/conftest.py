"""What all tests share: the folder of real slides and conformance data, and the place of the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real slides and conformance data beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real slides and conformance data in {SHARED}")
    return SHARED
