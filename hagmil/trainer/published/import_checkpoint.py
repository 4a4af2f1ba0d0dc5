"""Conversion of a checkpoint of published code to a checkpoint folder of ours."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from hagmil.trainer.published.defaults import ModelDescription, describe, describe_head
from hagmil.trainer.published.heads.containers import head_file
from hagmil.trainer.published.heads.found_head import HeadOptions
from hagmil.trainer.published.heads.recognise import AUTO, HEAD_KINDS, build_head, import_head
from hagmil.trainer.published.weights import ImportedModel, import_published

_log = logging.getLogger(__name__)

PUBLISHED_KEEP = 10000
"""Patches that the published HAG-MIL keeps at each stage except the last, in validation and test."""


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """Metadata of a published checkpoint; for None see :func:`~hagmil.trainer.published.defaults.describe`.

    Args:
        classes: names in the order of the logits; for HMIL, of the fine classes.
        fine_to_coarse: HMIL only: fine name to coarse name, or the index of the coarse class for each fine class.
        spacing_um: micrometres per pixel of each stage, coarse to fine, or of the finest only.
        patch_px: side of a patch.
        keep: HAG-MIL only: patches kept at each stage except the last.
        backbone: the backbone of the features that it was trained on, if known.
        head: what the shapes of a head's weights do not tell.
    """

    classes: Sequence[str] | None = None
    fine_to_coarse: Mapping[str, str] | Sequence[int] | None = None
    spacing_um: Sequence[float] | None = None
    patch_px: int | None = None
    keep: int = PUBLISHED_KEEP
    backbone: BackboneCard | None = None
    head: HeadOptions = field(default_factory=HeadOptions)


def import_checkpoint(
    path: Path, kind: Kind, out: Path, options: ImportOptions | None = None, *, overwrite: bool = False
) -> CheckpointCard:
    """Convert a checkpoint of the published code, executing nothing in the file.

    Args:
        path: the published file.
        kind: hag-mil, hmil, a kind of :data:`~hagmil.trainer.published.heads.recognise.HEAD_KINDS`, or ``auto``, which
            recognises any of these heads.
        out: folder for the checkpoint.
        options: metadata that the file does not contain.
        overwrite: replace an existing ``out``.

    Returns:
        The card of the written checkpoint.

    Raises:
        UsageError: ``out`` exists, or the options do not fit the model.
        BundleError: the file cannot be read, would execute something, or holds other weights than the published
            model; or the number of features of the backbone is not that of the model.
    """
    options = options or ImportOptions()
    if kind in (*HEAD_KINDS, AUTO):
        return _import_head(path, kind, out, options, overwrite=overwrite)
    model = import_published(path, kind)
    description = describe(
        model,
        classes=options.classes,
        fine_to_coarse=options.fine_to_coarse,
        spacing_um=options.spacing_um,
        patch_px=options.patch_px,
    )
    _check_backbone(path, model.feature_dim, options.backbone)
    models = model.build()
    card = _card(path, model, description, options, weights_sha256(models))
    with new_folder(out, overwrite=overwrite) as folder:
        write_checkpoint(folder, card, models)
    return card


def _import_head(path: Path, kind: Kind, out: Path, options: ImportOptions, *, overwrite: bool) -> CheckpointCard:
    found = import_head(path, kind, _with_negative_class(path, kind, options))
    _log.info('"%s": %s: %s', path, found.kind, found.why)
    description = describe_head(
        found,
        classes=options.classes,
        fine_to_coarse=options.fine_to_coarse,
        spacing_um=options.spacing_um,
        patch_px=options.patch_px,
    )
    _check_backbone(path, found.feature_dim, options.backbone)
    models = [build_head(found)]
    (spacing,) = description.spacing_um
    file = head_file(path)
    card = CheckpointCard(
        hagmil=__version__,
        kind=found.kind,
        classes=description.classes,
        patch_px=description.patch_px,
        stages=(CheckpointStage(name=f"{spacing:g}um", spacing_um=spacing, keep=None),),
        feature_dim=found.feature_dim,
        model=found.config,
        backbone=_known_backbone(options),
        tissue=TissueParameters(),
        weights_sha256=weights_sha256(models),
        imported=ImportRecord(
            versions=versions(),
            source_name=file.name,
            source_sha256=sha256_of(file),
            recognised_by=found.why,
        ),
    )
    with new_folder(out, overwrite=overwrite) as folder:
        write_checkpoint(folder, card, models)
    return card


def _with_negative_class(path: Path, kind: Kind, options: ImportOptions) -> HeadOptions:
    """For DSMIL with one more class than the file has, the first class is the negative one."""
    if options.classes is None or kind not in ("dsmil", AUTO):
        return options.head
    found = import_head(path, kind, options.head)
    negative = found.kind == "dsmil" and len(options.classes) == found.classes + 1
    return replace(options.head, negative_class=True) if negative else options.head


def _check_backbone(path: Path, feature_dim: int, backbone: BackboneCard | None) -> None:
    if backbone is not None and backbone.features != feature_dim:
        raise BundleError(
            f'the model in "{path}" takes {feature_dim} features; backbone "{backbone.name}" gives {backbone.features}',
            code="backbone_mismatch",
        )


def _known_backbone(options: ImportOptions) -> CheckpointBackbone | None:
    backbone = options.backbone
    if backbone is None:
        return None
    return CheckpointBackbone(name=backbone.name, sha256=backbone.sha256, proven=False)


def _card(
    path: Path, model: ImportedModel, description: ModelDescription, options: ImportOptions, weights_digest: str
) -> CheckpointCard:
    last = len(description.spacing_um) - 1
    return CheckpointCard(
        hagmil=__version__,
        kind=model.kind,
        classes=description.classes,
        hierarchy=description.hierarchy,
        patch_px=description.patch_px,
        stages=tuple(
            CheckpointStage(name=f"{spacing:g}um", spacing_um=spacing, keep=None if index == last else options.keep)
            for index, spacing in enumerate(description.spacing_um)
        ),
        feature_dim=model.feature_dim,
        model=model.config,
        backbone=_known_backbone(options),
        tissue=TissueParameters(),
        weights_sha256=weights_digest,
        imported=ImportRecord(versions=versions(), source_name=path.name, source_sha256=sha256_of(path)),
    )
