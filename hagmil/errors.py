"""Every error that hagmil raises on purpose.

    HagmilError                      exit 1   never raised itself
    ├── UsageError                   exit 2   an argument or a configuration that cannot be meant
    │   └── DataError                exit 2   features, labels or splits that do not fit together
    ├── SlideError                   exit 3   one slide; a run over many goes on with the next
    │   ├── SlideRejected            exit 3   readable, but not for this model (no spacing, no tissue, ...)
    │   └── SlideFailed              exit 3   cannot be read or processed
    ├── BundleError                  exit 4   a bundle, model or checkpoint that must not be used
    │   └── ParityError              exit 4   an export whose numbers are not those of its source
    ├── EnvironmentLacks             exit 5   something asked for that this machine has not
    └── Interrupted                  exit 6   stopped by a signal; may be resumed

A message says what is wrong, where, and what to do about it. ``code`` is a short stable word for
machines (``spacing_missing``); it stands in result.json and results.csv.
"""

from __future__ import annotations

from typing import ClassVar


class HagmilError(Exception):
    """Base of all errors that hagmil raises on purpose.

    Args:
        message: what is wrong, where, and what to do about it; one line.
        code: a short stable word for machines; the class's own where none is given.
    """

    exit_code: ClassVar[int] = 1
    default_code: ClassVar[str] = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code


class UsageError(HagmilError):
    """An argument or a configuration that cannot be meant."""

    exit_code = 2
    default_code = "usage"


class DataError(UsageError):
    """Features, labels or splits that do not fit together."""

    default_code = "data"


class SlideError(HagmilError):
    """Something about one slide; a run over many goes on with the next."""

    exit_code = 3
    default_code = "slide"


class SlideRejected(SlideError):
    """A slide that can be read but is not for this model: no spacing, too coarse, no tissue, no brightfield."""

    default_code = "rejected"


class SlideFailed(SlideError):
    """A slide that cannot be read or processed."""

    default_code = "failed"


class BundleError(HagmilError):
    """A bundle, model or checkpoint that must not be used."""

    exit_code = 4
    default_code = "bundle"


class ParityError(BundleError):
    """An export whose numbers are not those of its source."""

    default_code = "parity"


class EnvironmentLacks(HagmilError):
    """Something was asked for that this machine has not: a package, a provider, a device."""

    exit_code = 5
    default_code = "environment"


class Interrupted(HagmilError):
    """The run was stopped by a signal and may be resumed."""

    exit_code = 6
    default_code = "interrupted"


def one_line(text: str) -> str:
    """A library's message as one line: its parts joined by commas, repeats left out."""
    parts = dict.fromkeys(part.strip() for part in text.splitlines() if part.strip())
    return ", ".join(parts) or "no reason given"
