"""Read patches by several threads and yield them in order, through a bounded number of reused buffers.

1. The rows are divided into chunks of neighbours, which the threads take in order. Larger chunks share fewer tiles with
   other chunks and have less overhead per row. Chunks are small enough for all threads to work on the batches that fit
   into the buffers, and become smaller towards the end, so that the threads finish together.
2. The buffers form one ring of rows. Row r is stored at position r modulo the ring's length, once the consumer has
   released the row stored there before. A chunk may therefore extend over several batches.
3. A batch is yielded when all of its rows have been read, so the timing of the threads affects neither order nor
   content.
4. The first error stops all threads and is raised in the consumer. The threads end and their slides are closed before
   the generator ends, for whatever reason it ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from hagmil.errors import UsageError
from hagmil.runtime.memory.buffers import batch_buffer
from hagmil.runtime.patches.geometry import StageGeometry
from hagmil.runtime.patches.reader import PatchReader, SlidePatchReader, footprint_of
from hagmil.runtime.slides.slide import Slide

_FEWEST_CHUNK_ROWS, _MOST_CHUNK_ROWS = 16, 128  # for patches that are not resampled
_FEWEST_BUFFERS = 3  # one held by the consumer, one ready, one being filled
_RESAMPLED_CHUNK_ROWS = 4  # a patch may cover many pixels, and a thread can stop only between chunks
_THREAD_NAME = "hagmil-reader"


@dataclass(frozen=True, slots=True)
class PatchBatch:
    """A batch of patches.

    Args:
        rows: the rows of ``coords`` in this batch.
        patches: uint8 (rows, patch_px, patch_px, 3), RGB. The memory is reused when the next batch is requested.
    """

    rows: slice
    patches: NDArray[np.uint8]


@dataclass(slots=True)
class StreamStalls:
    """Waiting time of reader threads.

    Args:
        seconds: time that reader threads waited for a free buffer, summed over the threads.
    """

    seconds: float = 0.0


def stream_patches(
    slide: Slide,
    geometry: StageGeometry,
    coords: NDArray[np.int64],
    *,
    batch_size: int,
    threads: int,
    buffers: int | None = None,
    make_reader: Callable[[Slide, StageGeometry], PatchReader] = SlidePatchReader,
    allocate: Callable[[tuple[int, ...]], NDArray[np.uint8]] = batch_buffer,
    stalls: StreamStalls | None = None,
) -> Generator[PatchBatch, None, None]:
    """Read patches by several threads and yield them in order, in batches.

    Memory is bounded by ``buffers`` batches and ``threads`` forks of the slide, whatever the number of patches. Close
    the generator (``contextlib.closing``) if the loop may end early, so that the threads end.

    Args:
        slide: an open slide. Each thread reads from a fork of it, and closes the fork.
        geometry: geometry of the stage on this slide.
        coords: int64 (n, 2), level-0 top-left corners (x, y).
        batch_size: rows per batch; the last batch may have fewer.
        threads: number of reader threads.
        buffers: number of batches in memory, including the one held by the consumer. None uses three, or more if
            necessary for every thread to have a chunk.
        make_reader: makes a thread's patch reader from its fork.
        allocate: allocates the memory of all buffers: uint8 of the given shape.
        stalls: receives the time that reader threads wait for a free buffer.

    Yields:
        Batches that cover all rows once, in order; none if there are no rows.

    Raises:
        UsageError: ``batch_size``, ``threads`` or ``buffers`` is below 1, or ``coords`` is not (n, 2).
        SlideFailed: the pixels cannot be decoded (code ``unreadable``).
    """
    for name, value in (("batch_size", batch_size), ("threads", threads), ("buffers", buffers)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}")
    if coords.ndim != 2 or coords.shape[1] != 2:
        raise UsageError(f"coords must have the shape (patches, 2), not {coords.shape}")
    if buffers is None:
        buffers = max(_FEWEST_BUFFERS, 1 - (-threads * _chunk_rows(geometry)[0] // batch_size))
    schedule = _Schedule(geometry, coords, batch_size, buffers, threads, allocate, stalls or StreamStalls())
    return _stream(schedule, slide, geometry, threads, make_reader)


def _chunk_rows(geometry: StageGeometry) -> tuple[int, int]:
    """Return the fewest and most rows of a chunk. Chunks are smaller if a patch covers more pixels of the level."""
    footprint = footprint_of(geometry)
    if footprint.resized:
        return _RESAMPLED_CHUNK_ROWS, _RESAMPLED_CHUNK_ROWS
    fewest, most = (max(rows // footprint.shrink**2, 1) for rows in (_FEWEST_CHUNK_ROWS, _MOST_CHUNK_ROWS))
    return fewest, most


def _stream(
    schedule: _Schedule,
    slide: Slide,
    geometry: StageGeometry,
    threads: int,
    make_reader: Callable[[Slide, StageGeometry], PatchReader],
) -> Generator[PatchBatch, None, None]:
    readers = [
        threading.Thread(
            target=_read,
            args=(schedule, slide, geometry, make_reader),
            name=f"{_THREAD_NAME}-{index}",
            daemon=True,
        )
        for index in range(min(threads, schedule.chunks))
    ]
    started = []
    try:
        for reader in readers:
            reader.start()
            started.append(reader)
        for batch in range(schedule.batches):
            yield schedule.wait_for(batch)
            schedule.release(batch)
    finally:  # step 4
        schedule.stop()
        for reader in started:
            reader.join()


def _read(
    schedule: _Schedule,
    slide: Slide,
    geometry: StageGeometry,
    make_reader: Callable[[Slide, StageGeometry], PatchReader],
) -> None:
    """Read chunks until there are none left; the target of each thread."""
    try:
        with slide.fork() as fork:
            reader = make_reader(fork, geometry)
            try:
                while (rows := schedule.take()) is not None:
                    reader.read_into(schedule.coords[rows], schedule.buffer_of(rows))
                    schedule.done(rows)
            finally:
                reader.close()
    except BaseException as error:  # noqa: BLE001 - raised again in the consumer
        schedule.stop(error)


class _Schedule:
    """The chunks still to be read and the state of the buffers, protected by one lock."""

    def __init__(
        self,
        geometry: StageGeometry,
        coords: NDArray[np.int64],
        batch_size: int,
        buffers: int,
        threads: int,
        allocate: Callable[[tuple[int, ...]], NDArray[np.uint8]],
        stalls: StreamStalls,
    ) -> None:
        self.coords = coords
        self._stalls = stalls
        self._batch_size = min(batch_size, max(len(coords), 1))
        self.batches = -(-len(coords) // self._batch_size)
        self._threads = threads
        self._fewest, most = _chunk_rows(geometry)
        each = self._batch_size * max(buffers - 1, 1) // threads  # the consumer holds one buffer
        self._most = min(each, most)
        self.chunks = -(-len(coords) // self._fewest)
        side = geometry.patch_px
        self._ring = min(buffers, self.batches) * self._batch_size
        self._buffers = allocate((self._ring, side, side, 3))
        self._unread = [len(self._rows_of(batch)) for batch in range(self.batches)]
        self._next_row = 0
        self._released = 0
        self._stopped = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def take(self) -> slice | None:
        """Return the next chunk when part of the ring is free for it; None if there is nothing left to read."""
        with self._changed:
            while not self._stopped and self._next_row < len(self.coords):
                start = self._next_row
                free = self._released * self._batch_size + self._ring - start  # step 2
                if free > 0:
                    rows = min(self._most, (len(self.coords) - start) // (2 * self._threads))
                    rows = min(max(rows, self._fewest), free, self._ring - start % self._ring)
                    self._next_row = min(start + rows, len(self.coords))
                    return slice(start, self._next_row)
                waiting_since = perf_counter()
                self._changed.wait()
                self._stalls.seconds += perf_counter() - waiting_since
            return None

    def buffer_of(self, rows: slice) -> NDArray[np.uint8]:
        """Return the part of the ring for some rows: uint8 (rows, patch_px, patch_px, 3)."""
        start = rows.start % self._ring
        return self._buffers[start : start + rows.stop - rows.start]

    def done(self, rows: slice) -> None:
        """Mark a chunk as read, and wake the consumer if this completes a batch."""
        with self._changed:
            for batch in range(rows.start // self._batch_size, -(-rows.stop // self._batch_size)):
                span = self._rows_of(batch)
                self._unread[batch] -= min(rows.stop, span.stop) - max(rows.start, span.start)
                if not self._unread[batch]:
                    self._changed.notify_all()

    def wait_for(self, batch: int) -> PatchBatch:
        """Wait until a batch has been read and return it. Raises the first error of any thread."""
        with self._changed:
            while self._error is None and self._unread[batch]:
                self._changed.wait()
            if self._error is not None:
                raise self._error
        span = self._rows_of(batch)
        rows = slice(span.start, span.stop)
        return PatchBatch(rows, self.buffer_of(rows))

    def _rows_of(self, batch: int) -> range:
        start = batch * self._batch_size
        return range(start, min(start + self._batch_size, len(self.coords)))

    def release(self, batch: int) -> None:
        """Allow the rows of a batch to be overwritten."""
        with self._changed:
            self._released = batch + 1
            self._changed.notify_all()

    def stop(self, error: BaseException | None = None) -> None:
        """Stop handing out chunks, and keep the first error."""
        with self._changed:
            if self._error is None and not self._stopped:
                self._error = error
            self._stopped = True
            self._changed.notify_all()
