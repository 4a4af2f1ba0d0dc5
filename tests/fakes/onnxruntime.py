"""ONNX Runtime with a CUDA provider that is none: graphs run on the processor, over memory of a GPU that is none.

Held against the real library's own signatures by a test.
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
    "InferenceSession.disable_fallback",
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
"""What hagmil calls of sessions and bindings; everything else is the real library's."""


def fake_onnxruntime(gpu: Gpu) -> ModuleType:
    """ONNX Runtime on a machine with one GPU; to be put into ``sys.modules``.

    A run takes the GPU's memory as it is at that moment: it is on no stream that others have, and waits for none.
    """
    real: Any = importlib.import_module("onnxruntime")

    class OrtValue:
        """An output; its memory is free when nobody holds it."""

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
            """Its address."""
            return self._address

        def data_type(self) -> str:
            """As ONNX Runtime writes it."""
            return f"tensor({self._kind})"

        def shape(self) -> list[int]:
            """Its shape."""
            return self._shape

    class IOBinding:
        """Where inputs are and outputs shall be."""

        def __init__(self, session: InferenceSession) -> None:
            self.session = session
            self.inputs: dict[str, tuple[Any, tuple[int, ...], int]] = {}
            self.wanted: list[str] = []
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
            """Say where an input is."""
            assert (device_type, device_id) == ("cuda", 0)
            self.inputs[name] = (element_type, shape, buffer_ptr)

        def bind_output(self, name: str, device_type: str = "cpu", device_id: int = 0) -> None:
            """Say where an output shall be."""
            assert (device_type, device_id) == ("cuda", 0)
            self.wanted.append(name)

        def get_outputs(self) -> list[OrtValue]:
            """What the run gave."""
            return self.outputs

    class InferenceSession:
        """A session on the processor that may say it is on the GPU."""

        def __init__(self, path: str, options: Any, providers: list[tuple[str, dict[str, str]]]) -> None:
            self._providers = [providers[0][0], "CPUExecutionProvider"]
            self._real = real.InferenceSession(path, options, providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            """What it says it runs on."""
            return self._providers

        def get_inputs(self) -> Any:
            """The graph's inputs."""
            return self._real.get_inputs()

        def get_outputs(self) -> Any:
            """The graph's outputs."""
            return self._real.get_outputs()

        def disable_fallback(self) -> None:
            """There is none."""

        def run(self, output_names: list[str], input_feed: dict[str, NDArray[Any]], run_options: Any = None) -> Any:
            """Run on arrays of the host, through the GPU where it is on one."""
            if self._providers[0] != "CPUExecutionProvider":
                gpu.copies_to_device += len(input_feed)
                gpu.copies_to_host += len(output_names)
            return self._real.run(output_names, input_feed, run_options)

        def io_binding(self) -> IOBinding:
            """A binding to this session."""
            assert self._providers[0] != "CPUExecutionProvider"
            return IOBinding(self)

        def run_with_iobinding(self, iobinding: IOBinding, run_options: Any = None) -> None:
            """Run on arrays of the GPU, and wait until it is done."""
            assert iobinding.session is self
            feed = {
                name: gpu.bytes_at(address, math.prod(shape) * np.dtype(kind).itemsize).view(kind).reshape(shape)
                for name, (kind, shape, address) in iobinding.inputs.items()
            }
            iobinding.outputs = [OrtValue(array) for array in self._real.run(iobinding.wanted, feed, run_options)]

    module = ModuleType("onnxruntime")
    module.__dict__.update(
        InferenceSession=InferenceSession,
        IOBinding=IOBinding,
        OrtValue=OrtValue,
        SessionOptions=real.SessionOptions,
        RunOptions=real.RunOptions,
        GraphOptimizationLevel=real.GraphOptimizationLevel,
        ExecutionMode=real.ExecutionMode,
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    return module
