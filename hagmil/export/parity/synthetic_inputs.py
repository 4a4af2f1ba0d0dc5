"""Synthetic patches and bags, as inputs for parity checks and self-tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hagmil.phantom.classes import TUMOUR
from hagmil.phantom.paint import Painter
from hagmil.phantom.spec import PhantomSpec

PatchKind = Literal["tissue", "noise", "white", "phantom"]
BagKind = Literal["clustered", "normal", "constant", "large", "zeros"]
PATCH_KINDS: tuple[PatchKind, ...] = get_args(PatchKind)
BAG_KINDS: tuple[BagKind, ...] = get_args(BagKind)

_STROMA = np.array([226.0, 160.0, 190.0])
_NUCLEI = np.array([92.0, 60.0, 130.0])
_GLASS = 243
_GRID_PX = 8  # size of a nucleus, and of a gap between two, in tissue-like patches
_PHANTOM_PX = 1024
_PHANTOM_PLACES = 8  # candidates per patch
_PHANTOM_SEED = 7
_PHANTOM_SPACING_UM = 0.5
_CLUSTERS = 12
_LARGE = 10.0


def synthetic_patches(kind: PatchKind, count: int, height: int, width: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """Return patches of one kind; deterministic.

    Args:
        kind: ``tissue``: smooth spots in the colours of haematoxylin and eosin; ``noise``: uniform random values;
            ``white``: glass; ``phantom``: tissue of a synthetic slide.
        count: number of patches.
        height: in pixels.
        width: in pixels.
        seed: random seed.

    Returns:
        uint8 (count, height, width, 3), RGB.
    """
    shape = (count, height, width, 3)
    if kind == "white":
        return np.full(shape, _GLASS, np.uint8)
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return rng.integers(0, 256, shape, np.uint8)
    if kind == "phantom":
        return _phantom(rng, count, height, width)
    return _tissue(rng, count, height, width)


def synthetic_bag(kind: BagKind, patches: int, dim: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Return a bag of one kind; deterministic.

    Args:
        kind: ``clustered``: a few clusters of non-negative values, as after a ReLU and average pooling; ``normal``:
            values from the standard normal distribution; ``constant``: one row repeated; ``large``: ten times
            ``clustered``; ``zeros``.
        patches: number of rows.
        dim: length of a feature vector.
        seed: random seed.

    Returns:
        float32 (patches, dim).
    """
    rng = np.random.default_rng(seed)
    return _BAGS[kind](rng, patches, dim).astype(np.float32)


def _phantom(rng: np.random.Generator, count: int, height: int, width: int) -> NDArray[np.uint8]:
    """The most stained of many random crops of a phantom: (count, height, width, 3)."""
    side_px = max(_PHANTOM_PX, 2 * max(height, width))
    picture = _phantom_picture(side_px)
    tops = rng.integers(0, side_px - height, _PHANTOM_PLACES * count)
    lefts = rng.integers(0, side_px - width, _PHANTOM_PLACES * count)
    patches = [picture[top : top + height, left : left + width] for top, left in zip(tops, lefts, strict=True)]
    stained = sorted(patches, key=lambda patch: float(patch[..., 1].mean()))  # stain absorbs green
    return np.stack(stained[:count])


@lru_cache(maxsize=1)
def _phantom_picture(side_px: int) -> NDArray[np.uint8]:
    """A complete phantom with a lesion: (side, side, 3)."""
    spec = PhantomSpec(seed=_PHANTOM_SEED, label=TUMOUR, size_px=side_px, spacing_um=_PHANTOM_SPACING_UM)
    return Painter(spec).paint(0, 0, side_px, side_px)


def _tissue(rng: np.random.Generator, count: int, height: int, width: int) -> NDArray[np.uint8]:
    rows, columns = -(-height // _GRID_PX) + 1, -(-width // _GRID_PX) + 1
    coarse = rng.random((count, rows, columns)) ** 3  # mostly stroma with a few nuclei
    amount = _stretch(_stretch(coarse, height, axis=1), width, axis=2)[..., None]  # (count, height, width, 1)
    colour = _STROMA * (1 - amount) + _NUCLEI * amount + rng.normal(0, 6, (count, height, width, 3))
    return colour.clip(0, 255).astype(np.uint8)


def _stretch(values: NDArray[np.float64], length: int, *, axis: int) -> NDArray[np.float64]:
    """Interpolate linearly between grid points at a distance of ``_GRID_PX``."""
    at = np.arange(length) / _GRID_PX
    left = at.astype(np.int64)
    share = (at - left).reshape([-1 if index == axis else 1 for index in range(values.ndim)])
    stretched: NDArray[np.float64] = values.take(left, axis) * (1 - share) + values.take(left + 1, axis) * share
    return stretched


def _clustered(rng: np.random.Generator, patches: int, dim: int) -> NDArray[np.float64]:
    centres = rng.exponential(0.3, (_CLUSTERS, dim)) * (rng.random((_CLUSTERS, dim)) < 0.5)
    members = centres[rng.integers(0, _CLUSTERS, patches)]  # (patches, dim)
    return members * rng.uniform(0.5, 1.5, (patches, dim)) + rng.exponential(0.02, (patches, dim))


def _normal(rng: np.random.Generator, patches: int, dim: int) -> NDArray[np.float64]:
    return rng.standard_normal((patches, dim))


def _constant(rng: np.random.Generator, patches: int, dim: int) -> NDArray[np.float64]:
    return np.repeat(_clustered(rng, 1, dim), patches, axis=0)


def _large(rng: np.random.Generator, patches: int, dim: int) -> NDArray[np.float64]:
    return _LARGE * _clustered(rng, patches, dim)


def _zeros(_: np.random.Generator, patches: int, dim: int) -> NDArray[np.float64]:
    return np.zeros((patches, dim))


_BAGS: dict[BagKind, Callable[[np.random.Generator, int, int], NDArray[np.float64]]] = {
    "clustered": _clustered,
    "normal": _normal,
    "constant": _constant,
    "large": _large,
    "zeros": _zeros,
}
