"""The two flavours of TensorRT: which are installed, and for which GPUs they build.

``tensorrt`` is the data-centre library: it builds on the GPU that it builds for. ``tensorrt-rtx`` builds ahead of time,
without a GPU, for the RTX generations that it knows. The parts of their Python interfaces that are used here are the
same but for the choice of compute capabilities, which RTX alone has.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import get_args

from hagmil._optional import require
from hagmil.bundle import FlavourName
from hagmil.errors import EnvironmentLacks, UsageError

FLAVOUR_NAMES: tuple[FlavourName, ...] = get_args(FlavourName)
_MODULES: dict[FlavourName, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx_bindings"}
_TITLES: dict[FlavourName, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
_CAPABILITY = re.compile(r"\d{1,2}\.\d")
_TARGET = re.compile(r"SM(\d+)(\d)")
_FIRST_BY_DEFAULT = (8, 0)  # capability 7.5 takes fp16 alone and makes engines larger; it must be asked for


@dataclass(frozen=True, slots=True)
class Flavour:
    """An installed TensorRT.

    Args:
        name: ``tensorrt`` or ``tensorrt-rtx``.
        version: its version; an engine is bound to it.
        trt: its Python module.
    """

    name: FlavourName
    version: str
    trt: ModuleType

    @property
    def title(self) -> str:
        """Its name and version for people."""
        return f"{_TITLES[self.name]} {self.version}"

    @property
    def targets(self) -> tuple[str, ...]:
        """The compute capabilities that it builds for ahead of time, ``8.9`` and the like; none: the GPU here alone."""
        if self.name != "tensorrt-rtx":
            return ()
        matches = (_TARGET.fullmatch(member) for member in self.trt.ComputeCapability.__members__)
        return tuple(f"{match[1]}.{match[2]}" for match in matches if match is not None)


def installed_flavours() -> tuple[Flavour, ...]:
    """Every flavour on this machine, data centre first."""
    return tuple(load_flavour(name) for name in FLAVOUR_NAMES if importlib.util.find_spec(_MODULES[name]) is not None)


def choose_flavour(name: str | None = None) -> Flavour:
    """The flavour that was asked for, or the one that is installed.

    Args:
        name: ``tensorrt``, ``tensorrt-rtx``, or None for the installed one.

    Raises:
        UsageError: no such flavour, or both are installed and none was asked for.
        EnvironmentLacks: it is not installed, or none is; the message holds the install line.
    """
    if name is not None:
        for known in FLAVOUR_NAMES:
            if name == known:
                return load_flavour(known)
        raise UsageError(f'no TensorRT flavour "{name}"; choose one of {", ".join(FLAVOUR_NAMES)}')
    found = installed_flavours()
    if len(found) > 1:
        raise UsageError("both TensorRT flavours are installed; choose with --trt-flavour tensorrt or tensorrt-rtx")
    if not found:
        raise EnvironmentLacks(
            'no TensorRT is installed; run: pip install "hagmil[tensorrt-rtx]" for RTX GPUs (it builds engines without '
            'a GPU), or pip install "hagmil[tensorrt]" for data-centre GPUs',
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
        raise EnvironmentLacks(
            f'{_TITLES[name]} is installed but cannot be loaded ({error}); run: pip install "hagmil[{name}]"',
            code="package_broken",
        ) from error
    return Flavour(name, str(trt.__version__), trt)


def device_capability() -> str:
    """The compute capability of this machine's GPU, ``8.9`` and the like.

    Raises:
        EnvironmentLacks: cupy is not installed, or there is no GPU.
    """
    cupy = require("cupy", extra="gpu")
    try:
        digits = str(cupy.cuda.Device().compute_capability)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise EnvironmentLacks(f"this machine has no NVIDIA GPU that CUDA can use: {error}", code="no_gpu") from error
    return f"{digits[:-1]}.{digits[-1]}"


def resolve_capabilities(flavour: Flavour, asked: Sequence[str]) -> tuple[str, ...]:
    """The compute capabilities to build for, in rising order.

    Args:
        flavour: the builder.
        asked: what was asked for; for none, RTX builds for all of 8.0 and above, TensorRT for the GPU here.

    Raises:
        UsageError: a word that is no compute capability.
        EnvironmentLacks: the flavour cannot build for it here; the message says which can.
    """
    for word in asked:
        if not _CAPABILITY.fullmatch(word):
            raise UsageError(f'"{word}" is no compute capability; write it like 8.9')
    if flavour.name == "tensorrt":
        return _present_device(flavour, asked)
    targets = flavour.targets
    for word in asked:
        if word not in targets:
            raise EnvironmentLacks(
                f"{flavour.title} builds no engine for compute capability {word}, only for {', '.join(targets)}; "
                'data-centre GPUs such as H100 (9.0) and B200 (10.0) need pip install "hagmil[tensorrt]" on a machine '
                "with that GPU",
                code="capability",
            )
    chosen = asked or [target for target in targets if _ordered(target) >= _FIRST_BY_DEFAULT]
    return tuple(sorted(set(chosen), key=_ordered))


def _present_device(flavour: Flavour, asked: Sequence[str]) -> tuple[str, ...]:
    present = device_capability()
    for word in asked:
        if word != present:
            raise EnvironmentLacks(
                f"{flavour.title} builds on the GPU that it builds for, and the one here has compute capability "
                f"{present}, not {word}; build on a machine that has it, or ahead of time with "
                '--trt-flavour tensorrt-rtx (pip install "hagmil[tensorrt-rtx]")',
                code="capability",
            )
    return (present,)


def _ordered(capability: str) -> tuple[int, int]:
    major, minor = capability.split(".")
    return int(major), int(minor)
