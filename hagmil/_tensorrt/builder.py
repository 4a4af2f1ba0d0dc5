"""An ONNX file to a TensorRT engine.

1. Parse the file into a network; where that fails, say which node and what to do.
2. Hold the profiles against the network's inputs.
3. Configure: TF32 off, so that an fp32 graph computes in fp32; workspace, compute capabilities, compatibility.
4. Build, with the timings of earlier builds where the flavour keeps any.

Precision is what the graph says; nothing here changes it.
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
_MEMORY = re.compile(r"Total Activation Memory: (\d+) bytes")  # said for every profile and capability
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """One engine to build.

    Args:
        graph: the ONNX file.
        profiles: the shapes that the engine shall take.
        capabilities: the compute capabilities that it shall run on.
        workspace_bytes: the most memory that one operation may take; the device's where None.
        hardware_compatibility: GPUs beyond the one here, where the flavour can.
        version_compatible: for other versions of TensorRT too, where the flavour can.
        timing_cache: file that keeps the timings of earlier builds, where the flavour has such; None for none.
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
    """An engine as it came from the builder.

    Args:
        data: its bytes; two builds of one graph do not give the same.
        precision: the smallest floating type that its graph computes in.
        layers: layers of the network, before TensorRT fuses them.
        seconds: wall-clock seconds of parsing and building.
        memory_bytes: of the GPU that a run takes beside the weights, at the largest shapes, as the builder counts it;
            None where it did not say.
    """

    data: bytes
    precision: EnginePrecision
    layers: int
    seconds: float
    memory_bytes: int | None


def check_request(flavour: Flavour, hardware: HardwareCompatibility, *, version_compatible: bool) -> None:
    """Refuse what a flavour has not got, before anything is built.

    Raises:
        UsageError: what, and what to do instead.
    """
    if flavour.name != "tensorrt-rtx":
        return
    if hardware != "none":
        raise UsageError(
            f"{flavour.title} has no hardware compatibility; name every GPU with --compute-capability instead"
        )
    if version_compatible:
        raise UsageError(f"{flavour.title} builds no version-compatible engines; build again for each version")


def build_engine(flavour: Flavour, request: BuildRequest) -> BuiltEngine:
    """Build one engine.

    Args:
        flavour: the builder.
        request: what to build; its capabilities are those that the flavour was found to build for.

    Raises:
        BundleError: the graph cannot be parsed or built; the message names the node and a remedy.
        UsageError: the flavour has not got what was asked for.
    """
    check_request(flavour, request.hardware_compatibility, version_compatible=request.version_compatible)
    start = perf_counter()
    with transcript() as said:
        builder = flavour.trt.Builder(logger_of(flavour.trt))
        network = _parse(flavour, builder, request.graph)
        _check_profiles(request, network)
        config = _configure(flavour, builder, request)
        timings = _timing_cache(flavour, request)
        if timings is not None:
            _take_timings(config, timings)
        _add_profiles(builder, config, request, said)
        serialized = builder.build_serialized_network(network, config)  # step 4
        if serialized is None:
            raise _not_built(flavour, request.graph, said)
        if timings is not None:
            write_bytes(timings, bytes(memoryview(config.get_timing_cache().serialize())))
        return BuiltEngine(
            data=bytes(memoryview(serialized)),
            precision=_precision(network),
            layers=int(network.num_layers),
            seconds=perf_counter() - start,
            memory_bytes=_memory(said),
        )


def _parse(flavour: Flavour, builder: Any, graph: Path) -> Any:
    """Step 1."""
    trt = flavour.trt
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger_of(trt))
    if not parser.parse_from_file(str(graph)):  # from the file, since its weights may lie beside it
        raise _not_parsed(flavour, graph, [parser.get_error(index) for index in range(parser.num_errors)])
    if network.num_outputs == 0:
        raise BundleError(f'"{graph.name}" is no ONNX graph: {flavour.title} finds no output', code="engine_failed")
    return network


def _not_parsed(flavour: Flavour, graph: Path, errors: Sequence[Any]) -> BundleError:
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
                f'"{request.graph.name}" has the inputs {", ".join(inputs)}, its profile {", ".join(profile)}',
                code="contract",
            )
        for name, shapes in profile.items():
            axes = inputs[name]
            if len(axes) != len(shapes.minimum) or any(
                axis != _DYNAMIC and not least == axis == most
                for axis, least, most in zip(axes, shapes.minimum, shapes.maximum, strict=True)
            ):
                raise BundleError(
                    f'"{request.graph.name}": input {name} has the axes {axes} ({_DYNAMIC}: any), its profile '
                    f"{shapes.minimum} to {shapes.maximum}",
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


def _add_profiles(builder: Any, config: Any, request: BuildRequest, said: Transcript) -> None:
    for shapes in request.profiles:
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            profile.set_shape(name, shape.minimum, shape.optimum, shape.maximum)
        if config.add_optimization_profile(profile) < 0:
            raise BundleError(f'"{request.graph.name}": {"; ".join(said.errors)}', code="engine_failed")


def _timing_cache(flavour: Flavour, request: BuildRequest) -> Path | None:
    """The file of timings; none with TensorRT-RTX, which measures nothing when it builds."""
    if request.timing_cache is not None and flavour.name == "tensorrt-rtx":
        _log.info("%s keeps no timings between builds; the timing cache is left alone", flavour.title)
        return None
    return request.timing_cache


def _take_timings(config: Any, path: Path) -> None:
    earlier = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(earlier)
    if cache is None or not config.set_timing_cache(cache, False):  # of another version or GPU
        _log.info('timing cache "%s" is not of this TensorRT and GPU; starting a new one', path)
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _precision(network: Any) -> EnginePrecision:
    """The smallest floating type among the outputs of a network's layers."""
    layers = map(network.get_layer, range(network.num_layers))
    types = {layer.get_output(index).dtype.name for layer in layers for index in range(layer.num_outputs)}
    if "HALF" in types:
        return "fp16"
    return "bf16" if "BF16" in types else "fp32"


def _memory(said: Transcript) -> int | None:
    found = [_MEMORY.search(message.text) for message in said.messages]
    return max((int(match[1]) for match in found if match), default=None)


def _not_built(flavour: Flavour, graph: Path, said: Transcript) -> BundleError:
    why = with_remedy(said.errors[0]) if said.errors else "it gave no reason"
    return BundleError(f'"{graph.name}" cannot be built by {flavour.title}: {why}', code="engine_failed")
