"""Run one stage model on the features of a bag."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hagmil.errors import UsageError
from hagmil.runtime.inference.cascade import run_stage
from hagmil.runtime.inference.loaded_bundle import LoadedModel
from hagmil.runtime.inference.verdict import patch_attention, stage_logits
from hagmil.spec import EVIDENCE


class BagOutput(NamedTuple):
    """What a stage model gives for a bag.

    Args:
        logits: float32 (classes,); for HMIL those of the fine classes.
        attention: float32 (patches,), one score for each patch; of models with one attention for each class, that of
            the predicted class (for HMIL, the fine one).
        evidence: float32 (classes, patches), what each patch adds to each logit; its sum over patches, plus a constant
            for each class, equals the logits. None except for additive models.
    """

    logits: NDArray[np.float32]
    attention: NDArray[np.float32]
    evidence: NDArray[np.float32] | None = None


def run_bag(model: LoadedModel, features: ArrayLike, stage: str | int | None = None) -> BagOutput:
    """Run one stage model on the features of a bag.

    Args:
        model: a loaded model; see ``load_model``.
        features: (patches, dim), at least one row, converted to float32; see ``extract`` and ``read_features``. They
            must come from the model's backbone.
        stage: name or index of the stage; None uses the last, which gives the verdict.

    Returns:
        Logits, to which the bundle's temperature is not applied, attention, and evidence if the model gives it.

    Raises:
        UsageError: no such stage, or features of another shape.
        BundleError: the model gives values that are not finite.
    """
    manifest = model.bundle.manifest
    names = [one.name for one in manifest.stages]
    if stage is None:
        stage = len(names) - 1
    elif isinstance(stage, str):
        if stage not in names:
            raise UsageError(f'the model has no stage "{stage}"; its stages are {", ".join(names)}')
        stage = names.index(stage)
    elif not -len(names) <= stage < len(names):
        raise UsageError(f"the model has no stage {stage}; it has {len(names)} stages")
    bag = np.ascontiguousarray(features, np.float32)
    dim = manifest.backbone.features
    if bag.ndim != 2 or bag.shape[1] != dim or len(bag) == 0:
        raise UsageError(f"the features of a bag have shape (patches, {dim}) with at least one row, not {bag.shape}")
    outputs = run_stage(model.stages[stage], bag, names[stage])
    return BagOutput(stage_logits(outputs), patch_attention(outputs), outputs.get(EVIDENCE.name))
