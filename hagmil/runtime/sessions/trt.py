"""Sessions on TensorRT engines.

1. Load the engine, and check that it is valid on this machine and has the tensors of the contract.
2. Choose the first profile that covers the input shapes, set the shapes, and infer those of the outputs.
3. Copy host arrays to device buffers, which only grow; use device arrays without a copy.
4. Run on a stream of the calling thread, after the earlier work of the caller's stream on that memory.
5. Host inputs give host outputs. Device inputs give device outputs without a copy through the host; the caller's stream
   waits for them.

A context may run in one thread at a time, so each thread has its own context, stream and buffers.
"""

from __future__ import annotations

import logging
import math
import threading
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from hagmil._optional import require
from hagmil._tensorrt.flavour import Flavour
from hagmil._tensorrt.messages import logger_of, transcript
from hagmil._tensorrt.remedies import with_remedy
from hagmil.errors import BundleError, EnvironmentLacks
from hagmil.spec import TensorSpec

_DTYPES = {"float32": "FLOAT", "uint8": "UINT8"}
_OUT_OF_MEMORY_SIGNS = ("out of memory", "outofmemory", "out_of_memory")
Shapes = dict[str, tuple[int, ...]]

_log = logging.getLogger(__name__)


class TensorRtSession:
    """One TensorRT engine; see :class:`hagmil.runtime.sessions.Session`.

    Args:
        engine: the engine's file, whose digest the caller has checked.
        flavour: the TensorRT that built it.
        inputs: inputs of its graph in the contract.
        outputs: outputs of its graph in the contract.
        version_compatible: whether to allow host code in the engine, which engines for other versions of TensorRT
            need.

    Raises:
        EnvironmentLacks: cupy is missing, or the engine does not fit this machine; the message gives the reason.
        BundleError: the tensors of the engine are not those of the contract.
    """

    def __init__(
        self,
        engine: Path,
        flavour: Flavour,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        version_compatible: bool = False,
    ) -> None:
        self._cupy = require("cupy", extra="gpu")
        self._path, self._flavour = engine, flavour
        self._inputs, self._outputs = inputs, outputs
        self._runtime = flavour.trt.Runtime(logger_of(flavour.trt))
        if version_compatible:
            self._runtime.engine_host_code_allowed = True
        self._engine = self._load()
        self._check_contract()
        self._profiles = tuple(self._read_profile(index) for index in range(self._engine.num_optimization_profiles))
        self._local = threading.local()

    @property
    def provider(self) -> str:
        """The flavour and version of TensorRT."""
        return f"{self._flavour.title} engine"

    @property
    def input_shapes(self) -> dict[str, tuple[str | int, ...]]:
        """The shape of every input; an axis that some profile leaves dynamic is given by its name."""
        return {spec.name: tuple(self._axis(spec, index) for index in range(len(spec.axes))) for spec in self._inputs}

    @property
    def on_device(self) -> bool:
        """True: the session takes cupy arrays without a copy."""
        return True

    def run(self, inputs: dict[str, Any], *, last: bool = False) -> dict[str, Any]:  # noqa: ARG002
        """Run the engine once.

        Args:
            inputs: an array for every input, by its name: all NumPy arrays, or all arrays on the device (cupy arrays,
                or others with ``__cuda_array_interface__`` that cupy's current stream may read).
            last: not used; the memory of an engine belongs to its context.

        Returns:
            An array for every output, by its name: NumPy arrays for NumPy inputs, else cupy arrays for use on cupy's
            current stream.

        Raises:
            EnvironmentLacks: not enough memory on the device (code ``out_of_memory``).
            BundleError: the engine cannot run on these inputs.
        """
        shapes = self._check_inputs(inputs)
        profile = self._profile_for(shapes)
        with transcript() as log:
            try:
                return self._thread_context().run(inputs, shapes, profile)
            except self._cupy.cuda.memory.OutOfMemoryError as error:
                raise self._out_of_memory(str(error)) from error
            except _TensorRtFailure as error:
                reason = "; ".join((str(error), *log.errors))
                if any(sign in reason.lower() for sign in _OUT_OF_MEMORY_SIGNS):
                    raise self._out_of_memory(reason) from error
                raise BundleError(
                    f"{self._path.name} cannot run: {with_remedy(reason)}", code="graph_failed"
                ) from error

    def _load(self) -> Any:
        """Step 1."""
        data = self._path.read_bytes()
        with transcript() as log:
            problems = self._invalidity_reasons(data)
            engine = None if problems else self._runtime.deserialize_cuda_engine(data)
            if engine is None:
                why = "; ".join((*problems, *log.errors)) or "no reason given"
                raise EnvironmentLacks(
                    f'engine "{self._path.name}" cannot be loaded by {self._flavour.title} on this machine: '
                    f"{with_remedy(why)}; build it again with --rebuild",
                    code="engine_refused",
                )
        return engine

    def _invalidity_reasons(self, data: bytes) -> tuple[str, ...]:
        """Reasons why an engine is invalid on this machine; only TensorRT-RTX can check this."""
        trt = self._flavour.trt
        if self._flavour.name != "tensorrt-rtx":
            return ()
        validity, diagnostics = self._runtime.get_engine_validity(data)
        members = trt.EngineInvalidityDiagnostics.__members__.items()
        reasons = tuple(name.lower() for name, flag in members if int(flag) & int(diagnostics))
        if validity == trt.EngineValidity.SUBOPTIMAL:
            _log.warning('engine "%s" is not optimal for this GPU; --rebuild builds a better one', self._path.name)
        return (reasons or ("invalid",)) if validity == trt.EngineValidity.INVALID else ()

    def _check_contract(self) -> None:
        trt, engine = self._flavour.trt, self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        for mode, specs in ((trt.TensorIOMode.INPUT, self._inputs), (trt.TensorIOMode.OUTPUT, self._outputs)):
            found = {name: engine.get_tensor_dtype(name).name for name in names if engine.get_tensor_mode(name) == mode}
            wanted = {spec.name: _DTYPES[spec.dtype] for spec in specs}
            if found != wanted:
                raise BundleError(f'engine "{self._path.name}" has {found}, not {wanted}', code="contract")
            for spec in specs:
                if len(tuple(engine.get_tensor_shape(spec.name))) != len(spec.axes):
                    raise BundleError(
                        f'engine "{self._path.name}": {spec.name} has another number of axes',
                        code="contract",
                    )

    def _read_profile(self, index: int) -> _Profile:
        ranges = {spec.name: self._engine.get_tensor_profile_shape(spec.name, index) for spec in self._inputs}
        return _Profile(
            index=index,
            smallest={name: tuple(shapes[0]) for name, shapes in ranges.items()},
            largest={name: tuple(shapes[2]) for name, shapes in ranges.items()},
        )

    def _axis(self, spec: TensorSpec, index: int) -> str | int:
        lengths = {
            length
            for profile in self._profiles
            for length in (profile.smallest[spec.name][index], profile.largest[spec.name][index])
        }
        return lengths.pop() if len(lengths) == 1 else spec.axes[index]

    def _check_inputs(self, inputs: dict[str, Any]) -> Shapes:
        if inputs.keys() != {spec.name for spec in self._inputs}:
            wanted = ", ".join(spec.name for spec in self._inputs)
            raise BundleError(f"{self._path.name} takes {wanted}, not {', '.join(inputs)}", code="contract")
        for spec in self._inputs:
            if inputs[spec.name].dtype != np.dtype(spec.dtype):
                raise BundleError(
                    f"{self._path.name} takes {spec.name} as {spec.dtype}, not {inputs[spec.name].dtype}",
                    code="contract",
                )
        return {name: tuple(array.shape) for name, array in inputs.items()}

    def _profile_for(self, shapes: Shapes) -> int:
        """Step 2: the first profile that covers these shapes."""
        for profile in self._profiles:
            if profile.covers(shapes):
                return profile.index
        ranges = ", ".join(
            f"{name} {profile.smallest[name]} to {profile.largest[name]}"
            for profile in self._profiles
            for name in shapes
        )
        requested = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise BundleError(
            f"{self._path.name} was not built for {requested}, only for {ranges}; build it with wider --trt-batch or "
            "--trt-patches",
            code="profile",
        )

    def _thread_context(self) -> _ThreadContext:
        """The context of the calling thread."""
        context: _ThreadContext | None = getattr(self._local, "context", None)
        if context is None:
            context = _ThreadContext(self._cupy, self._flavour.trt, self._engine, self._outputs)
            self._local.context = context
        return context

    def _out_of_memory(self, reason: str) -> EnvironmentLacks:
        return EnvironmentLacks(f"{self._path.name}: out of GPU memory: {reason}", code="out_of_memory")


@dataclass(frozen=True, slots=True)
class _Profile:
    """One profile of an engine: the smallest and the largest shape of every input."""

    index: int
    smallest: Shapes
    largest: Shapes

    def covers(self, shapes: Shapes) -> bool:
        return all(_within(self.smallest[name], shape, self.largest[name]) for name, shape in shapes.items())


class _TensorRtFailure(Exception):
    """A call of TensorRT failed; the transcript has the reason."""


class _ThreadContext:
    """The execution context of one thread, with its stream and device buffers."""

    def __init__(self, cupy: ModuleType, trt: ModuleType, engine: Any, outputs: tuple[TensorSpec, ...]) -> None:
        self._cupy = cupy
        self._outputs = outputs
        # Allocate memory for the current profile only: small bags do not need the memory of the largest profile.
        self._context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE)
        if self._context is None:
            raise _TensorRtFailure("no execution context")
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._profile: int | None = None
        self._buffers: dict[str, _Buffer] = {}

    def run(self, inputs: dict[str, Any], shapes: Shapes, profile: int) -> dict[str, Any]:
        """Steps 2 to 5, on checked inputs."""
        on_device = all(hasattr(array, "__cuda_array_interface__") for array in inputs.values())
        caller = self._cupy.cuda.get_current_stream()
        self._set_profile(profile)
        arrays = {
            name: self._cupy.ascontiguousarray(self._cupy.asarray(array))
            if on_device
            else self._buffer(name).view(array.shape, array.dtype)
            for name, array in inputs.items()
        }
        for name, array in arrays.items():
            self._bind(name, array, shapes[name])
        results = self._bind_outputs(on_device=on_device)
        self._stream.wait_event(caller.record())  # step 4
        if not on_device:
            for name, array in arrays.items():
                array.set(np.ascontiguousarray(inputs[name]), stream=self._stream)  # step 3
        _require(self._context.execute_async_v3(self._stream.ptr), "the run failed")
        if on_device:
            caller.wait_event(self._stream.record())  # step 5
            return results
        return {name: array.get(stream=self._stream) for name, array in results.items()}

    def _set_profile(self, profile: int) -> None:
        if profile != self._profile:
            self._profile = None
            _require(self._context.set_optimization_profile_async(profile, self._stream.ptr), f"no profile {profile}")
            self._profile = profile

    def _bind(self, name: str, array: Any, shape: tuple[int, ...]) -> None:
        _require(self._context.set_input_shape(name, shape), f"{name} cannot have shape {shape}")
        _require(self._context.set_tensor_address(name, array.data.ptr), f"no tensor {name}")

    def _bind_outputs(self, *, on_device: bool) -> dict[str, Any]:
        unknown = self._context.infer_shapes()
        if unknown:
            raise _TensorRtFailure(f"unknown shapes of {', '.join(unknown)}")
        results: dict[str, Any] = {}
        for spec in self._outputs:
            shape, dtype = tuple(self._context.get_tensor_shape(spec.name)), np.dtype(spec.dtype)
            array = self._cupy.empty(shape, dtype) if on_device else self._buffer(spec.name).view(shape, dtype)
            _require(self._context.set_tensor_address(spec.name, array.data.ptr), f"no tensor {spec.name}")
            results[spec.name] = array
        return results

    def _buffer(self, name: str) -> _Buffer:
        return self._buffers.setdefault(name, _Buffer(self._cupy))


class _Buffer:
    """Device memory that only grows."""

    def __init__(self, cupy: ModuleType) -> None:
        self._cupy = cupy
        self._memory: Any = None
        self._capacity_bytes = 0

    def view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """An array of this shape and type at the start of the buffer."""
        needed_bytes = math.prod(shape) * dtype.itemsize
        if needed_bytes > self._capacity_bytes:
            self._memory, self._capacity_bytes = None, 0  # free the old memory before allocating
            self._memory = self._cupy.cuda.alloc(needed_bytes)
            self._capacity_bytes = needed_bytes
        return self._cupy.ndarray(shape, dtype, self._memory)


def _within(smallest: tuple[int, ...], shape: tuple[int, ...], largest: tuple[int, ...]) -> bool:
    if len(shape) != len(smallest):
        return False
    return all(least <= length <= most for least, length, most in zip(smallest, shape, largest, strict=True))


def _require(done: bool, failure: str) -> None:
    if not done:
        raise _TensorRtFailure(failure)
