"""What TensorRT says while it parses, builds and runs.

TensorRT keeps the first logger that it is given for the life of the process and ignores all later ones. So there is
one logger a flavour here, and what it hears goes to every transcript that is open, or, where none is, to logging.
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
    """One thing that TensorRT said.

    Args:
        severity: ``ERROR``, ``WARNING``, ``INFO`` and the like.
        text: what it said.
    """

    severity: str
    text: str


@dataclass(slots=True)
class Transcript:
    """Everything that TensorRT said while it was open."""

    messages: list[Message] = field(default_factory=list)

    @property
    def errors(self) -> tuple[str, ...]:
        """The errors; that there is no driver comes last, since on a machine without a GPU it follows any other."""
        texts = [message.text for message in self.messages if message.severity in _ERRORS]
        return tuple(sorted(texts, key=lambda text: _NO_DRIVER in text))

    def add(self, severity: str, text: str) -> None:
        """Take one message down."""
        self.messages.append(Message(severity, text))

    def render(self, *, verbose: bool = False) -> str:
        """All messages, one a line; the verbose ones only where asked for."""
        kept = (message for message in self.messages if verbose or message.severity != "VERBOSE")
        return "".join(f"{message.severity:<8} {message.text}\n" for message in kept)


@contextmanager
def transcript() -> Iterator[Transcript]:
    """Take down what TensorRT says until the block ends; transcripts may be open inside one another."""
    opened = Transcript()
    with _lock:
        _open.append(opened)
    try:
        yield opened
    finally:
        with _lock:
            _open[:] = [other for other in _open if other is not opened]


def logger_of(trt: ModuleType) -> Any:
    """The one logger of a flavour; every builder, parser and runtime must be given it."""
    with _lock:
        if trt not in _loggers:
            _loggers[trt] = _new_logger(trt)
        return _loggers[trt]


def _new_logger(trt: ModuleType) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            _hear(severity.name, msg)

    return Logger()


def _hear(severity: str, text: str) -> None:
    listeners = tuple(_open)
    for listener in listeners:
        listener.add(severity, text)
    if not listeners:
        _log.log(_LEVELS.get(severity, logging.DEBUG), "%s", text)
