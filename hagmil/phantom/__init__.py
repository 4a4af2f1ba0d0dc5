"""Synthetic slides, with their lesions known: for demonstrations, tests and benchmarks.

classes    labels and what their lesions look like
spec       what a phantom shall be and what it came out to be
anatomy    the layout at low resolution
scene, ground, glands, nuclei, stain, paint    from the layout to pixels
files, cohort    slides, masks and labels on disk
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
