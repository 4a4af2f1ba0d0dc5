"""Export of a checkpoint and a backbone to a bundle.

1. Open both, check that they fit together, and choose the number of kept patches.
2. Export every stage model, and add the backbone, converted to half precision or int8 if requested.
3. Compare every graph with its source; a difference stops the export, and nothing is written.
4. If slides are given, compare the verdicts on them; a difference stops the export.
5. Write the self-test, the parity report and the model card.
6. Write the manifest with the digest of every file. The folder appears complete or not at all.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from time import perf_counter

import onnx
import torch
from pydantic import ValidationError
from torch import nn

from hagmil._files import write_text
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
    Precision,
    Provenance,
    Quantization,
    Stage,
    file_entries,
    new_folder,
    open_backbone,
    open_bundle,
    write_manifest,
)
from hagmil.bundle.graph_references import graph_references
from hagmil.errors import BundleError, UsageError
from hagmil.export.backbones.export_backbone import backbone_cases
from hagmil.export.graph import copy_graph, opset_of, save
from hagmil.export.half_backbone import check_half_parity, write_half_backbone
from hagmil.export.int8.backbone import CalibrationPatches, PatchRequirements, quantise_backbone, with_verdicts
from hagmil.export.keep_choice import choose_keep
from hagmil.export.model_card import MODEL_CARD_NAME, model_card
from hagmil.export.parity.compare import (
    PARITY_NAME,
    TOLERANCES,
    ParityReport,
    ParityRow,
    enforce_parity,
    with_model_name,
)
from hagmil.export.parity.graph_under_test import open_rounded
from hagmil.export.parity.slide_parity import ModelSessions, SlideRunner, compare_slides, enforce_slide_parity
from hagmil.export.parity.stages import ParityForm, check_stage_parity, stage_case_count, stage_graph, structure_sha256
from hagmil.export.parity.torch_reference import TorchStage
from hagmil.export.selftest_cases import backbone_case, stage_case
from hagmil.export.tracing import Captures
from hagmil.progress import Progress, no_progress
from hagmil.runtime.sessions import Session, open_session
from hagmil.selftest import BACKBONE, write_selftest
from hagmil.trainer.checkpoints.checkpoint import CheckpointCard, build_models, load_checkpoint

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExportReport:
    """The result of an export.

    Args:
        bundle: the bundle, opened and verified.
        parity: every comparison that was made.
        keep_reason: why the bundle keeps its number of patches; empty for a model with a single stage.
        seconds: wall-clock seconds by step: ``export``, ``parity``, ``slides``, ``rest``.
    """

    bundle: Bundle
    parity: ParityReport
    keep_reason: str
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class _ExportInputs:
    """Everything that a bundle is made from."""

    checkpoint: CheckpointCard
    keep_reason: str
    stages: tuple[Stage, ...]
    models: tuple[nn.Module, ...]
    backbone: BackboneCard
    backbone_dir: Path
    precision: Precision
    intended_use: str
    calibration: CalibrationPatches | None

    @property
    def stage_precision(self) -> Precision:
        """Precision of the stage models; int8 applies to the backbone only."""
        return "fp32" if self.precision == "int8" else self.precision

    @property
    def backbone_graph(self) -> Path:
        """The graph of the given backbone."""
        return self.backbone_dir / self.backbone.onnx

    @property
    def reduces_backbone(self) -> bool:
        """Whether the given backbone is converted to a lower precision."""
        parity = _backbone_parity(self.backbone_dir)
        return self.precision != "fp32" and (parity is None or parity.precision == "fp32")


def export_bundle(
    checkpoint_dir: Path,
    backbone_dir: Path,
    out_dir: Path,
    *,
    precision: Precision = "fp32",
    keep: int | None = None,
    parity_form: ParityForm = "default",
    slides: SlideRunner | None = None,
    calibration: CalibrationPatches | None = None,
    intended_use: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Export a checkpoint to a bundle and compare the bundle with the checkpoint.

    Args:
        checkpoint_dir: a checkpoint folder, its weights file, or a run folder (its best checkpoint is used).
        backbone_dir: folder of the backbone that extracted the training features, written by :func:`export_backbone`.
        out_dir: output folder of the bundle.
        precision: of the graphs; their inputs and outputs are float32. fp16 graphs are compared with every operation
            rounded to 16 bits. int8 quantises the backbone, keeps the stage models in float32, and needs
            ``calibration`` and ``slides``.
        keep: patches kept at every stage but the last; None for the choice of
            :func:`hagmil.export.keep_choice.choose_keep`.
        parity_form: ``long`` also compares stage models on bags of 10,000 and 40,000 patches.
        slides: runs the cascade on slides, to compare verdicts; None to skip this comparison.
        calibration: reads the patches for int8 calibration; None for other precisions.
        intended_use: intended use for the manifest; None for a general statement.
        overwrite: replace an existing ``out_dir``.
        progress: called after each exported graph and each comparison.

    Returns:
        The bundle and the comparisons.

    Raises:
        UsageError: ``out_dir`` exists, int8 is requested without calibration or slides, or ``keep`` is given for a
            model with a single stage.
        BundleError: checkpoint or backbone cannot be used, or do not fit together.
        ParityError: outputs of a graph or verdicts differ from the checkpoint; nothing is written to ``out_dir``.
    """
    if (precision == "int8") != (calibration is not None):
        raise UsageError("calibration patches are required with precision int8, and allowed with no other precision")
    if precision == "int8" and slides is None:
        raise UsageError("precision int8 requires slides to compare verdicts on; pass slides")
    inputs = _open(checkpoint_dir, backbone_dir, precision, keep, intended_use, calibration)  # step 1
    progress = progress or no_progress
    seconds: dict[str, float] = {}
    with new_folder(out_dir, overwrite=overwrite) as folder:
        start = perf_counter()
        structures, quantization = _export_graphs(inputs, folder, progress)
        seconds["export"] = perf_counter() - start
        start = perf_counter()
        parity = _compare_graphs(inputs, folder, structures, parity_form, progress)
        parity = parity.model_copy(update={"quantization": quantization})
        seconds["parity"] = perf_counter() - start
        start = perf_counter()
        if slides is not None:
            parity = _compare_verdicts(inputs, folder, slides, parity)
        seconds["slides"] = perf_counter() - start
        start = perf_counter()
        _finish(inputs, folder, parity)
        seconds["rest"] = perf_counter() - start
    return ExportReport(open_bundle(out_dir), parity, inputs.keep_reason, seconds)


def _open(
    checkpoint_dir: Path,
    backbone_dir: Path,
    precision: Precision,
    keep: int | None,
    intended_use: str | None,
    calibration: CalibrationPatches | None,
) -> _ExportInputs:
    """Step 1."""
    checkpoint = load_checkpoint(checkpoint_dir)
    backbone = open_backbone(backbone_dir)
    _check_fit(checkpoint.card, backbone)
    card, keep_reason = choose_keep(checkpoint.card, keep)
    inputs = _ExportInputs(
        checkpoint=card,
        keep_reason=keep_reason,
        stages=_stages(card),
        models=tuple(build_models(checkpoint)),
        backbone=backbone,
        backbone_dir=backbone_dir,
        precision=precision,
        intended_use=intended_use or _default_intended_use(card),
        calibration=calibration,
    )
    if precision == "int8" and not inputs.reduces_backbone:
        raise BundleError(f'backbone "{backbone.name}" is in half precision; int8 needs fp32', code="precision")
    return inputs


def _check_fit(checkpoint: CheckpointCard, backbone: BackboneCard) -> None:
    trained_on = checkpoint.backbone
    if trained_on is None:
        _log.warning(
            'the checkpoint does not record its backbone, so "%s" cannot be checked; the bundle records this',
            backbone.name,
        )
    elif trained_on.sha256 != backbone.sha256:
        raise BundleError(
            f'the checkpoint was trained on features of backbone "{trained_on.name}" '
            f'({trained_on.sha256[:12]}...), but "{backbone.name}" ({backbone.sha256[:12]}...) was given; '
            "pass the backbone that extracted the training features",
            code="backbone_mismatch",
        )
    if checkpoint.feature_dim != backbone.features:
        raise BundleError(
            f"the checkpoint expects {checkpoint.feature_dim} features, but the backbone has {backbone.features}",
            code="backbone_mismatch",
        )
    if backbone.patch_px not in (None, checkpoint.patch_px):
        raise BundleError(
            f"the checkpoint was trained on patches of {checkpoint.patch_px} pixels, but the backbone takes patches of "
            f"{backbone.patch_px} pixels",
            code="backbone_mismatch",
        )


def _stages(checkpoint: CheckpointCard) -> tuple[Stage, ...]:
    """Convert the stages of a checkpoint for the manifest; their names become file names."""
    try:
        stages = tuple(
            Stage(name=stage.name, spacing_um=stage.spacing_um, keep=stage.keep, onnx=f"{stage.name}.onnx")
            for stage in checkpoint.stages
        )
    except ValidationError as error:
        raise BundleError(
            f"a stage of the checkpoint cannot be exported: {first_problem(error)}", code="stage"
        ) from error
    if BACKBONE in (stage.name for stage in stages):
        raise BundleError(f'a stage is named "{BACKBONE}", a reserved name; rename the stage', code="stage")
    return stages


def _export_graphs(inputs: _ExportInputs, folder: Path, progress: Progress) -> tuple[list[str], Quantization | None]:
    """Step 2. Returns the digest of the nodes of each stage model, and the record of an int8 backbone."""
    stages = inputs.stages
    structures: list[str] = []
    card = inputs.checkpoint
    captures: Captures = {}
    for stage, model in zip(stages, inputs.models, strict=True):
        progress("export", len(structures), len(stages))
        graph = stage_graph(model, card.feature_dim, card.kind, inputs.stage_precision, captures)
        save(graph, folder / stage.onnx)
        structures.append(structure_sha256(graph))
    quantization = None
    if inputs.calibration is not None:
        quantization = _quantise(inputs, folder, inputs.calibration)
    elif inputs.reduces_backbone:
        write_half_backbone(inputs.backbone_graph, folder / BACKBONE_ONNX_NAME)
    else:
        copy_graph(inputs.backbone_graph, folder / BACKBONE_ONNX_NAME)
    progress("export", len(stages), len(stages))
    return structures, quantization


def _quantise(inputs: _ExportInputs, folder: Path, calibration: CalibrationPatches) -> Quantization:
    """Steps 2 and 3 for an int8 backbone."""
    card = inputs.checkpoint
    stages = tuple((stage.name, stage.spacing_um) for stage in inputs.stages)
    wanted = PatchRequirements(stages, card.patch_px, card.tissue)
    return quantise_backbone(inputs.backbone_graph, folder / BACKBONE_ONNX_NAME, calibration, wanted)


def _compare_graphs(
    inputs: _ExportInputs, folder: Path, structures: list[str], form: ParityForm, progress: Progress
) -> ParityReport:
    """Step 3."""
    card, patch_px = inputs.checkpoint, inputs.checkpoint.patch_px
    every_count = [digest not in structures[:place] for place, digest in enumerate(structures)]
    plan = list(zip(inputs.stages, inputs.models, every_count, strict=True))
    total = sum(stage_case_count(model, every_count=every, form=form) for _, model, every in plan)
    comparisons = [
        check_stage_parity(
            stage.name,
            model,
            folder / stage.onnx,
            card.feature_dim,
            card.kind,
            inputs.stage_precision,
            every_count=every,
            form=form,
        )
        for stage, model, every in plan
    ]
    if inputs.reduces_backbone and inputs.calibration is None:
        total += sum(1 for _ in backbone_cases(((patch_px, patch_px),)))
        comparisons.insert(0, check_half_parity(inputs.backbone_graph, folder / BACKBONE_ONNX_NAME, patch_px))
    rows: list[ParityRow] = []
    for done, case_rows in enumerate(chain.from_iterable(comparisons), start=1):
        rows.extend(case_rows)
        progress("parity", done, total)
    enforce_parity(rows)
    tolerance = TOLERANCES[inputs.stage_precision]
    _warn_of_ill_conditioned(rows)
    return ParityReport(precision=inputs.precision, tolerance=tolerance, rows=tuple(rows))


def _compare_verdicts(inputs: _ExportInputs, folder: Path, slides: SlideRunner, report: ParityReport) -> ParityReport:
    """Step 4. Returns the report with the comparison of verdicts."""
    threads = torch.get_num_threads()
    manifest = _manifest(inputs, folder)
    is_rounded = inputs.precision == "fp16"

    def open_graph(graph: str) -> Session:
        return open_rounded(folder / graph) if is_rounded else open_session(folder / graph, threads=threads)

    models = ModelSessions(
        open_session(inputs.backbone_graph, threads=threads),
        tuple(TorchStage(model, inputs.checkpoint.kind) for model in inputs.models),
    )
    expected = slides.run(manifest, models, "slides with the source models")
    graphs = ModelSessions(open_graph(BACKBONE_ONNX_NAME), tuple(open_graph(stage.onnx) for stage in inputs.stages))
    parity = compare_slides(
        expected, slides.run(manifest, graphs, "slides with the exported graphs"), what=slides.what, rounded=is_rounded
    )
    enforce_slide_parity(parity, inputs.precision)
    quantization = None if report.quantization is None else with_verdicts(report.quantization, parity)
    return report.model_copy(update={"slides": parity, "quantization": quantization})


def _warn_of_ill_conditioned(rows: list[ParityRow]) -> None:
    """Log a warning for each comparison whose allowed error was raised because of the float32 error of the model."""
    for row in rows:
        if row.is_raised:
            _log.warning(
                'stage "%s" is ill-conditioned at %s patches: the torch model in float32 has an error of %.1e on %s',
                row.model,
                row.lengths.get("patches"),
                row.source_error,
                row.tensor,
            )


def _finish(inputs: _ExportInputs, folder: Path, parity: ParityReport) -> None:
    """Steps 5 and 6."""
    card = inputs.checkpoint
    backbone_parity = _backbone_parity(inputs.backbone_dir)
    if inputs.reduces_backbone and backbone_parity is not None:
        backbone_parity = with_model_name(backbone_parity, f"{BACKBONE}, fp32")
    encoder_precision = (
        inputs.precision if inputs.reduces_backbone or backbone_parity is None else backbone_parity.precision
    )
    encoder = folder / BACKBONE_ONNX_NAME if inputs.calibration is not None else inputs.backbone_graph
    cases = [backbone_case(encoder, card.patch_px, encoder_precision)]
    for stage, model in zip(card.stages, inputs.models, strict=True):
        cases.append(stage_case(stage.name, model, card.feature_dim, card.kind, inputs.stage_precision))
    write_selftest(folder / SELFTEST_NAME, cases)
    everything = (*(backbone_parity.rows if backbone_parity else ()), *parity.rows)
    write_text(folder / PARITY_NAME, parity.model_copy(update={"rows": everything}).model_dump_json(indent=2) + "\n")
    text = model_card(
        card,
        inputs.backbone,
        intended_use=inputs.intended_use,
        keep_reason=inputs.keep_reason,
        parity=parity,
        backbone_parity=backbone_parity,
    )
    write_text(folder / MODEL_CARD_NAME, text)
    write_manifest(folder, _manifest(inputs, folder, parity.quantization))


def _backbone_parity(backbone_dir: Path) -> ParityReport | None:
    path = backbone_dir / PARITY_NAME
    try:
        return ParityReport.model_validate_json(path.read_bytes()) if path.is_file() else None
    except ValidationError as error:
        raise BundleError(f'"{path}" is not valid: {first_problem(error)}', code="bundle_invalid") from error


def _manifest(inputs: _ExportInputs, folder: Path, quantization: Quantization | None = None) -> Manifest:
    card, backbone = inputs.checkpoint, inputs.backbone
    try:
        return Manifest(
            kind=card.kind,
            readout=card.readout,
            attention=card.attention,
            classes=card.classes,
            hierarchy=card.hierarchy,
            patch_px=card.patch_px,
            stages=inputs.stages,
            backbone=Backbone(
                onnx=BACKBONE_ONNX_NAME,
                features=backbone.features,
                name=backbone.name,
                reduced_from=backbone.sha256 if inputs.reduces_backbone else None,
            ),
            tissue=card.tissue,
            precision=inputs.precision,
            quantization=quantization,
            opsets=_opsets(inputs, folder),
            domains=_domains(inputs, folder),
            tested=card.tested,
            certainty=card.certainty,
            files=file_entries(folder),
            provenance=Provenance(
                created=datetime.now(UTC),
                hagmil=__version__,
                versions=export_versions(),
                checkpoint_sha256=card.weights_sha256,
                backbone_weights=backbone.weights,
                training={**card.origin(), "backbone_proven": card.backbone is not None and card.backbone.proven},
            ),
            intended_use=inputs.intended_use,
        )
    except ValidationError as error:
        raise BundleError(
            f"the checkpoint cannot become a bundle: {first_problem(error)}", code="bundle_invalid"
        ) from error


def _graphs(inputs: _ExportInputs) -> tuple[str, ...]:
    return (BACKBONE_ONNX_NAME, *(stage.onnx for stage in inputs.stages))


def _opsets(inputs: _ExportInputs, folder: Path) -> dict[str, int]:
    return {graph: opset_of(onnx.load(folder / graph, load_external_data=False)) for graph in _graphs(inputs)}


def _domains(inputs: _ExportInputs, folder: Path) -> tuple[str, ...]:
    """Domains of the graphs' operators besides the standard domain."""
    return tuple(sorted(set().union(*(graph_references(folder / graph).domains for graph in _graphs(inputs)))))


def _default_intended_use(card: CheckpointCard) -> str:
    return (
        f"{RESEARCH_USE_ONLY} Classification into {', '.join(card.classes)} of whole-slide images of haematoxylin "
        "and eosin like the training slides."
    )
