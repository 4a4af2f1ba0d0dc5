"""Choose how ``--provider tensorrt`` runs a bundle, and rebuild engines that do not fit.

1. Use the engines of the bundle if there is one for every graph that fits this machine: flavour, version, compute
   capability, and digest of the graph.
2. Otherwise, with ``--rebuild``, build engines and keep them in the cache.
3. Otherwise, raise an error with the reasons.

All graphs of a bundle run in the same way, and the result names it. docs/decisions/0015-one-tensorrt.md says why ONNX
Runtime's own TensorRT provider is not used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from hagmil._files import sha256_of, write_bytes, write_text
from hagmil._models import FrozenModel
from hagmil._nvidia.libraries import load_libraries
from hagmil._tensorrt.builder import BuildRequest, build_engine
from hagmil._tensorrt.cache import default_cache, timing_cache
from hagmil._tensorrt.flavour import Flavour, choose_flavour, device_capability, installed_flavours
from hagmil._tensorrt.identity import DIGEST_LETTERS, engine_mismatch, engine_name
from hagmil._tensorrt.profiles import bundle_profiles
from hagmil.bundle import Bundle, EngineEntry, FileEntry, Profile
from hagmil.errors import EnvironmentLacks
from hagmil.runtime.sessions import Session
from hagmil.runtime.sessions.trt import TensorRtSession
from hagmil.spec import BACKBONE_INPUTS, BACKBONE_OUTPUTS, STAGE_INPUTS, stage_outputs

Opener = Callable[[str], Session]
"""Opens the session of one of a bundle's graphs, by the graph's file name."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineSet:
    """An engine for every graph of a bundle.

    Args:
        flavour: the TensorRT that loads the engines.
        entries: manifest entries of the engines, by the graph's file name.
        paths: files of the engines, by the graph's file name.
    """

    flavour: Flavour
    entries: Mapping[str, EngineEntry]
    paths: Mapping[str, Path]


class CachedEngine(FrozenModel):
    """The JSON file beside an engine in the cache."""

    entry: EngineEntry
    file: FileEntry


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The engines of a bundle for one flavour.

    Args:
        engines: an engine for every graph; None if no engines fit.
        reasons: why engines do not fit.
    """

    engines: EngineSet | None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineFitness:
    """Whether one engine of a bundle fits this machine.

    Args:
        entry: the engine.
        problem: why it does not fit; None if it fits.
    """

    entry: EngineEntry
    problem: str | None


def engine_fitness(bundle: Bundle) -> tuple[EngineFitness, ...]:
    """Check whether each engine of a bundle fits this machine, without loading it.

    Args:
        bundle: an open bundle.

    Returns:
        One entry for each engine, in the manifest's order.
    """
    if not bundle.manifest.engines:
        return ()
    try:
        capability = device_capability()
    except EnvironmentLacks as error:
        return tuple(EngineFitness(entry, error.message) for entry in bundle.manifest.engines)
    flavours = {flavour.name: flavour for flavour in installed_flavours()}
    return tuple(
        EngineFitness(
            entry,
            engine_mismatch(entry, flavours[entry.flavour], capability, bundle.manifest.files[entry.graph].sha256)
            if entry.flavour in flavours
            else f'it needs {entry.flavour}, which is not installed; run: pip install "hagmil[{entry.flavour}]"',
        )
        for entry in bundle.manifest.engines
    )


def open_tensorrt(
    bundle: Bundle,
    *,
    rebuild: bool = False,
    flavour: str | None = None,
    cache: Path | None = None,
) -> Opener:
    """Choose how to run a bundle's graphs.

    Args:
        bundle: an open bundle with verified files.
        rebuild: build engines if the bundle's do not fit; engines that were built before come from the cache.
        flavour: ``tensorrt`` or ``tensorrt-rtx``; None uses the installed one.
        cache: folder of the engines that are built; None uses the default folder.

    Returns:
        A function that opens the session of a graph, by the graph's file name.

    Raises:
        EnvironmentLacks: there is no TensorRT, no GPU, or no engines that fit; the message gives the reasons.
        UsageError: no such flavour, or both are installed and ``rebuild`` needs a choice.
        BundleError: an engine cannot be built.
    """
    chosen = _choose_engines(bundle, rebuild=rebuild, flavour=flavour, cache=cache or default_cache())
    return lambda graph: _engine_session(bundle, chosen, graph)


def _choose_engines(bundle: Bundle, *, rebuild: bool, flavour: str | None, cache: Path) -> EngineSet:
    """Steps 1 to 3; the arguments are those of :func:`open_tensorrt`."""
    flavours = (choose_flavour(flavour),) if rebuild or flavour else installed_flavours()
    if not flavours:
        choose_flavour()  # raises the error that names the packages
    for each in flavours:
        load_libraries(each.name)
    capability = device_capability()
    choices = [fitting_engines(bundle, each, capability) for each in flavours]
    for choice in choices:
        if choice.engines is not None:
            return choice.engines
    if rebuild:
        return _rebuild(bundle, flavours[0], capability, cache)
    reasons = "; ".join(reason for choice in choices for reason in choice.reasons)
    problem = f"the bundle's engines do not fit: {reasons}" if bundle.manifest.engines else "the bundle has no engines"
    raise EnvironmentLacks(
        f'provider "tensorrt" cannot be used: {problem}; pass --rebuild to build engines on this machine, or export '
        "the bundle with --trt",
        code="engines_missing",
    )


def fitting_engines(bundle: Bundle, flavour: Flavour, capability: str) -> EngineChoice:
    """Step 1: choose an engine of the bundle for every graph, or give the reasons why none fits.

    Args:
        bundle: an open bundle.
        flavour: the TensorRT to load the engines with.
        capability: compute capability of the GPU.
    """
    entries: dict[str, EngineEntry] = {}
    reasons: list[str] = []
    for graph in _graphs(bundle):
        onnx_sha256 = bundle.manifest.files[graph].sha256
        candidates = [entry for entry in bundle.manifest.engines if entry.graph == graph]
        problems = [engine_mismatch(entry, flavour, capability, onnx_sha256) for entry in candidates]
        fits = [entry for entry, problem in zip(candidates, problems, strict=True) if problem is None]
        if fits:
            entries[graph] = fits[-1]  # the one added last
        else:
            reasons.append(f"{graph}: {problems[-1] if problems else 'it has no engine'}")
    if reasons:
        return EngineChoice(None, tuple(reasons))
    return EngineChoice(
        EngineSet(flavour, entries, {graph: bundle.file(entry.file) for graph, entry in entries.items()})
    )


def _engine_session(bundle: Bundle, engines: EngineSet, graph: str) -> TensorRtSession:
    manifest = bundle.manifest
    is_backbone = graph == manifest.backbone.onnx
    return TensorRtSession(
        engines.paths[graph],
        engines.flavour,
        BACKBONE_INPUTS if is_backbone else STAGE_INPUTS,
        BACKBONE_OUTPUTS if is_backbone else stage_outputs(manifest.kind, manifest.readout, manifest.attention),
        version_compatible=engines.entries[graph].version_compatible,
    )


def _graphs(bundle: Bundle) -> tuple[str, ...]:
    return (bundle.manifest.backbone.onnx, *(stage.onnx for stage in bundle.manifest.stages))


def _rebuild(bundle: Bundle, flavour: Flavour, capability: str, cache: Path) -> EngineSet:
    """Step 2: engines for this GPU, from the cache if they were built before."""
    profiles = bundle_profiles(bundle.manifest) | {entry.graph: entry.profiles for entry in bundle.manifest.engines}
    entries: dict[str, EngineEntry] = {}
    for graph in _graphs(bundle):
        onnx_sha256 = bundle.manifest.files[graph].sha256
        known = _cached(cache, flavour, capability, onnx_sha256, profiles[graph])
        entries[graph] = known or _build_into(cache, bundle, flavour, capability, graph, profiles[graph])
    return EngineSet(flavour, entries, {graph: cache / entry.file for graph, entry in entries.items()})


def _cached(
    cache: Path, flavour: Flavour, capability: str, onnx_sha256: str, profiles: tuple[Profile, ...]
) -> EngineEntry | None:
    """An intact engine of the cache that fits, or None."""
    for path in sorted(cache.glob(f"*.{onnx_sha256[:DIGEST_LETTERS]}.json")):
        try:
            known = CachedEngine.model_validate_json(path.read_bytes())
        except ValidationError:
            continue
        engine = cache / known.entry.file
        fits = (
            engine_mismatch(known.entry, flavour, capability, onnx_sha256) is None and known.entry.profiles == profiles
        )
        if fits and engine.is_file() and sha256_of(engine) == known.file.sha256:
            return known.entry
    return None


def _build_into(
    cache: Path, bundle: Bundle, flavour: Flavour, capability: str, graph: str, profiles: tuple[Profile, ...]
) -> EngineEntry:
    _log.info("building a TensorRT engine of %s for compute capability %s", graph, capability)
    engine = build_engine(
        flavour, BuildRequest(bundle.file(graph), profiles, (capability,), timing_cache=timing_cache(flavour, cache))
    )
    onnx_sha256 = bundle.manifest.files[graph].sha256
    name = engine_name(graph, flavour.name, flavour.version, (capability,), engine.precision, onnx_sha256)
    entry = EngineEntry(
        file=name,
        graph=graph,
        onnx_sha256=onnx_sha256,
        flavour=flavour.name,
        flavour_version=flavour.version,
        capabilities=(capability,),
        precision=engine.precision,
        profiles=profiles,
        memory_bytes=engine.memory_bytes,
    )
    write_bytes(cache / name, engine.data)
    file = FileEntry(sha256=sha256_of(cache / name), bytes=len(engine.data))
    beside = (cache / name).with_suffix(".json")
    write_text(beside, CachedEngine(entry=entry, file=file).model_dump_json(indent=2) + "\n")
    return entry
