"""Encode the patches of one stage: reader threads prepare batches for the backbone."""

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
_MIN_CPU_BATCH, _MAX_CPU_BATCH = 16, 64

_MIN_READERS, _MAX_READERS = 2, 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """Settings for reading and encoding patches; they change features by rounding at most.

    Args:
        batch_size: patches in one run of the backbone; None uses :func:`default_batch_size`.
        reader_threads: threads that read patches; None chooses by the provider, see :func:`reader_threads`.
        tile_cache_bytes: size of the cache of decoded tiles, for one slide and all threads together.
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
    """Read patches and encode them with the backbone.

    Args:
        slide: an open slide.
        geometry: the stage's spacing and patch size on this slide.
        coords: int64 (patches, 2), level-0 top-left corners (x, y).
        backbone: the patch encoder's session.
        feature_dim: length of its feature vector.
        options: batch size and reader threads.
        clock: adds up the seconds of waiting for patches (``read``) and encoding (``backbone``).
        progress: called after every batch.
        stalls: adds up the seconds that reader threads waited for the backbone.

    Returns:
        float32 (patches, dim), in the order of ``coords``; a NumPy array, or a cupy array if the backbone is
        ``on_device``.

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
    """Read patches in batches, in the order in which each decoded tile is needed for the shortest time.

    Close the generator (``contextlib.closing``) if the loop may end early.

    Args:
        slide: an open slide.
        geometry: the stage's spacing and patch size on this slide.
        coords: int64 (patches, 2), level-0 top-left corners (x, y).
        batch_size: patches in a batch; the last batch may have fewer.
        threads: threads that read patches.
        tile_cache_bytes: size of the cache of decoded tiles, all threads together.
        device: device of the patches; None uses the host.
        stalls: adds up the seconds that reader threads waited for a free buffer.

    Yields:
        Row numbers of ``coords``, int64 (n,), and their patches, uint8 (n, patch_px, patch_px, 3). The memory of the
        patches is reused when the next batch is requested.

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
    """The default number of patches in one run of a backbone.

    On a CPU, a batch has about a million pixels, so that activations stay in the cache: 16 patches of 256 pixels, or 64
    patches of 128 pixels and less, where the constant cost of a batch is negligible. On a GPU, a batch has 64 patches.

    Args:
        backbone: the patch encoder.
        patch_px: side of a patch.
    """
    if backbone.on_device:
        return _DEVICE_BATCH
    return min(max(_CPU_PIXELS // patch_px**2, _MIN_CPU_BATCH), _MAX_CPU_BATCH)


def reader_threads(options: EncodeOptions, backbone: Session) -> int:
    """The number of threads that read patches.

    Without a setting, a CPU gets two threads: a reader is many times as fast as the backbone, which needs the cores. A
    GPU encodes more patches per second than two threads read, so it gets all cores but one, at least two and at most
    eight.

    Args:
        options: settings; ``reader_threads`` takes precedence.
        backbone: the patch encoder.
    """
    if options.reader_threads is not None:
        return options.reader_threads
    if not backbone.on_device:
        return _MIN_READERS
    return min(max(len(os.sched_getaffinity(0)) - 1, _MIN_READERS), _MAX_READERS)


class _Encoder:
    """Runs the backbone on batches. If the device runs out of memory, this and later batches are split.

    Args:
        backbone: the patch encoder.
        features: float32 (patches, dim), on the backbone's device; filled row by row.
    """

    def __init__(self, backbone: Session, features: Any) -> None:
        self.features = features
        self._backbone = backbone
        self._largest: int | None = None

    def encode(self, rows: NDArray[np.int64], patches: Any, *, last: bool) -> None:
        """Encode one batch.

        Args:
            rows: int64 (n,), row numbers of ``features`` to fill.
            patches: uint8 (n, height, width, 3), on the backbone's device.
            last: whether this is the last batch.

        Raises:
            EnvironmentLacks: not enough memory for one patch (code ``out_of_memory``).
        """
        done = 0
        while done < len(rows):
            part = slice(done, done + (self._largest or len(rows)))
            count = len(rows[part])
            try:
                outputs = self._backbone.run({PATCHES.name: patches[part]}, last=last and done + count == len(rows))
            except EnvironmentLacks as error:
                if error.code != "out_of_memory" or count == 1:
                    raise
                self._largest = count // 2
                _log.warning("out of memory with a batch of %d patches; retrying with %d", count, self._largest)
                continue
            self.features[rows[part]] = outputs[BACKBONE_FEATURES.name]
            done += count
