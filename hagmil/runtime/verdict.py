"""From a model's outputs to a verdict: probabilities of the classes, and one attention score a patch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hagmil.bundle import Manifest
from hagmil.errors import BundleError
from hagmil.spec import ATTENTION, LOGITS


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the finest stage says of a slide.

    Args:
        prediction: the class of highest probability.
        probabilities: every class's probability, in the order of the bundle's classes.
    """

    prediction: str
    probabilities: dict[str, float]


def verdict_of(manifest: Manifest, outputs: dict[str, NDArray[np.float32]]) -> Verdict:
    """Read the verdict off the last stage's outputs.

    Args:
        manifest: the bundle's manifest.
        outputs: the last stage's outputs by the contract's names.

    Raises:
        BundleError: the model gives another number of classes than the manifest names.
    """
    probabilities = softmax(stage_logits(outputs))
    if len(probabilities) != len(manifest.classes):
        raise BundleError(
            f"the last stage gives {len(probabilities)} classes, the manifest names {len(manifest.classes)}",
            code="contract",
        )
    named = {name: float(value) for name, value in zip(manifest.classes, probabilities, strict=True)}
    return Verdict(prediction=manifest.classes[int(np.argmax(probabilities))], probabilities=named)


def stage_logits(outputs: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """The logits (classes,) that a stage decides by."""
    return outputs[LOGITS.name]


def patch_attention(outputs: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """The scores (patches,) that choose which patches are kept; higher is more."""
    return outputs[ATTENTION.name]


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of logits (classes,), in float64."""
    shifted = np.exp(logits.astype(np.float64) - float(logits.max()))
    return np.asarray(shifted / shifted.sum(), np.float64)
