"""From a model's outputs to a verdict: probabilities of the classes, and one attention score a patch.

Labels in two layers give two verdicts: the fine one is the slide's verdict; the coarse one comes from HMIL's own
coarse logits, or from the last coarse stage of a cascade. Beside them stands what the fine probabilities come to when
they are summed into coarse classes, and whether the two verdicts agree.
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
"""What a stage's model gave, by the contract's names."""


@dataclass(frozen=True, slots=True)
class CoarseVerdict:
    """What is said of a slide in coarse classes.

    Args:
        prediction: the coarse class of highest probability.
        probabilities: every coarse class's probability.
        from_fine: the fine probabilities summed into coarse classes.
        agrees: whether the fine verdict belongs to ``prediction``.
    """

    prediction: str
    probabilities: dict[str, float]
    from_fine: dict[str, float]
    agrees: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the finest stage says of a slide.

    Args:
        prediction: the class of highest probability.
        probabilities: every class's probability, in the order of the bundle's classes; with a hierarchy those of the
            fine classes.
        coarse: what is said in coarse classes; None where the bundle has no hierarchy.
    """

    prediction: str
    probabilities: dict[str, float]
    coarse: CoarseVerdict | None = None


@dataclass(frozen=True, slots=True)
class ClassAttention:
    """Where one class looks, of a model with an attention a class.

    Args:
        layer: ``coarse`` or ``fine``.
        name: the class.
        attention: float32 (patches,), sums to 1.
    """

    layer: str
    name: str
    attention: NDArray[np.float32]


def verdict_of(manifest: Manifest, outputs: Outputs, coarse_outputs: Outputs | None = None) -> Verdict:
    """Read the verdict off the last stage's outputs.

    Args:
        manifest: the bundle's manifest.
        outputs: the last stage's outputs by the contract's names.
        coarse_outputs: those of the stage before it, whose logits are coarse classes' in a cascade with a hierarchy.

    Raises:
        BundleError: the model gives another number of classes than the manifest names.
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
    """Where the predicted classes look, the fine one first; nothing of a model with one attention for all classes."""
    if hierarchy is None or verdict.coarse is None or FINE_ATTENTION.name not in outputs:
        return ()
    fine, coarse = hierarchy.fine.index(verdict.prediction), hierarchy.coarse.index(verdict.coarse.prediction)
    return (
        ClassAttention("fine", verdict.prediction, outputs[FINE_ATTENTION.name][fine]),
        ClassAttention("coarse", verdict.coarse.prediction, outputs[COARSE_ATTENTION.name][coarse]),
    )


def stage_logits(outputs: Outputs) -> NDArray[np.float32]:
    """The logits (classes,) that a stage decides by: HMIL's are those of its fine classes."""
    return outputs[FINE_LOGITS.name] if FINE_LOGITS.name in outputs else outputs[LOGITS.name]


def patch_attention(outputs: Outputs) -> NDArray[np.float32]:
    """One score a patch (patches,), higher is more: what is kept is chosen by it; HMIL's is its fine verdict's."""
    if FINE_ATTENTION.name in outputs:
        by_class: NDArray[np.float32] = outputs[FINE_ATTENTION.name]  # (fine, patches)
        return np.asarray(by_class[int(np.argmax(outputs[FINE_LOGITS.name]))], np.float32)
    return outputs[ATTENTION.name]


def _coarse_logits(outputs: Outputs, coarse_outputs: Outputs | None) -> NDArray[np.float32] | None:
    if COARSE_LOGITS.name in outputs:
        return outputs[COARSE_LOGITS.name]
    return None if coarse_outputs is None else coarse_outputs[LOGITS.name]


def _coarse_verdict(hierarchy: Hierarchy, fine: NDArray[np.float64], coarse: NDArray[np.float64]) -> CoarseVerdict:
    probabilities = _named(coarse, hierarchy.coarse, "coarse logits")
    summed = np.bincount(hierarchy.fine_to_coarse, fine, len(hierarchy.coarse)).astype(np.float64)
    place = int(np.argmax(coarse))
    return CoarseVerdict(
        prediction=hierarchy.coarse[place],
        probabilities=probabilities,
        from_fine=_named(summed, hierarchy.coarse, "hierarchy"),
        agrees=hierarchy.fine_to_coarse[int(np.argmax(fine))] == place,
    )


def _named(values: NDArray[np.float64], classes: tuple[str, ...], what: str) -> dict[str, float]:
    if len(values) != len(classes):
        raise BundleError(f"{what}: {len(values)} classes, the manifest names {len(classes)}", code="contract")
    return {name: float(value) for name, value in zip(classes, values, strict=True)}
