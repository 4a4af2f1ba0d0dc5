"""Temporary files and folders that are removed by their run, or by the next run if their run was killed.

1. A temporary file or folder is locked by its process until it is renamed or removed. The system releases the lock when
   the process ends, also when it is killed. The lock works for processes of other containers and machines too, unlike a
   process number.
2. A temporary file or folder without a lock is abandoned, and :func:`remove_abandoned` deletes it. On a file system
   without locks, nothing is deleted.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from uuid import uuid4

_SIBLING = re.compile(r"\..*\.[0-9a-f]{32}\.part(\.\w+)?", re.DOTALL)
_FOLDER = re.compile(r"hagmil-[a-z0-9]+-[0-9a-f]{32}")

_own: dict[Path, int | None] = {}
"""The temporary files and folders of this process, with the descriptors that hold their locks."""


def new_sibling(target: Path, *, suffix: str = "", folder: bool = False) -> Path:
    """Create an empty temporary file or folder beside a target, and lock it.

    Args:
        target: the file or folder that the temporary one will replace.
        suffix: last part of the name.
        folder: create a folder.

    Returns:
        The path; pass it to :func:`remove_temporary` at the end.

    Raises:
        OSError: it cannot be created.
    """
    while True:
        path = target.with_name(f".{target.stem if suffix else target.name}.{uuid4().hex}.part{suffix}")
        if _create(path, folder=folder):
            return path


def new_temporary_folder(purpose: str) -> Path:
    """Create and lock an empty folder in the system's folder for temporary files, and remove those of killed runs.

    Args:
        purpose: one word of the name.

    Returns:
        The folder; pass it to :func:`remove_temporary` at the end.

    Raises:
        OSError: it cannot be created.
    """
    parent = Path(tempfile.gettempdir())
    _remove_abandoned_in(parent, _FOLDER)
    while True:
        path = parent / f"hagmil-{purpose}-{uuid4().hex}"
        if _create(path, folder=True):
            return path


def remove_temporary(path: Path) -> None:
    """Remove a temporary file or folder of this process, unless it was renamed, and release its lock."""
    _remove(path)
    descriptor = _own.pop(path, None)
    if descriptor is not None:
        os.close(descriptor)


def remove_own_temporaries() -> None:
    """Remove all temporary files and folders of this process, which is about to end."""
    for path in list(_own):
        _remove(path)


def remove_abandoned(folder: Path, *patterns: str) -> None:
    """Remove the temporary files and folders that killed runs left in a folder and in the system's temporary folder.

    Args:
        folder: the folder; nothing happens if it is missing.
        patterns: globs of subfolders in which to search too.
    """
    _remove_abandoned_in(Path(tempfile.gettempdir()), _FOLDER)
    for each in (folder, *(found for pattern in patterns for found in folder.glob(pattern))):
        if each.is_dir():
            _remove_abandoned_in(each, _SIBLING)


def _create(path: Path, *, folder: bool) -> bool:
    """Create and lock a file or folder; False if another run deleted it before it was locked."""
    _own[path] = None  # first, so that a signal at any moment finds it
    try:
        if folder:
            path.mkdir(mode=0o700 if _FOLDER.fullmatch(path.name) else 0o777)
            _own[path] = os.open(path, os.O_RDONLY)
        else:
            _own[path] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(_own[path] or -1, fcntl.LOCK_EX)
    except BaseException:
        remove_temporary(path)
        raise
    if path.exists():
        return True
    remove_temporary(path)
    return False


def _remove_abandoned_in(folder: Path, name: re.Pattern[str]) -> None:
    with suppress(OSError), os.scandir(folder) as entries:
        found = [Path(entry.path) for entry in entries if name.fullmatch(entry.name) and not entry.is_symlink()]
        for path in found:
            if path not in _own:
                _remove_if_abandoned(path)


def _remove_if_abandoned(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except OSError:  # of another user, or removed meanwhile
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(path)
    except OSError:  # locked by its run, or a file system without locks
        pass
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
