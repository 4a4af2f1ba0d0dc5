"""Import ONNX Runtime so that it writes nothing to the terminal and sends nothing.

Its logger writes coloured lines to standard error: in C++, hence to the file descriptor, and some of them during the
import, before its severity can be set. Those are removed; afterwards only fatal errors are logged, and exceptions give
the reasons. Its wheels also record events, to be sent to Microsoft. The environment variable ``ORT_DISABLE_TELEMETRY``
switches this off if it is set before the import.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from types import ModuleType

from hagmil._optional import require

FATAL_ONLY = 4
"""Severity of the messages that a logger, a session or a run writes."""

_LOG_LINES = re.compile(  # up to the code that resets the colour, or one line without colour
    rb"\x1b\[[\d;]+m[^\n]*\[[A-Z]:onnxruntime:.*?\x1b\[m\n?|^[^\n]*\[[A-Z]:onnxruntime:[^\n]*\n?",
    re.DOTALL | re.MULTILINE,
)
_STANDARD_ERROR = 2


def load_onnxruntime(*, extra: str = "cpu") -> ModuleType:
    """Import ONNX Runtime.

    Args:
        extra: extra of hagmil that installs it, for the error.

    Raises:
        EnvironmentLacks: it is not installed.
    """
    if "onnxruntime" in sys.modules:
        return _quiet(require("onnxruntime", extra=extra))
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    with _without_log_lines():
        return _quiet(require("onnxruntime", extra=extra))


def _quiet(onnxruntime: ModuleType) -> ModuleType:
    onnxruntime.set_default_logger_severity(FATAL_ONLY)
    return onnxruntime


@contextlib.contextmanager
def _without_log_lines() -> Iterator[None]:
    """Hold back what is written to standard error, and pass it on without ONNX Runtime's lines."""
    try:
        terminal = os.dup(_STANDARD_ERROR)
    except OSError:  # standard error is closed
        yield
        return
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), _STANDARD_ERROR)
        try:
            yield
        finally:
            os.dup2(terminal, _STANDARD_ERROR)
            held_back.seek(0)
            with os.fdopen(terminal, "wb") as file:
                file.write(_LOG_LINES.sub(b"", held_back.read()))
