"""From a checkpoint and a backbone to a bundle that is proven.

1. Open both, and make sure that they belong together.
2. Export each stage's model, and put the backbone beside them, in half precision or int8 where that is asked for.
3. Hold each graph against its source, and end on a difference; nothing is left behind then.
4. Where there are slides, hold verdicts against verdicts, and end on a difference.
5. Put the self-test, the parity report and the model card beside the graphs.
6. Write the manifest with every file's digest; the folder appears whole or not at all.
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
    first_problem,
    new_folder,
    open_backbone,
    open_bundle,
    write_manifest,
)
from hagmil.errors import BundleError, UsageError
from hagmil.export.backbones.export_backbone import backbone_cases
from hagmil.export.graph import copy_graph, opset_of, save
from hagmil.export.half_backbone import check_half_parity, write_half_backbone
from hagmil.export.int8.backbone import CalibrationPatches, PatchRequirements, quantise_backbone, with_verdicts
from hagmil.export.model_card import MODEL_CARD_NAME, model_card
from hagmil.export.parity.compare import (
    PARITY_NAME,
    TOLERANCES,
    ParityReport,
    ParityRow,
    Tolerance,
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
    """What an export made.

    Args:
        bundle: the bundle, opened and verified.
        parity: every comparison of its stages.
        seconds: wall-clock seconds by step: ``export``, ``parity``, ``slides``, ``rest``.
    """

    bundle: Bundle
    parity: ParityReport
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class _Source:
    """What a bundle is made of."""

    checkpoint: CheckpointCard
    stages: tuple[Stage, ...]
    models: tuple[nn.Module, ...]
    backbone: BackboneCard
    backbone_dir: Path
    precision: Precision
    intended_use: str
    calibration: CalibrationPatches | None

    @property
    def stage_precision(self) -> Precision:
        """That the stages are exported in; int8 is for backbones."""
        return "fp32" if self.precision == "int8" else self.precision

    @property
    def backbone_graph(self) -> Path:
        """The backbone's graph as it was given."""
        return self.backbone_dir / self.backbone.onnx

    @property
    def reduces_backbone(self) -> bool:
        """Whether the bundle's backbone is made from the one that was given."""
        parity = _backbone_parity(self.backbone_dir)
        return self.precision != "fp32" and (parity is None or parity.precision == "fp32")


def export_bundle(
    checkpoint_dir: Path,
    backbone_dir: Path,
    out_dir: Path,
    *,
    precision: Precision = "fp32",
    parity_form: ParityForm = "default",
    slides: SlideRunner | None = None,
    calibration: CalibrationPatches | None = None,
    intended_use: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Export a checkpoint into a bundle, and prove it.

    Args:
        checkpoint_dir: a checkpoint folder, its weights file, or a run folder (then its best checkpoint).
        backbone_dir: the backbone whose features it was trained on, as :func:`export_backbone` wrote it.
        out_dir: the bundle's folder.
        precision: of all graphs inside; their inputs and outputs are float32. Half precision must be earned: every
            comparison is made with every operation rounded to 16 bits. With int8 the backbone is quantised and the
            stages stay float32; it needs ``calibration`` and ``slides``.
        parity_form: ``long`` holds the stages at 10,000 and 40,000 patches too.
        slides: takes slides through the cascade, so that verdicts are compared too; None to leave that out.
        calibration: gives the patches that int8 is calibrated and held on; None with other precisions.
        intended_use: what the bundle may be used for; a general statement where none is given.
        overwrite: replace what is in ``out_dir``.
        progress: called as graphs are exported and comparisons are made.

    Returns:
        The bundle and how it was proven.

    Raises:
        UsageError: ``out_dir`` is there already, or int8 is asked for without calibration or slides.
        BundleError: checkpoint or backbone cannot be used, or do not belong together.
        ParityError: a graph's numbers are not its model's, or verdicts differ; nothing is left in ``out_dir``.
    """
    if (precision == "int8") != (calibration is not None):
        raise UsageError("int8, and nothing else, is calibrated: precision int8 goes with calibration patches")
    if precision == "int8" and slides is None:
        raise UsageError("int8 is accepted only where verdicts stay the same; give slides to compare them on")
    source = _open(checkpoint_dir, backbone_dir, precision, intended_use, calibration)  # step 1
    tell = progress or no_progress
    seconds: dict[str, float] = {}
    with new_folder(out_dir, overwrite=overwrite) as folder:
        start = perf_counter()
        structures, quantization = _export_graphs(source, folder, tell)
        seconds["export"] = perf_counter() - start
        start = perf_counter()
        parity = _prove(source, folder, structures, parity_form, tell)
        parity = parity.model_copy(update={"quantization": quantization})
        seconds["parity"] = perf_counter() - start
        start = perf_counter()
        if slides is not None:
            parity = _prove_slides(source, folder, slides, parity)
        seconds["slides"] = perf_counter() - start
        start = perf_counter()
        _complete(source, folder, parity)
        seconds["rest"] = perf_counter() - start
    return ExportReport(open_bundle(out_dir), parity, seconds)


def _open(
    checkpoint_dir: Path,
    backbone_dir: Path,
    precision: Precision,
    intended_use: str | None,
    calibration: CalibrationPatches | None,
) -> _Source:
    """Step 1."""
    checkpoint = load_checkpoint(checkpoint_dir)
    backbone = open_backbone(backbone_dir)
    _check_fit(checkpoint.card, backbone)
    source = _Source(
        checkpoint=checkpoint.card,
        stages=_stages(checkpoint.card),
        models=tuple(build_models(checkpoint)),
        backbone=backbone,
        backbone_dir=backbone_dir,
        precision=precision,
        intended_use=intended_use or _general_use(checkpoint.card),
        calibration=calibration,
    )
    if precision == "int8" and not source.reduces_backbone:
        raise BundleError(f'backbone "{backbone.name}" is in half precision; int8 is made of fp32', code="precision")
    return source


def _check_fit(checkpoint: CheckpointCard, backbone: BackboneCard) -> None:
    trained_on = checkpoint.backbone
    if trained_on is None:
        _log.warning(
            'the checkpoint does not know its backbone; "%s" is taken on your word, and the bundle says so',
            backbone.name,
        )
    elif trained_on.sha256 != backbone.sha256:
        raise BundleError(
            f'the checkpoint was trained on features of backbone "{trained_on.name}" '
            f'({trained_on.sha256[:12]}...), but "{backbone.name}" ({backbone.sha256[:12]}...) was given; '
            "give the backbone that extracted them",
            code="backbone_mismatch",
        )
    if checkpoint.feature_dim != backbone.features:
        raise BundleError(
            f"the checkpoint takes {checkpoint.feature_dim} features, the backbone gives {backbone.features}",
            code="backbone_mismatch",
        )
    if backbone.patch_px not in (None, checkpoint.patch_px):
        raise BundleError(
            f"the checkpoint was trained on patches of {checkpoint.patch_px} pixels, the backbone takes "
            f"{backbone.patch_px}",
            code="backbone_mismatch",
        )


def _stages(checkpoint: CheckpointCard) -> tuple[Stage, ...]:
    """The stages as the manifest has them; their names become names of files."""
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
        raise BundleError(f'a stage is named "{BACKBONE}", the name of another graph', code="stage")
    return stages


def _export_graphs(source: _Source, folder: Path, tell: Progress) -> tuple[list[str], Quantization | None]:
    """Step 2; gives the digest of each stage's nodes, and what became of a backbone in int8."""
    stages = source.stages
    structures: list[str] = []
    card = source.checkpoint
    captures: Captures = {}
    for stage, model in zip(stages, source.models, strict=True):
        tell("export", len(structures), len(stages))
        graph = stage_graph(model, card.feature_dim, card.kind, source.stage_precision, captures)
        save(graph, folder / stage.onnx)
        structures.append(structure_sha256(graph))
    quantization = None
    if source.calibration is not None:
        quantization = _quantise(source, folder, source.calibration)
    elif source.reduces_backbone:
        write_half_backbone(source.backbone_graph, folder / BACKBONE_ONNX_NAME)
    else:
        copy_graph(source.backbone_graph, folder / BACKBONE_ONNX_NAME)
    tell("export", len(stages), len(stages))
    return structures, quantization


def _quantise(source: _Source, folder: Path, calibration: CalibrationPatches) -> Quantization:
    """Step 2, and the backbone's part of step 3, for int8."""
    card = source.checkpoint
    stages = tuple((stage.name, stage.spacing_um) for stage in source.stages)
    wanted = PatchRequirements(stages, card.patch_px, card.tissue)
    return quantise_backbone(source.backbone_graph, folder / BACKBONE_ONNX_NAME, calibration, wanted)


def _prove(source: _Source, folder: Path, structures: list[str], form: ParityForm, tell: Progress) -> ParityReport:
    """Step 3."""
    card, patch_px = source.checkpoint, source.checkpoint.patch_px
    every_count = [digest not in structures[:place] for place, digest in enumerate(structures)]
    plan = list(zip(source.stages, source.models, every_count, strict=True))
    total = sum(stage_case_count(model, every_count=every, form=form) for _, model, every in plan)
    held = [
        check_stage_parity(
            stage.name,
            model,
            folder / stage.onnx,
            card.feature_dim,
            card.kind,
            source.stage_precision,
            every_count=every,
            form=form,
        )
        for stage, model, every in plan
    ]
    if source.reduces_backbone and source.calibration is None:
        total += sum(1 for _ in backbone_cases(((patch_px, patch_px),)))
        held.insert(0, check_half_parity(source.backbone_graph, folder / BACKBONE_ONNX_NAME, patch_px))
    rows: list[ParityRow] = []
    for done, case_rows in enumerate(chain.from_iterable(held), start=1):
        rows.extend(case_rows)
        tell("parity", done, total)
    enforce_parity(rows)
    tolerance = TOLERANCES[source.stage_precision]
    _warn_of_ill_conditioned(rows, tolerance)
    return ParityReport(precision=source.precision, tolerance=tolerance, rows=tuple(rows))


def _prove_slides(source: _Source, folder: Path, slides: SlideRunner, report: ParityReport) -> ParityReport:
    """Step 4; gives the report with what became of verdicts."""
    threads = torch.get_num_threads()
    manifest = _manifest(source, folder)
    is_rounded = source.precision == "fp16"

    def opened(graph: str) -> Session:
        return open_rounded(folder / graph) if is_rounded else open_session(folder / graph, threads=threads)

    models = ModelSessions(
        open_session(source.backbone_graph, threads=threads),
        tuple(TorchStage(model, source.checkpoint.kind) for model in source.models),
    )
    wanted = slides.run(manifest, models, "slides by the models")
    graphs = ModelSessions(opened(BACKBONE_ONNX_NAME), tuple(opened(stage.onnx) for stage in source.stages))
    parity = compare_slides(
        wanted, slides.run(manifest, graphs, "slides by the graphs"), what=slides.what, rounded=is_rounded
    )
    enforce_slide_parity(parity, source.precision)
    quantization = None if report.quantization is None else with_verdicts(report.quantization, parity)
    return report.model_copy(update={"slides": parity, "quantization": quantization})


def _warn_of_ill_conditioned(rows: list[ParityRow], tolerance: Tolerance) -> None:
    """Say so where more than the stated tolerance was allowed, because the model in float32 is itself off."""
    for row in rows:
        if row.allowed > tolerance.at(row.largest):
            _log.warning(
                'stage "%s" is ill-conditioned at %s patches: torch in float32 is itself off by %.1e on %s',
                row.model,
                row.lengths.get("patches"),
                row.source_error,
                row.tensor,
            )


def _complete(source: _Source, folder: Path, parity: ParityReport) -> None:
    """Steps 5 and 6."""
    card = source.checkpoint
    backbone_parity = _backbone_parity(source.backbone_dir)
    if source.reduces_backbone and backbone_parity is not None:
        backbone_parity = with_model_name(backbone_parity, f"{BACKBONE}, fp32")
    encoder_precision = (
        source.precision if source.reduces_backbone or backbone_parity is None else backbone_parity.precision
    )
    encoder = folder / BACKBONE_ONNX_NAME if source.calibration is not None else source.backbone_graph
    cases = [backbone_case(encoder, card.patch_px, encoder_precision)]
    for stage, model in zip(card.stages, source.models, strict=True):
        cases.append(stage_case(stage.name, model, card.feature_dim, card.kind, source.stage_precision))
    write_selftest(folder / SELFTEST_NAME, cases)
    everything = (*(backbone_parity.rows if backbone_parity else ()), *parity.rows)
    write_text(folder / PARITY_NAME, parity.model_copy(update={"rows": everything}).model_dump_json(indent=2) + "\n")
    text = model_card(
        card,
        source.backbone,
        intended_use=source.intended_use,
        parity=parity,
        backbone_parity=backbone_parity,
    )
    write_text(folder / MODEL_CARD_NAME, text)
    write_manifest(folder, _manifest(source, folder, parity.quantization))


def _backbone_parity(backbone_dir: Path) -> ParityReport | None:
    path = backbone_dir / PARITY_NAME
    return ParityReport.model_validate_json(path.read_bytes()) if path.is_file() else None


def _manifest(source: _Source, folder: Path, quantization: Quantization | None = None) -> Manifest:
    card, backbone = source.checkpoint, source.backbone
    try:
        return Manifest(
            kind=card.kind,
            classes=card.classes,
            hierarchy=card.hierarchy,
            patch_px=card.patch_px,
            stages=source.stages,
            backbone=Backbone(
                onnx=BACKBONE_ONNX_NAME,
                features=backbone.features,
                name=backbone.name,
                reduced_from=backbone.sha256 if source.reduces_backbone else None,
            ),
            tissue=card.tissue,
            precision=source.precision,
            quantization=quantization,
            opsets=_opsets(source, folder),
            files=file_entries(folder),
            provenance=Provenance(
                created=datetime.now(UTC),
                hagmil=__version__,
                versions=export_versions(),
                checkpoint_sha256=card.weights_sha256,
                backbone_weights=backbone.weights,
                training={**card.origin(), "backbone_proven": card.backbone is not None and card.backbone.proven},
            ),
            intended_use=source.intended_use,
        )
    except ValidationError as error:
        raise BundleError(
            f"the checkpoint cannot become a bundle: {first_problem(error)}", code="bundle_invalid"
        ) from error


def _opsets(source: _Source, folder: Path) -> dict[str, int]:
    graphs = (BACKBONE_ONNX_NAME, *(stage.onnx for stage in source.stages))
    return {graph: opset_of(onnx.load(folder / graph, load_external_data=False)) for graph in graphs}


def _general_use(card: CheckpointCard) -> str:
    return (
        f"{RESEARCH_USE_ONLY} Telling apart {', '.join(card.classes)} on whole-slide images of haematoxylin "
        "and eosin like those of its training."
    )
