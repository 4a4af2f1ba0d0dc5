"""The layout of a phantom at low resolution: tissue, lesions, fat, glands, lymphocytes and pen marks.

Each component is a *depth* field in micrometres: the approximate distance of a point from the edge of the component,
negative outside. The painters interpolate these fields and add fine noise. The layout has at most ``MAXIMUM_CELLS``
cells per side, whatever the size of the slide.

1. Tissue: one or more warped ellipses, minus holes and a margin. Their depth is shifted until the tissue covers a share
   of the slide that is drawn at random.
2. Lesions: noisy discs inside tissue, shifted in the same way until they have their share of the tissue.
3. Fat and glands: smooth noise above the quantile that gives their share, outside lesions.
4. Lymphocyte clusters: small discs in tissue, outside lesions, in every class.
5. Pen: a stroke along one side of some slides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hagmil.phantom.classes import CROWDED_GLANDS, NORMAL
from hagmil.phantom.spec import PhantomSpec

Field = NDArray[np.float32]

TISSUE: Final = 0
LESION: Final = 1
FAT: Final = 2
GLANDS: Final = 3
LYMPH: Final = 4
PEN: Final = 5
FIELDS: Final = 6

FINEST_CELL_UM: Final = 8.0
MINIMUM_CELLS: Final = 64
MAXIMUM_CELLS: Final = 1024
FAR_UM: Final = 1e6
FREE_UM: Final = 20.0
"""Minimum distance of fat and ordinary glands from lesions."""

TISSUE_SHARE: Final = (0.32, 0.56)
CELLS_SHARE: Final = (0.03, 0.075)
"""Range of the share of solid lesions in the tissue."""
CELLS_RADIUS_UM: Final = 45.0
"""Approximate minimum radius of solid lesions, except on slides that are too small for it."""
GLANDS_SHARE: Final = (0.055, 0.08)
"""Range of the share of crowded glands in the tissue; they need space to be recognisable as crowded."""
GLANDS_RADIUS_UM: Final = 110.0
PEN_SHARE_OF_SLIDES: Final = 0.2


@dataclass(frozen=True, slots=True)
class Anatomy:
    """The layout of a phantom.

    Args:
        fields: float32 (cells, cells, 6), depths in micrometres: TISSUE, LESION, FAT, GLANDS, LYMPH, PEN.
        cell_um: side of a cell in micrometres.
        tissue_share: share of tissue in the slide.
        lesion_share: share of lesions in the tissue.
        lesions: number of lesions.
        pen_marked: whether the slide has a pen mark.
    """

    fields: Field
    cell_um: float
    tissue_share: float
    lesion_share: float
    lesions: int
    pen_marked: bool


def make_anatomy(spec: PhantomSpec, rng: np.random.Generator) -> Anatomy:
    """Make the layout of a phantom (steps 1 to 5).

    Args:
        spec: the phantom.
        rng: random generator, used in a fixed order.
    """
    cells = int(min(max(math.ceil(spec.side_um / FINEST_CELL_UM), MINIMUM_CELLS), MAXIMUM_CELLS))
    grid = _Grid(cells=cells, side_um=spec.side_um)
    fields = np.full((cells, cells, FIELDS), -FAR_UM, np.float32)
    fields[..., TISSUE] = tissue = _tissue(grid, rng)
    lesions = 0
    if spec.label != NORMAL:
        glandular = spec.label == CROWDED_GLANDS
        share = rng.uniform(*(GLANDS_SHARE if glandular else CELLS_SHARE))
        least_um = GLANDS_RADIUS_UM if glandular else CELLS_RADIUS_UM
        fields[..., LESION], lesions = _lesions(grid, tissue, rng, share, least_um)
    lesion = fields[..., LESION]
    fields[..., FAT] = _region(grid, tissue, rng, share=(0.0, 0.24), scale=(0.18, 650.0), clear_of=lesion)
    fields[..., GLANDS] = _region(grid, tissue, rng, share=(0.25, 0.55), scale=(0.16, 520.0), clear_of=lesion)
    fields[..., GLANDS] = np.minimum(fields[..., GLANDS], -fields[..., FAT])
    fields[..., LYMPH] = _lymphocyte_clusters(grid, fields, rng)
    pen_marked = bool(rng.random() < PEN_SHARE_OF_SLIDES)
    if pen_marked:
        fields[..., PEN] = _pen(grid, rng)
    inside = int(np.count_nonzero(tissue > 0))
    diseased = int(np.count_nonzero((tissue > 0) & (lesion > 0)))
    return Anatomy(fields, grid.cell_um, inside / cells**2, diseased / max(inside, 1), lesions, pen_marked)


class _Grid:
    """The centres of the cells in micrometres, and noise at these points."""

    def __init__(self, *, cells: int, side_um: float) -> None:
        self.cells = cells
        self.side_um = side_um
        self.cell_um = side_um / cells
        centres = (np.arange(cells, dtype=np.float32) + np.float32(0.5)) * np.float32(self.cell_um)
        self.x, self.y = centres[None, :], centres[:, None]

    def noise(self, rng: np.random.Generator, scale_um: float, octaves: int = 1) -> Field:
        """Smooth noise (cells, cells), -2 to 2; ``scale_um`` is the pitch of its coarsest lattice."""
        total: Field = np.zeros((self.cells, self.cells), np.float32)
        for octave in range(octaves):
            pitch_um = max(scale_um / 2**octave, 2 * self.cell_um)
            nodes = math.ceil(self.side_um / pitch_um) + 2
            lattice = rng.uniform(-1.0, 1.0, (nodes, nodes)).astype(np.float32)
            place = self.x[0] / np.float32(pitch_um)
            index = place.astype(np.int64)
            blend = place - np.floor(place)
            blend = blend * blend * (np.float32(3.0) - np.float32(2.0) * blend)
            rows = lattice[index] * (1.0 - blend)[:, None] + lattice[index + 1] * blend[:, None]
            total += (rows[:, index] * (1.0 - blend) + rows[:, index + 1] * blend) * np.float32(0.5**octave)
        return total

    def disc(self, x: float, y: float, radius_um: float) -> Field:
        """Depth field (cells, cells) of a disc."""
        away: Field = np.hypot(self.x - np.float32(x), self.y - np.float32(y))
        return np.float32(radius_um) - away


def _tissue(grid: _Grid, rng: np.random.Generator) -> Field:
    """Depth of the tissue (step 1)."""
    side = grid.side_um
    warp_x = grid.x + grid.noise(rng, 0.25 * side, octaves=5) * np.float32(0.07 * side)
    warp_y = grid.y + grid.noise(rng, 0.25 * side, octaves=5) * np.float32(0.07 * side)
    depth = np.full((grid.cells, grid.cells), -FAR_UM, np.float32)
    for x, y, long_um, short_um, angle in _pieces(side, rng):
        u = (warp_x - x) * math.cos(angle) + (warp_y - y) * math.sin(angle)
        v = (warp_y - y) * math.cos(angle) - (warp_x - x) * math.sin(angle)
        depth = np.maximum(depth, (1.0 - np.hypot(u / long_um, v / short_um)) * min(long_um, short_um))
    border = np.minimum(np.minimum(grid.x, side - grid.x), np.minimum(grid.y, side - grid.y))
    limit = (border - np.float32(0.03 * side)).astype(np.float32)
    for _ in range(int(rng.integers(0, 5))):
        x, y = rng.uniform(0.15, 0.85, 2) * side
        hole = grid.disc(x, y, rng.uniform(0.015, 0.05) * side) + grid.noise(rng, 0.1 * side, octaves=3) * (0.03 * side)
        limit = np.minimum(limit, -hole)
    return _with_share(depth, limit, rng.uniform(*TISSUE_SHARE), of=np.ones_like(depth, bool))


def _pieces(side: float, rng: np.random.Generator) -> list[tuple[float, float, float, float, float]]:
    """Centre, semi-axes and angle of each piece of tissue: one resection, several fragments, or cores."""
    kind = rng.choice(["resection", "fragments", "cores"], p=[0.45, 0.35, 0.2])
    if kind == "resection":
        x, y = rng.uniform(0.42, 0.58, 2) * side
        return [(x, y, rng.uniform(0.36, 0.46) * side, rng.uniform(0.26, 0.38) * side, rng.uniform(0, math.pi))]
    if kind == "cores":
        count, tilt = int(rng.integers(2, 4)), rng.uniform(0, math.pi)
        offsets = (np.arange(count) - (count - 1) / 2) * 0.66 / count * side
        middle = 0.5 * side
        return [
            (middle - o * math.sin(tilt), middle + o * math.cos(tilt), 0.46 * side, 0.2 / count * side, tilt)
            for o in (offsets + rng.uniform(-0.02, 0.02, count) * side).tolist()
        ]
    count, start = int(rng.integers(3, 6)), rng.uniform(0, 2 * math.pi)
    pieces = []
    for piece in range(count):
        around = start + 2 * math.pi * (piece + rng.uniform(-0.15, 0.15)) / count
        x, y = (0.5 + 0.29 * math.cos(around)) * side, (0.5 + 0.29 * math.sin(around)) * side
        long_um = rng.uniform(0.13, 0.22) * side
        pieces.append((x, y, long_um, long_um * rng.uniform(0.6, 1.0), rng.uniform(0, math.pi)))
    return pieces


def _with_share(depth: Field, limit: Field, share: float, *, of: NDArray[np.bool_]) -> Field:
    """Shift a depth so that its minimum with ``limit`` is positive in a given share of the cells ``of``."""
    low, high = float(depth.min()), float(depth.max())
    chosen_depth, chosen_limit = depth[of], limit[of]
    for _ in range(30):
        middle = (low + high) / 2
        if np.mean((chosen_depth > middle) & (chosen_limit > 0)) > share:
            low = middle
        else:
            high = middle
    shifted: Field = np.minimum(depth - np.float32((low + high) / 2), limit)
    return shifted


def _lesions(grid: _Grid, tissue: Field, rng: np.random.Generator, share: float, least_um: float) -> tuple[Field, int]:
    """Depth of the lesions, and their number (step 2)."""
    inside = tissue > 0
    area_um2 = share * np.count_nonzero(inside) * grid.cell_um**2
    wanted = int(rng.integers(1, 5))
    count = min(wanted, max(1, int(area_um2 / (math.pi * least_um**2))))
    weights = rng.uniform(0.6, 1.4, count)
    radii = np.sqrt(area_um2 * weights / weights.sum() / math.pi)
    depth = np.full_like(tissue, -FAR_UM)
    for radius in radii.tolist():
        room = np.minimum(tissue - 0.55 * radius, -depth - 1.6 * radius)
        row, column = _pick(room, rng)
        wobble = grid.noise(rng, 1.1 * radius, octaves=3) * np.float32(0.3 * radius)
        disc = grid.disc((column + 0.5) * grid.cell_um, (row + 0.5) * grid.cell_um, radius) + wobble
        depth = np.maximum(depth, disc)
    return _with_share(depth, tissue - np.float32(2.0), share, of=inside), count


def _pick(room: Field, rng: np.random.Generator) -> tuple[int, int]:
    """Pick a random cell where ``room`` is positive, or the cell with the largest value."""
    places = np.flatnonzero(room > 0)
    place = int(places[rng.integers(places.size)]) if places.size else int(room.argmax())
    return place // room.shape[1], place % room.shape[1]


def _region(
    grid: _Grid,
    tissue: Field,
    rng: np.random.Generator,
    *,
    share: tuple[float, float],
    scale: tuple[float, float],
    clear_of: Field,
) -> Field:
    """Depth of a component with a share of the tissue (step 3); scale is (share of the side, maximum in um)."""
    scale_um = min(scale[0] * grid.side_um, scale[1])
    field = grid.noise(rng, scale_um, octaves=3) * np.float32(0.5 * scale_um)
    level = np.quantile(field[tissue > 0], 1.0 - rng.uniform(*share))
    region: Field = np.minimum(field - np.float32(level), -clear_of - np.float32(FREE_UM))
    return region


def _lymphocyte_clusters(grid: _Grid, fields: Field, rng: np.random.Generator) -> Field:
    """Depth of lymphocyte clusters, about two to five per square millimetre of tissue (step 4)."""
    tissue, lesion, fat = fields[..., TISSUE], fields[..., LESION], fields[..., FAT]
    depth = np.full_like(tissue, -FAR_UM)
    area_mm2 = np.count_nonzero(tissue > 0) * grid.cell_um**2 * 1e-6
    count = 1 + int(rng.poisson(rng.uniform(2.0, 5.0) * area_mm2))
    places = np.flatnonzero((tissue > 15.0) & (lesion < -25.0) & (fat < -10.0))
    if places.size == 0:
        return depth
    for place in rng.choice(places, count).tolist():
        row, column = divmod(place, grid.cells)
        radius = min(rng.uniform(28.0, 75.0), 0.07 * grid.side_um)
        reach = math.ceil(3 * radius / grid.cell_um) + 1
        window = (
            slice(max(row - reach, 0), row + reach + 1),
            slice(max(column - reach, 0), column + reach + 1),
        )
        x, y = grid.x[0, column], grid.y[row, 0]
        stretch = rng.uniform(1.0, 1.7)
        turn = rng.uniform(0.0, math.pi)
        dx, dy = grid.x[:, window[1]] - x, grid.y[window[0]] - y
        u, v = dx * math.cos(turn) + dy * math.sin(turn), dy * math.cos(turn) - dx * math.sin(turn)
        distance = np.hypot(u * stretch, v / stretch)
        depth[window] = np.maximum(depth[window], np.float32(radius) - distance)
    return depth


def _pen(grid: _Grid, rng: np.random.Generator) -> Field:
    """Depth of a curved pen stroke along one side of the slide (step 5)."""
    side = grid.side_um
    half_width = min(0.022 * side, 220.0) * rng.uniform(0.7, 1.2)
    bend, place = rng.uniform(-0.35, 0.35), rng.uniform(0.05, 0.13)
    along, across = (grid.x, grid.y) if rng.random() < 0.5 else (grid.y, grid.x)
    if rng.random() < 0.5:
        across = side - across
    start, stop = rng.uniform(0.03, 0.2) * side, rng.uniform(0.55, 0.95) * side
    middle, length = (start + stop) / 2, stop - start
    line = (place + bend * 0.25 * ((along - middle) / length * 2) ** 2) * side
    distance = np.abs(across - line) + grid.noise(rng, 0.2 * side, octaves=2) * np.float32(0.008 * side)
    beyond = np.maximum(np.abs(along - middle) - length / 2, 0.0)
    depth: Field = np.asarray(half_width - np.hypot(distance, beyond), np.float32)
    return depth
