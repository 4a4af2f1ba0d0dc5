"""Verify a bundle: is it intact, does it follow the contract, and does it give the right numbers on this machine?

1. Manifest: present and valid.
2. Files: each file of the manifest is no link, and has the recorded size and digest. If not, later steps are skipped.
3. Graphs: each has only listed weights and operators, ONNX Runtime loads it, and its tensors are those of the contract
   in the sizes of the manifest.
4. Self-test: the provider gives the stored outputs for the stored inputs of each graph, within the stored tolerance.
   Where a stage gives evidence, the logits minus its sum over patches are the same vector, the bias, for two bags.
5. Engines: each was built from a graph of the bundle, and either fits this machine or not.

Neither torch nor the onnx package is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from hagmil._models import FrozenModel
from hagmil.bundle import (
    MANIFEST_NAME,
    SELFTEST_NAME,
    Bundle,
    Manifest,
    check_file,
    check_graph_references,
    file_problems,
    open_bundle,
)
from hagmil.errors import BundleError
from hagmil.runtime.inference.contract import graph_contracts
from hagmil.runtime.inference.loaded_bundle import LoadedModel, load_model
from hagmil.runtime.sessions import Session
from hagmil.runtime.sessions.engines import engine_fitness
from hagmil.runtime.sessions.onnx import OnnxSession
from hagmil.selftest import BACKBONE, SelfTestCase, read_selftest
from hagmil.spec import BAG, EVIDENCE, LOGITS

CheckState = Literal["ok", "failed", "skipped", "note"]
BundlePart = Literal["manifest", "file", "graph", "self-test", "engine"]
_NO_CONTRACT = "skipped, because a graph does not follow the contract"
_ALTERED = "skipped, because files were altered or are missing"


class Check(FrozenModel):
    """One check and its outcome."""

    part: BundlePart
    subject: str = Field(description="a file, or a tensor of a graph")
    state: CheckState = Field(description="note: information, not a fault of the bundle")
    detail: str


class VerifyReport(FrozenModel):
    """The outcome of ``hagmil verify``."""

    format: Literal["hagmil-verify"] = "hagmil-verify"
    format_version: Literal[1] = 1
    bundle: str
    bundle_sha256: str | None = Field(description="null if the manifest cannot be read")
    provider: str = Field(
        description="provider of the self-test, as its library names it; the requested one if the self-test did not run"
    )
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed and none was skipped."""
        return all(check.state in ("ok", "note") for check in self.checks)


def verify_bundle(
    path: str | Path,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    rebuild: bool = False,
    trt_flavour: str | None = None,
) -> VerifyReport:
    """Verify a bundle on this machine.

    Args:
        path: the bundle's folder.
        provider: provider of the self-test: ``cpu``, ``cuda`` or ``tensorrt``.
        threads: threads of one run on the CPU.
        rebuild: see :func:`hagmil.runtime.inference.loaded_bundle.load_model`.
        trt_flavour: see :func:`hagmil.runtime.inference.loaded_bundle.load_model`.

    Returns:
        All checks. A fault of the bundle gives a failed check and not an error.

    Raises:
        UsageError: no such provider or flavour.
        EnvironmentLacks: the provider is missing on this machine.
    """
    folder = Path(path)
    try:
        bundle = open_bundle(folder, verify=False)  # step 1
    except BundleError as error:
        failed = Check(part="manifest", subject=MANIFEST_NAME, state="failed", detail=error.message)
        return VerifyReport(bundle=str(path), bundle_sha256=None, provider=provider, checks=(failed,))
    checks = [Check(part="manifest", subject=MANIFEST_NAME, state="ok", detail=_describe(bundle.manifest))]
    checks += _check_files(bundle)  # step 2
    if any(check.state == "failed" for check in checks):
        checks += [_skipped("graph", "all", _ALTERED), _skipped("self-test", SELFTEST_NAME, _ALTERED)]
        return _report(bundle, provider, checks)
    try:
        checks += _check_graphs(bundle, threads)  # step 3
        if any(check.state == "failed" for check in checks):
            checks.append(_skipped("self-test", SELFTEST_NAME, _NO_CONTRACT))
            return _report(bundle, provider, checks)
        model = load_model(folder, provider=provider, threads=threads, rebuild=rebuild, trt_flavour=trt_flavour)
    except BundleError as error:
        checks.append(Check(part="graph", subject="all", state="failed", detail=error.message))
        return _report(bundle, provider, checks)
    checks += [*_check_selftest(model), *_check_engines(bundle)]  # steps 4 and 5
    return _report(bundle, model.stages[-1].provider, checks)


def _describe(manifest: Manifest) -> str:
    stages = ", ".join(f"{stage.name} at {stage.spacing_um:g} um/px" for stage in manifest.stages)
    return f"{manifest.kind}, {manifest.precision}, classes {', '.join(manifest.classes)}; stages {stages}"


def _report(bundle: Bundle, provider: str, checks: Sequence[Check]) -> VerifyReport:
    return VerifyReport(bundle=str(bundle.path), bundle_sha256=bundle.sha256, provider=provider, checks=tuple(checks))


def _skipped(part: BundlePart, subject: str, why: str) -> Check:
    return Check(part=part, subject=subject, state="skipped", detail=why)


def _check_files(bundle: Bundle) -> Iterator[Check]:
    """Step 2; a file that the manifest does not list gives a note."""
    problems = file_problems(bundle.path, bundle.manifest.files)
    for name, entry in bundle.manifest.files.items():
        try:
            if name in problems:
                raise problems[name]
            check_file(bundle, name)
        except BundleError as error:
            yield Check(part="file", subject=name, state="failed", detail=error.message)
        else:
            detail = f"{entry.bytes:,} bytes, sha256 {entry.sha256[:12]}..."
            yield Check(part="file", subject=name, state="ok", detail=detail)
    present = {path.relative_to(bundle.path).as_posix() for path in bundle.path.rglob("*") if path.is_file()}
    for name in sorted(present - bundle.manifest.files.keys() - {MANIFEST_NAME}):
        yield Check(part="file", subject=name, state="note", detail="not listed in the manifest; not used")


def _check_graphs(bundle: Bundle, threads: int | None) -> Iterator[Check]:
    """Step 3."""
    for contract in graph_contracts(bundle.manifest):
        graph = contract.graph
        check_graph_references(bundle, graph)
        inputs, outputs = OnnxSession(bundle.file(graph), threads=threads).tensors()
        problems = "; ".join(contract.declared_problems(inputs, outputs))
        opset = bundle.manifest.opsets.get(graph)
        passed = f"{'' if opset is None else f'opset {opset}, '}inputs and outputs follow the contract"
        yield Check(part="graph", subject=graph, state="failed" if problems else "ok", detail=problems or passed)


def _check_selftest(model: LoadedModel) -> Iterator[Check]:
    """Step 4; a graph without a complete case fails, because it was not tested."""
    bundle = model.bundle
    names = [BACKBONE, *(stage.name for stage in bundle.manifest.stages)]
    contracts = graph_contracts(bundle.manifest)
    try:
        if SELFTEST_NAME not in bundle.manifest.files:
            raise BundleError("the manifest does not list it")
        cases = {case.model: case for case in read_selftest(bundle.file(SELFTEST_NAME))}
    except BundleError as error:
        yield Check(part="self-test", subject=SELFTEST_NAME, state="failed", detail=error.message)
        return
    for name, session, contract in zip(names, (model.backbone, *model.stages), contracts, strict=True):
        if name not in cases:
            problem = "the self-test has no case for it"
        elif cases[name].outputs.keys() != {spec.name for spec in contract.outputs}:
            problem = f"the self-test has other outputs than the graph: {', '.join(cases[name].outputs)}"
        else:
            yield from _check_case(cases[name], session)
            continue
        yield Check(part="self-test", subject=name, state="failed", detail=problem)


def _check_case(case: SelfTestCase, session: Session) -> Iterator[Check]:
    try:
        outputs = session.run(dict(case.inputs))
    except BundleError as error:
        yield Check(part="self-test", subject=case.model, state="failed", detail=error.message)
        return
    for name, expected in case.outputs.items():
        given = np.asarray(outputs[name], np.float64)
        allowed = case.absolute + case.relative * float(np.abs(expected).max(initial=0.0))
        if given.shape != expected.shape or not np.isfinite(given).all():
            passed, detail = False, "the shape differs from the stored one, or values are not finite"
        else:
            difference = float(np.abs(given - expected).max(initial=0.0))
            passed, detail = difference <= allowed, f"off by {difference:.1e}, {allowed:.1e} allowed"
        yield Check(part="self-test", subject=f"{case.model} {name}", state="ok" if passed else "failed", detail=detail)
    if EVIDENCE.name in outputs:
        yield _check_evidence(case, session, outputs)


def _check_evidence(case: SelfTestCase, session: Session, outputs: Mapping[str, Any]) -> Check:
    """Compare the logits minus the sum of the evidence for the stored bag and for its first half."""
    bag = case.inputs[BAG.name]
    half = session.run({BAG.name: bag[: (len(bag) + 1) // 2]})
    biases = [
        np.asarray(each[LOGITS.name], np.float64) - np.asarray(each[EVIDENCE.name], np.float64).sum(axis=1)
        for each in (outputs, half)
    ]
    allowed = case.absolute + case.relative * float(np.abs(case.outputs[LOGITS.name]).max(initial=0.0))
    difference = float(np.abs(biases[0] - biases[1]).max(initial=0.0))
    return Check(
        part="self-test",
        subject=f"{case.model} sum of {EVIDENCE.name}",
        state="ok" if difference <= allowed else "failed",
        detail=f"logits minus the sum differ by {difference:.1e} between two bags, {allowed:.1e} allowed",
    )


def _check_engines(bundle: Bundle) -> Iterator[Check]:
    """Step 5; an engine for another machine gives a note, an engine of another graph fails."""
    for fitness in engine_fitness(bundle):
        entry = fitness.entry
        if entry.onnx_sha256 != bundle.manifest.files[entry.graph].sha256:
            detail = f"it was built from another {entry.graph}"
            yield Check(part="engine", subject=entry.file, state="failed", detail=detail)
        elif fitness.problem is not None:
            detail = f"not usable on this machine: {fitness.problem}"
            yield Check(part="engine", subject=entry.file, state="note", detail=detail)
        else:
            yield Check(part="engine", subject=entry.file, state="ok", detail="fits this machine")
