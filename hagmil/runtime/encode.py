"""Patches of one stage to their features: the reading stream feeds the backbone, batch after batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hagmil.runtime.clock import StepClock
from hagmil.runtime.geometry import StageGeometry
from hagmil.runtime.sessions import Session
from hagmil.runtime.slide import Slide
from hagmil.runtime.stream import stream_patches
from hagmil.spec import BACKBONE_FEATURES, PATCHES

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, the patches encoded so far, and how many there are."""


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """How patches are read and encoded; none of it changes a number beyond rounding.

    Args:
        batch_size: patches given to the backbone at once.
        reader_threads: threads that read patches.
    """

    batch_size: int = 64
    reader_threads: int = 2


def encode_patches(
    slide: Slide,
    geometry: StageGeometry,
    coords: NDArray[np.int64],
    backbone: Session,
    feature_dim: int,
    options: EncodeOptions,
    *,
    clock: StepClock,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Read patches and run the backbone on them.

    Args:
        slide: an open slide.
        geometry: the stage's spacing and patch size on this slide.
        coords: int64 (patches, 2), level-0 top-left corners (x, y).
        backbone: the patch encoder's session.
        feature_dim: length of its feature vector.
        options: batch size and reader threads.
        clock: gets the seconds that were spent waiting for patches (``read``) and encoding (``backbone``).
        progress: called after every batch.

    Returns:
        float32 (patches, dim), in the order of ``coords``.

    Raises:
        SlideFailed: a patch cannot be read.
    """
    features = np.empty((len(coords), feature_dim), np.float32)
    stream = stream_patches(slide, geometry, coords, batch_size=options.batch_size, threads=options.reader_threads)
    with closing(stream) as batches:
        while True:
            with clock.step("read"):
                batch = next(batches, None)
            if batch is None:
                return features
            with clock.step("backbone"):
                outputs = backbone.run({PATCHES.name: batch.patches})
            features[batch.rows] = outputs[BACKBONE_FEATURES.name]
            if progress is not None:
                progress(geometry.name, batch.rows.stop, len(coords))
