"""Patches of one stage to their features: the reading stream feeds the backbone, batch after batch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hagmil.errors import EnvironmentLacks
from hagmil.runtime.clock import StepClock
from hagmil.runtime.geometry import StageGeometry
from hagmil.runtime.quadtree import reading_order
from hagmil.runtime.sessions import Session
from hagmil.runtime.slide import Slide
from hagmil.runtime.stream import stream_patches
from hagmil.runtime.tile_engine import CACHE_BYTES, PatchSource
from hagmil.spec import BACKBONE_FEATURES, PATCHES

_CPU_PROVIDER = "CPUExecutionProvider"
_CPU_BATCH, _DEVICE_BATCH = 16, 64

_log = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]
"""Called with a stage's name, the patches encoded so far, and how many there are."""


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """How patches are read and encoded; none of it changes a number beyond rounding.

    Args:
        batch_size: patches given to the backbone at once; None for what suits the provider: on a CPU sixteen, whose
            activations its cache still holds, sixty-four elsewhere.
        reader_threads: threads that read patches.
        tile_cache_bytes: decoded tiles kept while further patches need them; for one slide, all threads together.
    """

    batch_size: int | None = None
    reader_threads: int = 2
    tile_cache_bytes: int = CACHE_BYTES


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
    order = reading_order(coords, geometry.patch_level0)
    with PatchSource(slide, geometry, coords, options.tile_cache_bytes) as source:
        stream = stream_patches(
            slide,
            geometry,
            coords[order],
            batch_size=options.batch_size or default_batch_size(backbone),
            threads=options.reader_threads,
            make_reader=source.reader,
        )
        encoder = _Encoder(backbone)
        with closing(stream) as batches:
            while True:
                with clock.step("read"):
                    batch = next(batches, None)
                if batch is None:
                    return features
                with clock.step("backbone"):
                    features[order[batch.rows]] = encoder.encode(batch.patches)
                if progress is not None:
                    progress(geometry.name, batch.rows.stop, len(coords))


def default_batch_size(backbone: Session) -> int:
    """Patches given at once to a backbone, where nobody says."""
    return _CPU_BATCH if backbone.provider == _CPU_PROVIDER else _DEVICE_BATCH


class _Encoder:
    """The backbone on batches of patches, in smaller parts once the device's memory was too small for one."""

    def __init__(self, backbone: Session) -> None:
        self._backbone = backbone
        self._most: int | None = None

    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features of a batch: uint8 (n, height, width, 3) to float32 (n, dim).

        Raises:
            EnvironmentLacks: the device's memory is too small for one patch (code ``out_of_memory``).
        """
        parts: list[NDArray[np.float32]] = []
        done = 0
        while done < len(patches):
            part = patches[done : done + (self._most or len(patches))]
            try:
                outputs = self._backbone.run({PATCHES.name: part})
            except EnvironmentLacks as error:
                if error.code != "out_of_memory" or len(part) == 1:
                    raise
                self._most = len(part) // 2
                _log.warning("out of memory with a batch of %d patches; going on with %d", len(part), self._most)
                continue
            parts.append(np.asarray(outputs[BACKBONE_FEATURES.name], np.float32))
            done += len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
