"""The package's layout: folders stay small enough to find one's way in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

MOST_MODULES = 16
PACKAGE = REPOSITORY / "hagmil"
FOLDERS = sorted({path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE / "phantom", PACKAGE / "cli"})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(REPOSITORY)))
def test_a_folder_has_at_most_sixteen_modules(folder: Path) -> None:
    modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= MOST_MODULES


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(REPOSITORY)))
def test_a_folder_says_what_it_is_for(folder: Path) -> None:
    assert (folder / "__init__.py").read_text().startswith('"""')
