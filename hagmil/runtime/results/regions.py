"""``regions.geojson``: the kept patches, for QuPath and other viewers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hagmil._files import write_text
from hagmil.runtime.inference.cascade import StageOutcome
from hagmil.runtime.results.result import REGIONS_NAME


def write_regions(folder: Path, outcomes: Sequence[StageOutcome]) -> None:
    """Write ``regions.geojson``.

    Each kept patch is a polygon in level-0 pixels with its stage, its attention, and its rank in the stage (1 is the
    highest).

    Args:
        folder: folder of the file.
        outcomes: the stages, coarse to fine.
    """
    features = [
        _square(outcome, int(row), rank) for outcome in outcomes for rank, row in enumerate(outcome.kept, start=1)
    ]
    collection = {"type": "FeatureCollection", "features": features}
    write_text(folder / REGIONS_NAME, json.dumps(collection) + "\n")


def _square(outcome: StageOutcome, row: int, rank: int) -> dict[str, object]:
    x, y = (int(value) for value in outcome.coords[row])
    side = outcome.geometry.patch_level0
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "objectType": "annotation",
            "name": f"{outcome.geometry.name} #{rank}",
            "stage": outcome.geometry.name,
            "rank": rank,
            "attention": float(np.float32(outcome.attention[row])),
        },
    }
