"""The model card of a bundle, ``MODEL_CARD.md``."""

from __future__ import annotations

import json
from collections.abc import Sequence

from hagmil.bundle import BackboneCard, Quantization, TestedKeep
from hagmil.export.parity.compare import PARITY_NAME, ParityReport, ParityRow, worst_by_tensor
from hagmil.export.parity.slide_parity import SlideParity
from hagmil.export.tracing import OPSET
from hagmil.trainer.checkpoints.checkpoint import CheckpointCard, CheckpointStage

MODEL_CARD_NAME = "MODEL_CARD.md"
Row = tuple[str, ...]


def model_card(
    checkpoint: CheckpointCard,
    backbone: BackboneCard,
    *,
    intended_use: str,
    keep_reason: str,
    parity: ParityReport,
    backbone_parity: ParityReport | None,
) -> str:
    """Return the model card of a bundle.

    Args:
        checkpoint: the card of the checkpoint that was exported.
        backbone: the card of its backbone.
        intended_use: intended use of the bundle.
        keep_reason: why the bundle keeps its number of patches; empty for a model with a single stage.
        parity: comparison of the graphs with their source.
        backbone_parity: comparison of the backbone with its source; None if unknown.

    Returns:
        Markdown text.
    """
    sections = (
        f"# {checkpoint.kind} model for {', '.join(checkpoint.classes)}",
        intended_use,
        "## Model\n\n" + _model(checkpoint, backbone, parity),
        *(("## Kept patches\n\n" + _kept_patches(checkpoint, keep_reason),) if keep_reason else ()),
        "## Training\n\n" + _training(checkpoint),
        "## Expected input\n\n" + _expectations(checkpoint),
        "## Limitations\n\n" + _limits(checkpoint),
        "## Parity\n\n" + _parity(parity, backbone_parity),
    )
    return "\n\n".join(sections) + "\n"


def _model(checkpoint: CheckpointCard, backbone: BackboneCard, parity: ParityReport) -> str:
    head = ("stage", "um/px", "patches kept for the next stage", "graph")
    stages = _table(head, [_stage_row(stage) for stage in checkpoint.stages])
    return (
        f"Patches of {checkpoint.patch_px} x {checkpoint.patch_px} pixels are encoded by `{backbone.name}` "
        f"({backbone.features} features; weights: {backbone.weights}). {_backbone_note(checkpoint)}"
        "The stages run from coarse to fine, each on the children of the patches that the previous stage kept; the "
        "last stage gives the verdict. "
        f"{_precisions(parity)}, opset {OPSET}.\n\n{stages}{_hierarchy(checkpoint)}"
    )


def _precisions(parity: ParityReport) -> str:
    if parity.precision == "int8":
        return "The encoder is int8, the stage models are fp32"
    return f"The graphs are {parity.precision}"


def _backbone_note(checkpoint: CheckpointCard) -> str:
    if checkpoint.backbone is not None and checkpoint.backbone.proven:
        return ""
    return (
        "It is not verified that the models were trained on features of this encoder: the person who imported or "
        "exported the checkpoint named it. "
    )


def _hierarchy(checkpoint: CheckpointCard) -> str:
    """The table of coarse and fine classes; empty without a hierarchy."""
    hierarchy = checkpoint.hierarchy
    if hierarchy is None:
        return ""
    rows = [
        (fine, hierarchy.coarse[parent]) for fine, parent in zip(hierarchy.fine, hierarchy.fine_to_coarse, strict=True)
    ]
    return "\n\n" + _table(("fine class", "coarse class"), rows)


def _stage_row(stage: CheckpointStage) -> Row:
    keep = "(gives the verdict)" if stage.keep is None else f"{stage.keep}"
    return (stage.name, f"{stage.spacing_um:g}", keep, f"`{stage.name}.onnx`")


def _kept_patches(checkpoint: CheckpointCard, reason: str) -> str:
    """The reason for the number of kept patches, the test that it is based on, and the threshold of sure verdicts."""
    parts = [reason]
    if checkpoint.tested is not None:
        tested = checkpoint.tested
        head = ("kept patches", "right", "agree with all patches", "patches read, mean")
        rows = [
            ("all" if row.keep is None else f"{row.keep}", *map(percent, (row.right, row.agreement)), _read(row))
            for row in tested.keeps
        ]
        parts.append(
            f"Verdicts of {tested.slides} validation slides of {tested.smallest_bag:,} to {tested.largest_bag:,} "
            f"patches at the coarsest stage:\n\n{_table(head, rows)}"
        )
    if checkpoint.certainty is not None:
        certainty = checkpoint.certainty
        parts.append(
            f"In adaptive runs, a verdict is sure above a margin of {certainty.threshold:.4g}, a heuristic: the "
            f"{certainty.level:.0%} quantile of the margins of these slides. {percent(certainty.unsure)} of their "
            "verdicts are unsure."
        )
    return "\n\n".join(parts)


def _read(row: TestedKeep) -> str:
    return f"{row.patches_read:,.0f}"


def _training(checkpoint: CheckpointCard) -> str:
    """The origin of the checkpoint, one row per key; the keys depend on the kind of checkpoint."""
    rows: list[Row] = []
    for key, value in checkpoint.origin().items():
        if isinstance(value, dict):
            rows.extend((f"{key}: {name}", _cell(part)) for name, part in value.items())
        else:
            rows.append((key, _cell(value)))
    rows.append(("weights_sha256", f"`{checkpoint.weights_sha256}`"))
    return _table(("", ""), rows)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def _expectations(checkpoint: CheckpointCard) -> str:
    tissue = checkpoint.tissue
    finest = checkpoint.stages[-1].spacing_um
    return (
        "- Whole-slide images of haematoxylin and eosin, brightfield, like the training slides.\n"
        f"- A known spacing of {finest:g} um/px or finer; patches are read at "
        f"{', '.join(f'{stage.spacing_um:g}' for stage in checkpoint.stages)} um/px.\n"
        f"- Tissue is detected at {tissue.spacing_um:g} um/px by saturation ({tissue.method}, threshold "
        f"{tissue.threshold}); a coarse patch needs at least {tissue.min_share:.0%} of tissue."
    )


def _limits(checkpoint: CheckpointCard) -> str:
    return (
        "Do not use this model for:\n\n"
        "- Diagnosis, or any decision about a patient.\n"
        "- Stains, organs, scanners or preparations other than those of its training, without your own validation.\n"
        f"- Slides that may belong to none of its classes ({', '.join(checkpoint.classes)}): it assigns one of them to "
        "every slide.\n"
        "- Measuring lesions: attention shows what the verdict is based on and is not a segmentation."
    )


def _parity(parity: ParityReport, backbone_parity: ParityReport | None) -> str:
    rows = [*(backbone_parity.rows if backbone_parity else ()), *parity.rows]
    head = (
        "graph",
        "tensor",
        "comparisons",
        "error",
        "at",
        "allowed",
        "float32 error of the source",
    )
    table = _table(head, [_parity_row(row, comparisons) for row, comparisons in worst_by_tensor(rows)])
    rounding = (
        " The graphs compute in fp16. Every operation was rounded to 16 bits for the comparison, because ONNX Runtime "
        "computes fp16 graphs in fp32 on CPUs."
        if parity.precision == "fp16"
        else ""
    )
    return (
        "The error of a graph in ONNX Runtime on the CPU is its largest absolute difference from the source: the torch "
        "model in float64 (in float32 if the graph is well within the tolerance of it), or the fp32 graph of a "
        f"converted backbone.{rounding} Each row shows the comparison closest to its allowed error; `{PARITY_NAME}` "
        f"contains all comparisons.\n\n{table}\n\n{_quantisation(parity.quantization)}{_slides(parity.slides)}"
    )


def _quantisation(of: Quantization | None) -> str:
    """The paragraph about an int8 encoder; empty for other precisions."""
    if of is None:
        return ""
    speed = of.throughput
    return (
        f"The encoder computes in int8 ({of.scheme}{', of 7 bits' if of.reduced_range else ''}; "
        f"its first matrix product in {of.first_product}), calibrated on "
        f"{of.calibration_patches} patches of {of.calibration}. On {of.compared_patches} other patches of these slides "
        f"the smallest cosine between its features and those of the fp32 graph is {of.least_cosine:.4f} (at least "
        f"{of.allowed_cosine:g} required), and the relative error is {of.relative_error:.2%} (at most "
        f"{of.allowed_relative_error:.0%} allowed). At least {of.allowed_alike:.0%} of kept patches must be the same. "
        f"The encoder processes {speed.int8_patches_per_s:.1f} patches/s in int8 and {speed.fp32_patches_per_s:.1f} in "
        f"fp32 ({speed.gain:.2f} times as many; {speed.processor}, threads: {speed.threads}, batch {speed.batch}).\n\n"
    )


def _parity_row(row: ParityRow, comparisons: int) -> Row:
    lengths = ", ".join(f"{axis} {length}" for axis, length in row.lengths.items())
    own = "" if row.source_error is None else f"{row.source_error:.1e}"
    at = f"{lengths} ({row.sample})"
    return (row.model, row.tensor, f"{comparisons}", f"{row.error:.1e}", at, f"{row.allowed:.1e}", own)


def _slides(slides: SlideParity | None) -> str:
    """The comparison of verdicts."""
    if slides is None:
        return "Verdicts on slides were not compared."
    head = (
        "stage",
        "patches kept",
        "same kept patches",
        "on the worst slide",
        "same patches read",
        "lowest rank correlation of attention",
    )
    rows = [
        (
            stage.name,
            f"{stage.kept}",
            percent(stage.kept_alike),
            percent(stage.least_alike),
            percent(stage.read_alike),
            "" if stage.least_correlation is None else f"{stage.least_correlation:.6f}",
        )
        for stage in slides.stages
    ]
    return (
        f"Verdicts of the torch models and of the graphs on {slides.what}: {slides.equal_verdicts} of "
        f"{slides.with_verdict} are equal; the largest change of a probability is {slides.largest_change:.1e}.\n\n"
        f"{_table(head, rows)}"
    )


def percent(share: float | None) -> str:
    """Format a share for a table; empty for None."""
    return "" if share is None else f"{share:.2%}"


def _table(head: Row, rows: Sequence[Row]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
