"""Which errors end a run, and what a result says of the others."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hagmil._files import OutputFolder, is_disk_full
from hagmil.errors import EnvironmentLacks, HagmilError, Interrupted, SlideFailed, SlideRejected, one_line
from hagmil.runtime.names import storable

_OUTPUT = ("disk_full", "output_unwritable", "output_lost")

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
    """Write files of one slide: an error fails the slide only, unless no file of the run can be written.

    Args:
        path: the slide's folder or file in the output folder of the run.

    Raises:
        SlideFailed: this file or folder cannot be written (code ``write_failed``).
        EnvironmentLacks: the disk is full, or the output folder cannot be written (``disk_full``,
            ``output_unwritable``).
    """
    try:
        yield
    except (OSError, EnvironmentLacks) as error:
        if is_disk_full(error) or (isinstance(error, EnvironmentLacks) and error.code != "output_unwritable"):
            raise
        OutputFolder.open(path.parent)
        reason = error.message if isinstance(error, EnvironmentLacks) else error.strerror or one_line(str(error))
        raise SlideFailed(f'"{path}" cannot be written: {reason}', code="write_failed") from error


def interrupted(done: int, total: int) -> Interrupted:
    """The error of a run that a signal stopped after ``done`` of ``total`` slides."""
    return Interrupted(f"stopped after {done} of {total} slides; run the same command with --resume to continue")


def is_output_error(error: BaseException) -> bool:
    """Whether an error means that no file of the run can be written."""
    return is_disk_full(error) or (isinstance(error, EnvironmentLacks) and error.code in _OUTPUT)


def output_failed(error: BaseException, out: Path, done: int, total: int) -> EnvironmentLacks:
    """The error of a run that could not write after ``done`` of ``total`` slides."""
    if isinstance(error, EnvironmentLacks) and error.code != "disk_full":
        return EnvironmentLacks(f"stopped after {done} of {total} slides: {error.message}", code=error.code)
    return EnvironmentLacks(
        f'no space left to write under "{out}" after {done} of {total} slides; '
        "free some space and run the same command with --resume",
        code="disk_full",
    )
