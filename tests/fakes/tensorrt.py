"""A fake TensorRT without a GPU: all names that hagmil uses, with the signatures of the real bindings.

An engine of this fake contains the ONNX file that it was built from, and is run by ONNX Runtime. Wrong addresses,
shapes, profiles, streams or threads are errors. Tests compare every class, method, argument, property and enumeration
with the real bindings.
"""

from __future__ import annotations

import enum
import hashlib
import json
import math
import threading
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from tests.fakes.gpu import Gpu
from tests.fakes.typed import typed

_MAGIC = b"FAKE"
_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "UINT8": np.uint8}


class DataType(enum.IntEnum):
    """Element types."""

    FLOAT = 0
    HALF = 1
    INT32 = 3
    UINT8 = 5
    BF16 = 7
    INT64 = 8


class BuilderFlag(enum.IntEnum):
    """Flags of a build, with the values of the bindings."""

    TF32 = 6
    VERSION_COMPATIBLE = 12


class MemoryPoolType(enum.IntEnum):
    """Memory pools of a build."""

    WORKSPACE = 0


class NetworkDefinitionCreationFlag(enum.IntEnum):
    """Flags of a network."""

    STRONGLY_TYPED = 0


class HardwareCompatibilityLevel(enum.IntEnum):
    """Compatibility with other GPUs than the one that built the engine."""

    NONE = 0
    AMPERE_PLUS = 1
    SAME_COMPUTE_CAPABILITY = 2


class ComputeCapability(enum.IntEnum):
    """Compute capabilities that TensorRT-RTX builds for."""

    NONE = 0
    CURRENT = 1
    SM75 = 75
    SM80 = 80
    SM86 = 86
    SM89 = 89
    SM120 = 120
    SM121 = 121


class TensorIOMode(enum.IntEnum):
    """Whether a tensor is an input or an output."""

    NONE = 0
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(enum.IntEnum):
    """When a context allocates its memory."""

    STATIC = 0
    ON_PROFILE_CHANGE = 1


class EngineValidity(enum.IntEnum):
    """Whether an engine runs on this machine."""

    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class EngineInvalidityDiagnostics(enum.IntEnum):
    """Reasons why it does not; bit flags."""

    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    MALFORMED_ENGINE = 32


class Severity(enum.IntEnum):
    """Severity of a message."""

    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ErrorCode(enum.IntEnum):
    """Codes of parser errors."""

    SUCCESS = 0
    UNSUPPORTED_NODE = 8


class ILogger:
    """Base class of loggers."""

    __slots__ = ()

    @typed
    def __init__(self) -> None:
        """Do nothing."""

    @typed
    def log(self, severity: Severity, msg: str) -> None:
        """Log a message; overridden by subclasses."""


class ITensor:
    """A tensor of a network."""

    __slots__ = ("_dtype", "_name", "_shape")

    def __init__(self, name: str, shape: tuple[int, ...], dtype: DataType) -> None:
        self._name, self._shape, self._dtype = name, shape, dtype

    @property
    def name(self) -> str:
        """Name of the tensor."""
        return self._name

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes; -1 if dynamic."""
        return self._shape

    @property
    def dtype(self) -> DataType:
        """Element type of the tensor."""
        return self._dtype


class ILayer:
    """A layer of a network; here one per weight, with the type of the weight."""

    __slots__ = ("_dtype",)

    def __init__(self, dtype: DataType) -> None:
        self._dtype = dtype

    @property
    def num_outputs(self) -> int:
        """Number of outputs."""
        return 1

    @typed
    def get_output(self, index: int) -> ITensor:
        """Return an output."""
        assert index == 0
        return ITensor("output", (), self._dtype)


class INetworkDefinition:
    """A parsed graph."""

    __slots__ = ("_model",)

    def __init__(self) -> None:
        self._model = onnx.ModelProto()

    @property
    def num_inputs(self) -> int:
        """Number of inputs of the graph."""
        return len(self._model.graph.input)

    @property
    def num_outputs(self) -> int:
        """Number of outputs of the graph."""
        return len(self._model.graph.output)

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self._model.graph.initializer)

    @typed
    def get_input(self, index: int) -> ITensor:
        """Return an input."""
        return _tensor(self._model.graph.input[index])

    @typed
    def get_layer(self, index: int) -> ILayer:
        """Return a layer."""
        return ILayer(_dtype(self._model.graph.initializer[index].data_type))


class ParserError:
    """An error of the parser."""

    __slots__ = ("_operator",)

    def __init__(self, operator: str) -> None:
        self._operator = operator

    @typed
    def code(self) -> ErrorCode:
        """Code of the error."""
        return ErrorCode.UNSUPPORTED_NODE

    @typed
    def desc(self) -> str:
        """Description of the error."""
        return "false"

    @typed
    def node_name(self) -> str:
        """Name of the node."""
        return f"node_{self._operator}"

    @typed
    def node_operator(self) -> str:
        """Operator of the node."""
        return self._operator


class OnnxParser:
    """Parser of ONNX files."""

    __slots__ = ("_errors", "_logger", "_network")

    @typed
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network, self._logger = network, logger
        self._errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        """Number of errors of the last call."""
        return len(self._errors)

    @typed
    def parse_from_file(self, model: str) -> bool:
        """Parse a file; the operator ``Det`` is not supported."""
        self._network._model = onnx.load(model)
        self._errors = [ParserError(node.op_type) for node in self._network._model.graph.node if node.op_type == "Det"]
        return not self._errors

    @typed
    def get_error(self, index: int) -> ParserError:
        """Return an error."""
        return self._errors[index]


class IOptimizationProfile:
    """Ranges of input shapes."""

    __slots__ = ("_shapes",)

    def __init__(self) -> None:
        self._shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    @typed
    def set_shape(self, input: str, min: tuple, opt: tuple, max: tuple) -> None:  # type: ignore[type-arg]
        """Minimum, optimum and maximum shape of an input."""
        self._shapes[input] = (min, opt, max)


class ITimingCache:
    """Timing cache; here the number of builds."""

    __slots__ = ("_builds",)

    def __init__(self, builds: int) -> None:
        self._builds = builds

    @typed
    def serialize(self) -> IHostMemory:
        """Serialise the cache."""
        return IHostMemory(b"%d builds" % self._builds)


class IHostMemory(bytes):
    """Bytes owned by the library."""

    __slots__ = ()

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return len(self)


class IBuilderConfig:
    """Configuration of a build."""

    __slots__ = ("_cache", "_capabilities", "_flags", "_level", "_limits", "_profiles")

    def __init__(self) -> None:
        self._flags = {BuilderFlag.TF32}
        self._limits: dict[MemoryPoolType, int] = {}
        self._capabilities: list[ComputeCapability | None] = []
        self._level = HardwareCompatibilityLevel.NONE
        self._profiles: list[IOptimizationProfile] = []
        self._cache: ITimingCache | None = None

    @property
    def hardware_compatibility_level(self) -> HardwareCompatibilityLevel:
        """Compatibility with other GPUs."""
        return self._level

    @hardware_compatibility_level.setter
    def hardware_compatibility_level(self, level: HardwareCompatibilityLevel) -> None:
        assert isinstance(level, HardwareCompatibilityLevel)
        self._level = level

    @typed
    def set_flag(self, flag: BuilderFlag) -> None:
        """Set a flag."""
        self._flags.add(flag)

    @typed
    def clear_flag(self, flag: BuilderFlag) -> None:
        """Clear a flag."""
        self._flags.discard(flag)

    @typed
    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        """Limit a memory pool."""
        self._limits[pool] = pool_size

    @typed
    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        """Add a profile; return its index, or -1."""
        increasing = all(a <= b <= c for shapes in profile._shapes.values() for a, b, c in zip(*shapes, strict=True))
        if not increasing:
            return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1

    @typed
    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        """Make a timing cache from earlier timings."""
        return ITimingCache(int(bytes(serialized_timing_cache).split()[0]) if serialized_timing_cache else 0)

    @typed
    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        """Use a timing cache."""
        assert not ignore_mismatch
        self._cache = cache
        return True

    @typed
    def get_timing_cache(self) -> ITimingCache:
        """Return the timing cache in use."""
        assert self._cache is not None
        return self._cache


class RtxBuilderConfig(IBuilderConfig):
    """Additions of TensorRT-RTX."""

    __slots__ = ()

    @property
    def num_compute_capabilities(self) -> int:
        """Number of compute capabilities to build for."""
        return len(self._capabilities)

    @num_compute_capabilities.setter
    def num_compute_capabilities(self, count: int) -> None:
        self._capabilities = [None] * count

    @typed
    def set_compute_capability(self, compute_capability: ComputeCapability, index: int) -> bool:
        """Set one compute capability."""
        self._capabilities[index] = compute_capability
        return True


class Runtime:
    """Loads engines."""

    __slots__ = ("_host_code", "_logger")
    gpu: ClassVar[Gpu]
    version: ClassVar[str]

    @typed
    def __init__(self, logger: ILogger) -> None:
        self._logger, self._host_code = logger, False

    @property
    def engine_host_code_allowed(self) -> bool:
        """Whether host code in engines may run."""
        return self._host_code

    @engine_host_code_allowed.setter
    def engine_host_code_allowed(self, allowed: bool) -> None:
        self._host_code = allowed

    @typed
    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        """Load an engine; None and a log message if that fails."""
        why = self._problem(serialized_engine)
        if why is not None:
            self._logger.log(Severity.ERROR, f"IRuntime::deserializeCudaEngine: {why.name}")
            return None
        header, model = _unpack(serialized_engine)
        return ICudaEngine(self.gpu, header["profiles"], model)

    def _problem(self, data: bytes) -> EngineInvalidityDiagnostics | None:
        try:
            header, _ = _unpack(data)
        except ValueError:
            return EngineInvalidityDiagnostics.MALFORMED_ENGINE
        compatible = header["version_compatible"] and self._host_code
        if header["version"] != self.version and not compatible:
            return EngineInvalidityDiagnostics.VERSION_MISMATCH
        ampere_plus = header["level"] == HardwareCompatibilityLevel.AMPERE_PLUS
        if int(self.gpu.capability) not in header["capabilities"] and not ampere_plus:
            return EngineInvalidityDiagnostics.UNSUPPORTED_CC
        return None


class RtxRuntime(Runtime):
    """Additions of TensorRT-RTX."""

    __slots__ = ()

    @typed
    def get_engine_validity(self, buffer: bytes) -> tuple:  # type: ignore[type-arg]
        """Return whether an engine runs on this machine, and the reasons if not."""
        why = self._problem(buffer)
        return (EngineValidity.VALID, 0) if why is None else (EngineValidity.INVALID, int(why))


class Builder:
    """Makes engines."""

    __slots__ = ()
    gpu: ClassVar[Gpu]
    version: ClassVar[str]
    config: ClassVar[type[IBuilderConfig]]
    last_config: ClassVar[list[IBuilderConfig]]

    @typed
    def __init__(self, logger: ILogger) -> None:
        """Do nothing."""

    @typed
    def create_network(self, flags: int = 0) -> INetworkDefinition:
        """Create an empty, strongly typed network."""
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return INetworkDefinition()

    @typed
    def create_builder_config(self) -> IBuilderConfig:
        """Create the default configuration."""
        return self.config()

    @typed
    def create_optimization_profile(self) -> IOptimizationProfile:
        """Create an empty profile."""
        return IOptimizationProfile()

    @typed
    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory:
        """Build an engine, for the local GPU unless others are configured."""
        self.last_config.append(config)
        if config._cache is not None:
            config._cache._builds += 1
        header = {
            "version": self.version,
            "version_compatible": BuilderFlag.VERSION_COMPATIBLE in config._flags,
            "level": config._level,
            "capabilities": [int(one or 0) for one in config._capabilities] or [int(self.gpu.capability)],
            "profiles": [profile._shapes for profile in config._profiles],
        }
        return IHostMemory(_pack(header, network._model))


class ICudaEngine:
    """A loaded engine."""

    __slots__ = ("_gpu", "_model", "_profiles")

    def __init__(self, gpu: Gpu, profiles: list[dict[str, list[list[int]]]], model: onnx.ModelProto) -> None:
        self._gpu, self._profiles, self._model = gpu, profiles, model

    @property
    def num_io_tensors(self) -> int:
        """Number of inputs and outputs."""
        return len(self._model.graph.input) + len(self._model.graph.output)

    @property
    def num_optimization_profiles(self) -> int:
        """Number of profiles."""
        return len(self._profiles)

    @typed
    def get_tensor_name(self, index: int) -> str:
        """Return the name of a tensor, inputs first."""
        return str([*self._model.graph.input, *self._model.graph.output][index].name)

    @typed
    def get_tensor_mode(self, name: str) -> TensorIOMode:
        """Return whether a tensor is an input or an output."""
        is_input = name in {value.name for value in self._model.graph.input}
        return TensorIOMode.INPUT if is_input else TensorIOMode.OUTPUT

    @typed
    def get_tensor_dtype(self, name: str) -> DataType:
        """Element type of the tensor."""
        return _tensor(self._value(name)).dtype

    @typed
    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Lengths of the axes; -1 if dynamic."""
        return _tensor(self._value(name)).shape

    @typed
    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        """Minimum, optimum and maximum shape of an input."""
        return [tuple(shape) for shape in self._profiles[profile_index][name]]

    @typed
    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> IExecutionContext:
        """Create a context that allocates memory when its profile is set, as hagmil requests."""
        assert strategy == ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        return IExecutionContext(self)

    def _value(self, name: str) -> onnx.ValueInfoProto:
        values: tuple[onnx.ValueInfoProto, ...] = (*self._model.graph.input, *self._model.graph.output)
        return next(value for value in values if value.name == name)


class IExecutionContext:
    """Runs an engine, in one thread."""

    __slots__ = ("_addresses", "_engine", "_profile", "_session", "_shapes", "_thread")

    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._thread = threading.get_ident()
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._session = onnxruntime.InferenceSession(
            engine._model.SerializeToString(), providers=["CPUExecutionProvider"]
        )

    @typed
    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        """Set the profile; all shapes must be set again."""
        self._engine._gpu.stream(stream_handle)
        self._profile, self._shapes = profile_index, {}
        return profile_index < self._engine.num_optimization_profiles

    @typed
    def set_input_shape(self, name: str, shape: tuple) -> bool:  # type: ignore[type-arg]
        """Set the shape of an input; return False if it is outside the profile."""
        assert self._profile is not None, "no profile is set"
        smallest, _, largest = self._engine.get_tensor_profile_shape(name, self._profile)
        if not all(a <= b <= c for a, b, c in zip(smallest, shape, largest, strict=True)):
            return False
        self._shapes[name] = shape
        return True

    @typed
    def set_tensor_address(self, name: str, memory: int) -> bool:
        """Set the address of a tensor."""
        self._addresses[name] = memory
        return name in {self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)}

    @typed
    def infer_shapes(self) -> list[str]:
        """Return the inputs whose shape is not set."""
        return [value.name for value in self._engine._model.graph.input if value.name not in self._shapes]

    @typed
    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor from the shapes of the inputs."""
        known = {
            dim.dim_param: length
            for value in self._engine._model.graph.input
            for dim, length in zip(value.type.tensor_type.shape.dim, self._shapes[value.name], strict=True)
        }
        dims = self._engine._value(name).type.tensor_type.shape.dim
        return tuple(known[dim.dim_param] if dim.dim_param else int(dim.dim_value) for dim in dims)

    @typed
    def execute_async_v3(self, stream_handle: int) -> bool:
        """Run on the stream, with the current shapes and addresses."""
        assert threading.get_ident() == self._thread, "a context was shared between threads"
        assert not self.infer_shapes()
        gpu, engine = self._engine._gpu, self._engine
        inputs = {value.name: self._addresses[value.name] for value in engine._model.graph.input}
        outputs = {value.name: self._addresses[value.name] for value in engine._model.graph.output}
        shapes = dict(self._shapes)

        def work() -> None:
            arrays = {
                name: _read(gpu, address, shapes[name], engine.get_tensor_dtype(name))
                for name, address in inputs.items()
            }
            results = self._session.run(list(outputs), arrays)
            for address, result in zip(outputs.values(), results, strict=True):
                gpu.bytes_at(address, result.nbytes)[:] = np.ascontiguousarray(result).reshape(-1).view(np.uint8)

        gpu.stream(stream_handle).enqueue(work)
        return True


_SHARED = (
    DataType,
    BuilderFlag,
    MemoryPoolType,
    NetworkDefinitionCreationFlag,
    HardwareCompatibilityLevel,
    TensorIOMode,
    ExecutionContextAllocationStrategy,
    ErrorCode,
    ILogger,
    ITensor,
    ILayer,
    INetworkDefinition,
    ParserError,
    OnnxParser,
    IOptimizationProfile,
    ITimingCache,
    IHostMemory,
    ICudaEngine,
    IExecutionContext,
)
_RTX_ONLY = (ComputeCapability, EngineValidity, EngineInvalidityDiagnostics)


def fake_tensorrt(gpu: Gpu, *, version: str = "11.4.0.106") -> ModuleType:
    """Return the data-centre TensorRT on a GPU, for ``sys.modules``."""
    return _module("tensorrt", gpu, version, IBuilderConfig, Runtime, _SHARED)


def fake_tensorrt_rtx(gpu: Gpu, *, version: str = "1.7.1.116") -> ModuleType:
    """Return TensorRT-RTX on a GPU, for ``sys.modules``."""
    return _module("tensorrt_rtx_bindings", gpu, version, RtxBuilderConfig, RtxRuntime, (*_SHARED, *_RTX_ONLY))


def _module(
    name: str,
    gpu: Gpu,
    version: str,
    config: type[IBuilderConfig],
    runtime: type[Runtime],
    classes: tuple[type, ...],
) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__dict__.update({kind.__name__: kind for kind in classes})
    bound = {"__slots__": (), "gpu": gpu, "version": version, "config": config, "last_config": []}
    module.__dict__["Builder"] = type("Builder", (Builder,), bound)
    module.__dict__["Runtime"] = type("Runtime", (runtime,), {"__slots__": (), "gpu": gpu, "version": version})
    module.__dict__["IBuilderConfig"] = config
    module.__dict__["__version__"] = version
    return module


def _dtype(code: int) -> DataType:
    by_numpy = {np.dtype(kind): DataType[name] for name, kind in _NUMPY.items()} | {
        np.dtype(np.int32): DataType.INT32,
        np.dtype(np.int64): DataType.INT64,
    }
    return by_numpy[np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code))]


def _tensor(value: onnx.ValueInfoProto) -> ITensor:
    tensor = value.type.tensor_type
    shape = tuple(-1 if dim.dim_param else int(dim.dim_value) for dim in tensor.shape.dim)
    return ITensor(value.name, shape, _dtype(tensor.elem_type))


def _pack(header: dict[str, Any], model: onnx.ModelProto) -> bytes:
    body = json.dumps(header).encode() + b"\0" + bytes(model.SerializeToString())
    return _MAGIC + hashlib.sha256(body).digest() + body


def _unpack(data: bytes) -> tuple[dict[str, Any], onnx.ModelProto]:
    magic, digest, body = data[:4], data[4:36], bytes(data[36:])
    if magic != _MAGIC or hashlib.sha256(body).digest() != digest:
        raise ValueError("not an engine")
    header, _, model = body.partition(b"\0")
    return json.loads(header), onnx.load_model_from_string(model)


def _read(gpu: Gpu, address: int, shape: tuple[int, ...], dtype: DataType) -> NDArray[Any]:
    kind = np.dtype(_NUMPY[dtype.name])
    return gpu.bytes_at(address, math.prod(shape) * kind.itemsize).copy().view(kind).reshape(shape)
