"""The exceptions of hagmil.

    HagmilError                      exit 1   base class, never raised itself
    ├── UsageError                   exit 2   invalid argument or configuration
    │   └── DataError                exit 2   features, labels or splits are invalid or inconsistent
    ├── SlideError                   exit 3   concerns one slide; a run over many slides continues
    │   ├── SlideRejected            exit 3   the slide is readable but not suitable for the model
    │   └── SlideFailed              exit 3   the slide cannot be read or processed
    ├── BundleError                  exit 4   a bundle, model or checkpoint is unusable
    │   └── ParityError              exit 4   an exported model does not reproduce its source
    ├── EnvironmentLacks             exit 5   a package, provider or resource is missing
    └── Interrupted                  exit 6   stopped by a signal; can be resumed

A message says what is wrong, where, and what to do. ``code`` is a short identifier for programs, for example
``spacing_missing``; result.json and results.csv contain it. docs/errors.md lists all codes.
"""

from __future__ import annotations

TYPE_CHECKING = False  # true for type checkers
if TYPE_CHECKING:
    from typing import ClassVar


class HagmilError(Exception):
    """Base class of all errors that hagmil raises deliberately.

    Args:
        message: what is wrong, where, and what to do; one line.
        code: identifier for programs. The default is ``default_code`` of the class.
    """

    exit_code: ClassVar[int] = 1
    default_code: ClassVar[str] = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code


class UsageError(HagmilError):
    """Invalid argument or configuration."""

    exit_code = 2
    default_code = "usage"


class DataError(UsageError):
    """Features, labels or splits are invalid or inconsistent."""

    default_code = "data"


class SlideError(HagmilError):
    """An error that concerns one slide; a run over many slides continues with the next."""

    exit_code = 3
    default_code = "slide"


class SlideRejected(SlideError):
    """The slide is readable but not suitable for the model: no spacing, too coarse, no tissue, or not brightfield."""

    default_code = "rejected"


class SlideFailed(SlideError):
    """The slide cannot be read or processed."""

    default_code = "failed"


class BundleError(HagmilError):
    """A bundle, model or checkpoint is unusable."""

    exit_code = 4
    default_code = "bundle"


class ParityError(BundleError):
    """An exported model does not reproduce the outputs of its source."""

    default_code = "parity"


class EnvironmentLacks(HagmilError):
    """A requested package, provider, device or resource is missing on this machine."""

    exit_code = 5
    default_code = "environment"


class Interrupted(HagmilError):
    """The run was stopped by a signal and can be resumed."""

    exit_code = 6
    default_code = "interrupted"


def one_line(text: str) -> str:
    """Join the lines of a library's message with commas, without blank and repeated lines."""
    parts = dict.fromkeys(part.strip() for part in text.splitlines() if part.strip())
    return ", ".join(parts) or "no reason given"
