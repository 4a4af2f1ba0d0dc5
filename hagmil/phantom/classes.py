"""The classes of phantoms: labels, and the appearance of their lesions.

The classes can be distinguished by nuclear size, density, colour and architecture. Their names are borrowed from
pathology, but they are not diagnoses.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final, NamedTuple

NORMAL: Final = "normal"
TUMOUR: Final = "tumour"
CROWDED_GLANDS: Final = "crowded_glands"
LARGE_CELL: Final = "large_cell"
SMALL_CELL: Final = "small_cell"

PHANTOM_HIERARCHY: Final = MappingProxyType(
    {NORMAL: "benign", CROWDED_GLANDS: "benign", LARGE_CELL: "malignant", SMALL_CELL: "malignant"}
)
"""Map from fine to coarse class, in the order of the labels."""

PHANTOM_CLASSES: Final = MappingProxyType({"binary": (NORMAL, TUMOUR), "hierarchy": tuple(PHANTOM_HIERARCHY)})
"""The labels of each kind of cohort."""


class LesionCells(NamedTuple):
    """The cells of a lesion. Amounts of stain are relative to a dark resting nucleus.

    Args:
        pitch_um: distance between neighbouring nuclei.
        radius_um: mean radius of a nucleus.
        radius_spread: standard deviation of the radius, relative to it.
        elongation: ratio of the axes of the longest nuclei; 1 is round.
        dark: mean haematoxylin of a nucleus.
        dark_spread: standard deviation of the haematoxylin.
        texture: coarseness of the chromatin, 0 to 1.
        clearing: paleness of the nucleus inside its membrane, 0 to 1.
        nucleolus: share of nuclei with a visible nucleolus.
        cytoplasm_haem: haematoxylin of the cytoplasm.
        cytoplasm_eosin: eosin of the cytoplasm.
        nest_um: width of the nests that the cells form.
        stroma_share: approximate share of stroma between the nests.
    """

    pitch_um: float
    radius_um: float
    radius_spread: float
    elongation: float
    dark: float
    dark_spread: float
    texture: float
    clearing: float
    nucleolus: float
    cytoplasm_haem: float
    cytoplasm_eosin: float
    nest_um: float
    stroma_share: float


LESION_CELLS: Final = MappingProxyType(
    {
        TUMOUR: LesionCells(
            pitch_um=11.0,
            radius_um=4.9,
            radius_spread=0.24,
            elongation=1.6,
            dark=0.98,
            dark_spread=0.14,
            texture=0.45,
            clearing=0.1,
            nucleolus=0.2,
            cytoplasm_haem=0.26,
            cytoplasm_eosin=0.24,
            nest_um=70.0,
            stroma_share=0.15,
        ),
        LARGE_CELL: LesionCells(
            pitch_um=15.5,
            radius_um=6.9,
            radius_spread=0.22,
            elongation=1.45,
            dark=0.62,
            dark_spread=0.10,
            texture=0.4,
            clearing=0.5,
            nucleolus=0.85,
            cytoplasm_haem=0.12,
            cytoplasm_eosin=0.40,
            nest_um=110.0,
            stroma_share=0.10,
        ),
        SMALL_CELL: LesionCells(
            pitch_um=7.3,
            radius_um=3.3,
            radius_spread=0.12,
            elongation=2.1,
            dark=0.98,
            dark_spread=0.08,
            texture=0.2,
            clearing=0.0,
            nucleolus=0.0,
            cytoplasm_haem=0.30,
            cytoplasm_eosin=0.12,
            nest_um=160.0,
            stroma_share=0.06,
        ),
    }
)
"""The cells of each solid lesion. Crowded glands differ in architecture only and have ordinary cells."""
