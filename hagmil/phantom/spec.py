"""What a phantom shall be, and what it came out to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hagmil.errors import UsageError
from hagmil.phantom.classes import NORMAL, PHANTOM_CLASSES

MINIMUM_SIDE_UM: Final = 128.0
"""Below this a slide has no room for a piece of tissue with a lesion in it."""

LABELS: Final = tuple(dict.fromkeys(label for labels in PHANTOM_CLASSES.values() for label in labels))


@dataclass(frozen=True, slots=True)
class PhantomSpec:
    """One synthetic slide to be made; the same specification gives the same pixels.

    Args:
        seed: from 0 up; all that is random follows from it.
        label: one of the phantom classes; all but "normal" have lesions.
        size_px: side of the square slide in level-0 pixels.
        spacing_um: micrometres per level-0 pixel.

    Raises:
        UsageError: a number out of range, or a label that no phantom has.
    """

    seed: int
    label: str = NORMAL
    size_px: int = 4096
    spacing_um: float = 0.5

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UsageError(f"phantom: seed {self.seed} is negative; give 0 or more")
        if self.label not in LABELS:
            raise UsageError(f'phantom: no class "{self.label}"; there are {", ".join(LABELS)}')
        if not 0.05 <= self.spacing_um <= 8.0:
            raise UsageError(f"phantom: spacing {self.spacing_um} um/px; give a value from 0.05 to 8")
        if self.side_um < MINIMUM_SIDE_UM:
            raise UsageError(
                f"phantom: {self.size_px} px at {self.spacing_um} um/px is {self.side_um:g} um wide; "
                f"tissue needs {MINIMUM_SIDE_UM:g} um, take a larger size"
            )

    @property
    def side_um(self) -> float:
        """Side of the slide in micrometres."""
        return self.size_px * self.spacing_um


@dataclass(frozen=True, slots=True)
class PhantomTruth:
    """What is known of a phantom that was made.

    Args:
        spec: what was asked for.
        tissue_share: share of the slide that is tissue, by the low-resolution layout.
        lesion_share: share of the tissue that is lesion, by the same; 0 on a normal slide.
        lesions: how many lesions were laid; some may have grown together.
        pen_marked: whether there is a pen mark on the glass.
    """

    spec: PhantomSpec
    tissue_share: float
    lesion_share: float
    lesions: int
    pen_marked: bool
