"""The ground of a tile: stroma with its fibres, fat, and the cytoplasm of solid lesions, without nuclei."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from hagmil.phantom.anatomy import LYMPH, TISSUE
from hagmil.phantom.noise import compiled, value_noise
from hagmil.phantom.scene import Scene, depth, fat_wall, fibre_across, lesion_depth, nest_depth, tissue_depth

Plane = NDArray[np.float32]

SALT_GROUND: Final = 71
_SKIP_PX: Final = 16
"""Number of glass pixels that are skipped at once, far from tissue."""


@compiled
def paint_ground(haem: Plane, eosin: Plane, x0: int, y0: int, scene: Scene) -> bool:
    """Paint the two stain planes of a tile, except glands and nuclei.

    Args:
        haem: float32 (rows, columns), amount of haematoxylin; overwritten.
        eosin: float32 (rows, columns), amount of eosin; overwritten.
        x0: left edge of the tile in level-0 pixels.
        y0: upper edge of the tile in level-0 pixels.
        scene: the phantom.

    Returns:
        Whether the tile contains tissue.
    """
    spacing = scene.spacing_um
    skip_um = 1.6 * scene.edge_um + _SKIP_PX * spacing
    found = False
    for row in range(haem.shape[0]):
        y = (y0 + row + 0.5) * spacing
        bare_until = 0
        for column in range(haem.shape[1]):
            haem[row, column] = 0.0
            eosin[row, column] = 0.0
            if column < bare_until:
                continue
            x = (x0 + column + 0.5) * spacing
            starts_block = (x0 + column) % _SKIP_PX == 0
            if starts_block and depth(scene, TISSUE, x + 0.5 * _SKIP_PX * spacing, y) < -2.0 * skip_um:
                bare_until = column + _SKIP_PX
                continue
            inside = tissue_depth(scene, x, y)
            if inside <= -1.0:
                continue
            found = True
            h, e = _amounts(scene, x, y, inside)
            cover = min(0.5 * (inside + 1.0), 1.0)
            haem[row, column] = h * cover
            eosin[row, column] = e * (cover + 0.25 * max(1.0 - abs(inside - 2.5) / 2.5, 0.0))
    return found


@compiled
def _amounts(scene: Scene, x: float, y: float, inside: float) -> tuple[float, float]:
    """Haematoxylin and eosin of the ground at a point with depth ``inside`` in the tissue."""
    lesion = lesion_depth(scene, x, y)
    if lesion > 0.0:
        nest = min(max(0.5 + 0.4 * nest_depth(scene, x, y), 0.0), 1.0)
        h, e = _stroma(scene, x, y) if nest < 1.0 else (0.0, 0.0)
        deep_h, deep_e = _cytoplasm(scene, x, y) if nest > 0.0 else (0.0, 0.0)
        reactive = 0.06 * min(0.06 * lesion, 1.0)
        return (h + reactive) * (1.0 - nest) + deep_h * nest, 0.9 * e * (1.0 - nest) + deep_e * nest
    wall = fat_wall(scene, x, y)
    if wall >= 0.0:
        film = max(1.0 - min(wall, 0.7 * inside) / 1.5, 0.0)
        return 0.05 * film, 0.015 + 0.4 * film
    h, e = _stroma(scene, x, y)
    crowd = min(max(0.12 * depth(scene, LYMPH, x, y), 0.0), 1.0)
    return h + 0.07 * crowd, e * (1.0 - 0.45 * crowd)


@compiled
def _cytoplasm(scene: Scene, x: float, y: float) -> tuple[float, float]:
    """Stain of the cytoplasm of lesion cells: granular, with faint borders between cells."""
    grain = value_noise(x / 1.7, y / 1.7, scene.salt + SALT_GROUND) - 0.5
    pitch = 0.8 * scene.lesion.pitch_um
    patchy = value_noise(x / pitch, y / pitch, scene.salt + SALT_GROUND + 1)
    border = max(1.0 - 9.0 * abs(patchy - 0.5), 0.0)
    h = scene.lesion.cytoplasm_haem * (0.8 + 0.4 * patchy + 0.35 * grain)
    return h, scene.lesion.cytoplasm_eosin * (0.75 + 0.4 * patchy + 0.4 * grain - 0.55 * border)


@compiled
def _stroma(scene: Scene, x: float, y: float) -> tuple[float, float]:
    """Stain of collagen: wavy fibres, bundles, and clefts between bundles."""
    salt = scene.salt + SALT_GROUND
    crinkle = value_noise(x / 7.0, y / 7.0, salt + 1) - 0.5
    across = fibre_across(scene, x, y) + 4.5 * crinkle
    along = x * scene.fibre_x + y * scene.fibre_y
    strand = value_noise(across / 1.7, along / 17.0, salt + 2)
    bundle = value_noise(across / 6.5, along / 46.0, salt + 3)
    loose = value_noise(x / 150.0, y / 150.0, salt + 4)
    grain = value_noise(x / 1.1, y / 1.1, salt + 5) - 0.5
    gap = bundle + 0.5 * (strand - 0.5) + 0.25 * grain - (0.98 - 0.52 * loose) * scene.fibre_density
    cleft = min(max(6.0 * gap, 0.0), 1.0)
    e = (0.2 + 0.36 * strand + 0.26 * (1.0 - bundle)) * (1.1 - 0.35 * loose) * (1.0 + 0.6 * grain)
    return 0.03 + 0.05 * loose + 0.06 * grain, e * (1.0 - 0.85 * cleft)
