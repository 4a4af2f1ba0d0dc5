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
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from hagmil._files import atomic_path
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
    fit_overview,
    font,
    patch_squares,
    region_border,
    shortened,
)
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
    width, height = small.size
    canvas = Image.new("RGB", (2 * width + 3 * MARGIN_PX, height + HEADER_PX + _FOOTER_PX), PAPER)
    draw_caption(canvas, caption)
    left, right, top = MARGIN_PX, width + 2 * MARGIN_PX, HEADER_PX
    canvas.paste(_outlined(small, outcomes, scale), (left, top))
    canvas.paste(_heated(small, outcomes, scale), (right, top))
    draw = ImageDraw.Draw(canvas)
    for x in (left, right):
        draw.rectangle((x - 1, top - 1, x + width, top + height), outline=FAINT)
    draw_scale_bar(draw, left, top + height, width, scale, overview.slide_spacing_um)
    _draw_outline_legend(draw, left, top + height + 44, outcomes)
    _draw_colour_bar(canvas, right, top + height + 20, width, outcomes)
    with atomic_path(path) as temporary:
        canvas.save(temporary, "PNG", compress_level=1)  # takes half the time of the default, and the file is no larger


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


def _outlined(small: Image.Image, outcomes: Sequence[StageOutcome], scale: float) -> Image.Image:
    pixels = np.asarray(small).copy()
    for index, outcome in enumerate(outcomes):
        inside = np.zeros(pixels.shape[:2], bool)
        for x0, y0, x1, y1 in patch_squares(outcome, scale):
            inside[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = True
        pixels[region_border(inside)] = _OUTLINES[index % len(_OUTLINES)]
    return Image.fromarray(pixels)


def _heated(small: Image.Image, outcomes: Sequence[StageOutcome], scale: float) -> Image.Image:
    pixels = np.asarray(small).astype(np.float64)
    paint = np.zeros_like(pixels)
    covered = np.zeros(pixels.shape[:2], bool)
    for index, outcome in enumerate(outcomes):  # step 3
        colours = colours_of(colour_bar_positions(outcome.attention, index, len(outcomes)))
        for (x0, y0, x1, y1), colour in zip(patch_squares(outcome, scale), colours, strict=True):
            area = np.s_[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
            paint[area], covered[area] = colour, True
    grey = pixels.mean(axis=2, keepdims=True)
    mixed = np.where(covered[..., None], (1 - _OVERLAY_SHARE) * grey + _OVERLAY_SHARE * paint, pixels)
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def _draw_outline_legend(draw: ImageDraw.ImageDraw, x: int, y: int, outcomes: Sequence[StageOutcome]) -> None:
    for index, outcome in enumerate(outcomes):
        top = y + 22 * index
        draw.rectangle((x, top + 2, x + 14, top + 16), outline=_OUTLINES[index % len(_OUTLINES)], width=2)
        label = f"read at {outcome.geometry.spacing_um:g} um/px: {len(outcome.coords)} patches"
        draw.text((x + 22, top), label, fill=INK, font=font(14))


def _draw_colour_bar(canvas: Image.Image, x: int, y: int, width: int, outcomes: Sequence[StageOutcome]) -> None:
    bar = np.broadcast_to(colours_of(np.linspace(0, 1, width))[None], (16, width, 3))
    canvas.paste(Image.fromarray(np.ascontiguousarray(bar)), (x, y))
    draw = ImageDraw.Draw(canvas)
    part = width / len(outcomes)
    for index, outcome in enumerate(outcomes):
        start = x + round(index * part)
        draw.line((start, y - 3, start, y + 19), fill=INK)
        draw.text((start + 2, y + 22), f"{outcome.geometry.spacing_um:g} um/px", fill=INK, font=font(14))
        draw.text((start + 2, y + 40), "low to high", fill=FAINT, font=font(12))
    draw.line((x + width - 1, y - 3, x + width - 1, y + 19), fill=INK)
    words = "Attention: rank of a patch among the patches of its stage; finer stages cover coarser ones."
    draw.text((x, y + 66), shortened(draw, words, width, 13), fill=FAINT, font=font(13))
