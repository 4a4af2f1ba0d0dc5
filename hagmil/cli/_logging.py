"""Logging to standard error, and the option ``-v`` that turns on its details."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable

from hagmil.cli import _common as common

_THIRD_PARTY_LEVELS = {
    "PIL": logging.WARNING,
    "matplotlib": logging.WARNING,
    "numba": logging.WARNING,
    "h5py": logging.WARNING,
    "pyvips": logging.ERROR,  # hagmil raises errors of its own for what pyvips warns about
}


def configure_logging(*, verbose: bool) -> None:
    """Log warnings to standard error, or every message of hagmil where ``verbose`` is set."""
    level = logging.DEBUG if verbose else logging.WARNING
    terminal = logging.StreamHandler()
    terminal.setLevel(level)  # on the handler: the log file of a run may have a lower level
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", handlers=[terminal])
    for name, third_party_level in _THIRD_PARTY_LEVELS.items():
        logging.getLogger(name).setLevel(third_party_level)


def accept_verbose(command: Callable[..., None]) -> Callable[..., None]:
    """Add the option ``-v``, ``--verbose`` to a command, so that it may also follow the command's name."""

    @functools.wraps(command)
    def run(*args: object, verbose: bool, **options: object) -> None:
        if verbose:
            _lower_levels()
        command(*args, **options)

    signature = inspect.signature(command, eval_str=True)
    option = inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=common.Verbose)
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), option])  # type: ignore[attr-defined]
    run.__annotations__ = {**command.__annotations__, "verbose": common.Verbose}
    return run


def _lower_levels() -> None:
    """Turn on details after :func:`configure_logging` has run without ``verbose``."""
    root = logging.getLogger()
    root.setLevel(logging.DEBUG)
    for handler in root.handlers:
        handler.setLevel(logging.DEBUG)
