"""Export of a patch encoder to a backbone folder.

1. Find the encoder by name: ``resnet50-trunc``, ``tiny``, a path that ends in ``.onnx``, or a timm model.
2. Convert it to the contract's form: input uint8 (batch, height, width, 3), normalisation included, output features.
3. Compare the graph with its source over batch sizes, patch sizes and kinds of patches; a difference stops the export.
4. Write graph, card and parity report. The folder appears complete or not at all.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from hagmil._files import sha256_of, write_text
from hagmil._models import Within, first_problem
from hagmil._versions import export_versions
from hagmil.bundle import (
    BACKBONE_CARD_NAME,
    BACKBONE_ONNX_NAME,
    BackboneCard,
    Precision,
    new_folder,
)
from hagmil.bundle.backbone_card import DEVIATIONS, MEANS
from hagmil.bundle.graph_references import graph_references
from hagmil.errors import BundleError, UsageError
from hagmil.export.backbones import resnet, tiny
from hagmil.export.backbones.encoder import Channels, PatchEncoder, TorchBackbone
from hagmil.export.backbones.onnx_encoder import ANY_SIZE_PX, SUFFIX, OnnxEncoder, load_onnx_encoder
from hagmil.export.backbones.timm_models import PREFIX, timm_backbone, timm_is_installed
from hagmil.export.graph import data_files, opset_of, save
from hagmil.export.parity.compare import (
    PARITY_NAME,
    TOLERANCES,
    Arrays,
    GraphUnderTest,
    ParityCase,
    ParityReport,
    ParityRow,
    Run,
    SourceModel,
    compare,
    enforce_parity,
)
from hagmil.export.parity.synthetic_inputs import PATCH_KINDS, PatchKind, synthetic_patches
from hagmil.export.parity.torch_reference import torch_run
from hagmil.export.passes.check_contract import check_contract
from hagmil.export.tracing import trace
from hagmil.progress import Progress
from hagmil.runtime.sessions import open_session
from hagmil.selftest import BACKBONE
from hagmil.spec import BACKBONE_INPUTS, BACKBONE_OUTPUTS, PATCHES, TensorSpec

_log = logging.getLogger(__name__)

RANDOM = "random"
HUB = "hub"
_BATCHES = (1, 2, 7)
_BUILT_IN = {resnet.NAME: resnet.resnet50_trunc, tiny.NAME: tiny.tiny}


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A backbone in the contract's form, and the source to compare it with."""

    name: str
    model: onnx.ModelProto
    features: int
    mean: Channels | None
    std: Channels | None
    weights: str
    patch_px: int | None
    precision: Precision
    sizes: tuple[tuple[int, int], ...]  # (height, width) to compare at
    reference: Run
    source: Run | None


def export_backbone(
    name: str,
    weights: str | None,
    out_dir: Path,
    *,
    patch_px: int | None = None,
    mean: Channels | None = None,
    std: Channels | None = None,
    output: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BackboneCard:
    """Write a patch encoder as ``backbone.onnx``, with ``backbone.json`` and ``parity.json``.

    Args:
        name: ``resnet50-trunc``, ``tiny``, a path that ends in ``.onnx``, ``timm:NAME`` or the name of a timm model.
        weights: a weights file; ``random`` for untrained weights; ``hub`` for the published weights of a timm model;
            None for the trained weights of ``tiny``, and for ONNX files, which contain their weights.
        out_dir: output folder.
        patch_px: patch size in pixels, for timm models with a fixed size; None for the size of the model.
        mean: mean of each channel, of pixels in 0..1, for ONNX files with float input.
        std: standard deviation of each channel, of pixels in 0..1, for ONNX files with float input.
        output: name of the output to use, for ONNX files with several.
        overwrite: replace an existing ``out_dir``.
        progress: called after each comparison.

    Returns:
        The card in ``backbone.json``.

    Raises:
        UsageError: the backbone or file does not exist, weights are missing, or options do not apply to it or are out
            of bounds.
        BundleError: the weights are refused or do not fit, or the graph cannot be a backbone.
        ParityError: outputs of the graph differ from the source; nothing is written.
        EnvironmentLacks: a package is missing.
    """
    is_onnx = name.endswith(SUFFIX)
    if not is_onnx and (mean or std or output):
        raise UsageError("--mean, --std and --output apply to ONNX encoders only")
    _check_channels("--mean", mean, MEANS)
    _check_channels("--std", std, DEVIATIONS)
    if is_onnx and (weights is not None or patch_px is not None):
        raise UsageError("--weights and --patch-px do not apply to ONNX encoders, which contain both")
    with new_folder(out_dir, overwrite=overwrite) as folder:
        if is_onnx:
            prepared = _from_onnx(load_onnx_encoder(Path(name), mean=mean, std=std, output=output))
        else:
            prepared = _from_torch(find_backbone(name, weights, patch_px=patch_px))
        return _write(prepared, folder, progress)


def find_backbone(name: str, weights: str | None, *, patch_px: int | None = None) -> TorchBackbone:
    """Load an encoder in torch (step 1); for the arguments see :func:`export_backbone`."""
    if name in _BUILT_IN:
        return _BUILT_IN[name](_built_in_weights(name, weights))
    if not name.startswith(PREFIX) and not timm_is_installed():
        raise UsageError(
            f'unknown backbone "{name}"; choose one of {", ".join(_BUILT_IN)} or a path that ends in {SUFFIX}, '
            "or install timm to use its models",
            code="no_backbone",
        )
    if weights is None:
        raise UsageError(f'"{name}" needs --weights: a file, {HUB}, or {RANDOM}', code="weights_missing")
    return timm_backbone(name.removeprefix(PREFIX), weights, patch_px=patch_px)


def _built_in_weights(name: str, weights: str | None) -> Path | None:
    """Return the file to load; None for random weights."""
    if weights == RANDOM:
        return None
    if weights is not None:
        return Path(weights)
    if name == tiny.NAME:
        return tiny.SHIPPED
    raise UsageError(f'"{name}" needs --weights: a file, or {RANDOM}', code="weights_missing")


def _from_torch(backbone: TorchBackbone) -> _Prepared:
    """Step 2 for an encoder in torch."""
    module = PatchEncoder(backbone.encoder, backbone.mean, backbone.std).eval()
    model, patch_px = _trace(module, backbone)
    side = backbone.native_px
    return _Prepared(
        name=backbone.name,
        model=model,
        features=backbone.features,
        mean=backbone.mean,
        std=backbone.std,
        weights=backbone.weights,
        patch_px=patch_px,
        precision="fp32",
        sizes=_sizes(side, patch_px, backbone.least_px),
        reference=torch_run(module, BACKBONE_INPUTS, BACKBONE_OUTPUTS, dtype=torch.float64),
        source=torch_run(module, BACKBONE_INPUTS, BACKBONE_OUTPUTS, dtype=torch.float32),
    )


def _trace(module: PatchEncoder, backbone: TorchBackbone) -> tuple[onnx.ModelProto, int | None]:
    """Export with dynamic height and width, or with fixed ones if the encoder accepts one size only."""
    side = backbone.native_px
    example = {"batch": 3, "height": side, "width": side}
    if backbone.patch_px is None:
        least = {"height": backbone.least_px, "width": backbone.least_px}
        try:
            return trace(module, BACKBONE_INPUTS, BACKBONE_OUTPUTS, example=example, least=least), None
        except BundleError as error:
            if backbone.name in _BUILT_IN:
                raise
            _log.warning('"%s" is exported for patches of %d pixels only: %s', backbone.name, side, error)
    return trace(module, (_fixed_patches(side),), BACKBONE_OUTPUTS, example=example), side


def _from_onnx(encoder: OnnxEncoder) -> _Prepared:
    """Step 2 for an ONNX file; the reference is the file itself, run on one patch at a time."""
    return _Prepared(
        name=encoder.name,
        model=encoder.model,
        features=encoder.features,
        mean=encoder.mean,
        std=encoder.std,
        weights=encoder.weights,
        patch_px=encoder.patch_px,
        precision=encoder.precision,
        sizes=_sizes(encoder.patch_px or ANY_SIZE_PX, encoder.patch_px, ANY_SIZE_PX // 4),
        reference=run_one_by_one(encoder.reference),
        source=None,
    )


def _fixed_patches(side_px: int) -> TensorSpec:
    return replace(PATCHES, axes=("batch", side_px, side_px, 3))


def _sizes(side_px: int, patch_px: int | None, least_px: int) -> tuple[tuple[int, int], ...]:
    """Return the sizes (height, width) to compare at: native, smallest, and one that is not square."""
    own = (side_px, side_px)
    return (own,) if patch_px is not None else (own, (least_px, least_px), (96, 80))


def backbone_cases(sizes: tuple[tuple[int, int], ...]) -> Iterator[ParityCase]:
    """Yield cases: every batch size and kind of patches at the last size, two tissue-like patches at the others.

    Args:
        sizes: (height, width) in pixels.
    """
    runs: list[tuple[PatchKind, int, tuple[int, int]]] = [("tissue", 2, size) for size in sizes[:-1]]
    runs += [("tissue", batch, sizes[-1]) for batch in _BATCHES]
    runs += [(kind, 2, sizes[-1]) for kind in PATCH_KINDS if kind != "tissue"]
    for seed, (kind, batch, (height, width)) in enumerate(runs):
        patches = synthetic_patches(kind, batch, height, width, seed=seed)
        yield ParityCase(kind, {"batch": batch, "height": height, "width": width}, {PATCHES.name: patches})


def _compare(prepared: _Prepared, graph: Path, progress: Progress | None) -> list[ParityRow]:
    """Step 3."""
    cases = list(backbone_cases(prepared.sizes))
    rows: list[ParityRow] = []
    comparisons = compare(
        BACKBONE,
        cases,
        graph=GraphUnderTest(open_session(graph, threads=torch.get_num_threads()).run),
        source=SourceModel(prepared.reference, prepared.source, "float64" if prepared.source is not None else "graph"),
        tolerance=TOLERANCES[prepared.precision],
    )
    for done, case_rows in enumerate(comparisons, start=1):
        rows.extend(case_rows)
        if progress is not None:
            progress("parity", done, len(cases))
    enforce_parity(rows)
    return rows


def _write(prepared: _Prepared, folder: Path, progress: Progress | None) -> BackboneCard:
    """Step 4."""
    graph = folder / BACKBONE_ONNX_NAME
    side = prepared.patch_px
    check_contract(prepared.model, (_fixed_patches(side),) if side else BACKBONE_INPUTS, BACKBONE_OUTPUTS)
    save(prepared.model, graph)
    rows = _compare(prepared, graph, progress)
    card = _card(
        name=prepared.name,
        sha256=sha256_of(graph),
        weights_files={name: sha256_of(folder / name) for name in data_files(graph)},
        features=prepared.features,
        patch_px=side,
        weights=prepared.weights,
        mean=prepared.mean,
        std=prepared.std,
        opset=opset_of(prepared.model),
        domains=tuple(sorted(graph_references(graph).domains)),
        versions=export_versions(),
    )
    report = ParityReport(precision=prepared.precision, tolerance=TOLERANCES[prepared.precision], rows=tuple(rows))
    write_text(folder / BACKBONE_CARD_NAME, card.model_dump_json(indent=2) + "\n")
    write_text(folder / PARITY_NAME, report.model_dump_json(indent=2) + "\n")
    return card


def _check_channels(option: str, values: Channels | None, allowed: Within) -> None:
    if values is not None and not all(allowed.low <= value <= allowed.high for value in values):
        raise UsageError(
            f"{option} is {','.join(f'{value:g}' for value in values)}, but each number must be within {allowed.low} "
            f"to {allowed.high}: pixels are in 0..1 (divide numbers for 0..255 by 255)"
        )


def _card(**values: Any) -> BackboneCard:
    try:
        return BackboneCard(**values)
    except ValidationError as error:
        raise BundleError(f"the encoder cannot be a backbone: {first_problem(error)}", code="not_a_backbone") from error


def run_one_by_one(run: Run) -> Run:
    """Return a function that runs patches one at a time, to detect graphs that mix the patches of a batch."""

    def run_each(arrays: dict[str, NDArray[Any]]) -> Arrays:
        singles = [run({PATCHES.name: patch[None]}) for patch in arrays[PATCHES.name]]
        return {name: np.concatenate([single[name] for single in singles]) for name in singles[0]}

    return run_each
