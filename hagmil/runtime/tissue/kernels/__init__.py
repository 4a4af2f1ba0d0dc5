"""Mask kernels: NumPy (``reference``), numba (``numba_cpu``) and cupy (``cupy_gpu``).

``protocol`` defines the methods; ``arrays`` and ``runs`` contain the operations that they share. All kernels give
identical arrays; one contract test compares each with the NumPy kernels.
"""

from __future__ import annotations

from hagmil.errors import UsageError
from hagmil.runtime.tissue.kernels.protocol import MaskKernels
from hagmil.runtime.tissue.kernels.reference import ReferenceKernels

__all__ = ["COMPILED_FROM_PX", "MASK_DEVICES", "MaskKernels", "kernels_for", "kernels_on"]

MASK_DEVICES = ("cpu", "cuda")
"""Devices that can make masks."""

COMPILED_FROM_PX = 100_000_000
"""Masks of at least this size are made by the numba kernels; docs/decisions/0011-masks.md gives the reasons."""


def kernels_for(mask_px: int) -> MaskKernels:
    """Return the kernels that are expected to be fastest for one mask on the CPU.

    The number of slides in a run does not matter: numba does not save its loading time over common masks.

    Args:
        mask_px: number of pixels of the mask.

    Returns:
        The NumPy kernels for masks below ``COMPILED_FROM_PX``, else the numba kernels.
    """
    if mask_px < COMPILED_FROM_PX:
        return ReferenceKernels()
    from hagmil.runtime.tissue.kernels.numba_cpu import NumbaKernels  # importing numba is slow

    return NumbaKernels()


def kernels_on(device: str) -> MaskKernels | None:
    """Return the kernels for a device.

    Args:
        device: one of ``MASK_DEVICES``.

    Returns:
        The kernels; None for "cpu", where ``kernels_for`` chooses by the size of each mask.

    Raises:
        UsageError: unknown device.
        EnvironmentLacks: the GPU or cupy is missing.
    """
    if device not in MASK_DEVICES:
        raise UsageError(f'mask device "{device}" is not one of {", ".join(MASK_DEVICES)}')
    if device == "cpu":
        return None
    from hagmil.runtime.tissue.kernels.cupy_gpu import open_cupy  # cupy is installed with hagmil[gpu] only

    return open_cupy()
