"""Patches of one stage to their features: the reading stream feeds the backbone, batch after batch."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagmil.errors import EnvironmentLacks
from hagmil.progress import Progress
from hagmil.runtime.inference.device import Device, Host, device_of
from hagmil.runtime.inference.step_clock import StepClock
from hagmil.runtime.patches.geometry import StageGeometry
from hagmil.runtime.patches.quadtree import reading_order
from hagmil.runtime.patches.stream import StreamStalls, stream_patches
from hagmil.runtime.patches.tile_reader import CACHE_BYTES, PatchReaderFactory
from hagmil.runtime.sessions import Session
from hagmil.runtime.slides.slide import Slide
from hagmil.spec import BACKBONE_FEATURES, PATCHES

_DEVICE_BATCH = 64
_CPU_PIXELS = 1 << 20
_LEAST_CPU_BATCH, _MOST_CPU_BATCH = 16, 64

_FEWEST_READERS, _MOST_READERS = 2, 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """How patches are read and encoded; none of it changes a number beyond rounding.

    Args:
        batch_size: patches given to the backbone at once; None for what suits the provider and the patches: see
            :func:`default_batch_size`.
        reader_threads: threads that read patches; None for what suits the provider: see
            :func:`reader_threads`.
        tile_cache_bytes: decoded tiles kept while further patches need them; for one slide, all threads together.
    """

    batch_size: int | None = None
    reader_threads: int | None = None
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
    stalls: StreamStalls | None = None,
) -> Any:
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
        stalls: gets the seconds that reader threads waited for the backbone.

    Returns:
        float32 (patches, dim), in the order of ``coords``, where the backbone runs: NumPy's array, or cupy's where it
        is ``on_device``.

    Raises:
        SlideFailed: a patch cannot be read.
    """
    device = device_of(backbone)
    encoder = _Encoder(backbone, device.empty((len(coords), feature_dim)))
    batch_size = options.batch_size or default_batch_size(backbone, geometry.patch_px)
    encoded = 0
    with closing(
        read_batches(
            slide,
            geometry,
            coords,
            batch_size=batch_size,
            threads=reader_threads(options, backbone),
            tile_cache_bytes=options.tile_cache_bytes,
            device=device,
            stalls=stalls,
        )
    ) as batches:
        while True:
            with clock.step("read"):
                batch = next(batches, None)
            with clock.step("backbone"):
                if batch is not None:
                    encoder.encode(*batch, last=encoded + len(batch[0]) == len(coords))
                device.throttle()
            if batch is None:
                return encoder.features
            encoded += len(batch[0])
            if progress is not None:
                progress(geometry.name, encoded, len(coords))


def read_batches(
    slide: Slide,
    geometry: StageGeometry,
    coords: NDArray[np.int64],
    *,
    batch_size: int,
    threads: int,
    tile_cache_bytes: int = CACHE_BYTES,
    device: Device | None = None,
    stalls: StreamStalls | None = None,
) -> Generator[tuple[NDArray[np.int64], Any], None, None]:
    """Read patches as they are read for the backbone: in the order that needs each tile for the shortest time.

    Close the generator (``contextlib.closing``) where the loop may end early.

    Args:
        slide: an open slide.
        geometry: the stage's spacing and patch size on this slide.
        coords: int64 (patches, 2), level-0 top-left corners (x, y).
        batch_size: rows of a batch; the last may have fewer.
        threads: threads that read patches.
        tile_cache_bytes: decoded tiles kept while further patches need them, all threads together.
        device: where the patches shall be; the host where None.
        stalls: gets the seconds that reader threads waited for a free buffer.

    Yields:
        Rows of ``coords``, int64 (n,), and their patches, uint8 (n, patch_px, patch_px, 3), whose memory is used
        again once the next batch is asked for.

    Raises:
        SlideFailed: a patch cannot be read.
    """
    device = device or Host()
    order = reading_order(coords, geometry.patch_level0)
    with PatchReaderFactory(slide, geometry, coords, tile_cache_bytes) as factory:
        stream = stream_patches(
            slide,
            geometry,
            coords[order],
            batch_size=batch_size,
            threads=threads,
            make_reader=factory.make_reader,
            allocate=device.buffers,
            stalls=stalls,
        )
        with closing(device.upload_batches(stream)) as batches:
            for batch in batches:
                yield order[batch.rows], batch.patches


def default_batch_size(backbone: Session, patch_px: int) -> int:
    """Patches given at once to a backbone, where nobody says.

    On a CPU about a million pixels, whose activations its cache still holds: 16 patches of 256, but 64 of 128 and
    smaller ones, so that what a batch costs beside its patches does not show. On a device 64.

    Args:
        backbone: the patch encoder.
        patch_px: side of a patch.
    """
    if backbone.on_device:
        return _DEVICE_BATCH
    return min(max(_CPU_PIXELS // patch_px**2, _LEAST_CPU_BATCH), _MOST_CPU_BATCH)


def reader_threads(options: EncodeOptions, backbone: Session) -> int:
    """Threads that read patches: as many as were asked for, else what suits the provider.

    On a CPU two: a reader is many times as fast as the backbone, which wants the cores. A device takes more patches a
    second than two readers give, so all cores but one read for it, two at the least and eight at the most.

    Args:
        options: what was asked for.
        backbone: the patch encoder.
    """
    if options.reader_threads is not None:
        return options.reader_threads
    if not backbone.on_device:
        return _FEWEST_READERS
    return min(max(len(os.sched_getaffinity(0)) - 1, _FEWEST_READERS), _MOST_READERS)


class _Encoder:
    """The backbone on batches of patches, in smaller parts once the device's memory was too small for one.

    Args:
        backbone: the patch encoder.
        features: float32 (patches, dim), in the backbone's device; gets a row a patch.
    """

    def __init__(self, backbone: Session, features: Any) -> None:
        self.features = features
        self._backbone = backbone
        self._most: int | None = None

    def encode(self, rows: NDArray[np.int64], patches: Any, *, last: bool) -> None:
        """Features of a batch.

        Args:
            rows: int64 (n,), the rows that they are for.
            patches: uint8 (n, height, width, 3), in the backbone's device.
            last: whether no batch comes after it.

        Raises:
            EnvironmentLacks: the device's memory is too small for one patch (code ``out_of_memory``).
        """
        done = 0
        while done < len(rows):
            part = slice(done, done + (self._most or len(rows)))
            count = len(rows[part])
            try:
                outputs = self._backbone.run({PATCHES.name: patches[part]}, last=last and done + count == len(rows))
            except EnvironmentLacks as error:
                if error.code != "out_of_memory" or count == 1:
                    raise
                self._most = count // 2
                _log.warning("out of memory with a batch of %d patches; going on with %d", count, self._most)
                continue
            self.features[rows[part]] = outputs[BACKBONE_FEATURES.name]
            done += count
