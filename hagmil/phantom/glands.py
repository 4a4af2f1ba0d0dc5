"""Glands and small vessels: round structures with a wall ("rings"), on jittered lattices.

1. Find the lattice cells near the tile that contain a ring: in tissue, in its component, at a distance from others
   (``find_rings``).
2. Paint wall and lumen of each ring (``paint_rings``).
3. Stamp the nuclei of the walls, side by side, after all walls of the tile are painted (``stamp_walls``).
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hagmil.phantom.anatomy import FAT, GLANDS, LESION, LYMPH
from hagmil.phantom.noise import compiled, hash_cell, next_bits, unit, value_noise
from hagmil.phantom.nuclei import Nucleus, stamp
from hagmil.phantom.scene import Scene, depth, lesion_depth, tissue_depth

Plane = NDArray[np.float32]
Rings = NDArray[np.float64]
"""float64 (rings, 9): x, y, radius, four lobe amplitudes, amount of secretion, random bits."""

SALT_RING: Final = 151
_COLUMNS: Final = 9
_MARGIN: Final = 1.4
"""Upper bound of the extent of a ring, relative to its radius."""


class RingKind(NamedTuple):
    """Glands or vessels of one kind.

    Args:
        salt: salt of the lattice.
        field: the field of the layout that contains them; -1 for stroma without other components.
        pitch_um: pitch of the lattice.
        chance: share of lattice cells with a ring, where there is space.
        smallest_um: minimum radius.
        largest_um: maximum radius.
        lobes: deviation from a circle, 0 to about 0.15.
        wall_um: thickness of the wall.
        vessel: whether they are vessels, filled with blood.
        nucleus_um: distance between nuclei along the wall.
        dark: haematoxylin of the nuclei.
    """

    salt: int
    field: int
    pitch_um: float
    chance: float
    smallest_um: float
    largest_um: float
    lobes: float
    wall_um: float
    vessel: bool
    nucleus_um: float
    dark: float


@compiled
def find_rings(width: int, height: int, x0: int, y0: int, scene: Scene, kind: RingKind) -> Rings:
    """Find the rings that overlap a tile, in row order of their lattice (step 1).

    Args:
        width: width of the tile in pixels.
        height: height of the tile in pixels.
        x0: left edge of the tile in level-0 pixels.
        y0: upper edge of the tile in level-0 pixels.
        scene: the phantom.
        kind: glands or vessels of one kind.

    Returns:
        float64 (rings, 9).
    """
    spacing, pitch = scene.spacing_um, kind.pitch_um
    margin = _MARGIN * kind.largest_um + 0.5 * pitch
    first_row = math.floor((y0 * spacing - margin) / pitch)
    last_row = math.floor(((y0 + height) * spacing + margin) / pitch)
    first_column = math.floor((x0 * spacing - margin) / pitch)
    last_column = math.floor(((x0 + width) * spacing + margin) / pitch)
    rings = np.empty(((last_row - first_row + 1) * (last_column - first_column + 1), _COLUMNS), np.float64)
    count = 0
    for row in range(first_row, last_row + 1):
        for column in range(first_column, last_column + 1):
            count += _try_ring(rings[count], column, row, scene, kind)
    return rings[:count]


@compiled
def _try_ring(ring: NDArray[np.float64], column: int, row: int, scene: Scene, kind: RingKind) -> int:
    """Store the ring of a lattice cell; return 1 if there is one, else 0."""
    bits = hash_cell(column, row, scene.salt + kind.salt)
    if unit(bits) >= kind.chance:
        return 0
    bits = next_bits(bits)
    radius = kind.smallest_um + (kind.largest_um - kind.smallest_um) * unit(bits)
    free = max(0.5 - radius / kind.pitch_um, 0.03)
    bits = next_bits(bits)
    x = (column + 0.25 + 0.5 * (row & 1) + 2.0 * free * (unit(bits) - 0.5)) * kind.pitch_um
    bits = next_bits(bits)
    y = (row + 0.5 + 2.0 * free * (unit(bits) - 0.5)) * kind.pitch_um
    if not _has_room(scene, kind, x, y, radius):
        return 0
    ring[0], ring[1], ring[2] = x, y, radius
    for lobe in range(4):
        bits = next_bits(bits)
        ring[3 + lobe] = 2.0 * kind.lobes * (unit(bits) - 0.5)
    bits = next_bits(bits)
    ring[7] = unit(bits)
    ring[8] = next_bits(bits)
    return 1


@compiled
def _has_room(scene: Scene, kind: RingKind, x: float, y: float, radius: float) -> bool:
    """Whether there is space for a ring of the given radius."""
    if tissue_depth(scene, x, y) < 1.15 * radius + 3.0:
        return False
    if depth(scene, LYMPH, x, y) > -radius or depth(scene, FAT, x, y) > -radius:
        return False
    if kind.field == LESION:
        return lesion_depth(scene, x, y) > 0.3 * radius
    if depth(scene, LESION, x, y) > -radius - 12.0:
        return False
    glands = depth(scene, GLANDS, x, y)
    return glands > 0.0 if kind.field == GLANDS else glands < -0.8 * radius


@compiled
def _outline(ring: NDArray[np.float64], c: float, s: float) -> float:
    """Radius of a ring in the direction (c, s), from its second and third harmonics."""
    c2, s2 = c * c - s * s, 2.0 * c * s
    c3, s3 = c * c2 - s * s2, s * c2 + c * s2
    return float(ring[2] * (1.0 + ring[3] * c2 + ring[4] * s2 + 0.7 * (ring[5] * c3 + ring[6] * s3)))


@compiled
def paint_rings(haem: Plane, eosin: Plane, x0: int, y0: int, scene: Scene, kind: RingKind, rings: Rings) -> None:
    """Paint wall and lumen of each ring on the planes of a tile (step 2)."""
    spacing = scene.spacing_um
    for index in range(rings.shape[0]):
        ring = rings[index]
        reach = _MARGIN * ring[2] + 4.0
        left = max(math.floor((ring[0] - reach) / spacing) - x0, 0)
        right = min(math.ceil((ring[0] + reach) / spacing) - x0 + 1, haem.shape[1])
        upper = max(math.floor((ring[1] - reach) / spacing) - y0, 0)
        lower = min(math.ceil((ring[1] + reach) / spacing) - y0 + 1, haem.shape[0])
        for row in range(upper, lower):
            y = (y0 + row + 0.5) * spacing
            for column in range(left, right):
                x = (x0 + column + 0.5) * spacing
                dx, dy = x - ring[0], y - ring[1]
                distance = max(math.sqrt(dx * dx + dy * dy), 1e-6)
                if distance > reach:
                    continue
                wave = value_noise(x / 8.0, y / 8.0, scene.salt + SALT_RING) - 0.5
                inside = _outline(ring, dx / distance, dy / distance) - distance + 3.0 * wave
                if inside <= -2.5:
                    continue
                h, e = (
                    _vessel(scene, ring, kind, inside, x, y) if kind.vessel else _gland(scene, ring, kind, inside, x, y)
                )
                cover = min(0.6 * (inside + 2.5), 1.0)
                haem[row, column] = haem[row, column] * (1.0 - cover) + h * cover
                eosin[row, column] = eosin[row, column] * (1.0 - cover) + e * cover


@compiled
def _gland(
    scene: Scene, ring: NDArray[np.float64], kind: RingKind, inside: float, x: float, y: float
) -> tuple[float, float]:
    """Stain of a gland: membrane, epithelium with a darker border, and a lumen with some secretion."""
    grain = value_noise(x / 1.9, y / 1.9, scene.salt + SALT_RING + 1) - 0.5
    if inside < 0.0:
        return 0.05, 0.55 + 0.1 * grain
    brim = kind.wall_um - inside
    if brim > 0.0:
        edge = max(1.0 - brim / 1.6, 0.0)
        return 0.17 + 0.10 * grain, 0.27 + 0.14 * grain + 0.2 * edge
    cloud = value_noise(x / 14.0, y / 14.0, scene.salt + SALT_RING + 2)
    secretion = max(float(ring[7]) - 0.55, 0.0) * (0.3 + cloud)
    fade = min(max(1.0 + brim / 1.2, 0.0), 1.0)
    return 0.02 + 0.08 * fade + 0.05 * secretion, 0.02 + 0.2 * fade + 0.55 * secretion


@compiled
def _vessel(
    scene: Scene, ring: NDArray[np.float64], kind: RingKind, inside: float, x: float, y: float
) -> tuple[float, float]:
    """Stain of a vessel: a pink wall, and red blood cells inside."""
    if inside < kind.wall_um:
        fibre = value_noise(inside / 1.5, (x + y) / 20.0, scene.salt + SALT_RING + 3)
        return 0.06, 0.38 + 0.24 * fibre
    column, row = math.floor(x / 6.0), math.floor(y / 6.0)
    bits = hash_cell(column, row, scene.salt + SALT_RING + 4)
    if unit(bits) < 0.85 - 0.6 * ring[7]:
        bits = next_bits(bits)
        dx = x - (column + 0.4 + 0.2 * unit(bits)) * 6.0
        bits = next_bits(bits)
        dy = y - (row + 0.4 + 0.2 * unit(bits)) * 6.0
        distance = math.sqrt(dx * dx + dy * dy)
        cover = min(max(3.2 - distance, 0.0), 1.0)
        return 0.02, 0.05 + (0.75 + 0.1 * distance) * cover
    return 0.02, 0.05


@compiled
def stamp_walls(haem: Plane, eosin: Plane, x0: int, y0: int, scene: Scene, kind: RingKind, rings: Rings) -> None:
    """Stamp the nuclei of the walls of all rings on the planes of a tile (step 3)."""
    for index in range(rings.shape[0]):
        ring = rings[index]
        count = max(int(6.2831853 * ring[2] / kind.nucleus_um), 3)
        bits = int(ring[8])
        for place in range(count):
            bits = next_bits(bits)
            angle = 6.2831853 * (place + 0.35 * unit(bits)) / count
            c, s = math.cos(angle), math.sin(angle)
            bits = next_bits(bits)
            if kind.vessel:
                from_edge, radial_um, around_um = 0.5 * kind.wall_um, 1.3, 5.0
            else:
                from_edge = kind.wall_um * (0.34 + 0.14 * unit(bits))
                radial_um, around_um = 0.25 * kind.wall_um + 0.8 * unit(next_bits(bits)), 2.7
            distance = _outline(ring, c, s) - from_edge
            along = radial_um >= around_um
            nucleus = Nucleus(
                ring[0] + distance * c,
                ring[1] + distance * s,
                max(radial_um, around_um),
                min(radial_um, around_um),
                c if along else -s,
                s if along else c,
                kind.dark * (0.85 + 0.3 * unit(bits)),
                0.35,
                0.2,
                False,
                bits,
            )
            stamp(haem, eosin, x0, y0, scene.spacing_um, nucleus)
