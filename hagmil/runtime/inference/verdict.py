"""The verdict from a model's outputs: class probabilities, and one attention score for each patch.

Two layers of labels give two verdicts. The fine one is the slide's verdict. The coarse one comes from HMIL's coarse
logits, or from the second-to-last stage of a cascade. The fine probabilities are also summed into coarse classes, and
the two verdicts are compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hagmil.bundle import Hierarchy, Manifest
from hagmil.errors import BundleError
from hagmil.softmax import softmax
from hagmil.spec import ATTENTION, COARSE_ATTENTION, COARSE_LOGITS, FINE_ATTENTION, FINE_LOGITS, LOGITS

Outputs = dict[str, NDArray[np.float32]]
"""Outputs of a stage model, by the tensor names of the contract."""


@dataclass(frozen=True, slots=True)
class CoarseVerdict:
    """The verdict in coarse classes.

    Args:
        prediction: the coarse class with the highest probability.
        probabilities: the probability of each coarse class.
        from_fine: the fine probabilities summed into coarse classes.
        agrees: whether the fine prediction belongs to ``prediction``.
    """

    prediction: str
    probabilities: dict[str, float]
    from_fine: dict[str, float]
    agrees: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on a slide.

    Args:
        prediction: the class with the highest probability.
        probabilities: the probability of each class, in the order of the bundle's classes; with two layers of labels,
            of the fine classes.
        coarse: the verdict in coarse classes; None if the bundle has no hierarchy.
    """

    prediction: str
    probabilities: dict[str, float]
    coarse: CoarseVerdict | None = None


@dataclass(frozen=True, slots=True)
class ClassAttention:
    """The attention of one class of HMIL.

    Args:
        layer: ``coarse`` or ``fine``.
        name: the class.
        attention: float32 (patches,), sums to 1.
    """

    layer: str
    name: str
    attention: NDArray[np.float32]


def verdict_of(manifest: Manifest, outputs: Outputs, coarse_outputs: Outputs | None = None) -> Verdict:
    """Compute the verdict from the last stage's outputs.

    Args:
        manifest: the bundle's manifest.
        outputs: outputs of the last stage.
        coarse_outputs: outputs of the stage before it, whose logits are those of the coarse classes in a cascade with a
            hierarchy; None if there is no such stage.

    Raises:
        BundleError: the number of classes differs from the manifest's.
    """
    values = softmax(stage_logits(outputs), manifest.temperature)
    probabilities = _named(values, manifest.classes, "last stage")
    prediction = manifest.classes[int(np.argmax(values))]
    coarse_logits = _coarse_logits(outputs, coarse_outputs)
    if manifest.hierarchy is None or coarse_logits is None:
        return Verdict(prediction, probabilities)
    coarse_values = softmax(coarse_logits, manifest.coarse_temperature)
    return Verdict(prediction, probabilities, _coarse_verdict(manifest.hierarchy, values, coarse_values))


def class_attentions(hierarchy: Hierarchy | None, verdict: Verdict, outputs: Outputs) -> tuple[ClassAttention, ...]:
    """The attention of the predicted fine and coarse class of HMIL; empty for other models."""
    if hierarchy is None or verdict.coarse is None or FINE_ATTENTION.name not in outputs:
        return ()
    fine, coarse = hierarchy.fine.index(verdict.prediction), hierarchy.coarse.index(verdict.coarse.prediction)
    return (
        ClassAttention("fine", verdict.prediction, outputs[FINE_ATTENTION.name][fine]),
        ClassAttention("coarse", verdict.coarse.prediction, outputs[COARSE_ATTENTION.name][coarse]),
    )


def stage_logits(outputs: Outputs) -> NDArray[np.float32]:
    """The logits (classes,) of a stage's prediction; for HMIL those of the fine classes."""
    return outputs[FINE_LOGITS.name] if FINE_LOGITS.name in outputs else outputs[LOGITS.name]


def patch_attention(outputs: Outputs) -> NDArray[np.float32]:
    """The attention (patches,) that decides which patches are kept; if there is one for each class, that of the
    predicted class, for HMIL the fine one."""
    if FINE_ATTENTION.name in outputs:
        by_class: NDArray[np.float32] = outputs[FINE_ATTENTION.name]  # (fine, patches)
        return np.asarray(by_class[int(np.argmax(outputs[FINE_LOGITS.name]))], np.float32)
    attention = outputs[ATTENTION.name]
    return attention if attention.ndim == 1 else np.asarray(attention[int(np.argmax(outputs[LOGITS.name]))], np.float32)


def _coarse_logits(outputs: Outputs, coarse_outputs: Outputs | None) -> NDArray[np.float32] | None:
    if COARSE_LOGITS.name in outputs:
        return outputs[COARSE_LOGITS.name]
    return None if coarse_outputs is None else coarse_outputs[LOGITS.name]


def _coarse_verdict(hierarchy: Hierarchy, fine: NDArray[np.float64], coarse: NDArray[np.float64]) -> CoarseVerdict:
    probabilities = _named(coarse, hierarchy.coarse, "coarse logits")
    summed = np.bincount(hierarchy.fine_to_coarse, fine, len(hierarchy.coarse)).astype(np.float64)
    predicted = int(np.argmax(coarse))
    return CoarseVerdict(
        prediction=hierarchy.coarse[predicted],
        probabilities=probabilities,
        from_fine=_named(summed, hierarchy.coarse, "hierarchy"),
        agrees=hierarchy.fine_to_coarse[int(np.argmax(fine))] == predicted,
    )


def _named(values: NDArray[np.float64], classes: tuple[str, ...], source: str) -> dict[str, float]:
    if len(values) != len(classes):
        raise BundleError(f"{source}: {len(values)} classes, the manifest names {len(classes)}", code="contract")
    return {name: float(value) for name, value in zip(classes, values, strict=True)}
