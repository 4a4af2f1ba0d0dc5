"""``MODEL_CARD.md``: what a bundle is, was trained on, expects and must not be used for, and its parity."""

from __future__ import annotations

import json
from collections.abc import Sequence

from hagmil.bundle import BackboneCard, Quantization
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
    parity: ParityReport,
    backbone_parity: ParityReport | None,
) -> str:
    """Compose a bundle's model card.

    Args:
        checkpoint: the card of the checkpoint that was exported.
        backbone: the card of its backbone.
        intended_use: what the bundle may be used for.
        parity: how its stages were held against their source.
        backbone_parity: how its backbone was, where that is known.

    Returns:
        Markdown.
    """
    sections = (
        f"# {checkpoint.kind} model for {', '.join(checkpoint.classes)}",
        intended_use,
        "## What it is\n\n" + _what_it_is(checkpoint, backbone, parity),
        "## What it was trained on\n\n" + _training(checkpoint),
        "## What it expects\n\n" + _expectations(checkpoint),
        "## What it must not be used for\n\n" + _limits(checkpoint),
        "## Parity\n\n" + _parity(parity, backbone_parity),
    )
    return "\n\n".join(sections) + "\n"


def _what_it_is(checkpoint: CheckpointCard, backbone: BackboneCard, parity: ParityReport) -> str:
    head = ("stage", "um/px", "patches kept for the next stage", "graph")
    stages = _table(head, [_stage_row(stage) for stage in checkpoint.stages])
    return (
        f"Patches of {checkpoint.patch_px} x {checkpoint.patch_px} pixels are encoded by `{backbone.name}` "
        f"({backbone.features} features; weights: {backbone.weights}). {_backbone_proof(checkpoint)}"
        f"The stages run from coarse to fine, "
        f"each on the children of the patches that the one before kept; the last gives the verdict. "
        f"{_precisions(parity)}, opset {OPSET}.\n\n{stages}{_hierarchy(checkpoint)}"
    )


def _precisions(parity: ParityReport) -> str:
    if parity.precision == "int8":
        return "The encoder is int8, the graphs of the stages are fp32"
    return f"The graphs of the stages are {parity.precision}"


def _backbone_proof(checkpoint: CheckpointCard) -> str:
    if checkpoint.backbone is not None and checkpoint.backbone.proven:
        return ""
    return (
        "That the models were trained on features of this encoder was said by whoever imported or exported "
        "them; nothing proves it. "
    )


def _hierarchy(checkpoint: CheckpointCard) -> str:
    """The labels' two layers, where they have two."""
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


def _training(checkpoint: CheckpointCard) -> str:
    """The training as the checkpoint tells it, key by key: what it says depends on the kind of checkpoint."""
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
        "- Whole-slide images of haematoxylin and eosin, brightfield, like those that it was trained on.\n"
        f"- A known spacing, {finest:g} um/px or finer: patches are read at "
        f"{', '.join(f'{stage.spacing_um:g}' for stage in checkpoint.stages)} um/px.\n"
        f"- Tissue found at {tissue.spacing_um:g} um/px by saturation ({tissue.method}, threshold "
        f"{tissue.threshold}), at least {tissue.min_share:.0%} of a coarse patch."
    )


def _limits(checkpoint: CheckpointCard) -> str:
    return (
        "- Diagnosis, or any decision about a patient.\n"
        "- Other stains, organs, scanners or preparations than those of its training, without a validation "
        "of one's own.\n"
        f"- Questions that {', '.join(checkpoint.classes)} do not answer: it chooses one of these for every "
        "slide, also where none is right.\n"
        "- Measuring lesions by its attention, which shows what the verdict rests on and is no segmentation."
    )


def _parity(parity: ParityReport, backbone_parity: ParityReport | None) -> str:
    rows = [*(backbone_parity.rows if backbone_parity else ()), *parity.rows]
    head = (
        "graph",
        "tensor",
        "comparisons",
        "largest error",
        "at",
        "allowed",
        "source's own error",
    )
    table = _table(head, [_parity_row(row, comparisons) for row, comparisons in worst_by_tensor(rows)])
    rounding = (
        " The graphs compute in fp16: where their error counts, every operation of them was rounded to 16 bits, which "
        "this runtime does not do by itself."
        if parity.precision == "fp16"
        else ""
    )
    return (
        "Errors of the graphs in ONNX Runtime on the CPU: the largest absolute difference from their source, which is "
        "the torch model in float64 (in float32 where the graph is far within the tolerance of it; for a reduced "
        f"backbone its fp32 graph).{rounding} The source's own error is that of the torch model in float32. Each "
        "line shows the comparison that came nearest to what is allowed; every comparison is in "
        f"`{PARITY_NAME}`.\n\n{table}\n\n{_quantisation(parity.quantization)}{_slides(parity.slides)}"
    )


def _quantisation(of: Quantization | None) -> str:
    """What became of an encoder in int8."""
    if of is None:
        return ""
    speed = of.throughput
    return (
        f"The encoder computes in int8 ({of.scheme}{', of 7 bits' if of.reduced_range else ''}; "
        f"its first matrix product in {of.first_product}), calibrated on "
        f"{of.calibration_patches} patches of {of.calibration}. On {of.compared_patches} other patches of theirs its "
        f"features have a cosine of {of.least_cosine:.4f} at least with those of its fp32 graph "
        f"({of.allowed_cosine:g} must be) and a relative error of {of.relative_error:.2%} "
        f"({of.allowed_relative_error:.0%} allowed); {of.allowed_alike:.0%} of kept patches must be the same. "
        f"It encodes {speed.int8_patches_per_s:.1f} patches/s, in fp32 {speed.fp32_patches_per_s:.1f} "
        f"({speed.gain:.2f} times as many; {speed.processor}, threads: {speed.threads}, batch {speed.batch}).\n\n"
    )


def _parity_row(row: ParityRow, comparisons: int) -> Row:
    lengths = ", ".join(f"{axis} {length}" for axis, length in row.lengths.items())
    own = "" if row.source_error is None else f"{row.source_error:.1e}"
    at = f"{lengths} ({row.sample})"
    return (row.model, row.tensor, f"{comparisons}", f"{row.error:.1e}", at, f"{row.allowed:.1e}", own)


def _slides(slides: SlideParity | None) -> str:
    """What became of verdicts."""
    if slides is None:
        return "Verdicts on slides were not compared."
    head = ("stage", "patches kept", "kept alike", "on the worst slide", "read alike", "rank correlation of attention")
    rows = [
        (
            stage.name,
            f"{stage.kept}",
            percent(stage.kept_alike),
            percent(stage.least_alike),
            percent(stage.read_alike),
            "" if stage.least_correlation is None else f"{stage.least_correlation:.6f} at least",
        )
        for stage in slides.stages
    ]
    return (
        f"Verdicts on {slides.what}, by the torch models and by the graphs: {slides.equal_verdicts} of "
        f"{slides.with_verdict} are the same; a probability changes by {slides.largest_change:.1e} at most.\n\n"
        f"{_table(head, rows)}"
    )


def percent(share: float | None) -> str:
    """A share in words of a table; nothing where there is none."""
    return "" if share is None else f"{share:.2%}"


def _table(head: Row, rows: Sequence[Row]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
