"""Imports of optional packages."""

from __future__ import annotations

import importlib
from types import ModuleType

from hagmil.errors import EnvironmentLacks


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional package.

    Args:
        module: import name, for example ``onnxruntime``.
        extra: extra of hagmil that installs the package.

    Returns:
        The imported module.

    Raises:
        EnvironmentLacks: the package is not installed; the message contains the install command.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise EnvironmentLacks(
            f'package "{module}" is not installed; run: pip install "hagmil[{extra}]"', code="package_missing"
        ) from error
