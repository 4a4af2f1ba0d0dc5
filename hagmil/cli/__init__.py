"""The command line. Each command is in its own file and imports heavy packages when it runs."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from hagmil.errors import EnvironmentLacks, HagmilError, Interrupted

TYPE_CHECKING = False  # true for type checkers
if TYPE_CHECKING:
    from typing import NoReturn

_EXTRAS = {
    "torch": "train,export",
    "safetensors": "train,export",
    "yaml": "train",
    "sklearn": "train",
    "tensorboard": "train",
    "onnx": "export",
    "onnxscript": "export",
}
"""The extra of hagmil that installs a package, for packages that are not in the base installation."""


def main() -> None:
    """Run the command line; print errors of hagmil as one line and exit with their exit code."""
    _exit_on_signals()
    from hagmil.cli._signals import stop_signals

    try:
        stop_signals.watch()
        _run()
    except BaseException as error:
        if stop_signals.received is not None:
            _stop(error, stop_signals.received.name)
        if isinstance(error, HagmilError):
            _print(error)
            sys.exit(error.exit_code)
        raise
    finally:
        stop_signals.finish()


def _run() -> None:
    """Run the command line, and raise errors of hagmil for full disks, missing packages and Ctrl-C."""
    from hagmil._files import is_disk_full
    from hagmil.cli.app import app

    try:
        app(standalone_mode=True)
    except OSError as error:
        if not is_disk_full(error):
            raise
        problem = f"no space left: {error}; free some space and run the command again"
        raise EnvironmentLacks(problem, code="disk_full") from error
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in _EXTRAS:
            raise
        remedy = f'pip install "hagmil[{_EXTRAS[package]}]"'
        problem = f'package "{package}" is not installed; run: {remedy}'
        raise EnvironmentLacks(problem, code="package_missing") from error


def _exit_on_signals() -> None:
    """Exit at once on SIGINT and SIGTERM while modules are loaded; there is nothing to clean up yet."""
    core = import_module("_signal")  # built in; the module signal takes as long to load as Python takes to start
    try:
        for number in (core.SIGINT, core.SIGTERM):
            core.signal(number, lambda *_: os._exit(Interrupted.exit_code))
    except ValueError:  # not in the main thread
        return


def _stop(error: BaseException, name: str) -> NoReturn:
    """End the process after a signal, whatever the interrupt became; an orderly exit may take seconds."""
    from hagmil._files import remove_own_temporaries

    remove_own_temporaries()
    if not isinstance(error, Interrupted):
        error = Interrupted(f"stopped by {name}; run the same command again to continue or to start again")
    _print(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(Interrupted.exit_code)


def _print(error: HagmilError) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text.assemble(("error: ", "bold red"), error.message))
