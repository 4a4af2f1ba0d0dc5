"""The one way to import an optional package."""

from __future__ import annotations

import importlib
from types import ModuleType

from hagmil.errors import EnvironmentLacks


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional package, or say which extra brings it.

    Args:
        module: the import name, for example ``onnxruntime``.
        extra: the extra of hagmil that installs it.

    Returns:
        The imported module.

    Raises:
        EnvironmentLacks: it is not installed; the message holds the install line.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise EnvironmentLacks(
            f'package "{module}" is not installed; run: pip install "hagmil[{extra}]"', code="package_missing"
        ) from error
