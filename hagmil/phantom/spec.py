"""Specification of a phantom, and the known truth about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hagmil.errors import UsageError
from hagmil.phantom.classes import NORMAL, PHANTOM_CLASSES

MINIMUM_SIDE_UM: Final = 128.0
"""Minimum side of a slide that has space for tissue with a lesion."""

LABELS: Final = tuple(dict.fromkeys(label for labels in PHANTOM_CLASSES.values() for label in labels))


@dataclass(frozen=True, slots=True)
class PhantomSpec:
    """Specification of one synthetic slide. The same specification gives the same pixels.

    Args:
        seed: seed of all random choices, 0 or more.
        label: one of the phantom classes; all except "normal" have lesions.
        size_px: side of the square slide in level-0 pixels.
        spacing_um: micrometres per level-0 pixel.

    Raises:
        UsageError: a value is out of range, or the label is unknown.
    """

    seed: int
    label: str = NORMAL
    size_px: int = 4096
    spacing_um: float = 0.5

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UsageError(f"phantom: seed {self.seed} is negative; pass 0 or more")
        if self.label not in LABELS:
            raise UsageError(f'phantom: unknown class "{self.label}"; choose from {", ".join(LABELS)}')
        if not 0.05 <= self.spacing_um <= 8.0:
            raise UsageError(f"phantom: spacing {self.spacing_um} um/px is out of range; pass a value from 0.05 to 8")
        if self.side_um < MINIMUM_SIDE_UM:
            raise UsageError(
                f"phantom: {self.size_px} px at {self.spacing_um} um/px is {self.side_um:g} um wide; "
                f"pass a size of at least {MINIMUM_SIDE_UM:g} um"
            )

    @property
    def side_um(self) -> float:
        """Side of the slide in micrometres."""
        return self.size_px * self.spacing_um


@dataclass(frozen=True, slots=True)
class PhantomTruth:
    """The known truth about a phantom.

    Args:
        spec: the specification.
        tissue_share: share of tissue in the slide, from the low-resolution layout.
        lesion_share: share of lesions in the tissue, from the low-resolution layout; 0 on a normal slide.
        lesions: number of lesions; some may have merged.
        pen_marked: whether there is a pen mark on the glass.
    """

    spec: PhantomSpec
    tissue_share: float
    lesion_share: float
    lesions: int
    pen_marked: bool
