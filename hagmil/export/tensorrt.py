"""TensorRT engines of a bundle: built ahead, listed in its manifest, bound to their graphs by digest.

1. Find the flavour, and the compute capabilities that it shall build for; nothing is built where one is missing.
2. Open the bundle, and lay profiles over its graphs.
3. Build every graph's engine beside the bundle.
4. Where a file that the manifest lists must be replaced, write a manifest without it first: whenever a machine loses
   power, what is there is a bundle that opens.
5. Move the engines and the log in, and write the manifest with their digests.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

from hagmil._files import atomic_path, sha256_of, write_bytes, write_text
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
    """What engines to build.

    Args:
        flavour: ``tensorrt`` or ``tensorrt-rtx``; the installed one where None.
        capabilities: compute capabilities, ``8.9`` and the like; by the flavour where there are none.
        batch: batches of the backbone.
        patches: patch counts of the stages, a profile each; by the manifest where there are none.
        workspace_bytes: the most memory that one operation may take.
        hardware_compatibility: GPUs beyond the one here (data-centre flavour).
        version_compatible: for other versions of TensorRT too (data-centre flavour).
        timing_cache: file that keeps timings between builds (data-centre flavour); one in the user's cache where None.
        verbose: keep TensorRT's verbose messages in the log too.
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
    """What engines are built by and for.

    Args:
        flavour: the builder.
        capabilities: compute capabilities of the GPUs, in rising order.
    """

    flavour: Flavour
    capabilities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EngineReport:
    """One engine that was built.

    Args:
        entry: what the manifest says of it.
        file: its size and digest.
        layers: layers of its network, before fusion.
        seconds: wall-clock seconds of parsing and building.
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
        engines: what was built, the backbone first.
    """

    bundle: Bundle
    engines: tuple[EngineReport, ...]


def parse_hardware_compatibility(text: str) -> HardwareCompatibility:
    """Read ``--trt-hardware-compatibility``.

    Raises:
        UsageError: it is none of the words that there are.
    """
    known: tuple[HardwareCompatibility, ...] = get_args(HardwareCompatibility)
    for word in known:
        if text == word:
            return word
    raise UsageError(f'no hardware compatibility "{text}"; choose one of {", ".join(known)}')


def engine_target(options: EngineOptions) -> Target:
    """Step 1; call it before a long export, so that what is missing is said at once.

    Raises:
        EnvironmentLacks: the flavour is not installed, or cannot build for such a GPU here.
        UsageError: options that cannot be meant, or that the flavour has not got.
    """
    flavour = choose_flavour(options.flavour)
    check_request(flavour, options.hardware_compatibility, version_compatible=options.version_compatible)
    return Target(flavour, resolve_capabilities(flavour, options.capabilities))


def add_engines(
    bundle_dir: Path, options: EngineOptions | None = None, *, progress: Progress | None = None
) -> EnginesReport:
    """Build engines for every graph of a bundle, and list them in its manifest.

    The manifest changes, and with it the digest that names the bundle. Engines for other flavours or GPUs stay; those
    whose graph is no longer the one that they were built from go.

    Args:
        bundle_dir: the bundle's folder.
        options: what to build.
        progress: called as engines are built.

    Raises:
        EnvironmentLacks: the flavour is not installed, or cannot build for such a GPU here.
        UsageError: options that cannot be meant, or that the flavour has not got.
        BundleError: an altered bundle, or a graph that TensorRT cannot build; the bundle is left as it was, and what
            TensorRT said stands in a log beside it.
    """
    options = options or EngineOptions()
    target = engine_target(options)
    bundle = open_bundle(bundle_dir)
    profiles = bundle_profiles(bundle.manifest, batch=options.batch, patches=options.patches)  # step 2
    with TemporaryDirectory(prefix=f".{bundle_dir.name}.", suffix=".part", dir=bundle_dir.absolute().parent) as folder:
        built = build_engines(bundle, Path(folder), target, profiles, options, progress=progress)
        _commit(bundle, Path(folder), built)
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
    """Step 3: build the engines of a bundle's graphs into a folder, and leave the bundle alone.

    Args:
        bundle: an open bundle, whose files were verified.
        folder: gets ``engines/`` with the engines and ``build.log``.
        target: the builder and the GPUs.
        profiles: the shapes that each graph's engine shall take, by the graph's file name.
        options: everything else.
        progress: called as engines are built.

    Raises:
        BundleError: a graph that TensorRT cannot build; the log is beside the bundle then.
    """
    reports: list[EngineReport] = []
    with transcript() as said:
        try:
            for graph, shapes in profiles.items():
                if progress is not None:
                    progress("engines", len(reports), len(profiles))
                reports.append(_build_one(bundle, folder, target, graph, shapes, options))
                _log.info("%s built in %.1f s", reports[-1].entry.file, reports[-1].seconds)
        except HagmilError as error:
            log = bundle.path.absolute().with_name(f"{bundle.path.name}.build.log")
            write_text(log, _render(bundle, target, said, options))
            raise type(error)(f'{error.message}; all that was said is in "{log}"', code=error.code) from error
    if progress is not None:
        progress("engines", len(profiles), len(profiles))
    earlier = bundle.file(BUILD_LOG_NAME)
    text = earlier.read_text() if earlier.is_file() else ""
    write_text(folder / BUILD_LOG_NAME, text + _render(bundle, target, said, options))
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
    """Whether the graph of an engine is still the one that it was built from."""
    return entry.onnx_sha256 == manifest.files[entry.graph].sha256


def _file_entry(path: Path) -> FileEntry:
    return FileEntry(sha256=sha256_of(path), bytes=path.stat().st_size)


def _render(bundle: Bundle, target: Target, said: Transcript, options: EngineOptions) -> str:
    """What TensorRT said, under a heading, without the folder that the bundle lay in."""
    heading = f"=== {target.flavour.title}, compute capability {', '.join(target.capabilities)}\n"
    return heading + said.render(verbose=options.verbose).replace(f"{bundle.path}/", "")
