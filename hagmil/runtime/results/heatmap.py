"""heatmap.png: the slide, the regions that each stage read, the attention, and the verdict.

1. The left panel shows the slide with the outline of the regions that each stage read; the right panel shows the slide
   under its attention.
2. Attention scores of two stages come from two models and cannot be compared. Each stage therefore has its own part of
   the colour bar, and a patch is coloured by its rank among the patches of its stage. A region that a finer stage read
   is always higher on the bar than one that only coarser stages read.
3. Finer stages are painted over coarser ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from hagmil._files import write_bytes
from hagmil.runtime.inference.cascade import StageOutcome
from hagmil.runtime.results.panels import (
    FAINT,
    HEADER_PX,
    INK,
    MARGIN_PX,
    PAPER,
    Caption,
    draw_caption,
    draw_scale_bar,
    draw_text,
    fit_overview,
    region_border,
    shortened,
)
from hagmil.runtime.results.png import encode_png
from hagmil.runtime.slides.overview import Overview

_FOOTER_PX = 150
_OVERLAY_SHARE = 0.62
_COLOUR_STOPS = np.array(
    [(48, 62, 138), (38, 130, 142), (94, 184, 108), (240, 196, 56), (233, 116, 40), (176, 24, 44)], np.float64
)
_OUTLINES = ((90, 90, 90), (0, 92, 230), (214, 40, 40), (140, 30, 160), (0, 130, 90), (120, 80, 0))


def draw_heatmap(path: Path, overview: Overview, outcomes: Sequence[StageOutcome], caption: Caption) -> None:
    """Draw the heatmap and write it as PNG, atomically.

    Args:
        path: the file to write.
        overview: the whole slide at low resolution.
        outcomes: the stages, coarse to fine.
        caption: the text around the heatmap.
    """
    small, scale = fit_overview(overview)
    panel = np.asarray(small)
    height, width, _ = panel.shape
    patches = [_patch_of_pixels(outcome, scale, (height, width)) for outcome in outcomes]
    left, right, top = MARGIN_PX, width + 2 * MARGIN_PX, HEADER_PX
    canvas = np.full((height + HEADER_PX + _FOOTER_PX, 2 * width + 3 * MARGIN_PX, 3), 255, np.uint8)  # paper
    header, footer = (Image.new("RGB", (canvas.shape[1], rows), PAPER) for rows in (HEADER_PX, _FOOTER_PX))
    draw_caption(header, caption)
    draw_scale_bar(ImageDraw.Draw(footer), left, 0, width, scale, overview.slide_spacing_um)
    _draw_outline_legend(ImageDraw.Draw(footer), left, 44, outcomes)
    _draw_colour_bar(footer, right, 20, width, outcomes)
    canvas[:top], canvas[top + height :] = np.asarray(header), np.asarray(footer)
    for x, picture in ((left, _outlined(panel, patches)), (right, _heated(panel, outcomes, patches))):
        canvas[top : top + height, x : x + width] = picture
        canvas[[top - 1, top + height], x - 1 : x + width + 1] = FAINT
        canvas[top - 1 : top + height + 1, [x - 1, x + width]] = FAINT
    write_bytes(path, encode_png(canvas))


def colour_bar_positions(attention: NDArray[np.float32], stage: int, stages: int) -> NDArray[np.float64]:
    """Positions of a stage's scores on the colour bar (step 2).

    Args:
        attention: float32 (patches,), one stage's scores.
        stage: 0 is the coarsest.
        stages: the number of stages.

    Returns:
        float64 (patches,), within [stage / stages, (stage + 1) / stages]; equal scores have equal positions.
    """
    if len(attention) == 1:
        return np.array([(stage + 1) / stages])
    below = np.searchsorted(np.sort(attention), attention, side="left")
    return np.asarray((stage + below / (len(attention) - 1)) / stages, np.float64)


def colours_of(positions: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Colours, uint8 (n, 3), of positions on the colour bar in 0 .. 1."""
    stops = np.linspace(0.0, 1.0, len(_COLOUR_STOPS))
    channels = [np.interp(positions, stops, _COLOUR_STOPS[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def _patch_of_pixels(outcome: StageOutcome, scale: float, shape: tuple[int, ...]) -> NDArray[np.int32]:
    """Find the patch that covers each pixel of a panel: int32 (height, width), -1 for none.

    Edges of patches are rounded to pixels. If patches are smaller than a pixel, each takes the pixel of its corner, and
    the last one of a pixel counts.

    Args:
        outcome: a stage; its patches are cells of a grid that begins at the corner of the slide.
        scale: level-0 pixels per pixel of the panel.
        shape: height and width of the panel.
    """
    side, numbers = outcome.geometry.patch_level0, np.arange(len(outcome.coords), dtype=np.int32)
    if side <= scale:
        found = np.full(shape, -1, np.int32)
        x, y = np.rint(outcome.coords / scale).astype(np.int64).T
        inside = (x < shape[1]) & (y < shape[0])
        found[y[inside], x[inside]] = numbers[inside]
        return found
    columns, rows = (outcome.coords // side).T
    down, across = (int(cells.max(initial=-1)) + 1 for cells in (rows, columns))
    grid = np.full((down + 1, across + 1), -1, np.int32)  # the last row and column take the pixels beyond
    grid[rows, columns] = numbers
    of_pixel = [
        np.searchsorted(np.rint(np.arange(cells + 1) * side / scale), np.arange(pixels), side="right") - 1
        for cells, pixels in ((down, shape[0]), (across, shape[1]))
    ]
    return grid.take(of_pixel[0], axis=0).take(of_pixel[1], axis=1)


def _outlined(panel: NDArray[np.uint8], patches: Sequence[NDArray[np.int32]]) -> NDArray[np.uint8]:
    panel = panel.copy()
    for index, of_pixel in enumerate(patches):
        inside = of_pixel >= 0
        rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
        if len(rows):
            part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            panel[part][region_border(inside[part])] = _OUTLINES[index % len(_OUTLINES)]
    return panel


def _heated(
    panel: NDArray[np.uint8], outcomes: Sequence[StageOutcome], patches: Sequence[NDArray[np.int32]]
) -> NDArray[np.uint8]:
    colours = np.zeros((1, 3), np.uint8)
    of_pixel = np.zeros(panel.shape[:2], np.int32)  # row of the colours; 0 if no patch covers the pixel
    for index, (outcome, found) in enumerate(zip(outcomes, patches, strict=True)):  # step 3
        np.copyto(of_pixel, found + np.int32(len(colours)), where=found >= 0)
        positions = colour_bar_positions(outcome.attention, index, len(outcomes))
        colours = np.concatenate([colours, colours_of(positions)])
    red, green, blue = (panel[:, :, channel].astype(np.int32) for channel in range(3))
    first = (red + green + blue) * 256  # the entry of the overlays for the pixel's grey and the value 0
    heated, covered = panel.copy(), of_pixel > 0
    for channel in range(3):
        value = np.ascontiguousarray(colours[:, channel]).take(of_pixel)
        np.copyto(heated[:, :, channel], _overlays().take(first + value), where=covered)
    return heated


@cache
def _overlays() -> NDArray[np.uint8]:
    """Each value of a colour over each grey: uint8 (766, 256), by three times the grey and by the value."""
    grey, colour = np.arange(3 * 255 + 1)[:, np.newaxis] / 3, np.arange(256)
    return np.rint((1 - _OVERLAY_SHARE) * grey + _OVERLAY_SHARE * colour).astype(np.uint8)


def _draw_outline_legend(draw: ImageDraw.ImageDraw, x: int, y: int, outcomes: Sequence[StageOutcome]) -> None:
    for index, outcome in enumerate(outcomes):
        top = y + 22 * index
        draw.rectangle((x, top + 2, x + 14, top + 16), outline=_OUTLINES[index % len(_OUTLINES)], width=2)
        label = f"read at {outcome.geometry.spacing_um:g} um/px: {len(outcome.coords)} patches"
        draw_text(draw, x + 22, top, label, 14, INK)


def _draw_colour_bar(canvas: Image.Image, x: int, y: int, width: int, outcomes: Sequence[StageOutcome]) -> None:
    bar = np.broadcast_to(colours_of(np.linspace(0, 1, width))[None], (16, width, 3))
    canvas.paste(Image.fromarray(np.ascontiguousarray(bar)), (x, y))
    draw = ImageDraw.Draw(canvas)
    part = width / len(outcomes)
    for index, outcome in enumerate(outcomes):
        start = x + round(index * part)
        draw.line((start, y - 3, start, y + 19), fill=INK)
        draw_text(draw, start + 2, y + 22, f"{outcome.geometry.spacing_um:g} um/px", 14, INK)
        draw_text(draw, start + 2, y + 40, "low to high", 12, FAINT)
    draw.line((x + width - 1, y - 3, x + width - 1, y + 19), fill=INK)
    words = "Attention: rank of a patch among the patches of its stage; finer stages cover coarser ones."
    draw_text(draw, x, y + 66, shortened(words, width, 13), 13, FAINT)
