"""Noise without state: every value is a function of a place and a salt, so that no strip depends on another.

The functions are compiled and called from the painters' inner loops. The same source runs interpreted
(``NUMBA_DISABLE_JIT=1``): all integer arithmetic is masked to 32 bits, so Python's integers and the
machine's agree. numba does not notice that a cached caller's callee in another file has changed: after an
edit here, remove the ``.nbc`` and ``.nbi`` files beside the painters.
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
    """Compile a function on its first call, without the interpreter lock; keep the code where a disk allows."""
    try:
        return cast(Kernel, njit(cache=True, nogil=True, error_model="numpy")(function))
    except RuntimeError:  # no folder to keep code in: neither beside the module nor in the user's cache
        return cast(Kernel, njit(nogil=True, error_model="numpy")(function))


@compiled
def mix(x: int) -> int:
    """Scramble 32 bits (a bijection with good avalanche)."""
    x &= _MASK
    x ^= x >> 16
    x = (x * 0x7FEB352D) & _MASK
    x ^= x >> 15
    x = (x * 0x2C1B3C6D) & _MASK
    x ^= x >> 16
    return x


@compiled
def hash_cell(column: int, row: int, salt: int) -> int:
    """32 scrambled bits that belong to a lattice cell (columns and rows may be negative)."""
    return mix((column * 0x1B873593) ^ mix((row * 0x2545F491) + salt))


@compiled
def next_bits(bits: int) -> int:
    """The next 32 bits of a cell's own sequence, which starts with ``hash_cell``."""
    return mix(bits + 0x1E3779B9)


@compiled
def unit(bits: int) -> float:
    """32 bits as a number in [0, 1)."""
    return bits * _INVERSE


@compiled
def bell(bits: int) -> float:
    """32 bits as a number in (-2.4, 2.4) of about unit variance: the sum of four bytes."""
    total = (bits & 255) + ((bits >> 8) & 255) + ((bits >> 16) & 255) + (bits >> 24)
    return (total - 510.0) * (1.0 / 147.8)


@compiled
def value_noise(x: float, y: float, salt: int) -> float:
    """Smooth noise in [0, 1] with a lattice of pitch 1."""
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
    """Read one field of a low-resolution map between its cell centres (bilinear; the edge goes on outside).

    Args:
        fields: float32 (rows, columns, fields).
        index: which field.
        x: micrometres from the slide's left edge.
        y: micrometres from the slide's upper edge.
        map_um: the side of a map cell in micrometres.
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
