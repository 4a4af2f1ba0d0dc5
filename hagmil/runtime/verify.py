"""A bundle held against itself and this machine: may it be used here, on this provider?

1. The manifest: there, and as its schema says.
2. Files: every one that it lists, by size and digest. Nothing else is looked at where one is altered.
3. Graphs: operators that ONNX Runtime has, and the contract's tensors in the manifest's sizes, as the graphs themselves
   declare them.
4. Self-test: the stored inputs through every graph on the provider, held against the stored outputs.
5. Engines: built from these graphs, and whether this machine could use them.

Nothing here needs torch or the onnx package.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from hagmil._models import FrozenModel
from hagmil.bundle import MANIFEST_NAME, SELFTEST_NAME, Bundle, Manifest, check_file, open_bundle
from hagmil.errors import BundleError
from hagmil.runtime.inference.loaded_bundle import LoadedModel, load_model
from hagmil.runtime.sessions import Session
from hagmil.runtime.sessions.engines import engine_fitness
from hagmil.runtime.sessions.onnx import OnnxSession, TensorInfo
from hagmil.runtime.sessions.onnx_header import read_onnx_header
from hagmil.selftest import BACKBONE, SelfTestCase, read_selftest
from hagmil.spec import BACKBONE_INPUTS, BACKBONE_OUTPUTS, DYNAMIC_AXES, STAGE_INPUTS, STAGE_OUTPUTS, TensorSpec

CheckState = Literal["ok", "failed", "skipped", "note"]
BundlePart = Literal["manifest", "file", "graph", "self-test", "engine"]
_SIDES = ("height", "width")  # a backbone may fix them, at the bundle's patch size
_ALTERED = "not tried, because files were altered or are missing"


class Check(FrozenModel):
    """One thing that was looked at."""

    part: BundlePart
    subject: str = Field(description="a file, or a tensor of a graph")
    state: CheckState = Field(description="note: worth knowing, and no fault of the bundle")
    detail: str


class VerifyReport(FrozenModel):
    """What ``hagmil verify`` found."""

    format: Literal["hagmil-verify"] = "hagmil-verify"
    format_version: Literal[1] = 1
    bundle: str
    bundle_sha256: str | None = Field(description="null where there is no manifest to read")
    provider: str = Field(description="that the self-test ran on, as its library names it; as asked for where none ran")
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed and nothing was left out."""
        return all(check.state in ("ok", "note") for check in self.checks)


def verify_bundle(
    path: Path,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    rebuild: bool = False,
    trt_flavour: str | None = None,
) -> VerifyReport:
    """Hold a bundle against itself and this machine.

    Args:
        path: the bundle's folder.
        provider: ``cpu``, ``cuda`` or ``tensorrt``; the self-test runs on it.
        threads: threads inside one run on the CPU.
        rebuild: see :func:`hagmil.runtime.inference.loaded_bundle.load_model`.
        trt_flavour: see :func:`hagmil.runtime.inference.loaded_bundle.load_model`.

    Returns:
        Every check that was made; a bundle that is not as it should be gives checks that failed, not an error.

    Raises:
        UsageError: no such provider or flavour.
        EnvironmentLacks: the provider is not on this machine.
    """
    try:
        bundle = open_bundle(path, verify=False)  # step 1
    except BundleError as error:
        failed = Check(part="manifest", subject=MANIFEST_NAME, state="failed", detail=error.message)
        return VerifyReport(bundle=str(path), bundle_sha256=None, provider=provider, checks=(failed,))
    checks = [Check(part="manifest", subject=MANIFEST_NAME, state="ok", detail=_describe(bundle.manifest))]
    checks += _check_files(bundle)  # step 2
    if any(check.state == "failed" for check in checks):
        checks += [_skipped("graph", "all"), _skipped("self-test", SELFTEST_NAME)]
        return _report(bundle, provider, checks)
    try:
        graph_checks = list(_check_graphs(bundle, threads))  # step 3
        model = load_model(path, provider=provider, threads=threads, rebuild=rebuild, trt_flavour=trt_flavour)
    except BundleError as error:
        checks.append(Check(part="graph", subject="all", state="failed", detail=error.message))
        return _report(bundle, provider, checks)
    checks += [*graph_checks, *_check_selftest(model), *_check_engines(bundle)]  # steps 3, 4 and 5
    return _report(bundle, model.stages[-1].provider, checks)


def _describe(manifest: Manifest) -> str:
    stages = ", ".join(f"{stage.name} at {stage.spacing_um:g} um/px" for stage in manifest.stages)
    return f"{manifest.kind}, {manifest.precision}, classes {', '.join(manifest.classes)}; stages {stages}"


def _report(bundle: Bundle, provider: str, checks: Sequence[Check]) -> VerifyReport:
    return VerifyReport(bundle=str(bundle.path), bundle_sha256=bundle.sha256, provider=provider, checks=tuple(checks))


def _skipped(part: BundlePart, subject: str) -> Check:
    return Check(part=part, subject=subject, state="skipped", detail=_ALTERED)


def _check_files(bundle: Bundle) -> Iterator[Check]:
    """Step 2; a file that the manifest does not list is told of, since nothing vouches for it."""
    for name, entry in bundle.manifest.files.items():
        try:
            check_file(bundle, name)
        except BundleError as error:
            yield Check(part="file", subject=name, state="failed", detail=error.message)
        else:
            detail = f"{entry.bytes:,} bytes, sha256 {entry.sha256[:12]}..."
            yield Check(part="file", subject=name, state="ok", detail=detail)
    present = {path.relative_to(bundle.path).as_posix() for path in bundle.path.rglob("*") if path.is_file()}
    for name in sorted(present - bundle.manifest.files.keys() - {MANIFEST_NAME}):
        yield Check(part="file", subject=name, state="note", detail="the manifest does not list it; it is not used")


def _check_graphs(bundle: Bundle, threads: int | None) -> Iterator[Check]:
    """Step 3."""
    manifest = bundle.manifest
    yield _check_graph(
        bundle, manifest.backbone.onnx, BACKBONE_INPUTS, BACKBONE_OUTPUTS, _lengths(manifest, 0), threads
    )
    for place, stage in enumerate(manifest.stages):
        outputs = STAGE_OUTPUTS[manifest.kind]
        yield _check_graph(bundle, stage.onnx, STAGE_INPUTS, outputs, _lengths(manifest, place), threads)


def _check_graph(
    bundle: Bundle,
    graph: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    lengths: dict[str, int],
    threads: int | None,
) -> Check:
    header = read_onnx_header(bundle.file(graph))
    declared = OnnxSession(bundle.file(graph), threads=threads).tensors()
    problems = [
        *_opset_problems(header.opsets, bundle.manifest.opsets.get(graph)),
        *_tensor_problems("input", declared[0], inputs, lengths),
        *_tensor_problems("output", declared[1], outputs, lengths),
    ]
    detail = "; ".join(problems) or f"opset {header.opset}, the contract's inputs and outputs"
    return Check(part="graph", subject=graph, state="failed" if problems else "ok", detail=detail)


def _opset_problems(opsets: dict[str, int], recorded: int | None) -> Iterator[str]:
    foreign = sorted(opsets.keys() - {""})
    if foreign:
        yield f"operators of {', '.join(foreign)}, which are not standard ones"
    if recorded is not None and opsets.get("", 0) != recorded:
        yield f"opset {opsets.get('', 0)}, the manifest says {recorded}"


def _tensor_problems(
    what: str, declared: dict[str, TensorInfo], specs: tuple[TensorSpec, ...], lengths: dict[str, int]
) -> Iterator[str]:
    """How declared tensors differ from the contract's, and from the manifest's sizes."""
    if list(declared) != [spec.name for spec in specs]:
        yield f"{what}s {', '.join(declared)}, not {', '.join(spec.name for spec in specs)}"
        return
    for spec in specs:
        found = declared[spec.name]
        problem = spec.mismatch(found.dtype, _in_contract_words(spec, found, lengths))
        if problem is not None:
            yield f"{what} {spec.name} {problem}"
            continue
        for word, axis in zip(spec.axes, found.axes, strict=True):
            if isinstance(axis, int) and axis != lengths.get(str(word), axis):
                yield f"{what} {spec.name} has {axis} {word}, the manifest says {lengths[str(word)]}"


def _in_contract_words(spec: TensorSpec, found: TensorInfo, lengths: dict[str, int]) -> tuple[str | int | None, ...]:
    """A graph's axes with the contract's words for those that are dynamic, whatever the graph calls them.

    The sides of a patch count as dynamic where the graph fixes them at the bundle's.
    """
    if len(found.axes) != len(spec.axes):
        return found.axes
    return tuple(
        word
        if word in DYNAMIC_AXES and (not isinstance(given, int) or (word in _SIDES and given == lengths[str(word)]))
        else given
        for word, given in zip(spec.axes, found.axes, strict=True)
    )


def _lengths(manifest: Manifest, place: int) -> dict[str, int]:
    """The length of every axis that the manifest fixes, for the stage at a place."""
    hierarchy, last = manifest.hierarchy, place == len(manifest.stages) - 1
    lengths = {"dim": manifest.backbone.features, "classes": len(manifest.classes)}
    lengths |= dict.fromkeys(_SIDES, manifest.patch_px)
    if hierarchy is not None:
        lengths |= {"coarse": len(hierarchy.coarse), "fine": len(hierarchy.fine)}
        lengths["classes"] = len(hierarchy.fine if last else hierarchy.coarse)
    return lengths


def _check_selftest(model: LoadedModel) -> Iterator[Check]:
    """Step 4; a graph without a case fails, for nothing was tried."""
    bundle = model.bundle
    names = [BACKBONE, *(stage.name for stage in bundle.manifest.stages)]
    sessions = dict(zip(names, (model.backbone, *model.stages), strict=True))
    try:
        cases = {case.model: case for case in read_selftest(bundle.file(SELFTEST_NAME))}
    except BundleError as error:
        yield Check(part="self-test", subject=SELFTEST_NAME, state="failed", detail=error.message)
        return
    for name, session in sessions.items():
        if name in cases:
            yield from _check_case(cases[name], session)
        else:
            yield Check(part="self-test", subject=name, state="failed", detail="the self-test holds no case of it")


def _check_case(case: SelfTestCase, session: Session) -> Iterator[Check]:
    try:
        outputs = session.run(dict(case.inputs))
    except BundleError as error:
        yield Check(part="self-test", subject=case.model, state="failed", detail=error.message)
        return
    for name, expected in case.outputs.items():
        given = np.asarray(outputs[name], np.float64) if name in outputs else np.empty(0)
        allowed = case.absolute + case.relative * float(np.abs(expected).max(initial=0.0))
        if given.shape != expected.shape or not np.isfinite(given).all():
            passed, detail = False, "another shape than stored, or values that are not finite"
        else:
            off = float(np.abs(given - expected).max(initial=0.0))
            passed, detail = off <= allowed, f"off by {off:.1e}, {allowed:.1e} allowed"
        yield Check(part="self-test", subject=f"{case.model} {name}", state="ok" if passed else "failed", detail=detail)


def _check_engines(bundle: Bundle) -> Iterator[Check]:
    """Step 5; an engine for another machine is no fault, one of another graph is."""
    for fitness in engine_fitness(bundle):
        entry = fitness.entry
        if entry.onnx_sha256 != bundle.manifest.files[entry.graph].sha256:
            detail = f"it was built from another {entry.graph}"
            yield Check(part="engine", subject=entry.file, state="failed", detail=detail)
        elif fitness.problem is not None:
            yield Check(part="engine", subject=entry.file, state="note", detail=f"not for use here: {fitness.problem}")
        else:
            yield Check(part="engine", subject=entry.file, state="ok", detail="fits this machine")
