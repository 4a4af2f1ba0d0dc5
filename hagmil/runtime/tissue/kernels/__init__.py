"""Mask kernels, each with a plain NumPy twin.

``protocol`` says what a set must do, ``reference`` is the plain set, ``numba_cpu`` the compiled one and ``cupy_gpu``
that of GPUs; ``arrays`` and ``runs`` hold the steps that they share. All sets give the same arrays to the last bit; one
contract test holds every set to the reference.
"""

from __future__ import annotations

from hagmil.errors import UsageError
from hagmil.runtime.tissue.kernels.protocol import MaskKernels
from hagmil.runtime.tissue.kernels.reference import ReferenceKernels

__all__ = ["COMPILED_FROM_PX", "MASK_DEVICES", "MaskKernels", "kernels_for", "kernels_on"]

MASK_DEVICES = ("cpu", "cuda")
"""Where masks can be made."""

COMPILED_FROM_PX = 100_000_000
"""Masks from this size on take the compiled set; docs/decisions/0011-masks.md has the measurement."""


def kernels_for(mask_px: int) -> MaskKernels:
    """The set of kernels that is done first with one mask on the CPU; all give the same mask.

    Args:
        mask_px: how many pixels the mask has.

    Returns:
        The plain set for small masks, the compiled one for large ones.
    """
    if mask_px < COMPILED_FROM_PX:
        return ReferenceKernels()
    from hagmil.runtime.tissue.kernels.numba_cpu import NumbaKernels  # numba takes its time to import

    return NumbaKernels()


def kernels_on(device: str) -> MaskKernels | None:
    """The set of kernels of a device that was asked for.

    Args:
        device: one of ``MASK_DEVICES``.

    Returns:
        None on the CPU, where ``kernels_for`` chooses by the size of each mask.

    Raises:
        UsageError: no such device.
        EnvironmentLacks: the GPU, or cupy, is not there.
    """
    if device not in MASK_DEVICES:
        raise UsageError(f'mask device "{device}" is not one of {", ".join(MASK_DEVICES)}')
    if device == "cpu":
        return None
    from hagmil.runtime.tissue.kernels.cupy_gpu import open_cupy  # cupy is there with hagmil[gpu] only

    return open_cupy()
