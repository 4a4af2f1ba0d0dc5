"""Parts that the pictures of a slide share: its image at the size of a panel, caption, scale bar, and text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hagmil.runtime.inference.cascade import StageOutcome
from hagmil.runtime.slides.overview import PANEL_PX, Overview

MARGIN_PX = 28
HEADER_PX = 132
"""Height of the caption."""
INK = (33, 37, 41)
FAINT = (108, 117, 125)
PAPER = (255, 255, 255)
_ALERT = (176, 42, 55)
_TEXTS = 64  # kept in memory


@dataclass(frozen=True, slots=True)
class Caption:
    """The text above a picture.

    Args:
        title: the slide.
        verdict: the prediction and its probability.
        details: one line with all probabilities.
        notice: the intended use.
    """

    title: str
    verdict: str
    details: str
    notice: str


def fit_overview(overview: Overview) -> tuple[Image.Image, float]:
    """Resize the overview to the panel; also gives the level-0 pixels per panel pixel."""
    image = Image.fromarray(overview.pixels)
    factor = PANEL_PX / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    resample = Image.Resampling.BOX if factor < 1 else Image.Resampling.BICUBIC
    return image.resize(size, resample), overview.downsample / factor


def patch_squares(outcome: StageOutcome, scale: float) -> NDArray[np.int64]:
    """Patches as (left, top, right, bottom) in panel pixels, int64 (patches, 4)."""
    corners = np.hstack((outcome.coords, outcome.coords + outcome.geometry.patch_level0))
    return np.rint(corners / scale).astype(np.int64)


def region_border(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The border of a region, two pixels wide."""
    padded = np.pad(inside, 2)
    core = inside.copy()
    for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1), (-2, 0), (2, 0), (0, -2), (0, 2)):
        core &= padded[2 + dy : 2 + dy + inside.shape[0], 2 + dx : 2 + dx + inside.shape[1]]
    return np.asarray(inside & ~core, np.bool_)


def draw_caption(canvas: Image.Image, caption: Caption) -> None:
    """Draw the four lines of the caption at the top, which take ``HEADER_PX``."""
    draw = ImageDraw.Draw(canvas)
    lines = (
        (18, caption.title, 18, INK),
        (42, caption.verdict, 30, INK),
        (82, caption.details, 15, FAINT),
        (104, caption.notice, 15, _ALERT),
    )
    width = canvas.width - 2 * MARGIN_PX
    for y, text, size, colour in lines:
        draw_text(draw, MARGIN_PX, y, shortened(text, width, size), size, colour)


def draw_scale_bar(draw: ImageDraw.ImageDraw, x: int, y: int, width: int, scale: float, spacing_um: float) -> None:
    """Draw a scale bar below a panel.

    Args:
        draw: the canvas.
        x: left edge of the panel.
        y: lower edge of the panel.
        width: width of the panel, in pixels.
        scale: level-0 pixels per panel pixel.
        spacing_um: micrometres per level-0 pixel.
    """
    um_per_pixel = scale * spacing_um
    longest_um = um_per_pixel * width / 3
    steps = [base * 10**power for power in range(0, 6) for base in (1, 2, 5)]
    length_um = max((step for step in steps if step <= longest_um), default=1)
    length_px = round(length_um / um_per_pixel)
    label = f"{length_um // 1000} mm" if length_um >= 1000 else f"{length_um} um"
    draw.rectangle((x, y + 20, x + length_px, y + 24), fill=INK)
    draw_text(draw, x + length_px + 8, y + 13, label, 14, INK)


def draw_text(draw: ImageDraw.ImageDraw, x: int, y: int, text: str, size: int, colour: tuple[int, int, int]) -> None:
    """Draw a text whose upper left corner is at (x, y)."""
    draw.bitmap((x, y), _rendered(text, size), fill=colour)


@lru_cache(_TEXTS)
def shortened(text: str, width: int, size: int) -> str:
    """The text, cut off with dots if it is wider than ``width`` pixels."""
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(text + " ...") > width:
        text = text[:-1]
    return text + " ..."


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of all pictures, at this size in pixels."""
    return ImageFont.load_default(size)


@lru_cache(_TEXTS)
def _rendered(text: str, size: int) -> Image.Image:
    """Render a text as opacity. Most texts are the same for all slides of a run."""
    _, _, right, lower = font(size).getbbox(text)
    opacity = Image.new("L", (max(1, math.ceil(right)), max(1, math.ceil(lower))))
    ImageDraw.Draw(opacity).text((0, 0), text, fill=255, font=font(size))
    return opacity
