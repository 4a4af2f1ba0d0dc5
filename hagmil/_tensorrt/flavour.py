"""The two flavours of TensorRT, and the GPUs that they build for.

``tensorrt`` is the data-centre library; it builds on the target GPU. ``tensorrt-rtx`` builds in advance, without a GPU,
for RTX generations. Their Python interfaces are the same for everything used here, except for the choice of compute
capabilities, which only RTX has.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import get_args

from hagmil._nvidia.driver import find_gpus
from hagmil._nvidia.libraries import explain_missing
from hagmil._optional import require
from hagmil.bundle import FlavourName
from hagmil.errors import EnvironmentLacks, UsageError

FLAVOUR_NAMES: tuple[FlavourName, ...] = get_args(FlavourName)
_MODULES: dict[FlavourName, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx_bindings"}
_TITLES: dict[FlavourName, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
_CAPABILITY = re.compile(r"\d{1,2}\.\d")
_TARGET = re.compile(r"SM(\d+)(\d)")
_FIRST_BY_DEFAULT = (8, 0)  # 7.5 supports fp16 graphs only and makes engines larger, so it must be requested


@dataclass(frozen=True, slots=True)
class Flavour:
    """An installed TensorRT.

    Args:
        name: ``tensorrt`` or ``tensorrt-rtx``.
        version: its version; engines are tied to it.
        trt: its Python module.
    """

    name: FlavourName
    version: str
    trt: ModuleType

    @property
    def title(self) -> str:
        """Name and version for messages."""
        return f"{_TITLES[self.name]} {self.version}"

    @property
    def targets(self) -> tuple[str, ...]:
        """Compute capabilities such as ``8.9`` that it can build for without a GPU; empty for ``tensorrt``."""
        if self.name != "tensorrt-rtx":
            return ()
        matches = (_TARGET.fullmatch(member) for member in self.trt.ComputeCapability.__members__)
        return tuple(f"{match[1]}.{match[2]}" for match in matches if match is not None)


def installed_flavours() -> tuple[Flavour, ...]:
    """Return the installed flavours, ``tensorrt`` first."""
    return tuple(load_flavour(name) for name in FLAVOUR_NAMES if importlib.util.find_spec(_MODULES[name]) is not None)


def choose_flavour(name: str | None = None) -> Flavour:
    """Return a flavour by name, or the installed one.

    Args:
        name: ``tensorrt``, ``tensorrt-rtx``, or None for the installed one.

    Raises:
        UsageError: the name is unknown, or it is None and both are installed.
        EnvironmentLacks: the flavour is not installed, or none is; the message contains the install command.
    """
    if name is not None:
        for known in FLAVOUR_NAMES:
            if name == known:
                return load_flavour(known)
        raise UsageError(f'unknown TensorRT flavour "{name}"; choose one of {", ".join(FLAVOUR_NAMES)}')
    found = installed_flavours()
    if len(found) > 1:
        raise UsageError("both TensorRT flavours are installed; choose with --trt-flavour tensorrt or tensorrt-rtx")
    if not found:
        raise EnvironmentLacks(
            'no TensorRT is installed; run: pip install "hagmil[tensorrt-rtx]" for RTX GPUs (builds engines without a '
            'GPU), or pip install "hagmil[tensorrt]" for data-centre GPUs',
            code="package_missing",
        )
    return found[0]


def load_flavour(name: FlavourName) -> Flavour:
    """Import a flavour.

    Raises:
        EnvironmentLacks: it is not installed, or its libraries cannot be loaded.
    """
    try:
        trt = require(_MODULES[name], extra=name)
    except EnvironmentLacks:
        raise
    except (ImportError, OSError) as error:
        raise explain_missing(str(error), name) or EnvironmentLacks(
            f'{_TITLES[name]} is installed but cannot be loaded ({error}); run: pip install "hagmil[{name}]"',
            code="package_broken",
        ) from error
    return Flavour(name, str(trt.__version__), trt)


def device_capability() -> str:
    """Return the compute capability of this machine's first GPU, such as ``8.9``.

    Raises:
        EnvironmentLacks: there is no driver, it is too old, or there is no GPU.
    """
    return find_gpus()[0].capability


def resolve_capabilities(flavour: Flavour, requested: Sequence[str]) -> tuple[str, ...]:
    """Return the compute capabilities to build for, ascending.

    Args:
        flavour: the builder.
        requested: compute capabilities; if empty, 8.0 and above for ``tensorrt-rtx``, the present GPU for ``tensorrt``.

    Raises:
        UsageError: a value is not a compute capability.
        EnvironmentLacks: the flavour cannot build for a GPU on this machine; the message names an alternative.
    """
    for word in requested:
        if not _CAPABILITY.fullmatch(word):
            raise UsageError(f'"{word}" is not a compute capability; write it like 8.9')
    if flavour.name == "tensorrt":
        return _present_device(flavour, requested)
    targets = flavour.targets
    for word in requested:
        if word not in targets:
            raise EnvironmentLacks(
                f"{flavour.title} cannot build for compute capability {word}, only for {', '.join(targets)}; "
                'data-centre GPUs such as H100 (9.0) and B200 (10.0) need pip install "hagmil[tensorrt]" on a machine '
                "with that GPU",
                code="capability",
            )
    chosen = requested or [target for target in targets if _ordered(target) >= _FIRST_BY_DEFAULT]
    return tuple(sorted(set(chosen), key=_ordered))


def _present_device(flavour: Flavour, requested: Sequence[str]) -> tuple[str, ...]:
    present = device_capability()
    for word in requested:
        if word != present:
            raise EnvironmentLacks(
                f"{flavour.title} builds only for the GPU of this machine, which has compute capability {present}, not "
                f"{word}; build on a machine with that GPU, or without a GPU with "
                '--trt-flavour tensorrt-rtx (pip install "hagmil[tensorrt-rtx]")',
                code="capability",
            )
    return (present,)


def _ordered(capability: str) -> tuple[int, int]:
    major, minor = capability.split(".")
    return int(major), int(minor)
