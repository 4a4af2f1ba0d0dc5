"""File names of engines, and whether an engine fits a machine and a graph."""

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
    """Return the file name of an engine: graph, flavour, version, capabilities, precision and digest of the graph."""
    targets = "-".join("sm" + capability.replace(".", "") for capability in capabilities)
    digest = onnx_sha256[:DIGEST_LETTERS]
    return f"{PurePosixPath(graph).stem}.{flavour}-{version}.{targets}.{precision}.{digest}{ENGINE_SUFFIX}"


def engine_mismatch(entry: EngineEntry, flavour: Flavour, capability: str, onnx_sha256: str) -> str | None:
    """Return why an engine cannot be used on this machine.

    Args:
        entry: entry of the engine in the manifest.
        flavour: the installed TensorRT.
        capability: compute capability of the GPU.
        onnx_sha256: digest of the graph that the engine must be built from.

    Returns:
        The first mismatch; None if the engine fits.
    """
    if entry.flavour != flavour.name:
        return f"it was built with {entry.flavour}, but {flavour.name} is in use"
    if not _version_fits(entry, flavour.version):
        return f"it was built with version {entry.flavour_version}, but {flavour.title} is in use"
    if not _capability_fits(entry, capability):
        return f"it was built for compute capability {', '.join(entry.capabilities)}, but this GPU has {capability}"
    if entry.onnx_sha256 != onnx_sha256:
        return f"it was built from another {entry.graph} ({entry.onnx_sha256[:DIGEST_LETTERS]}...)"
    return None


def _version_fits(entry: EngineEntry, version: str) -> bool:
    """Whether the versions are equal; for version-compatible engines, whether the major versions are."""
    if entry.version_compatible:
        return entry.flavour_version.split(".")[0] == version.split(".")[0]
    return entry.flavour_version == version


def _capability_fits(entry: EngineEntry, capability: str) -> bool:
    """Whether the capability is listed; for ``ampere_plus`` engines, whether it is 8.0 or above."""
    if entry.hardware_compatibility == "ampere_plus":
        return int(capability.split(".")[0]) >= 8
    return capability in entry.capabilities
