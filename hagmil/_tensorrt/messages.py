"""Messages of TensorRT during parsing, building and inference.

TensorRT uses the first logger that it receives for the life of the process and ignores all later ones. Therefore this
module has one logger per flavour. Its messages go to every open transcript, or to ``logging`` if none is open.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from types import ModuleType
from typing import Any

_LEVELS = {"INTERNAL_ERROR": logging.ERROR, "ERROR": logging.ERROR, "WARNING": logging.WARNING}
_ERRORS = frozenset({"INTERNAL_ERROR", "ERROR"})
_NO_DRIVER = "CUDA driver version is insufficient"  # follows every error on a machine without a GPU

_log = logging.getLogger("hagmil.tensorrt")
_lock = Lock()
_loggers: dict[ModuleType, Any] = {}
_open: list[Transcript] = []


@dataclass(frozen=True, slots=True)
class Message:
    """One message of TensorRT.

    Args:
        severity: ``INTERNAL_ERROR``, ``ERROR``, ``WARNING``, ``INFO`` or ``VERBOSE``.
        text: the message.
    """

    severity: str
    text: str


@dataclass(slots=True)
class Transcript:
    """The messages of TensorRT while the transcript was open."""

    messages: list[Message] = field(default_factory=list)

    @property
    def errors(self) -> tuple[str, ...]:
        """The errors. The missing driver comes last: on a machine without a GPU it follows every other error."""
        texts = [message.text for message in self.messages if message.severity in _ERRORS]
        return tuple(sorted(texts, key=lambda text: _NO_DRIVER in text))

    def add(self, severity: str, text: str) -> None:
        """Append one message."""
        self.messages.append(Message(severity, text))

    def render(self, *, verbose: bool = False) -> str:
        """Format all messages, one per line; verbose ones only with ``verbose``."""
        kept = (message for message in self.messages if verbose or message.severity != "VERBOSE")
        return "".join(f"{message.severity:<8} {message.text}\n" for message in kept)


@contextmanager
def transcript() -> Iterator[Transcript]:
    """Record the messages of TensorRT in a ``with`` block; transcripts may be nested."""
    opened = Transcript()
    with _lock:
        _open.append(opened)
    try:
        yield opened
    finally:
        with _lock:
            _open[:] = [other for other in _open if other is not opened]


def logger_of(trt: ModuleType) -> Any:
    """Return the logger of a flavour, for every builder, parser and runtime."""
    with _lock:
        if trt not in _loggers:
            _loggers[trt] = _new_logger(trt)
        return _loggers[trt]


def _new_logger(trt: ModuleType) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            _dispatch(severity.name, msg)

    return Logger()


def _dispatch(severity: str, text: str) -> None:
    listeners = tuple(_open)
    for listener in listeners:
        listener.add(severity, text)
    if not listeners:
        _log.log(_LEVELS.get(severity, logging.DEBUG), "%s", text)
