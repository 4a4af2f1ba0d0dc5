"""Sessions on TensorRT engines.

1. Load: the library says whether the engine is for this machine, the engine whether it has the contract's tensors.
2. Choose the first profile that holds the inputs' shapes; set shapes, and let the engine infer the outputs'.
3. Arrays on the host are copied to device buffers that only grow; arrays on the device are read where they are.
4. Run on a stream of the thread's own, after whatever the caller's stream did with that memory before.
5. Host in, host out; device in, device out, without a copy through the host: the caller's stream waits instead.

A context may run in one thread at a time, so each thread has its own, with its stream and buffers.
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
from numpy.typing import NDArray

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
        engine: the engine's file; that it is the one that was meant (its digest) must have been checked.
        flavour: the TensorRT that built it.
        inputs: the contract's inputs of its graph.
        outputs: the contract's outputs of its graph.
        version_compatible: whether to let the engine bring code for other versions of TensorRT.

    Raises:
        EnvironmentLacks: cupy is missing, or the engine is not for this machine; the message says why.
        BundleError: the engine has not the contract's tensors.
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
        """The flavour and version that run the engine."""
        return f"{self._flavour.title} engine"

    @property
    def input_shapes(self) -> dict[str, tuple[str | int, ...]]:
        """The shape of every input; words are dynamic axes, numbers what every profile fixes."""
        return {spec.name: tuple(self._axis(spec, index) for index in range(len(spec.axes))) for spec in self._inputs}

    @property
    def on_device(self) -> bool:
        """Arrays may stay on the device."""
        return True

    def run(self, inputs: dict[str, Any], *, last: bool = False) -> dict[str, Any]:  # noqa: ARG002
        """Run the engine once.

        Args:
            inputs: an array for every input, by its name: all of NumPy, or all on the device (cupy's, or any others
                with ``__cuda_array_interface__`` that cupy's present stream may read).
            last: of no meaning here; an engine's memory stays with its context.

        Returns:
            An array for every output, by its name: of NumPy where the inputs are; of cupy where they are on the device,
            to be used on the stream that is cupy's present one now.

        Raises:
            EnvironmentLacks: the device has too little memory (code ``out_of_memory``).
            BundleError: the engine cannot run on these inputs.
        """
        shapes = self._check_inputs(inputs)
        profile = self._profile_for(shapes)
        with transcript() as said:
            try:
                return self._lane().run(inputs, shapes, profile)
            except self._cupy.cuda.memory.OutOfMemoryError as error:
                raise self._out_of_memory(str(error)) from error
            except _Refused as error:
                reason = "; ".join((str(error), *said.errors))
                if any(sign in reason.lower() for sign in _OUT_OF_MEMORY_SIGNS):
                    raise self._out_of_memory(reason) from error
                raise BundleError(
                    f"{self._path.name} cannot run: {with_remedy(reason)}", code="graph_failed"
                ) from error

    def _load(self) -> Any:
        """Step 1."""
        data = self._path.read_bytes()
        with transcript() as said:
            problems = self._invalidity(data)
            engine = None if problems else self._runtime.deserialize_cuda_engine(data)
            if engine is None:
                why = "; ".join((*problems, *said.errors)) or "it gave no reason"
                raise EnvironmentLacks(
                    f'engine "{self._path.name}" cannot be loaded by {self._flavour.title} on this machine: '
                    f"{with_remedy(why)}; build it anew with --rebuild",
                    code="engine_refused",
                )
        return engine

    def _invalidity(self, data: bytes) -> tuple[str, ...]:
        """Why the library would not load an engine, in its own words; only TensorRT-RTX can be asked."""
        trt = self._flavour.trt
        if self._flavour.name != "tensorrt-rtx":
            return ()
        validity, diagnostics = self._runtime.get_engine_validity(data)
        members = trt.EngineInvalidityDiagnostics.__members__.items()
        words = tuple(name.lower() for name, flag in members if int(flag) & int(diagnostics))
        if validity == trt.EngineValidity.SUBOPTIMAL:
            _log.warning('engine "%s" is not the best one for this GPU; --rebuild builds one', self._path.name)
        return (words or ("invalid",)) if validity == trt.EngineValidity.INVALID else ()

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
                    raise BundleError(f'engine "{self._path.name}": {spec.name} has other axes', code="contract")

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
        """Step 2: the first profile that holds these shapes."""
        for profile in self._profiles:
            if profile.holds(shapes):
                return profile.index
        ranges = ", ".join(
            f"{name} {profile.smallest[name]} to {profile.largest[name]}"
            for profile in self._profiles
            for name in shapes
        )
        asked = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise BundleError(
            f"{self._path.name} was not built for {asked}, only for {ranges}; build it with wider --trt-batch or "
            "--trt-patches",
            code="profile",
        )

    def _lane(self) -> _Lane:
        """What the present thread runs the engine with."""
        lane: _Lane | None = getattr(self._local, "lane", None)
        if lane is None:
            lane = _Lane(self._cupy, self._flavour.trt, self._engine, self._outputs)
            self._local.lane = lane
        return lane

    def _out_of_memory(self, reason: str) -> EnvironmentLacks:
        return EnvironmentLacks(f"{self._path.name}: out of GPU memory: {reason}", code="out_of_memory")


@dataclass(frozen=True, slots=True)
class _Profile:
    """One profile of an engine: the smallest and the largest shape of every input."""

    index: int
    smallest: Shapes
    largest: Shapes

    def holds(self, shapes: Shapes) -> bool:
        return all(_within(self.smallest[name], shape, self.largest[name]) for name, shape in shapes.items())


class _Refused(Exception):
    """TensorRT said no; why stands in the transcript."""


class _Lane:
    """What one thread runs an engine with: a context, a stream, and device buffers."""

    def __init__(self, cupy: ModuleType, trt: ModuleType, engine: Any, outputs: tuple[TensorSpec, ...]) -> None:
        self._cupy = cupy
        self._outputs = outputs
        # Memory by profile: the context of a small bag does not hold what the largest one needs.
        self._context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE)
        if self._context is None:
            raise _Refused("it got no execution context")
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._profile: int | None = None
        self._buffers: dict[str, _Buffer] = {}

    def run(self, inputs: dict[str, Any], shapes: Shapes, profile: int) -> dict[str, Any]:
        """Steps 2 to 5, on inputs that were checked."""
        on_device = all(hasattr(array, "__cuda_array_interface__") for array in inputs.values())
        caller = self._cupy.cuda.get_current_stream()
        self._choose(profile)
        arrays = {
            name: self._cupy.ascontiguousarray(self._cupy.asarray(array)) if on_device else self._room(name, array)
            for name, array in inputs.items()
        }
        for name, array in arrays.items():
            self._bind(name, array, shapes[name])
        results = self._bind_outputs(on_device=on_device)
        self._stream.wait_event(caller.record())  # step 4
        if not on_device:
            for name, array in arrays.items():
                array.set(np.ascontiguousarray(inputs[name]), stream=self._stream)  # step 3
        _must(self._context.execute_async_v3(self._stream.ptr), "it would not run")
        if on_device:
            caller.wait_event(self._stream.record())  # step 5
            return results
        return {name: array.get(stream=self._stream) for name, array in results.items()}

    def _choose(self, profile: int) -> None:
        if profile != self._profile:
            self._profile = None
            _must(
                self._context.set_optimization_profile_async(profile, self._stream.ptr), f"it has no profile {profile}"
            )
            self._profile = profile

    def _bind(self, name: str, array: Any, shape: tuple[int, ...]) -> None:
        _must(self._context.set_input_shape(name, shape), f"it takes no {name} {shape}")
        _must(self._context.set_tensor_address(name, array.data.ptr), f"it has no tensor {name}")

    def _bind_outputs(self, *, on_device: bool) -> dict[str, Any]:
        unknown = self._context.infer_shapes()
        if unknown:
            raise _Refused(f"the shapes of {', '.join(unknown)} are not known")
        results: dict[str, Any] = {}
        for spec in self._outputs:
            shape, dtype = tuple(self._context.get_tensor_shape(spec.name)), np.dtype(spec.dtype)
            array = self._cupy.empty(shape, dtype) if on_device else self._buffer(spec.name).view(shape, dtype)
            _must(self._context.set_tensor_address(spec.name, array.data.ptr), f"it has no tensor {spec.name}")
            results[spec.name] = array
        return results

    def _room(self, name: str, array: NDArray[Any]) -> Any:
        return self._buffer(name).view(array.shape, array.dtype)

    def _buffer(self, name: str) -> _Buffer:
        return self._buffers.setdefault(name, _Buffer(self._cupy))


class _Buffer:
    """Device memory that only grows."""

    def __init__(self, cupy: ModuleType) -> None:
        self._cupy = cupy
        self._memory: Any = None
        self._capacity_bytes = 0

    def view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """An array of that shape and type at the start of the buffer."""
        needed_bytes = math.prod(shape) * dtype.itemsize
        if needed_bytes > self._capacity_bytes:
            self._memory, self._capacity_bytes = None, 0  # the old memory goes before the new is asked for
            self._memory = self._cupy.cuda.alloc(needed_bytes)
            self._capacity_bytes = needed_bytes
        return self._cupy.ndarray(shape, dtype, self._memory)


def _within(smallest: tuple[int, ...], shape: tuple[int, ...], largest: tuple[int, ...]) -> bool:
    if len(shape) != len(smallest):
        return False
    return all(least <= length <= most for least, length, most in zip(smallest, shape, largest, strict=True))


def _must(done: bool, otherwise: str) -> None:
    if not done:
        raise _Refused(otherwise)
