"""A file of the published code to a checkpoint folder of ours, which is exported like any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hagmil._files import sha256_of
from hagmil._versions import __version__
from hagmil.bundle import BackboneCard, new_folder
from hagmil.errors import BundleError
from hagmil.spec import Kind
from hagmil.tissue_parameters import TissueParameters
from hagmil.trainer.checkpoints.checkpoint import (
    CheckpointBackbone,
    CheckpointCard,
    CheckpointStage,
    ImportRecord,
    weights_sha256,
    write_checkpoint,
)
from hagmil.trainer.checkpoints.versions import versions
from hagmil.trainer.published.defaults import ModelDescription, describe
from hagmil.trainer.published.weights import ImportedModel, import_published

PUBLISHED_KEEP = 10000
"""Patches that the published HAG-MIL keeps at every stage but the last, in validation and test."""


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What is said of a published checkpoint beside its weights; see
    :func:`~hagmil.trainer.published.defaults.describe` for what None means.

    Args:
        classes: names in the order of the logits; HMIL's fine classes.
        fine_to_coarse: HMIL only: fine name to coarse name, or for each fine class the number of its coarse one.
        spacing_um: of each stage, coarse to fine, or of the finest alone.
        patch_px: side of a patch.
        keep: HAG-MIL only: patches kept at every stage but the last.
        backbone: the patch encoder whose features it was trained on, if somebody knows.
    """

    classes: Sequence[str] | None = None
    fine_to_coarse: Mapping[str, str] | Sequence[int] | None = None
    spacing_um: Sequence[float] | None = None
    patch_px: int | None = None
    keep: int = PUBLISHED_KEEP
    backbone: BackboneCard | None = None


def import_checkpoint(
    path: Path, kind: Kind, out: Path, options: ImportOptions | None = None, *, overwrite: bool = False
) -> CheckpointCard:
    """Bring a checkpoint of the published code into the form of ours; nothing in the file is executed.

    Args:
        path: the published file.
        kind: whose code wrote it.
        out: the checkpoint's folder.
        options: what the file does not say of itself.
        overwrite: replace what is in ``out``.

    Returns:
        The card of the checkpoint that was written.

    Raises:
        UsageError: ``out`` is there already, or the options do not fit the model.
        BundleError: the file cannot be read, would execute something, or holds other weights than the
            published model; or the backbone gives another number of features than the model takes.
    """
    options = options or ImportOptions()
    model = import_published(path, kind)
    said = describe(
        model,
        classes=options.classes,
        fine_to_coarse=options.fine_to_coarse,
        spacing_um=options.spacing_um,
        patch_px=options.patch_px,
    )
    if options.backbone is not None and options.backbone.features != model.feature_dim:
        raise BundleError(
            f'"{path}" takes {model.feature_dim} features; backbone "{options.backbone.name}" gives '
            f"{options.backbone.features}",
            code="backbone_mismatch",
        )
    models = model.build()
    card = _card(path, model, said, options, weights_sha256(models))
    with new_folder(out, overwrite=overwrite) as folder:
        write_checkpoint(folder, card, models)
    return card


def _card(
    path: Path, model: ImportedModel, said: ModelDescription, options: ImportOptions, weights_digest: str
) -> CheckpointCard:
    backbone = options.backbone
    told = None
    if backbone is not None:
        told = CheckpointBackbone(name=backbone.name, sha256=backbone.sha256, proven=False)
    last = len(said.spacing_um) - 1
    return CheckpointCard(
        hagmil=__version__,
        kind=model.kind,
        classes=said.classes,
        hierarchy=said.hierarchy,
        patch_px=said.patch_px,
        stages=tuple(
            CheckpointStage(name=f"{spacing:g}um", spacing_um=spacing, keep=None if index == last else options.keep)
            for index, spacing in enumerate(said.spacing_um)
        ),
        feature_dim=model.feature_dim,
        model=model.config,
        backbone=told,
        tissue=TissueParameters(),
        weights_sha256=weights_digest,
        imported=ImportRecord(versions=versions(), source_name=path.name, source_sha256=sha256_of(path)),
    )
