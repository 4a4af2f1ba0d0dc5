"""Synthetic slides with known lesions, for demonstrations, tests and benchmarks.

classes    labels, and the appearance of their lesions
spec       specification and known truth of a phantom
anatomy    layout at low resolution
scene, ground, glands, nuclei, stain, paint    pixels from the layout
files, cohort    files of slides, masks and labels
"""

from hagmil.phantom.classes import PHANTOM_CLASSES, PHANTOM_HIERARCHY
from hagmil.phantom.cohort import PhantomSlide, write_cohort
from hagmil.phantom.files import MASK_STEP_PX, write_phantom
from hagmil.phantom.spec import PhantomSpec, PhantomTruth

__all__ = [
    "MASK_STEP_PX",
    "PHANTOM_CLASSES",
    "PHANTOM_HIERARCHY",
    "PhantomSlide",
    "PhantomSpec",
    "PhantomTruth",
    "write_cohort",
    "write_phantom",
]
