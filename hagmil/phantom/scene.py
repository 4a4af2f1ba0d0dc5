"""Properties of points for the painters: tissue, nests of lesion cells, fat vacuoles, direction of fibres.

Points are (x, y) in micrometres from the top-left corner of the slide. All functions depend only on the point and the
scene, so that each tile can be painted independently.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hagmil.phantom.anatomy import FAT, LESION, TISSUE
from hagmil.phantom.classes import LesionCells
from hagmil.phantom.noise import compiled, hash_cell, next_bits, sample, unit, value_noise

SALT_EDGE: Final = 11
SALT_LESION: Final = 23
SALT_NEST: Final = 31
SALT_FAT: Final = 43
SALT_FIBRE: Final = 57


class Scene(NamedTuple):
    """The constants of a phantom for the compiled painters.

    Args:
        salt: salt of all noise of the slide, 0 to 2**31 - 1.
        spacing_um: micrometres per level-0 pixel.
        cell_um: side of a cell of the layout.
        fields: float32 (cells, cells, fields), depths of the layout in micrometres.
        edge_um: amplitude of the fine outline of the tissue around that of the layout.
        fibre_x: x of the unit vector along the fibres of the stroma.
        fibre_y: y of the same vector.
        fibre_density: density of collagen, about 0.8 to 1.2.
        fat_pitch_um: width of a fat vacuole.
        solid_lesion: whether lesions are nests of cells (else glands).
        lesion: the cells of solid lesions.
    """

    salt: int
    spacing_um: float
    cell_um: float
    fields: NDArray[np.float32]
    edge_um: float
    fibre_x: float
    fibre_y: float
    fibre_density: float
    fat_pitch_um: float
    solid_lesion: bool
    lesion: LesionCells


@compiled
def depth(scene: Scene, field: int, x: float, y: float) -> float:
    """Depth of a point in one field of the layout, in micrometres."""
    return sample(scene.fields, field, x, y, scene.cell_um)


@compiled
def tissue_depth(scene: Scene, x: float, y: float) -> float:
    """Depth of a point in the tissue, in micrometres, with the fine outline near the edge."""
    coarse = depth(scene, TISSUE, x, y)
    if abs(coarse) > 1.6 * scene.edge_um:
        return coarse
    wide = value_noise(x / 55.0, y / 55.0, scene.salt + SALT_EDGE) - 0.5
    fine = value_noise(x / 11.0, y / 11.0, scene.salt + SALT_EDGE + 1) - 0.5
    return coarse + scene.edge_um * (2.0 * wide + 0.6 * fine)


@compiled
def lesion_depth(scene: Scene, x: float, y: float) -> float:
    """Depth of a point in a lesion, in micrometres."""
    coarse = depth(scene, LESION, x, y)
    if abs(coarse) > 16.0:
        return coarse
    return coarse + 20.0 * (value_noise(x / 28.0, y / 28.0, scene.salt + SALT_LESION) - 0.5)


@compiled
def nest_depth(scene: Scene, x: float, y: float) -> float:
    """Depth of a point in a nest of lesion cells, in micrometres; negative in the stroma between nests."""
    lesion = lesion_depth(scene, x, y)
    if lesion <= -2.0 or not scene.solid_lesion:
        return -2.0
    pitch = scene.lesion.nest_um
    wide = value_noise(x / pitch, y / pitch, scene.salt + SALT_NEST)
    fine = value_noise(3.1 * x / pitch, 3.1 * y / pitch, scene.salt + SALT_NEST + 1)
    ridge = abs(wide + 0.35 * (fine - 0.5) - 0.5)
    return min(lesion, (ridge - 0.45 * scene.lesion.stroma_share) * 0.7 * pitch)


@compiled
def fat_wall(scene: Scene, x: float, y: float) -> float:
    """Distance in micrometres from the wall of the fat vacuole around a point; -1 outside fat.

    Vacuoles are the Voronoi cells of a jittered lattice whose seed lies in the fat of the layout, so that they are
    complete at the edge.
    """
    pitch = scene.fat_pitch_um
    if depth(scene, FAT, x, y) < -1.5 * pitch:
        return -1.0
    bend = 0.16 * (value_noise(x / 33.0, y / 33.0, scene.salt + SALT_FAT) - 0.5)
    u, v = x / pitch + bend, y / pitch - bend
    column, row = math.floor(u), math.floor(v)
    nearest, second, point_u, point_v = 9.0, 9.0, 0.0, 0.0
    for j in range(row - 1, row + 2):
        for i in range(column - 1, column + 2):
            bits = hash_cell(i, j, scene.salt + SALT_FAT + 1)
            p, q = i + 0.15 + 0.7 * unit(bits), j + 0.15 + 0.7 * unit(next_bits(bits))
            distance = math.sqrt((u - p) * (u - p) + (v - q) * (v - q))
            if distance < nearest:
                second, nearest, point_u, point_v = nearest, distance, p, q
            elif distance < second:
                second = distance
    if depth(scene, FAT, point_u * pitch, point_v * pitch) < 0.0:
        return -1.0
    rounded = min(0.5 * (second - nearest), 0.66 - nearest)
    return max(rounded, 0.0) * pitch


@compiled
def fibre_across(scene: Scene, x: float, y: float) -> float:
    """Coordinate perpendicular to the wavy fibres of the stroma, in micrometres (constant along a fibre)."""
    straight = x * -scene.fibre_y + y * scene.fibre_x
    bend = value_noise(x / 260.0, y / 260.0, scene.salt + SALT_FIBRE) - 0.5
    wave = value_noise(x / 48.0, y / 48.0, scene.salt + SALT_FIBRE + 1) - 0.5
    return straight + 330.0 * bend + 26.0 * wave
