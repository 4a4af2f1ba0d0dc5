"""Build a TensorRT engine from an ONNX file.

1. Parse the file into a network; if that fails, name the node and a remedy.
2. Check the profiles against the inputs of the network.
3. Configure the builder: TF32 off, so that fp32 graphs compute in fp32; workspace, compute capabilities, compatibility.
4. Build, with the timings of earlier builds if the flavour supports a timing cache.

The engine computes in the precision of the graph.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from hagmil._files import write_bytes
from hagmil._tensorrt.flavour import Flavour
from hagmil._tensorrt.messages import Transcript, logger_of, transcript
from hagmil._tensorrt.remedies import with_remedy
from hagmil.bundle import EnginePrecision, HardwareCompatibility, Profile
from hagmil.errors import BundleError, UsageError

_DYNAMIC = -1
_MEMORY = re.compile(r"Total Activation Memory: (\d+) bytes")  # logged for every profile and capability
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """One engine to build.

    Args:
        graph: the ONNX file.
        profiles: ranges of input shapes.
        capabilities: compute capabilities of the GPUs that run the engine.
        workspace_bytes: maximum memory of one operation in bytes; None for all device memory.
        hardware_compatibility: GPUs other than the present one that can load the engine, if the flavour supports it.
        version_compatible: whether other TensorRT versions can load the engine, if the flavour supports it.
        timing_cache: file with the timings of earlier builds, if the flavour supports it; None for no file.
    """

    graph: Path
    profiles: tuple[Profile, ...]
    capabilities: tuple[str, ...]
    workspace_bytes: int | None = None
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False
    timing_cache: Path | None = None


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """A built engine.

    Args:
        data: the serialized engine; builds of one graph are not reproducible byte for byte.
        precision: the smallest floating-point type in the network.
        layers: number of layers of the network, before fusion.
        seconds: wall-clock time of parsing and building, in seconds.
        memory_bytes: GPU memory of a run at the largest shapes, without weights, as reported by the builder; None if
            not reported.
    """

    data: bytes
    precision: EnginePrecision
    layers: int
    seconds: float
    memory_bytes: int | None


def check_request(flavour: Flavour, hardware: HardwareCompatibility, *, version_compatible: bool) -> None:
    """Check that a flavour supports the options.

    Raises:
        UsageError: an option is not supported; the message names an alternative.
    """
    if flavour.name != "tensorrt-rtx":
        return
    if hardware != "none":
        raise UsageError(
            f"{flavour.title} does not support --trt-hardware-compatibility; pass --compute-capability for every GPU"
        )
    if version_compatible:
        raise UsageError(f"{flavour.title} does not support --trt-version-compatible; build engines for each version")


def build_engine(flavour: Flavour, request: BuildRequest) -> BuiltEngine:
    """Build one engine.

    Args:
        flavour: the builder.
        request: what to build; its capabilities come from :func:`~hagmil._tensorrt.flavour.resolve_capabilities`.

    Raises:
        BundleError: the graph cannot be parsed or built; the message names the node and a remedy.
        UsageError: the flavour does not support an option.
    """
    check_request(flavour, request.hardware_compatibility, version_compatible=request.version_compatible)
    start = perf_counter()
    with transcript() as messages:
        builder = flavour.trt.Builder(logger_of(flavour.trt))
        network = _parse(flavour, builder, request.graph)
        _check_profiles(request, network)
        config = _configure(flavour, builder, request)
        timings = _timing_cache(flavour, request)
        if timings is not None:
            _load_timings(config, timings)
        _add_profiles(builder, config, request, messages)
        serialized = builder.build_serialized_network(network, config)  # step 4
        if serialized is None:
            raise _build_error(flavour, request.graph, messages)
        if timings is not None:
            write_bytes(timings, bytes(memoryview(config.get_timing_cache().serialize())))
        return BuiltEngine(
            data=bytes(memoryview(serialized)),
            precision=_precision(network),
            layers=int(network.num_layers),
            seconds=perf_counter() - start,
            memory_bytes=_memory(messages),
        )


def _parse(flavour: Flavour, builder: Any, graph: Path) -> Any:
    """Step 1."""
    trt = flavour.trt
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger_of(trt))
    if not parser.parse_from_file(str(graph)):  # by path, because weights may be in a file beside it
        raise _parse_error(flavour, graph, [parser.get_error(index) for index in range(parser.num_errors)])
    if network.num_outputs == 0:
        raise BundleError(f'"{graph.name}" is not an ONNX graph: {flavour.title} finds no output', code="engine_failed")
    return network


def _parse_error(flavour: Flavour, graph: Path, errors: Sequence[Any]) -> BundleError:
    if not errors:
        return BundleError(f'"{graph.name}" cannot be parsed by {flavour.title}', code="engine_failed")
    first = errors[0]
    lines = str(first.desc()).splitlines()
    text = next((line for line in lines if "API Usage Error" in line), lines[0] if lines else "")
    where = f' at node "{first.node_name()}" ({first.node_operator()})' if first.node_name() else ""
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    why = with_remedy(f"{first.code().name}: {text}" if text not in ("", "false") else first.code().name)
    return BundleError(f'"{graph.name}" cannot be parsed by {flavour.title}{where}: {why}{more}', code="engine_failed")


def _check_profiles(request: BuildRequest, network: Any) -> None:
    """Step 2."""
    inputs = {tensor.name: tuple(tensor.shape) for tensor in map(network.get_input, range(network.num_inputs))}
    for profile in request.profiles:
        if profile.keys() != inputs.keys():
            raise BundleError(
                f'"{request.graph.name}" has the inputs {", ".join(inputs)}, but its profile has {", ".join(profile)}',
                code="contract",
            )
        for name, shapes in profile.items():
            axes = inputs[name]
            if len(axes) != len(shapes.minimum) or any(
                axis != _DYNAMIC and not minimum == axis == maximum
                for axis, minimum, maximum in zip(axes, shapes.minimum, shapes.maximum, strict=True)
            ):
                raise BundleError(
                    f'"{request.graph.name}": input {name} has the axes {axes} ({_DYNAMIC}: dynamic), but its profile '
                    f"has {shapes.minimum} to {shapes.maximum}",
                    code="contract",
                )


def _configure(flavour: Flavour, builder: Any, request: BuildRequest) -> Any:
    """Step 3."""
    trt = flavour.trt
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if request.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
    if flavour.targets:
        config.num_compute_capabilities = len(request.capabilities)
        for index, capability in enumerate(request.capabilities):
            member = f"SM{capability.replace('.', '')}"
            config.set_compute_capability(trt.ComputeCapability.__members__[member], index)
    if request.hardware_compatibility != "none":
        level = trt.HardwareCompatibilityLevel.__members__[request.hardware_compatibility.upper()]
        config.hardware_compatibility_level = level
    if request.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    return config


def _add_profiles(builder: Any, config: Any, request: BuildRequest, messages: Transcript) -> None:
    for shapes in request.profiles:
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            profile.set_shape(name, shape.minimum, shape.optimum, shape.maximum)
        if config.add_optimization_profile(profile) < 0:
            raise BundleError(f'"{request.graph.name}": {"; ".join(messages.errors)}', code="engine_failed")


def _timing_cache(flavour: Flavour, request: BuildRequest) -> Path | None:
    """The file of timings; None with TensorRT-RTX, which does not time kernels during a build."""
    if request.timing_cache is not None and flavour.name == "tensorrt-rtx":
        _log.info("%s does not use a timing cache; the option is ignored", flavour.title)
        return None
    return request.timing_cache


def _load_timings(config: Any, path: Path) -> None:
    earlier = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(earlier)
    if cache is None or not config.set_timing_cache(cache, False):  # of another version or GPU
        _log.info('timing cache "%s" is from another TensorRT version or GPU; starting a new one', path)
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _precision(network: Any) -> EnginePrecision:
    """The smallest floating-point type among the outputs of a network's layers."""
    layers = map(network.get_layer, range(network.num_layers))
    types = {layer.get_output(index).dtype.name for layer in layers for index in range(layer.num_outputs)}
    if "HALF" in types:
        return "fp16"
    return "bf16" if "BF16" in types else "fp32"


def _memory(messages: Transcript) -> int | None:
    found = [_MEMORY.search(message.text) for message in messages.messages]
    return max((int(match[1]) for match in found if match), default=None)


def _build_error(flavour: Flavour, graph: Path, messages: Transcript) -> BundleError:
    why = with_remedy(messages.errors[0]) if messages.errors else "it gave no reason"
    return BundleError(f'"{graph.name}" cannot be built by {flavour.title}: {why}', code="engine_failed")
