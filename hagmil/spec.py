"""Names, axes and types of every tensor that crosses a file boundary, said once for export and runtime.

Axes in words are dynamic, from 1; axes in numbers are fixed. ``features``, ``classes`` and the like that a model
fixes at export are named here for what they mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["hag-mil", "hmil"]
"""The two families of models: one transformer a stage, or one spacing with a hierarchy of labels."""

DYNAMIC_AXES = frozenset({"batch", "height", "width", "patches"})
"""Axes whose length is known only at run time."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of an ONNX graph.

    Args:
        name: its name in the graph.
        dtype: its element type, as NumPy writes it.
        axes: for each axis a name, or a number where the contract fixes it.
    """

    name: str
    dtype: Literal["uint8", "float32"]
    axes: tuple[str | int, ...]

    def mismatch(self, dtype: str, axes: Sequence[str | int | None] | None) -> str | None:
        """How a graph's tensor differs from this one.

        Args:
            dtype: its element type, as NumPy writes it.
            axes: a number where fixed, a word where dynamic; None where the graph does not say how many there are.

        Returns:
            What differs, in words; None where it keeps the contract.
        """
        if dtype != self.dtype:
            return f"is {dtype}, not {self.dtype}"
        if axes is None or len(axes) != len(self.axes):
            return f"has the axes {axes}, not {self.axes}"
        for wanted, given in zip(self.axes, axes, strict=True):
            if isinstance(wanted, int) or wanted in DYNAMIC_AXES:
                kept = given == wanted
            else:  # a length that the model fixes, under the contract's word for it
                kept = isinstance(given, int) and given >= 1
            if not kept:
                return f"has axis {given!r} where the contract has {wanted!r}"
        return None


PATCHES = TensorSpec("patches", "uint8", ("batch", "height", "width", 3))
BACKBONE_FEATURES = TensorSpec("features", "float32", ("batch", "dim"))
BAG = TensorSpec("features", "float32", ("patches", "dim"))

LOGITS = TensorSpec("logits", "float32", ("classes",))
ATTENTION = TensorSpec("attention", "float32", ("patches",))

COARSE_LOGITS = TensorSpec("coarse_logits", "float32", ("coarse",))
FINE_LOGITS = TensorSpec("fine_logits", "float32", ("fine",))
COARSE_ATTENTION = TensorSpec("coarse_attention", "float32", ("coarse", "patches"))
FINE_ATTENTION = TensorSpec("fine_attention", "float32", ("fine", "patches"))

BACKBONE_INPUTS = (PATCHES,)
BACKBONE_OUTPUTS = (BACKBONE_FEATURES,)
STAGE_INPUTS = (BAG,)
STAGE_OUTPUTS: dict[Kind, tuple[TensorSpec, ...]] = {
    "hag-mil": (LOGITS, ATTENTION),
    "hmil": (COARSE_LOGITS, FINE_LOGITS, COARSE_ATTENTION, FINE_ATTENTION),
}
"""What a stage's graph gives, by kind; HAG-MIL's attention is the raw score of the last block."""
