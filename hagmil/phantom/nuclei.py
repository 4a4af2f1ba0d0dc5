"""Nuclei: a stamp for one nucleus, and the lattices that place the nuclei of each population.

A population is a jittered lattice over the whole slide. A tile processes, in row order, all lattice cells whose nucleus
could overlap it. Each pixel therefore gets the same stamps in the same order, however the slide is divided into tiles.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hagmil.phantom.anatomy import GLANDS, LYMPH
from hagmil.phantom.noise import bell, compiled, hash_cell, next_bits, unit, value_noise
from hagmil.phantom.scene import Scene, depth, fat_wall, fibre_across, nest_depth, tissue_depth

Plane = NDArray[np.float32]

STROMA: Final = 0
LESION_NEST: Final = 1
LYMPHOCYTES: Final = 2

SALT_CHROMATIN: Final = 101
_REACH: Final = 3.2
"""Upper bound of the length of a nucleus, from centre to tip, relative to the mean radius of its population."""


class Population(NamedTuple):
    """A population of nuclei.

    Args:
        where: STROMA, LESION_NEST or LYMPHOCYTES.
        salt: salt of the lattice.
        pitch_um: pitch of the lattice.
        keep: share of lattice cells with a nucleus, where the population occurs.
        jitter: maximum distance of a nucleus from the centre of its cell, relative to the pitch.
        radius_um: mean radius.
        radius_spread: standard deviation of the radius, relative to it.
        slimmest: minimum ratio of the axes (1 is round).
        longest: maximum ratio of the axes.
        dark: mean haematoxylin.
        dark_spread: standard deviation of the haematoxylin.
        texture: coarseness of the chromatin, 0 to 1.
        clearing: paleness inside the membrane, 0 to 1.
        nucleolus: share of nuclei with a nucleolus.
    """

    where: int
    salt: int
    pitch_um: float
    keep: float
    jitter: float
    radius_um: float
    radius_spread: float
    slimmest: float
    longest: float
    dark: float
    dark_spread: float
    texture: float
    clearing: float
    nucleolus: float


class Nucleus(NamedTuple):
    """One nucleus: centre and semi-axes in micrometres, direction of the long axis, and stain."""

    x: float
    y: float
    long_um: float
    short_um: float
    axis_x: float
    axis_y: float
    dark: float
    texture: float
    clearing: float
    nucleolus: bool
    salt: int


@compiled
def stamp(haem: Plane, eosin: Plane, x0: int, y0: int, spacing: float, nucleus: Nucleus) -> None:
    """Paint the part of one nucleus that overlaps a tile."""
    reach = 1.25 * nucleus.long_um + 1.0 + spacing
    left = max(math.floor((nucleus.x - reach) / spacing) - x0, 0)
    right = min(math.ceil((nucleus.x + reach) / spacing) - x0 + 1, haem.shape[1])
    upper = max(math.floor((nucleus.y - reach) / spacing) - y0, 0)
    lower = min(math.ceil((nucleus.y + reach) / spacing) - y0 + 1, haem.shape[0])
    soft = max(0.9, 0.8 * spacing) / nucleus.short_um
    spot_x = nucleus.x + 0.35 * nucleus.short_um * (unit(nucleus.salt) - 0.5)
    spot_y = nucleus.y + 0.35 * nucleus.short_um * (unit(next_bits(nucleus.salt)) - 0.5)
    spot = 0.045 * nucleus.short_um * nucleus.short_um + 0.25
    for row in range(upper, lower):
        y = (y0 + row + 0.5) * spacing
        for column in range(left, right):
            x = (x0 + column + 0.5) * spacing
            dx, dy = x - nucleus.x, y - nucleus.y
            u = (dx * nucleus.axis_x + dy * nucleus.axis_y) / nucleus.long_um
            v = (dy * nucleus.axis_x - dx * nucleus.axis_y) / nucleus.short_um
            square = u * u + v * v
            if square > 1.6:
                continue
            lump = value_noise(x / 3.6, y / 3.6, nucleus.salt) - 0.5
            radius = math.sqrt(square) + 0.3 * nucleus.texture * lump
            cover = min(max((1.0 - radius) / soft + 0.5, 0.0), 1.0)
            if cover <= 0.0:
                continue
            grain = value_noise(x / 1.15, y / 1.15, nucleus.salt + SALT_CHROMATIN) - 0.5
            pale = 1.08 - (nucleus.clearing + 0.16) * min(max(2.2 * (0.95 - radius), 0.0), 1.0)
            amount = nucleus.dark * (pale + 0.8 * nucleus.texture * grain)
            if nucleus.nucleolus:
                away = (x - spot_x) * (x - spot_x) + (y - spot_y) * (y - spot_y)
                amount += 0.5 * min(max(1.6 - away / spot, 0.0), 1.0)
            haem[row, column] = haem[row, column] * (1.0 - cover) + amount * cover
            eosin[row, column] *= 1.0 - 0.6 * cover


@compiled
def stamp_population(haem: Plane, eosin: Plane, x0: int, y0: int, scene: Scene, kind: Population) -> None:
    """Paint all nuclei of a population that overlap a tile.

    Args:
        haem: float32 (rows, columns), amount of haematoxylin.
        eosin: float32 (rows, columns), amount of eosin.
        x0: left edge of the tile in level-0 pixels.
        y0: upper edge of the tile in level-0 pixels.
        scene: the phantom.
        kind: the population.
    """
    spacing, pitch = scene.spacing_um, kind.pitch_um
    margin = 1.25 * _REACH * kind.radius_um + 2.0 + (0.5 + kind.jitter) * pitch
    first_row, last_row = _cells(y0, haem.shape[0], spacing, margin, pitch)
    first_column, last_column = _cells(x0, haem.shape[1], spacing, margin, pitch)
    for row in range(first_row, last_row + 1):
        for column in range(first_column, last_column + 1):
            bits = hash_cell(column, row, scene.salt + kind.salt)
            if unit(bits) >= kind.keep:
                continue
            bits = next_bits(bits)
            x = (column + 0.25 + 0.5 * (row & 1) + 2.0 * kind.jitter * (unit(bits) - 0.5)) * pitch
            bits = next_bits(bits)
            y = (row + 0.5 + 2.0 * kind.jitter * (unit(bits) - 0.5)) * pitch
            bits = next_bits(bits)
            if _occurs_at(scene, kind.where, x, y, unit(bits)):
                stamp(haem, eosin, x0, y0, spacing, _make_nucleus(scene, kind, x, y, bits))


@compiled
def _cells(start_px: int, length_px: int, spacing: float, margin: float, pitch: float) -> tuple[int, int]:
    """First and last lattice cell whose nucleus could overlap a tile, along one axis."""
    first = math.floor((start_px * spacing - margin) / pitch)
    return first, math.floor(((start_px + length_px) * spacing + margin) / pitch)


@compiled
def _occurs_at(scene: Scene, where: int, x: float, y: float, chance: float) -> bool:
    """Whether a population has a nucleus at a point; ``chance`` is uniform in [0, 1)."""
    if where == LYMPHOCYTES:
        crowd = depth(scene, LYMPH, x, y)
        if crowd < 26.0 * chance * chance - 6.0 or tissue_depth(scene, x, y) < 3.0:
            return False
        return fat_wall(scene, x, y) < 0.0
    nest = nest_depth(scene, x, y)
    if where == LESION_NEST:
        return nest > 0.0 and tissue_depth(scene, x, y) > 3.0
    if nest > -1.0 or tissue_depth(scene, x, y) < 4.0:
        return False
    wall = fat_wall(scene, x, y)
    if wall >= 0.0:
        return wall < 1.2 and chance < 0.7
    return chance < 0.8 or depth(scene, GLANDS, x, y) > 0.0


@compiled
def _make_nucleus(scene: Scene, kind: Population, x: float, y: float, bits: int) -> Nucleus:
    """Make the nucleus of a lattice cell."""
    bits = next_bits(bits)
    radius = kind.radius_um * min(max(1.0 + kind.radius_spread * bell(bits), 0.55), 1.9)
    bits = next_bits(bits)
    ratio = math.sqrt(kind.slimmest + (kind.longest - kind.slimmest) * unit(bits))
    ratio = min(ratio, _REACH * kind.radius_um / radius)
    bits = next_bits(bits)
    if kind.where == STROMA:
        slope_x = fibre_across(scene, x + 2.0, y) - fibre_across(scene, x - 2.0, y)
        slope_y = fibre_across(scene, x, y + 2.0) - fibre_across(scene, x, y - 2.0)
        angle = math.atan2(slope_y, slope_x) + 1.5707963 + 0.5 * (unit(bits) - 0.5)
    else:
        angle = 6.2831853 * unit(bits)
    bits = next_bits(bits)
    dark = max(kind.dark + kind.dark_spread * bell(bits), 0.3)
    bits = next_bits(bits)
    return Nucleus(
        x,
        y,
        radius * ratio,
        radius / ratio,
        math.cos(angle),
        math.sin(angle),
        dark,
        kind.texture,
        kind.clearing,
        unit(bits) < kind.nucleolus,
        next_bits(bits),
    )
