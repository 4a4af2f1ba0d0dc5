"""Mask kernels, each with a plain NumPy twin.

``protocol`` says what a set must do, ``reference`` is the plain set, ``numba_cpu`` the compiled one, ``runs``
the steps that they share. All sets give the same arrays to the last bit; one contract test holds every set to
the reference.
"""

from __future__ import annotations

from hagmil.runtime.kernels.protocol import MaskKernels
from hagmil.runtime.kernels.reference import ReferenceKernels

COMPILED_FROM_PX = 4_000_000
"""Masks from this size on take the compiled set. Measured on one core: the plain set needs 0.2 us a pixel;
the compiled one 0.03, but 0.7 s and 120 MB to load numba and its cache, and 2 s where the cache is empty."""


def kernels_for(mask_px: int) -> MaskKernels:
    """The set of kernels that is done first with one mask; all give the same mask.

    Args:
        mask_px: how many pixels the mask has.

    Returns:
        The plain set for small masks, the compiled one for large ones.
    """
    if mask_px < COMPILED_FROM_PX:
        return ReferenceKernels()
    from hagmil.runtime.kernels.numba_cpu import NumbaKernels  # numba takes its time to import

    return NumbaKernels()
