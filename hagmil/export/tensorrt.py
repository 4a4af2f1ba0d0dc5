"""TensorRT engines of a bundle, built in advance and listed in its manifest with the digests of their graphs.

1. Find the flavour and the compute capabilities to build for, and stop if one is not available.
2. Open the bundle and choose the profiles of its graphs.
3. Build the engine of every graph in a temporary folder beside the bundle.
4. If the build replaces a file that the manifest lists, first write a manifest without it, so that the bundle stays
   usable after an interruption at any time.
5. Move the engines and the log into the bundle, and write the manifest with their digests.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from hagmil._files import atomic_path, sha256_of, sibling_folder, write_bytes, write_text
from hagmil._tensorrt.builder import BuildRequest, build_engine, check_request
from hagmil._tensorrt.cache import timing_cache
from hagmil._tensorrt.flavour import Flavour, choose_flavour, resolve_capabilities
from hagmil._tensorrt.identity import ENGINE_FOLDER, engine_name
from hagmil._tensorrt.messages import Transcript, transcript
from hagmil._tensorrt.profiles import Range, bundle_profiles
from hagmil.bundle import (
    Bundle,
    EngineEntry,
    FileEntry,
    HardwareCompatibility,
    Manifest,
    Profile,
    open_bundle,
    write_manifest,
)
from hagmil.errors import HagmilError, UsageError
from hagmil.progress import Progress

BUILD_LOG_NAME = f"{ENGINE_FOLDER}/build.log"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Options for building engines.

    Args:
        flavour: ``tensorrt`` or ``tensorrt-rtx``; None for the installed one.
        capabilities: compute capabilities such as ``8.9``; if empty, the default of the flavour.
        batch: batch sizes of the backbone; None for the default.
        patches: bag sizes of the stage models, one profile each; if empty, derived from the manifest.
        workspace_bytes: maximum memory of one operation in bytes; None for no limit.
        hardware_compatibility: GPUs other than the present one that can load the engines (``tensorrt`` only).
        version_compatible: whether other TensorRT versions can load the engines (``tensorrt`` only).
        timing_cache: file that stores timings between builds (``tensorrt`` only); None for one in the user's cache.
        verbose: whether the log contains TensorRT's verbose messages.
    """

    flavour: str | None = None
    capabilities: tuple[str, ...] = ()
    batch: Range | None = None
    patches: tuple[Range, ...] = ()
    workspace_bytes: int | None = None
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False
    timing_cache: Path | None = None
    verbose: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """The builder of engines and the GPUs to build for.

    Args:
        flavour: the builder.
        capabilities: compute capabilities of the GPUs, ascending.
    """

    flavour: Flavour
    capabilities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EngineReport:
    """One built engine.

    Args:
        entry: its entry in the manifest.
        file: its size and digest.
        layers: number of layers of its network, before fusion.
        seconds: wall-clock time of parsing and building, in seconds.
    """

    entry: EngineEntry
    file: FileEntry
    layers: int
    seconds: float


@dataclass(frozen=True, slots=True)
class EnginesReport:
    """A bundle with its new engines.

    Args:
        bundle: the bundle, opened and verified.
        engines: the built engines, the backbone first.
    """

    bundle: Bundle
    engines: tuple[EngineReport, ...]


def parse_hardware_compatibility(text: str) -> HardwareCompatibility:
    """Parse the value of ``--trt-hardware-compatibility``.

    Raises:
        UsageError: the value is unknown.
    """
    known: tuple[HardwareCompatibility, ...] = get_args(HardwareCompatibility)
    for word in known:
        if text == word:
            return word
    raise UsageError(f'unknown hardware compatibility "{text}"; choose one of {", ".join(known)}')


def engine_target(options: EngineOptions) -> Target:
    """Find the builder and the GPUs to build for (step 1).

    Call this before a long export to find out early if something is missing.

    Raises:
        EnvironmentLacks: the flavour is not installed, or cannot build for a requested GPU on this machine.
        UsageError: invalid options, or options that the flavour does not support.
    """
    flavour = choose_flavour(options.flavour)
    check_request(flavour, options.hardware_compatibility, version_compatible=options.version_compatible)
    return Target(flavour, resolve_capabilities(flavour, options.capabilities))


def add_engines(
    bundle_dir: Path, options: EngineOptions | None = None, *, progress: Progress | None = None
) -> EnginesReport:
    """Build engines for every graph of a bundle and list them in its manifest.

    This changes the manifest, and so the digest of the bundle. Existing engines for other flavours or GPUs are kept;
    engines of graphs that have changed are removed.

    Args:
        bundle_dir: folder of the bundle.
        options: what to build; None for the defaults.
        progress: called after each engine.

    Raises:
        EnvironmentLacks: the flavour is not installed, or cannot build for a requested GPU on this machine.
        UsageError: invalid options, or options that the flavour does not support.
        BundleError: the bundle is altered, or TensorRT cannot build a graph. The bundle is unchanged, and TensorRT's
            messages are in a log beside it.
    """
    options = options or EngineOptions()
    target = engine_target(options)
    bundle = open_bundle(bundle_dir)
    profiles = bundle_profiles(bundle.manifest, batch=options.batch, patches=options.patches)  # step 2
    with sibling_folder(bundle_dir.absolute()) as folder:
        built = build_engines(bundle, folder, target, profiles, options, progress=progress)
        _commit(bundle, folder, built)
    return EnginesReport(open_bundle(bundle_dir), built)


def build_engines(
    bundle: Bundle,
    folder: Path,
    target: Target,
    profiles: dict[str, tuple[Profile, ...]],
    options: EngineOptions,
    *,
    progress: Progress | None = None,
) -> tuple[EngineReport, ...]:
    """Build the engines of a bundle in another folder, without changing the bundle (step 3).

    Args:
        bundle: an open, verified bundle.
        folder: output folder of ``engines/`` with the engines and ``build.log``.
        target: the builder and the GPUs.
        profiles: shape ranges of each engine, by the file name of its graph.
        options: all other options.
        progress: called after each engine.

    Raises:
        BundleError: TensorRT cannot build a graph; its messages are in a log beside the bundle.
    """
    reports: list[EngineReport] = []
    with transcript() as messages:
        try:
            for graph, shapes in profiles.items():
                if progress is not None:
                    progress("engines", len(reports), len(profiles))
                reports.append(_build_one(bundle, folder, target, graph, shapes, options))
                _log.info("%s built in %.1f s", reports[-1].entry.file, reports[-1].seconds)
        except HagmilError as error:
            log = bundle.path.absolute().with_name(f"{bundle.path.name}.build.log")
            write_text(log, _render(bundle, target, messages, options))
            raise type(error)(f'{error.message}; the complete log is "{log}"', code=error.code) from error
    if progress is not None:
        progress("engines", len(profiles), len(profiles))
    earlier = bundle.file(BUILD_LOG_NAME)
    text = earlier.read_text() if earlier.is_file() else ""
    write_text(folder / BUILD_LOG_NAME, text + _render(bundle, target, messages, options))
    return tuple(reports)


def _build_one(
    bundle: Bundle, folder: Path, target: Target, graph: str, profiles: tuple[Profile, ...], options: EngineOptions
) -> EngineReport:
    flavour, onnx_sha256 = target.flavour, bundle.manifest.files[graph].sha256
    engine = build_engine(
        flavour,
        BuildRequest(
            graph=bundle.file(graph),
            profiles=profiles,
            capabilities=target.capabilities,
            workspace_bytes=options.workspace_bytes,
            hardware_compatibility=options.hardware_compatibility,
            version_compatible=options.version_compatible,
            timing_cache=options.timing_cache or timing_cache(flavour),
        ),
    )
    name = engine_name(graph, flavour.name, flavour.version, target.capabilities, engine.precision, onnx_sha256)
    entry = EngineEntry(
        file=f"{ENGINE_FOLDER}/{name}",
        graph=graph,
        onnx_sha256=onnx_sha256,
        flavour=flavour.name,
        flavour_version=flavour.version,
        capabilities=target.capabilities,
        precision=engine.precision,
        profiles=profiles,
        hardware_compatibility=options.hardware_compatibility,
        version_compatible=options.version_compatible,
        memory_bytes=engine.memory_bytes,
    )
    path = folder / entry.file
    write_bytes(path, engine.data)
    return EngineReport(entry, _file_entry(path), engine.layers, engine.seconds)


def _commit(bundle: Bundle, folder: Path, built: Sequence[EngineReport]) -> None:
    """Steps 4 and 5."""
    manifest = bundle.manifest
    new = {report.entry.file: report.file for report in built} | {BUILD_LOG_NAME: _file_entry(folder / BUILD_LOG_NAME)}
    kept = tuple(entry for entry in manifest.engines if entry.file not in new and _is_current(entry, manifest))
    stale = {entry.file for entry in manifest.engines if not _is_current(entry, manifest)} - new.keys()
    files = {name: file for name, file in manifest.files.items() if name not in new and name not in stale}
    if len(files) < len(manifest.files):
        write_manifest(bundle.path, manifest.model_copy(update={"engines": kept, "files": files}))
    for name in new:
        with atomic_path(bundle.file(name)) as temporary:
            (folder / name).replace(temporary)
    engines = (*kept, *(report.entry for report in built))
    write_manifest(bundle.path, manifest.model_copy(update={"engines": engines, "files": files | new}))
    for name in stale:
        bundle.file(name).unlink(missing_ok=True)


def _is_current(entry: EngineEntry, manifest: Manifest) -> bool:
    """Whether an engine was built from the current graph."""
    return entry.onnx_sha256 == manifest.files[entry.graph].sha256


def _file_entry(path: Path) -> FileEntry:
    return FileEntry(sha256=sha256_of(path), bytes=path.stat().st_size)


def _render(bundle: Bundle, target: Target, messages: Transcript, options: EngineOptions) -> str:
    """Format TensorRT's messages under a heading, without the path of the bundle."""
    heading = f"=== {target.flavour.title}, compute capability {', '.join(target.capabilities)}\n"
    return heading + messages.render(verbose=options.verbose).replace(f"{bundle.path}/", "")
