"""The command line. Each command is in its own file and imports heavy packages when it runs."""

from __future__ import annotations

import signal
import sys
from types import FrameType

from hagmil._files import is_disk_full
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
    from hagmil.cli.app import app

    signal.signal(signal.SIGTERM, _stop)
    try:
        app(standalone_mode=True)
    except HagmilError as error:
        _fail(error)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in _EXTRAS:
            raise
        remedy = f'pip install "hagmil[{_EXTRAS[package]}]"'
        _fail(EnvironmentLacks(f'package "{package}" is not installed; run: {remedy}', code="package_missing"))
    except OSError as error:
        if not is_disk_full(error):
            raise
        _fail(EnvironmentLacks(f"no space left: {error}; free some space and run the command again", code="disk_full"))
    except KeyboardInterrupt:
        _fail(Interrupted("stopped"))


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _fail(error: HagmilError) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text.assemble(("error: ", "bold red"), error.message))
    sys.exit(error.exit_code)
