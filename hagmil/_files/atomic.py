"""Atomic file writing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hagmil._files.output import reporting_output_errors
from hagmil._files.temporary import new_sibling, remove_temporary


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder that is renamed to ``path`` when the block succeeds.

    The file is flushed to disk before it is renamed, so that readers see either the old file or the complete new one,
    also after a power failure. If the block raises, the temporary file is removed and ``path`` is unchanged.

    Args:
        path: target file; its folder is created if it is missing.

    Yields:
        The path of an empty file to write to. It has the suffix of ``path``, since some libraries choose the format by
        the suffix.

    Raises:
        EnvironmentLacks: the file cannot be written (code ``disk_full`` or ``output_unwritable``).
    """
    with reporting_output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = new_sibling(path, suffix=path.suffix)
    try:
        with reporting_output_errors(path, temporary):
            yield temporary
        with reporting_output_errors(path):
            _flush(temporary)
            temporary.replace(path)
            _flush(path.parent)
    finally:
        remove_temporary(temporary)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_bytes(path, text.encode())


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
