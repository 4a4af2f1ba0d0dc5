"""Stateless noise: each value is a function of a point and a salt, so that strips do not depend on each other.

The functions are compiled, and called in the inner loops of the painters. They can also be interpreted
(``NUMBA_DISABLE_JIT=1``): all integer arithmetic is masked to 32 bits, so that Python integers give the same results.
numba's cache does not detect that a function called from another file has changed; after an edit of this file, remove
the ``.nbc`` and ``.nbi`` files of the painters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

_MASK = 0xFFFFFFFF
_INVERSE = 1.0 / 4294967296.0


def compiled(function: Kernel) -> Kernel:
    """Compile a function at its first call, without the GIL, and cache the machine code if possible."""
    try:
        return cast(Kernel, njit(cache=True, nogil=True, error_model="numpy")(function))
    except RuntimeError:  # no cache folder is writable, neither that of the module nor that of the user
        return cast(Kernel, njit(nogil=True, error_model="numpy")(function))


@compiled
def mix(x: int) -> int:
    """Hash 32 bits (a bijection with good avalanche)."""
    x &= _MASK
    x ^= x >> 16
    x = (x * 0x7FEB352D) & _MASK
    x ^= x >> 15
    x = (x * 0x2C1B3C6D) & _MASK
    x ^= x >> 16
    return x


@compiled
def hash_cell(column: int, row: int, salt: int) -> int:
    """Hash of a lattice cell, 32 bits (columns and rows may be negative)."""
    return mix((column * 0x1B873593) ^ mix((row * 0x2545F491) + salt))


@compiled
def next_bits(bits: int) -> int:
    """Next 32 bits of the sequence of a cell, which starts with ``hash_cell``."""
    return mix(bits + 0x1E3779B9)


@compiled
def unit(bits: int) -> float:
    """Convert 32 bits to a number in [0, 1)."""
    return bits * _INVERSE


@compiled
def bell(bits: int) -> float:
    """Convert 32 bits to a number in (-3.5, 3.5) of about unit variance, the sum of four bytes."""
    total = (bits & 255) + ((bits >> 8) & 255) + ((bits >> 16) & 255) + (bits >> 24)
    return (total - 510.0) * (1.0 / 147.8)


@compiled
def value_noise(x: float, y: float, salt: int) -> float:
    """Smooth noise in [0, 1] on a lattice of pitch 1."""
    column, row = math.floor(x), math.floor(y)
    u, v = x - column, y - row
    u, v = u * u * (3.0 - 2.0 * u), v * v * (3.0 - 2.0 * v)
    near, far = mix((row * 0x2545F491) + salt), mix(((row + 1) * 0x2545F491) + salt)
    left, right = column * 0x1B873593, (column + 1) * 0x1B873593
    top = mix(left ^ near) * (1.0 - u) + mix(right ^ near) * u
    bottom = mix(left ^ far) * (1.0 - u) + mix(right ^ far) * u
    return (top * (1.0 - v) + bottom * v) * _INVERSE


@compiled
def sample(fields: NDArray[np.float32], index: int, x: float, y: float, map_um: float) -> float:
    """Interpolate one field of a low-resolution map (bilinear; constant beyond the edge).

    Args:
        fields: float32 (rows, columns, fields).
        index: index of the field.
        x: micrometres from the left edge of the slide.
        y: micrometres from the upper edge of the slide.
        map_um: side of a map cell in micrometres.
    """
    side = fields.shape[0]
    u = min(max(x / map_um - 0.5, 0.0), side - 1.001)
    v = min(max(y / map_um - 0.5, 0.0), side - 1.001)
    column, row = math.floor(u), math.floor(v)
    u -= column
    v -= row
    top = float(fields[row, column, index]) * (1.0 - u) + float(fields[row, column + 1, index]) * u
    bottom = float(fields[row + 1, column, index]) * (1.0 - u) + float(fields[row + 1, column + 1, index]) * u
    return float(top * (1.0 - v) + bottom * v)
