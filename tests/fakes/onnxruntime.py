"""ONNX Runtime with a fake CUDA provider: graphs run on the CPU, on the memory of a fake GPU.

A test compares it with the signatures of the real library.
"""

from __future__ import annotations

import importlib
import math
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.fakes.gpu import Gpu

CALLED = (
    "InferenceSession.get_providers",
    "InferenceSession.io_binding",
    "InferenceSession.run",
    "InferenceSession.run_with_iobinding",
    "IOBinding.bind_input",
    "IOBinding.bind_output",
    "IOBinding.get_outputs",
    "OrtValue.data_ptr",
    "OrtValue.data_type",
    "OrtValue.shape",
)
"""Methods of sessions and bindings that hagmil calls; everything else comes from the real library."""


def fake_onnxruntime(gpu: Gpu) -> ModuleType:
    """Return an ONNX Runtime module with one GPU, for ``sys.modules``.

    A run reads the memory of the GPU as it is at that moment, and waits for no stream.
    """
    real: Any = importlib.import_module("onnxruntime")

    class OrtValue:
        """An output; its memory is freed when it is no longer referenced."""

        def __init__(self, array: NDArray[Any]) -> None:
            try:
                self._address = gpu.allocate(array.nbytes)
            except MemoryError as error:
                raise RuntimeError("Failed to allocate memory for requested buffer of size") from error
            self._shape, self._kind = list(array.shape), {"float32": "float"}.get(str(array.dtype), str(array.dtype))
            gpu.bytes_at(self._address, array.nbytes)[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)

        def __del__(self) -> None:
            if hasattr(self, "_address"):
                gpu.free(self._address)

        def data_ptr(self) -> int:
            """Address of the data."""
            return self._address

        def data_type(self) -> str:
            """Type in ONNX Runtime's notation."""
            return f"tensor({self._kind})"

        def shape(self) -> list[int]:
            """Shape of the data."""
            return self._shape

    class IOBinding:
        """Locations of inputs and outputs."""

        def __init__(self, session: InferenceSession) -> None:
            self.session = session
            self.inputs: dict[str, tuple[Any, tuple[int, ...], int]] = {}
            self.output_names: list[str] = []
            self.outputs: list[OrtValue] = []

        def bind_input(
            self,
            name: str,
            device_type: str,
            device_id: int,
            element_type: Any,
            shape: tuple[int, ...],
            buffer_ptr: int,
        ) -> None:
            """Set the location of an input."""
            assert (device_type, device_id) == ("cuda", 0)
            self.inputs[name] = (element_type, shape, buffer_ptr)

        def bind_output(self, name: str, device_type: str = "cpu", device_id: int = 0) -> None:
            """Set the location of an output."""
            assert (device_type, device_id) == ("cuda", 0)
            self.output_names.append(name)

        def get_outputs(self) -> list[OrtValue]:
            """Outputs of the run."""
            return self.outputs

    class InferenceSession:
        """A session that runs on the CPU and may report the GPU."""

        def __init__(self, path: str, options: Any, providers: list[str], enable_fallback: int = 1) -> None:
            assert not enable_fallback
            self._providers = [providers[0], "CPUExecutionProvider"]
            self._real = real.InferenceSession(path, options, providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            """Reported providers."""
            return self._providers

        def get_inputs(self) -> Any:
            """Inputs of the graph."""
            return self._real.get_inputs()

        def get_outputs(self) -> Any:
            """Outputs of the graph."""
            return self._real.get_outputs()

        def run(self, output_names: list[str], input_feed: dict[str, NDArray[Any]], run_options: Any = None) -> Any:
            """Run on host arrays; counts copies if the session reports the GPU."""
            if self._providers[0] != "CPUExecutionProvider":
                gpu.copies_to_device += len(input_feed)
                gpu.copies_to_host += len(output_names)
            return self._real.run(output_names, input_feed, run_options)

        def io_binding(self) -> IOBinding:
            """Return a binding for this session."""
            assert self._providers[0] != "CPUExecutionProvider"
            return IOBinding(self)

        def run_with_iobinding(self, iobinding: IOBinding, run_options: Any = None) -> None:
            """Run on arrays of the GPU, synchronously."""
            assert iobinding.session is self
            feed = {
                name: gpu.bytes_at(address, math.prod(shape) * np.dtype(kind).itemsize).view(kind).reshape(shape)
                for name, (kind, shape, address) in iobinding.inputs.items()
            }
            iobinding.outputs = [OrtValue(array) for array in self._real.run(iobinding.output_names, feed, run_options)]

    module = ModuleType("onnxruntime")
    module.__dict__.update(
        InferenceSession=InferenceSession,
        IOBinding=IOBinding,
        OrtValue=OrtValue,
        SessionOptions=real.SessionOptions,
        RunOptions=real.RunOptions,
        GraphOptimizationLevel=real.GraphOptimizationLevel,
        ExecutionMode=real.ExecutionMode,
        set_default_logger_severity=real.set_default_logger_severity,
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    return module
