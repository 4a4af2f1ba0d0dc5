"""Which errors end a run, and what a result says of the others."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hagmil.errors import EnvironmentLacks, HagmilError, Interrupted, SlideFailed, SlideRejected, one_line
from hagmil.runtime.names import storable

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a slide has no verdict.

    Args:
        status: ``rejected`` if the slide does not fit the model, else ``failed``.
        code: the reason as one stable word.
        message: the reason for a person.
    """

    status: Literal["rejected", "failed"]
    code: str
    message: str


def ends_run(error: Exception) -> bool:
    """Whether an error would also affect all later slides: a full disk, or a lost device."""
    if isinstance(error, EnvironmentLacks):
        return error.code != "out_of_memory"
    return is_disk_full(error)


def is_disk_full(error: Exception) -> bool:
    """Whether an error means that the disk or the quota is full."""
    return isinstance(error, OSError) and error.errno in _DISK_FULL


def failure_of(error: Exception, slide: str) -> Failure:
    """Describe the error that one slide failed with, and log it with its traceback if it is unexpected.

    Args:
        error: an error that does not end the run.
        slide: the slide's path as given, for the log.
    """
    if isinstance(error, HagmilError):
        status: Literal["rejected", "failed"] = "rejected" if isinstance(error, SlideRejected) else "failed"
        return Failure(status=status, code=error.code, message=storable(error.message))
    if isinstance(error, MemoryError):
        message = "not enough memory for this slide; use a machine with more memory"
        return Failure(status="failed", code="out_of_memory", message=message)
    _log.exception('slide "%s" failed unexpectedly', slide)
    message = f"unexpected {type(error).__name__}: {one_line(str(error))}; please report it with the log of --verbose"
    return Failure(status="failed", code="internal", message=storable(message))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Write files of one slide: an error other than a full disk fails the slide only.

    Args:
        path: the folder or file, for the message.

    Raises:
        SlideFailed: a file cannot be written (code ``write_failed``).
        OSError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise
        raise SlideFailed(
            f'"{path}" cannot be written: {error.strerror or one_line(str(error))}', code="write_failed"
        ) from error


def interrupted(done: int, total: int) -> Interrupted:
    """The error of a run that a signal stopped after ``done`` of ``total`` slides."""
    return Interrupted(f"stopped after {done} of {total} slides; run the same command with --resume to continue")


def disk_full(out: Path, done: int, total: int) -> EnvironmentLacks:
    """The error of a run that could not write after ``done`` of ``total`` slides."""
    return EnvironmentLacks(
        f'no space left to write under "{out}" after {done} of {total} slides; '
        "free some space and run the same command with --resume",
        code="disk_full",
    )
