"""Sessions on ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagmil._optional import require
from hagmil.errors import BundleError, EnvironmentLacks

_PROVIDER_NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_ERRORS_ONLY = 3
_OUT_OF_MEMORY_SIGNS = ("failed to allocate memory", "out of memory", "bad_alloc", "bad allocation")


def available_providers() -> list[str]:
    """The providers of this machine's ONNX Runtime, by hagmil's names.

    Raises:
        EnvironmentLacks: ONNX Runtime is not installed.
    """
    present = set(_onnxruntime().get_available_providers())
    return [name for name, full in _PROVIDER_NAMES.items() if full in present]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output as a graph declares it.

    Args:
        dtype: its element type, as NumPy writes it.
        axes: a number where fixed, a word where dynamic (None where unnamed).
    """

    dtype: str
    axes: tuple[str | int | None, ...]


class OnnxSession:
    """One ONNX graph in ONNX Runtime; see :class:`hagmil.runtime.sessions.Session`."""

    def __init__(
        self,
        onnx: Path,
        *,
        provider: str = "cpu",
        threads: int | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self._onnxruntime = _onnxruntime()
        self._path = onnx
        name = _PROVIDER_NAMES[provider]
        if name not in self._onnxruntime.get_available_providers():
            raise EnvironmentLacks(
                f'provider "{provider}" was asked for, but this machine\'s ONNX Runtime has only '
                f"{', '.join(available_providers())}; for an NVIDIA GPU run: "
                'pip uninstall onnxruntime; pip install "hagmil[gpu]"',
                code="provider_missing",
            )
        self._session = self._load(name, threads, options or {})
        if self._session.get_providers()[0] != name:
            raise EnvironmentLacks(
                f'provider "{provider}" is installed but did not start on this machine (no device, or no driver?); '
                "hagmil doctor tells more",
                code="provider_failed",
            )
        self._session.disable_fallback()
        self._outputs = [output.name for output in self._session.get_outputs()]

    @property
    def provider(self) -> str:
        """The execution provider that runs the graph, as ONNX Runtime names it."""
        return str(self._session.get_providers()[0])

    @property
    def input_shapes(self) -> dict[str, tuple[str | int, ...]]:
        """The shape of every input; words are dynamic axes."""
        return {node.name: tuple(node.shape) for node in self._session.get_inputs()}

    def tensors(self) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo]]:
        """Inputs and outputs by their names, as the graph declares them."""
        nodes = self._session.get_inputs(), self._session.get_outputs()
        inputs, outputs = (
            {node.name: TensorInfo(_dtype(node.type), tuple(node.shape)) for node in each} for each in nodes
        )
        return inputs, outputs

    def run(self, inputs: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """Run the graph once; see :meth:`hagmil.runtime.sessions.Session.run`."""
        try:
            values = self._session.run(self._outputs, inputs)
        except Exception as error:
            text = str(error)
            if any(sign in text.lower() for sign in _OUT_OF_MEMORY_SIGNS):
                raise EnvironmentLacks(f"{self._path.name}: out of memory: {text}", code="out_of_memory") from error
            raise BundleError(f"{self._path.name} cannot run on these inputs: {text}", code="graph_failed") from error
        return dict(zip(self._outputs, values, strict=True))

    def _load(self, provider_name: str, threads: int | None, provider_options: Mapping[str, str]) -> Any:
        options = self._onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
        options.enable_cpu_mem_arena = False
        try:
            providers = [(provider_name, dict(provider_options))]
            return self._onnxruntime.InferenceSession(str(self._path), options, providers=providers)
        except Exception as error:
            raise BundleError(f'"{self._path}" cannot be loaded: {error}', code="graph_invalid") from error


def _dtype(words: str) -> str:
    """``tensor(float)``, as ONNX Runtime writes it, to ``float32``."""
    name = words.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)


def _onnxruntime() -> ModuleType:
    return require("onnxruntime", extra="cpu")
