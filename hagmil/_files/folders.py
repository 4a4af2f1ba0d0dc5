"""Temporary folders that exist during a block."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hagmil._files.output import reporting_output_errors
from hagmil._files.temporary import new_sibling, new_temporary_folder, remove_temporary


@contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """Create a folder for temporary files that is removed at the end of the block.

    Args:
        purpose: one word of its name.

    Yields:
        The folder.

    Raises:
        EnvironmentLacks: it cannot be created, or the disk is full.
    """
    with reporting_output_errors(Path(tempfile.gettempdir())):
        folder = new_temporary_folder(purpose)
    try:
        with reporting_output_errors(folder, folder):
            yield folder
    finally:
        remove_temporary(folder)


@contextmanager
def sibling_folder(target: Path) -> Iterator[Path]:
    """Create a temporary folder beside a target that is removed at the end of the block, unless it was renamed.

    Args:
        target: the folder for which files are written.

    Yields:
        The temporary folder.

    Raises:
        EnvironmentLacks: it cannot be created, or the disk is full.
    """
    with reporting_output_errors(target):
        folder = new_sibling(target, folder=True)
    try:
        with reporting_output_errors(target, folder):
            yield folder
    finally:
        remove_temporary(folder)
