"""Output folders: whether they can be written, and the errors of a full, read-only or vanished one."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from hagmil._files.temporary import new_sibling, remove_abandoned, remove_temporary
from hagmil.errors import EnvironmentLacks, HagmilError, one_line

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOST: Final = (errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN)
_PROBE: Final = bytes(1 << 20)


@dataclass(frozen=True, slots=True)
class OutputFolder:
    """An output folder that was writable when the run began.

    Args:
        path: the folder.
        identity: its device and inode.
    """

    path: Path
    identity: tuple[int, int]

    @classmethod
    def open(cls, path: Path, *subfolders: str) -> Self:
        """Create a folder if it is missing, check that files can be written, and remove what killed runs left in it.

        Args:
            path: the folder.
            subfolders: globs of subfolders with temporary files of earlier runs.

        Raises:
            EnvironmentLacks: it cannot be created or written (code ``output_unwritable``), or the disk is full
                (``disk_full``).
        """
        with reporting_output_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path, *subfolders)
        with reporting_output_errors(path):
            probe = new_sibling(path / "probe")
            try:
                _write_probe(probe)
            finally:
                remove_temporary(probe)
            return cls(path, _identity(path))

    def require_present(self) -> None:
        """Check that the folder was neither deleted nor replaced, for example because a disk was disconnected.

        Raises:
            EnvironmentLacks: it was (code ``output_lost``).
        """
        try:
            present = _identity(self.path) == self.identity
        except OSError:
            present = False
        if not present:
            raise EnvironmentLacks(
                f'"{self.path}" was deleted, replaced or disconnected during the run; restore it, or run the command '
                "again with another folder",
                code="output_lost",
            )


@contextmanager
def reporting_output_errors(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Raise EnvironmentLacks for the errors that a full, read-only or vanished output folder causes in the block.

    Libraries written in C report a failed write with errors of many types. After such an error, more is written to the
    temporary file to find out whether the disk is the cause.

    Args:
        path: the file or folder that is written, for the message.
        temporary: the temporary file or folder that the block writes. Without it, every OSError of the block concerns
            the output; with it, the block may also read other files.

    Raises:
        EnvironmentLacks: the disk or quota is full (code ``disk_full``), or the output cannot be written
            (``output_unwritable``).
    """
    try:
        yield
    except HagmilError:
        raise
    except OSError as error:
        if temporary is None or error.errno in (*_FULL, *_LOST) or _concerns(error, temporary):
            raise _lack(path, error) from error
        raise
    except Exception as error:
        cause = None if temporary is None else _failure_of_disk(temporary)
        if cause is None:
            raise
        raise _lack(path, cause) from error


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means that the disk, the quota or the largest size of a file is exhausted."""
    return isinstance(error, OSError) and error.errno in _FULL


def _lack(path: Path, error: OSError) -> EnvironmentLacks:
    if is_disk_full(error):
        return EnvironmentLacks(
            f'no space left to write "{path}"; free some space and run the same command again',
            code="disk_full",
        )
    reason = "it is a file, not a folder" if isinstance(error, FileExistsError) else _reason(error)
    return EnvironmentLacks(
        f'"{path}" cannot be written: {reason}; correct this or choose another output folder',
        code="output_unwritable",
    )


def _reason(error: OSError) -> str:
    return error.strerror or one_line(str(error))


def _concerns(error: OSError, temporary: Path) -> bool:
    name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
    return name == str(temporary) or name.startswith(f"{temporary}/")


def _failure_of_disk(temporary: Path) -> OSError | None:
    """Write more to the temporary file, or a file in the temporary folder; return the error."""
    try:
        _write_probe(temporary / "probe" if temporary.is_dir() else temporary)
    except OSError as error:
        return error
    finally:
        if temporary.is_dir():
            with suppress(OSError):
                (temporary / "probe").unlink()
    return None


def _write_probe(path: Path) -> None:
    with path.open("ab") as file:
        file.write(_PROBE)
        file.flush()
        os.fsync(file.fileno())


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
