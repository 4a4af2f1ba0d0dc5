"""``evidence_<class>.png``: what each patch of the last stage says for a class and against it, for additive models.

1. The logits of an additive model are sums over patches. What counts for a class is its logit minus the mean of the
   other logits, since a number added to all logits changes no probability. The same difference of a patch's evidence is
   the value of the patch: positive for the class, negative against it. With two classes, the values for one class are
   the negative values for the other, and one map is drawn, of the second class.
2. The left panel shows the positive values and the right panel the negative values, with one scale. The slide is grey,
   and a line surrounds the patches that were read. Values near 0 are transparent, so that the tissue is seen. Patches
   have a least size, so that none is overlooked.
3. A colour stands for the square root of a value divided by the largest absolute value, because a few patches have most
   of the attention, and small values would otherwise not be visible. The scale gives the values.
4. The sums of both panels and a constant of the model give the difference of the logits of step 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from hagmil._files import write_bytes
from hagmil.runtime.inference.cascade import StageOutcome
from hagmil.runtime.results.class_heatmaps import class_in_file_name
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
    font,
    patch_squares,
    region_border,
    shortened,
)
from hagmil.runtime.results.png import encode_png
from hagmil.runtime.slides.overview import Overview
from hagmil.spec import EVIDENCE, LOGITS

EVIDENCE_MAPS = "evidence_*.png"
"""Glob that matches the files."""

_FOOTER_PX = 150
_LEAST_OVERLAY, _MOST_OVERLAY = 0.2, 0.85
_OPAQUE_FROM = 0.25  # position on the colour bar
_OUTLINE = (90, 90, 90)
_LEAST_PATCH_PX = 4
_COLOUR_STOPS = np.array(  # blue and orange differ for people with every kind of colour blindness
    [(5, 60, 120), (67, 147, 195), (190, 217, 233), (247, 247, 247), (252, 215, 165), (238, 140, 40), (160, 70, 0)],
    np.float64,
)


def draw_evidence_maps(
    folder: Path, overview: Overview, outcome: StageOutcome, classes: Sequence[str], caption: Caption
) -> list[Path]:
    """Draw the evidence for and against each class, if the model gives evidence.

    Args:
        folder: folder of the files.
        overview: the whole slide at low resolution.
        outcome: the last stage.
        classes: the classes of its logits.
        caption: the text above the slide's heatmap.

    Returns:
        The files: none if the model is not additive, one for two classes (step 1), and otherwise one for each class.
    """
    if EVIDENCE.name not in outcome.outputs:
        return []
    paths = []
    for index in range(len(classes)) if len(classes) > 2 else (1,):
        paths.append(folder / evidence_map_name(classes[index]))
        _draw(paths[-1], overview, outcome, index, classes, caption)
    return paths


def evidence_map_name(name: str) -> str:
    """The file name of one class's map."""
    return f"evidence_{class_in_file_name(name)}.png"


def patch_values(evidence: NDArray[np.float32], index: int) -> NDArray[np.float64]:
    """The values of patches for one class (step 1).

    Args:
        evidence: (classes, ...), what each patch adds to each logit, or the logits themselves.
        index: the class.

    Returns:
        float64 (...).
    """
    values = np.asarray(evidence, np.float64)
    return np.asarray(values[index] - np.delete(values, index, axis=0).mean(axis=0), np.float64)


def evidence_colours(values: NDArray[np.float64], largest: float) -> NDArray[np.uint8]:
    """Colours of values (step 3).

    Args:
        values: (n,).
        largest: the absolute value that has the strongest colour.

    Returns:
        uint8 (n, 3).
    """
    positions = np.sign(values) * _strengths(values, largest)
    stops = np.linspace(-1.0, 1.0, len(_COLOUR_STOPS))
    channels = [np.interp(positions, stops, _COLOUR_STOPS[:, channel]) for channel in range(3)]
    return np.asarray(np.rint(np.stack(channels, axis=-1)), np.uint8)


def _strengths(values: NDArray[np.float64], largest: float) -> NDArray[np.float64]:
    """Distances from the middle of the colour bar, 0 to 1 (step 3)."""
    return np.asarray(np.sqrt(np.abs(values) / (largest or 1.0)), np.float64)


def _draw(
    path: Path, overview: Overview, outcome: StageOutcome, index: int, classes: Sequence[str], caption: Caption
) -> None:
    values = patch_values(outcome.outputs[EVIDENCE.name], index)
    largest = float(np.abs(values).max())
    small, scale = fit_overview(overview)
    width, height = small.size
    canvas = Image.new("RGB", (2 * width + 3 * MARGIN_PX, height + HEADER_PX + _FOOTER_PX), PAPER)
    draw_caption(canvas, replace(caption, details=f"evidence for and against {classes[index]}   {caption.details}"))
    draw = ImageDraw.Draw(canvas)
    top, lefts = HEADER_PX, (MARGIN_PX, width + 2 * MARGIN_PX)
    for left, sign, word in zip(lefts, (1, -1), ("for", "against"), strict=True):
        shown = np.maximum(sign * values, 0) * sign
        canvas.paste(_painted(small, outcome, shown, largest, scale), (left, top))
        draw.rectangle((left - 1, top - 1, left + width, top + height), outline=FAINT)
        words = f"{word} {classes[index]}: {np.count_nonzero(shown)} patches, {shown.sum() + 0.0:+#.3g} in total"
        draw_text(draw, left, top + height + 6, shortened(words, width, 16), 16, INK)
    draw_scale_bar(draw, lefts[0], top + height + 20, width, scale, overview.slide_spacing_um)
    _draw_colour_bar(canvas, lefts[1], top + height + 34, width, largest)
    for row, line in enumerate(_explanation(values, outcome, index, classes)):
        y = top + height + 88 + 20 * row
        draw_text(draw, MARGIN_PX, y, shortened(line, 2 * width + MARGIN_PX, 14), 14, FAINT)
    write_bytes(path, encode_png(np.asarray(canvas)))


def _explanation(
    values: NDArray[np.float64], outcome: StageOutcome, index: int, classes: Sequence[str]
) -> tuple[str, str]:
    """The text below the panels (steps 1 and 4)."""
    total, from_patches = float(patch_values(outcome.outputs[LOGITS.name], index)), float(values.sum())
    rest = "the logit of the other class" if len(classes) == 2 else "the mean of the other logits"
    spacing_um = outcome.geometry.spacing_um
    return (
        f"Evidence of a patch: what it adds to the logit of {classes[index]} minus {rest}. A line surrounds the "
        f"patches that were read at {spacing_um:g} um/px.",
        f"All patches {from_patches:+#.3g}, and a constant of the model {total - from_patches:+#.3g}: the difference "
        f"is {total:+#.3g}.",
    )


def _painted(
    small: Image.Image, outcome: StageOutcome, values: NDArray[np.float64], largest: float, scale: float
) -> Image.Image:
    """A panel: the slide in grey under the values, the smallest first (step 2)."""
    grey = 128 + np.asarray(small.convert("L"), np.float64)[..., None] / 2
    pixels = np.repeat(grey, 3, axis=2)
    inside = np.zeros(grey.shape[:2], bool)
    colours, squares = evidence_colours(values, largest).astype(np.float64), patch_squares(outcome, scale)
    overlays = np.interp(_strengths(values, largest), (0.0, _OPAQUE_FROM), (_LEAST_OVERLAY, _MOST_OVERLAY))
    for row in np.argsort(np.abs(values), kind="stable"):
        x0, y0, x1, y1 = squares[row].tolist()
        area = np.s_[y0 : max(y1, y0 + _LEAST_PATCH_PX), x0 : max(x1, x0 + _LEAST_PATCH_PX)]
        pixels[area] = (1 - overlays[row]) * grey[area] + overlays[row] * colours[row]
        inside[area] = True
    beside = region_border(np.pad(~inside, 2, constant_values=True))[2:-2, 2:-2]  # not on patches, which may be small
    pixels[beside] = _OUTLINE
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def _draw_colour_bar(canvas: Image.Image, x: int, y: int, width: int, largest: float) -> None:
    positions = np.linspace(-1, 1, width)
    bar = evidence_colours(np.sign(positions) * positions**2, 1.0)[None]
    canvas.paste(Image.fromarray(np.ascontiguousarray(np.broadcast_to(bar, (16, width, 3)))), (x, y))
    draw = ImageDraw.Draw(canvas)
    for position in (-1.0, -0.5, 0.0, 0.5, 1.0):
        tick = x + round((position + 1) / 2 * (width - 1))
        draw.line((tick, y - 3, tick, y + 19), fill=INK)
        anchor = {-1.0: "la", 1.0: "ra"}.get(position, "ma")
        label = f"{np.sign(position) * position**2 * largest:+#.2g}" if position else "0"
        draw.text((tick, y + 22), label, fill=INK, font=font(14), anchor=anchor)
