"""Names, axes and types of the tensors of exported graphs, shared by export and runtime.

Axes named in ``DYNAMIC_AXES`` have any length from 1. Axes given as numbers are fixed. Other names, for example ``dim``
and ``classes``, stand for lengths that the model fixes when it is exported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from hagmil._models import Within

SpacingUm = Annotated[float, Within(0.05, 100)]
"""Micrometres per pixel of a stage or a mask."""

LARGEST_PATCH_PX = 4096
LONGEST_FEATURES = 16_384
MOST_PATCHES = 10_000_000
MOST_STAGES = 16
"""Limits of every bundle, checkpoint and feature file: side of a patch, length of a feature vector, patches of a slide
at one stage, stages of a cascade."""

PatchPx = Annotated[int, Within(8, LARGEST_PATCH_PX)]
"""Side of a patch in pixels."""

FeatureLength = Annotated[int, Within(1, LONGEST_FEATURES)]
"""Length of a feature vector."""

PatchCount = Annotated[int, Within(1, MOST_PATCHES)]
"""Number of patches of a slide at one stage."""

Count = Annotated[int, Within(0, 2**53)]
"""A number of slides, patches or bytes; 2**53 is the largest that every JSON reader represents."""

PositiveCount = Annotated[int, Within(1, 2**53)]
"""A count that is not zero."""

Share = Annotated[float, Within(0, 1)]
"""A part of a whole."""

ClassNames = Annotated[tuple[str, ...], Field(min_length=2, max_length=1000)]
"""Names of the classes in the order of the logits."""
Kind = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$")]
"""The family of a model: ``hag-mil`` (a transformer for each stage), ``hmil`` (one spacing with a hierarchy of labels),
or another head, by its name in :mod:`hagmil.trainer.models.registry`."""

AttentionForm = Literal["shared", "per_class"]
"""The attention of a head: one value for each patch, or one for each class and patch. HMIL has tensors of its own."""

Readout = Literal["pooled", "additive"]
"""How a stage model of HAG-MIL computes logits; see :mod:`hagmil.trainer.models.additive` for the additive form."""

DYNAMIC_AXES = frozenset({"batch", "height", "width", "patches"})
"""Axes whose length may differ from run to run."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of an ONNX graph.

    Args:
        name: name in the graph.
        dtype: element type, as named by NumPy.
        axes: a name or a fixed number for each axis.
    """

    name: str
    dtype: Literal["uint8", "float32"]
    axes: tuple[str | int, ...]

    def mismatch(self, dtype: str, axes: Sequence[str | int | None] | None) -> str | None:
        """Compare a graph's tensor with this specification.

        Args:
            dtype: element type, as named by NumPy.
            axes: a number for each fixed axis and a name for each dynamic axis; None if the rank is unknown.

        Returns:
            A description of the first difference, or None if the tensor matches.
        """
        if dtype != self.dtype:
            return f"is {dtype}, not {self.dtype}"
        if axes is None or len(axes) != len(self.axes):
            return f"has the axes {axes}, not {self.axes}"
        for wanted, given in zip(self.axes, axes, strict=True):
            if isinstance(wanted, int) or wanted in DYNAMIC_AXES:
                kept = given == wanted
            else:  # a length fixed by the model
                kept = isinstance(given, int) and given >= 1
            if not kept:
                return f"has axis {given!r} where the contract has {wanted!r}"
        return None


PATCHES = TensorSpec("patches", "uint8", ("batch", "height", "width", 3))
BACKBONE_FEATURES = TensorSpec("features", "float32", ("batch", "dim"))
BAG = TensorSpec("features", "float32", ("patches", "dim"))

LOGITS = TensorSpec("logits", "float32", ("classes",))
ATTENTION = TensorSpec("attention", "float32", ("patches",))
CLASS_ATTENTION = TensorSpec("attention", "float32", ("classes", "patches"))
EVIDENCE = TensorSpec("evidence", "float32", ("classes", "patches"))

COARSE_LOGITS = TensorSpec("coarse_logits", "float32", ("coarse",))
FINE_LOGITS = TensorSpec("fine_logits", "float32", ("fine",))
COARSE_ATTENTION = TensorSpec("coarse_attention", "float32", ("coarse", "patches"))
FINE_ATTENTION = TensorSpec("fine_attention", "float32", ("fine", "patches"))

BACKBONE_INPUTS = (PATCHES,)
BACKBONE_OUTPUTS = (BACKBONE_FEATURES,)
STAGE_INPUTS = (BAG,)
HMIL_OUTPUTS = (COARSE_LOGITS, FINE_LOGITS, COARSE_ATTENTION, FINE_ATTENTION)


def stage_outputs(
    kind: Kind, readout: Readout = "pooled", attention: AttentionForm = "shared"
) -> tuple[TensorSpec, ...]:
    """Outputs of a stage model.

    The attention of HAG-MIL is the raw score of the last block; that of other heads is described with each head.

    Args:
        kind: kind of the model.
        readout: read-out of the model. An additive model also gives ``evidence``; its sum over patches, plus a bias for
            each class that does not depend on the bag, equals the logits.
        attention: form of the attention; HMIL has no other than its own.
    """
    if kind == "hmil":
        return HMIL_OUTPUTS
    outputs = (LOGITS, CLASS_ATTENTION if attention == "per_class" else ATTENTION)
    return (*outputs, EVIDENCE) if readout == "additive" else outputs
