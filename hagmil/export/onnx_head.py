"""A bundle from a head that is an ONNX graph already, and a backbone.

1. Check that the graph follows the tensor contract of heads and fits the backbone and the classes.
2. Run it on bags of several sizes: shapes must follow the number of patches, and values must be finite.
3. Copy both graphs unchanged, and write self-test, model card and manifest. The folder appears complete or not at all.

There is no source to compare the graph with, so the bundle has no parity report; its self-test holds the outputs of the
graph on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from pydantic import ValidationError

from hagmil._files import sha256_of, write_text
from hagmil._models import first_problem
from hagmil._versions import __version__, export_versions
from hagmil.bundle import (
    BACKBONE_ONNX_NAME,
    RESEARCH_USE_ONLY,
    SELFTEST_NAME,
    Backbone,
    BackboneCard,
    Bundle,
    Manifest,
    Provenance,
    Stage,
    file_entries,
    new_folder,
    open_backbone,
    open_bundle,
    write_manifest,
)
from hagmil.errors import BundleError, UsageError
from hagmil.export.graph import axes_of, copy_graph, opset_of
from hagmil.export.model_card import MODEL_CARD_NAME
from hagmil.export.parity.synthetic_inputs import synthetic_bag
from hagmil.export.passes.check_contract import check_contract
from hagmil.export.selftest_cases import SELFTEST_TOLERANCES, backbone_case
from hagmil.runtime.sessions import Session, open_session
from hagmil.selftest import SelfTestCase, write_selftest
from hagmil.spec import ATTENTION, BAG, LOGITS, STAGE_INPUTS, AttentionForm, stage_outputs
from hagmil.tissue_parameters import TissueParameters

KIND = "onnx"
"""Kind of the bundle."""
_BAGS = (1, 2, 37)


@dataclass(frozen=True, slots=True)
class OnnxHeadOptions:
    """What a graph does not contain.

    Args:
        classes: names in the order of the logits.
        spacing_um: micrometres per pixel of its patches.
        patch_px: side of a patch.
        intended_use: for the manifest; None for a general statement.
    """

    classes: tuple[str, ...]
    spacing_um: float
    patch_px: int
    intended_use: str | None = None


def export_onnx_head(
    head: Path, backbone_dir: Path, out_dir: Path, options: OnnxHeadOptions, *, overwrite: bool = False
) -> Bundle:
    """Make a bundle from an ONNX head, without changing it.

    Args:
        head: the graph: ``features`` float32 (patches, dim) to ``logits`` (classes,) and ``attention`` (patches,) or
            (classes, patches), with a dynamic number of patches.
        backbone_dir: folder of the backbone whose features the head takes.
        out_dir: output folder of the bundle.
        options: what the graph does not contain.
        overwrite: replace an existing ``out_dir``.

    Returns:
        The bundle, opened and verified.

    Raises:
        UsageError: ``out_dir`` exists, or an option is invalid.
        BundleError: the graph cannot be read or run, violates the contract, or does not fit backbone and classes.
    """
    backbone = open_backbone(backbone_dir)
    attention = _check_graph(head, backbone, options)  # step 1
    session = open_session(head)
    bags = {count: synthetic_bag("clustered", count, backbone.features) for count in _BAGS}
    for bag in bags.values():
        _check_run(session, bag, options, attention, head)  # step 2
    try:
        stage = Stage(name=f"{options.spacing_um:g}um", spacing_um=options.spacing_um, onnx="head.onnx")
    except ValidationError as error:
        raise UsageError(f"the stage is not valid: {first_problem(error)}") from error
    with new_folder(out_dir, overwrite=overwrite) as folder:  # step 3
        copy_graph(head, folder / stage.onnx)
        copy_graph(backbone_dir / backbone.onnx, folder / BACKBONE_ONNX_NAME)
        _write_selftest(folder, stage, session, bags[_BAGS[-1]], options.patch_px)
        use = options.intended_use or f"{RESEARCH_USE_ONLY} Classification into {', '.join(options.classes)}."
        write_text(folder / MODEL_CARD_NAME, _card(head, backbone, options, use))
        write_manifest(folder, _manifest(folder, stage, head, backbone, options, attention, use))
    return open_bundle(out_dir)


def _check_graph(head: Path, backbone: BackboneCard, options: OnnxHeadOptions) -> AttentionForm:
    """Step 1: the form of the attention."""
    try:
        model = onnx.load(head)
    except Exception as error:  # onnx raises errors of many classes for a file that is no graph
        raise BundleError(f'"{head}" cannot be read as an ONNX graph: {error}', code="graph_invalid") from error
    found = {value.name: axes_of(value) for value in (*model.graph.input, *model.graph.output)}
    attention: AttentionForm = "per_class" if len(found.get(ATTENTION.name) or ()) == 2 else "shared"
    try:
        check_contract(model, STAGE_INPUTS, stage_outputs(KIND, attention=attention))
    except BundleError as error:
        raise BundleError(f'"{head}" does not follow the contract: {error.message}', code="contract") from error
    features, logits = found[BAG.name], found[LOGITS.name]
    assert features is not None  # checked by check_contract
    assert logits is not None
    if features[1] != backbone.features:
        raise BundleError(
            f'"{head}" takes {features[1]} features, but backbone "{backbone.name}" gives {backbone.features}',
            code="backbone_mismatch",
        )
    if logits[0] != len(options.classes):
        raise UsageError(f'--classes names {len(options.classes)} classes; "{head}" gives {logits[0]} logits')
    if backbone.patch_px not in (None, options.patch_px):
        raise UsageError(f"--patch-px is {options.patch_px}; the backbone takes patches of {backbone.patch_px} pixels")
    return attention


def _check_run(
    session: Session, bag: NDArray[np.float32], options: OnnxHeadOptions, attention: AttentionForm, head: Path
) -> None:
    outputs = session.run({BAG.name: bag})
    classes, patches = len(options.classes), len(bag)
    shape = (classes, patches) if attention == "per_class" else (patches,)
    for name, expected in ((LOGITS.name, (classes,)), (ATTENTION.name, shape)):
        value = np.asarray(outputs[name])
        if value.shape != expected or not np.isfinite(value).all():
            raise BundleError(
                f'"{head}": {name} of a bag of {patches} patches has the shape {value.shape}, not {expected}, or is '
                "not finite",
                code="contract",
            )


def _write_selftest(folder: Path, stage: Stage, session: Session, bag: NDArray[np.float32], patch_px: int) -> None:
    tolerance = SELFTEST_TOLERANCES["fp32"]
    outputs = {name: np.asarray(value) for name, value in session.run({BAG.name: bag}).items()}
    case = SelfTestCase(stage.name, {BAG.name: bag}, outputs, tolerance.absolute, tolerance.relative)
    write_selftest(folder / SELFTEST_NAME, [backbone_case(folder / BACKBONE_ONNX_NAME, patch_px, "fp32"), case])


def _card(head: Path, backbone: BackboneCard, options: OnnxHeadOptions, use: str) -> str:
    return (
        f"# Head {head.name} for {', '.join(options.classes)}\n\n{use}\n\n## Model\n\n"
        f"Patches of {options.patch_px} x {options.patch_px} pixels at {options.spacing_um:g} um/px are encoded by "
        f"`{backbone.name}` ({backbone.features} features; weights: {backbone.weights}). The head is a given ONNX "
        f"graph (SHA-256 `{sha256_of(head)}`). It is not verified that it was trained on features of "
        "this encoder, and there is no source that it was compared with.\n"
    )


def _manifest(
    folder: Path,
    stage: Stage,
    head: Path,
    backbone: BackboneCard,
    options: OnnxHeadOptions,
    attention: AttentionForm,
    use: str,
) -> Manifest:
    graphs = (BACKBONE_ONNX_NAME, stage.onnx)
    try:
        return Manifest(
            kind=KIND,
            attention=attention,
            classes=options.classes,
            patch_px=options.patch_px,
            stages=(stage,),
            backbone=Backbone(onnx=BACKBONE_ONNX_NAME, features=backbone.features, name=backbone.name),
            tissue=TissueParameters(),
            precision="fp32",
            opsets={name: opset_of(onnx.load(folder / name, load_external_data=False)) for name in graphs},
            files=file_entries(folder),
            provenance=Provenance(
                created=datetime.now(UTC),
                hagmil=__version__,
                versions=export_versions(),
                checkpoint_sha256=sha256_of(head),
                backbone_weights=backbone.weights,
                training={"source_name": head.name, "backbone_proven": False},
            ),
            intended_use=use,
        )
    except ValidationError as error:
        raise UsageError(f"the bundle is not valid: {first_problem(error)}") from error
