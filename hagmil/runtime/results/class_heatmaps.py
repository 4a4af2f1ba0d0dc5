"""``heatmap_<layer>_<class>.png``: a heatmap of each predicted class, for models with attention for each class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hagmil.runtime.inference.cascade import StageOutcome
from hagmil.runtime.inference.verdict import ClassAttention
from hagmil.runtime.results.heatmap import draw_heatmap
from hagmil.runtime.results.panels import Caption
from hagmil.runtime.slides.overview import Overview

CLASS_HEATMAPS = "heatmap_*.png"
"""Glob that matches the files."""


def draw_class_heatmaps(
    folder: Path, thumbnail: Overview, outcome: StageOutcome, attentions: Sequence[ClassAttention], caption: Caption
) -> list[Path]:
    """Draw the attention of each predicted class.

    Args:
        folder: folder of the files.
        thumbnail: the whole slide at low resolution.
        outcome: the only stage of the model.
        attentions: attention of the predicted classes.
        caption: caption of the slide's heatmap; layer and class replace its second line.

    Returns:
        The files.
    """
    paths = []
    for found in attentions:
        paths.append(folder / class_heatmap_name(found.layer, found.name))
        class_caption = replace(caption, verdict=f"attention of the {found.layer} class {found.name}")
        draw_heatmap(paths[-1], thumbnail, [replace(outcome, attention=found.attention)], class_caption)
    return paths


def class_heatmap_name(layer: str, name: str) -> str:
    """The file name of one class's heatmap."""
    return f"heatmap_{layer}_{class_in_file_name(name)}.png"


def class_in_file_name(name: str) -> str:
    """A class as part of a file name; characters other than letters, digits, dots and hyphens become ``_``."""
    return re.sub(r"[^A-Za-z0-9.-]", "_", name)
