"""Paints the pixels of a phantom, for any rectangle; the pixels do not depend on the rectangle.

1. Make the anatomy, and draw the constants of the slide from its seed.
2. For each tile, paint the ground, then glands and vessels, then nuclei, as amounts of two stains.
3. Convert the amounts to colours with the colour table of the slide; apply thickness, sensor noise and pen marks.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hagmil.phantom.anatomy import GLANDS, LESION, PEN, Anatomy, make_anatomy
from hagmil.phantom.classes import CROWDED_GLANDS, LESION_CELLS, NORMAL, TUMOUR
from hagmil.phantom.glands import RingKind, find_rings, paint_rings, stamp_walls
from hagmil.phantom.ground import Plane, paint_ground
from hagmil.phantom.noise import compiled, hash_cell, sample, value_noise
from hagmil.phantom.nuclei import LESION_NEST, LYMPHOCYTES, STROMA, Population, stamp_population
from hagmil.phantom.scene import Scene, lesion_depth, tissue_depth
from hagmil.phantom.spec import PhantomSpec
from hagmil.phantom.stain import EOSIN_STEP, HAEM_STEP, colour_table, pen_colour

TILE_PX: Final = 256
SALT_LIGHT: Final = 201
_THICKNESS_PX: Final = 8
"""Number of pixels of a row that share one value of the section's thickness."""

_VESSELS: Final = RingKind(1009, -1, 260.0, 0.4, 9.0, 26.0, 0.22, 4.0, True, 15.0, 0.8)
_GLANDS: Final = RingKind(1013, GLANDS, 124.0, 0.86, 26.0, 57.0, 0.17, 14.0, False, 6.2, 0.78)
_CROWDED: Final = RingKind(1019, LESION, 43.0, 0.97, 14.5, 20.5, 0.14, 10.0, False, 5.6, 0.85)

_FIBROBLASTS: Final = Population(STROMA, 2003, 15.0, 0.55, 0.5, 3.0, 0.15, 1.6, 5.5, 0.82, 0.12, 0.3, 0.1, 0.0)
_LYMPHOCYTES: Final = Population(LYMPHOCYTES, 2011, 7.3, 0.9, 0.34, 2.85, 0.07, 1.0, 1.15, 1.08, 0.08, 0.25, 0.0, 0.0)


class Painter:
    """Painter of one phantom.

    Args:
        spec: the phantom.
    """

    def __init__(self, spec: PhantomSpec) -> None:
        rng = np.random.default_rng(np.random.SeedSequence(spec.seed))  # step 1
        self.spec = spec
        self.anatomy: Anatomy = make_anatomy(spec, rng)
        self._scene = _scene(spec, self.anatomy, rng)
        self._table = colour_table(rng)
        self._pen = pen_colour(rng)
        self._populations = _populations(spec.label)
        self._ring_kinds = (_VESSELS, _GLANDS, _CROWDED) if spec.label == CROWDED_GLANDS else (_VESSELS, _GLANDS)

    def paint(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Paint a rectangle.

        Args:
            x: left edge in level-0 pixels.
            y: upper edge in level-0 pixels.
            width: width in level-0 pixels.
            height: height in level-0 pixels.

        Returns:
            uint8 (height, width, 3), RGB.
        """
        rgb = np.empty((height, width, 3), np.uint8)
        haem, eosin = np.empty((2, TILE_PX, TILE_PX), np.float32)
        for top in range(0, height, TILE_PX):
            for left in range(0, width, TILE_PX):
                part = rgb[top : top + TILE_PX, left : left + TILE_PX]
                rows, columns = part.shape[:2]
                self._paint_tile(part, haem[:rows, :columns], eosin[:rows, :columns], x + left, y + top)
        return rgb

    def paint_mask(self, x: int, y: int, width: int, height: int, step_px: int) -> NDArray[np.uint8]:
        """Paint the lesion mask of a rectangle.

        Args:
            x: left edge in mask pixels.
            y: upper edge in mask pixels.
            width: width in mask pixels.
            height: height in mask pixels.
            step_px: level-0 pixels per mask pixel.

        Returns:
            uint8 (height, width): 255 if the centre of the mask pixel lies in a lesion, else 0.
        """
        mask = np.zeros((height, width), np.uint8)
        if self.anatomy.lesions:
            _mark_lesions(mask, x, y, step_px * self.spec.spacing_um, self._scene)
        return mask

    def _paint_tile(self, rgb: NDArray[np.uint8], haem: Plane, eosin: Plane, x0: int, y0: int) -> None:
        """Paint one tile (steps 2 and 3)."""
        if paint_ground(haem, eosin, x0, y0, self._scene):
            stamp_population(haem, eosin, x0, y0, self._scene, _FIBROBLASTS)
            for kind in self._ring_kinds:
                rings = find_rings(haem.shape[1], haem.shape[0], x0, y0, self._scene, kind)
                paint_rings(haem, eosin, x0, y0, self._scene, kind, rings)
                stamp_walls(haem, eosin, x0, y0, self._scene, kind, rings)
            for population in self._populations:
                stamp_population(haem, eosin, x0, y0, self._scene, population)
        _to_colour(rgb, haem, eosin, x0, y0, self._scene, self._table)
        if self.anatomy.pen_marked:
            _draw_pen(rgb, x0, y0, self._scene, self._pen)


def _scene(spec: PhantomSpec, anatomy: Anatomy, rng: np.random.Generator) -> Scene:
    """Draw the constants of the slide (step 1)."""
    angle = rng.uniform(0.0, math.pi)
    return Scene(
        salt=int(rng.integers(2**31)),
        spacing_um=float(spec.spacing_um),
        cell_um=float(anatomy.cell_um),
        fields=anatomy.fields,
        edge_um=min(14.0, 0.02 * spec.side_um),
        fibre_x=math.cos(angle),
        fibre_y=math.sin(angle),
        fibre_density=float(rng.uniform(0.9, 1.15)),
        fat_pitch_um=float(rng.uniform(48.0, 74.0)),
        solid_lesion=spec.label in LESION_CELLS,
        lesion=LESION_CELLS.get(spec.label, LESION_CELLS[TUMOUR]),
    )


def _populations(label: str) -> tuple[Population, ...]:
    """The populations that are painted after the glands, in order."""
    if label in (NORMAL, CROWDED_GLANDS):
        return (_LYMPHOCYTES,)
    cells = LESION_CELLS[label]
    lesion = Population(
        where=LESION_NEST,
        salt=2017,
        pitch_um=cells.pitch_um,
        keep=0.94,
        jitter=0.3,
        radius_um=cells.radius_um,
        radius_spread=cells.radius_spread,
        slimmest=1.0 + 0.35 * (cells.elongation - 1.0),
        longest=cells.elongation,
        dark=cells.dark,
        dark_spread=cells.dark_spread,
        texture=cells.texture,
        clearing=cells.clearing,
        nucleolus=cells.nucleolus,
    )
    return (lesion, _LYMPHOCYTES)


@compiled
def _to_colour(
    rgb: NDArray[np.uint8],
    haem: Plane,
    eosin: Plane,
    x0: int,
    y0: int,
    scene: Scene,
    table: NDArray[np.uint8],
) -> None:
    """Colours of a tile, with the thickness of the section and the noise of the sensor (step 3)."""
    spacing = scene.spacing_um
    for row in range(rgb.shape[0]):
        y = (y0 + row + 0.5) * spacing
        thickness, known_block = 1.0, -1
        for column in range(rgb.shape[1]):
            h, e = float(haem[row, column]), float(eosin[row, column])
            i, j = 0, 0
            if h + e > 0.0:
                block = (x0 + column) // _THICKNESS_PX
                if block != known_block:
                    known_block, x = block, (block + 0.5) * _THICKNESS_PX * spacing
                    thickness = 0.84 + 0.32 * value_noise(x / 230.0, y / 230.0, scene.salt + SALT_LIGHT)
                i = min(int(h * thickness / HAEM_STEP), 255)
                j = min(int(e * thickness / EOSIN_STEP), 255)
            grain = hash_cell(x0 + column, y0 + row, scene.salt + SALT_LIGHT + 1)
            light = ((grain & 255) + ((grain >> 8) & 255) - 255) // 96
            for channel in range(3):
                rgb[row, column, channel] = min(max(int(table[i, j, channel]) + light, 0), 255)


@compiled
def _draw_pen(rgb: NDArray[np.uint8], x0: int, y0: int, scene: Scene, pen: NDArray[np.float32]) -> None:
    """Paint the ink of the pen, which is streaky and thicker at its edge (step 3)."""
    spacing = scene.spacing_um
    for row in range(rgb.shape[0]):
        y = (y0 + row + 0.5) * spacing
        for column in range(rgb.shape[1]):
            x = (x0 + column + 0.5) * spacing
            inside = sample(scene.fields, PEN, x, y, scene.cell_um)
            if inside <= 0.0:
                continue
            streak = value_noise(x / 60.0, y / 60.0, scene.salt + SALT_LIGHT + 2)
            rim = max(1.0 - inside / 6.0, 0.0)
            cover = min(inside, 1.0) * (0.72 + 0.2 * streak + 0.08 * rim)
            for channel in range(3):
                through = 1.0 - cover * (1.0 - float(pen[channel]))
                rgb[row, column, channel] = int(rgb[row, column, channel] * through)


@compiled
def _mark_lesions(mask: NDArray[np.uint8], x0: int, y0: int, step_um: float, scene: Scene) -> None:
    """Mark the mask pixels whose centre lies in a lesion."""
    for row in range(mask.shape[0]):
        y = (y0 + row + 0.5) * step_um
        for column in range(mask.shape[1]):
            x = (x0 + column + 0.5) * step_um
            if lesion_depth(scene, x, y) > 0.0 and tissue_depth(scene, x, y) > 0.0:
                mask[row, column] = 255
