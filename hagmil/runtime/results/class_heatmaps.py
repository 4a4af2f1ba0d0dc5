"""One heatmap for each predicted class, of models with an attention a class: ``heatmap_<layer>_<class>.png``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hagmil.runtime.inference.cascade import StageOutcome
from hagmil.runtime.inference.verdict import ClassAttention
from hagmil.runtime.results.heatmap import Caption, draw_heatmap
from hagmil.runtime.slides.overview import Overview

CLASS_HEATMAPS = "heatmap_*.png"
"""What their names have in common."""


def draw_class_heatmaps(
    folder: Path, picture: Overview, outcome: StageOutcome, attentions: Sequence[ClassAttention], caption: Caption
) -> list[Path]:
    """Draw where each of the predicted classes looks.

    Args:
        folder: where the files go.
        picture: the whole slide, small.
        outcome: the model's one stage.
        attentions: of the predicted classes.
        caption: of the slide's heatmap; its second line becomes layer and class.

    Returns:
        The files.
    """
    paths = []
    for found in attentions:
        paths.append(folder / class_heatmap_name(found.layer, found.name))
        words = replace(caption, verdict=f"{found.layer} class {found.name}: where it looks")
        draw_heatmap(paths[-1], picture, [replace(outcome, attention=found.attention)], words)
    return paths


def class_heatmap_name(layer: str, name: str) -> str:
    """The file of one class's heatmap; what no file's name should hold becomes an underscore."""
    return f"heatmap_{layer}_{re.sub(r'[^A-Za-z0-9.-]', '_', name)}.png"
