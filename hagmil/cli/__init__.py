"""The command line. Each command is in its own file and imports heavy packages when it runs."""

from __future__ import annotations

import sys
from typing import NoReturn

from hagmil.cli._signals import stop_signals
from hagmil.errors import EnvironmentLacks, HagmilError, Interrupted

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
    stop_signals.watch()
    try:
        _run()
    except BaseException as error:
        stop_signals.finish()
        if stop_signals.received is not None and not isinstance(error, Interrupted):
            _stopped()  # whatever the interrupt became
        if isinstance(error, HagmilError):
            _fail(error)
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


def _stopped() -> NoReturn:
    from hagmil._files import remove_own_temporaries

    remove_own_temporaries()
    name = stop_signals.received.name if stop_signals.received else "a signal"
    _fail(Interrupted(f"stopped by {name}; run the same command again to continue or to start again"))


def _fail(error: HagmilError) -> NoReturn:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text.assemble(("error: ", "bold red"), error.message))
    sys.exit(error.exit_code)
