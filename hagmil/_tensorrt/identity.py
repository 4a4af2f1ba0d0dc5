"""What an engine is bound to: its name, and whether it fits a machine and a graph."""

from __future__ import annotations

from pathlib import PurePosixPath

from hagmil._tensorrt.flavour import Flavour
from hagmil.bundle import EngineEntry, EnginePrecision, FlavourName

ENGINE_FOLDER = "engines"
ENGINE_SUFFIX = ".engine"
DIGEST_LETTERS = 12


def engine_name(
    graph: str,
    flavour: FlavourName,
    version: str,
    capabilities: tuple[str, ...],
    precision: EnginePrecision,
    onnx_sha256: str,
) -> str:
    """The file name of an engine: stage, flavour, version, capabilities, precision and the ONNX file's digest."""
    targets = "-".join("sm" + capability.replace(".", "") for capability in capabilities)
    digest = onnx_sha256[:DIGEST_LETTERS]
    return f"{PurePosixPath(graph).stem}.{flavour}-{version}.{targets}.{precision}.{digest}{ENGINE_SUFFIX}"


def engine_mismatch(entry: EngineEntry, flavour: Flavour, capability: str, onnx_sha256: str) -> str | None:
    """Why an engine must not be used here.

    Args:
        entry: what the engine is bound to.
        flavour: the TensorRT that would load it.
        capability: the compute capability of the GPU that would run it.
        onnx_sha256: digest of the graph that it must stand for.

    Returns:
        The first thing that does not fit; None where all does.
    """
    if entry.flavour != flavour.name:
        return f"it is of {entry.flavour}, and {flavour.name} would load it"
    if not _version_fits(entry, flavour.version):
        return f"it was built by version {entry.flavour_version}, and {flavour.title} would load it"
    if not _capability_fits(entry, capability):
        return f"it was built for compute capability {', '.join(entry.capabilities)}, and the GPU here has {capability}"
    if entry.onnx_sha256 != onnx_sha256:
        return f"it was built from another {entry.graph} ({entry.onnx_sha256[:DIGEST_LETTERS]}...)"
    return None


def _version_fits(entry: EngineEntry, version: str) -> bool:
    """Equal; where the engine is version-compatible, an equal major version, as TensorRT promises."""
    if entry.version_compatible:
        return entry.flavour_version.split(".")[0] == version.split(".")[0]
    return entry.flavour_version == version


def _capability_fits(entry: EngineEntry, capability: str) -> bool:
    """Listed; where the engine is for Ampere and later, 8.0 and above."""
    if entry.hardware_compatibility == "ampere_plus":
        return int(capability.split(".")[0]) >= 8
    return capability in entry.capabilities
