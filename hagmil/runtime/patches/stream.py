"""Patches in order from several threads, through a bounded number of buffers that are used again and again.

1. Rows are cut to chunks of neighbours; threads take chunks in order. Large chunks share fewer tiles with others, and
   spread over more rows what a chunk costs beside decoding. But there are as many as keep all threads busy in the
   batches that can be read at once, and towards the end they get smaller: threads end together.
2. The buffers lie behind one another, as a ring of rows: row r is read to place r modulo their length, once the
   consumer has let go of what was there. So a chunk may reach from one batch to the next.
3. The consumer gets batch after batch, each when all of its chunks are read; so neither order nor content
   depends on which thread was faster.
4. The first error stops all threads and is raised in the consumer. However the consumer leaves, the threads
   are ended and their slides closed before the generator is.
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
from hagmil.runtime.patches.reader import PatchReader, SlidePatchReader, footprint
from hagmil.runtime.slides.slide import Slide

_FEWEST_CHUNK_ROWS, _MOST_CHUNK_ROWS = 16, 128  # of patches that are the level's own pixels
_FEWEST_BUFFERS = 3  # one with the consumer, one that is ready, one that is being filled
_RESAMPLED_CHUNK_ROWS = 4  # each may take many pixels, and a thread hears that it shall stop after a chunk
_THREAD_NAME = "hagmil-reader"


@dataclass(frozen=True, slots=True)
class PatchBatch:
    """Some consecutive rows, read.

    Args:
        rows: which rows of the coordinates.
        patches: uint8 (rows, patch_px, patch_px, 3), RGB; its memory is used again once the next batch is
            asked for.
    """

    rows: slice
    patches: NDArray[np.uint8]


@dataclass(slots=True)
class StreamStalls:
    """Counts while a stream is read.

    Args:
        seconds: how long reader threads waited for a buffer to be free, summed over them.
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
    """Read patches by several threads and give them in order, batch after batch.

    Memory is ``buffers`` batches and what ``threads`` forks of the slide hold, however many patches there
    are. Close the generator (``contextlib.closing``) where the loop may end early: that ends the threads.

    Args:
        slide: an open slide; each thread reads through a fork of it, and closes that.
        geometry: the stage's geometry on it.
        coords: int64 (n, 2), level-0 top-left corners (x, y).
        batch_size: rows of a batch; the last may have fewer.
        threads: reader threads.
        buffers: batches held at once, the one with the consumer included; None for three, or as many as let
            every thread have a chunk.
        make_reader: makes a thread's reader from its fork.
        allocate: makes the memory of all buffers, uint8 of the shape that it is given.
        stalls: gets the seconds that reader threads waited for a free buffer.

    Yields:
        Batches that cover all rows once, in order; none where there is no row.

    Raises:
        UsageError: ``batch_size``, ``threads`` or ``buffers`` is below 1, or ``coords`` is not (n, 2).
        SlideFailed: pixels cannot be decoded (code ``unreadable``).
    """
    for name, value in (("batch_size", batch_size), ("threads", threads), ("buffers", buffers)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}")
    if coords.ndim != 2 or coords.shape[1] != 2:
        raise UsageError(f"coords must have the shape (patches, 2), not {coords.shape}")
    if buffers is None:
        buffers = max(_FEWEST_BUFFERS, 1 - (-threads * _chunk_rows(geometry)[0] // batch_size))
    work = _Work(geometry, coords, batch_size, buffers, threads, allocate, stalls or StreamStalls())
    return _stream(work, slide, geometry, threads, make_reader)


def _chunk_rows(geometry: StageGeometry) -> tuple[int, int]:
    """Fewest and most rows of a chunk, where so many are left: fewer where each takes more of the level's pixels."""
    seen = footprint(geometry)
    if seen.resized:
        return _RESAMPLED_CHUNK_ROWS, _RESAMPLED_CHUNK_ROWS
    fewest, most = (max(rows // seen.shrink**2, 1) for rows in (_FEWEST_CHUNK_ROWS, _MOST_CHUNK_ROWS))
    return fewest, most


def _stream(
    work: _Work,
    slide: Slide,
    geometry: StageGeometry,
    threads: int,
    make_reader: Callable[[Slide, StageGeometry], PatchReader],
) -> Generator[PatchBatch, None, None]:
    readers = [
        threading.Thread(
            target=_read,
            args=(work, slide, geometry, make_reader),
            name=f"{_THREAD_NAME}-{index}",
            daemon=True,
        )
        for index in range(min(threads, work.chunks))
    ]
    started = []
    try:
        for reader in readers:
            reader.start()
            started.append(reader)
        for batch in range(work.batches):
            yield work.wait_for(batch)
            work.release(batch)
    finally:  # step 4
        work.stop()
        for reader in started:
            reader.join()


def _read(
    work: _Work,
    slide: Slide,
    geometry: StageGeometry,
    make_reader: Callable[[Slide, StageGeometry], PatchReader],
) -> None:
    """What each thread does."""
    try:
        with slide.fork() as fork:
            reader = make_reader(fork, geometry)
            try:
                while (rows := work.take()) is not None:
                    reader.read_into(work.coords[rows], work.place_of(rows))
                    work.done(rows)
            finally:
                reader.close()
    except BaseException as error:  # noqa: BLE001 - it is raised again in the consumer
        work.stop(error)


class _Work:
    """What is to be read, what is read, and whose turn it is; all of it behind one lock."""

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
        each = self._batch_size * max(buffers - 1, 1) // threads  # one buffer is the consumer's
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
        """The next chunk, as soon as there is place for some of it; None when there is nothing more to do."""
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

    def place_of(self, rows: slice) -> NDArray[np.uint8]:
        """Where the patches of some rows go: uint8 (rows, patch_px, patch_px, 3)."""
        start = rows.start % self._ring
        return self._buffers[start : start + rows.stop - rows.start]

    def done(self, rows: slice) -> None:
        """Count a chunk as read; the consumer is woken for whole batches only."""
        with self._changed:
            for batch in range(rows.start // self._batch_size, -(-rows.stop // self._batch_size)):
                its = self._rows_of(batch)
                self._unread[batch] -= min(rows.stop, its.stop) - max(rows.start, its.start)
                if not self._unread[batch]:
                    self._changed.notify_all()

    def wait_for(self, batch: int) -> PatchBatch:
        """The batch, when all of it is read; raises the first error of any thread."""
        with self._changed:
            while self._error is None and self._unread[batch]:
                self._changed.wait()
            if self._error is not None:
                raise self._error
        its = self._rows_of(batch)
        rows = slice(its.start, its.stop)
        return PatchBatch(rows, self.place_of(rows))

    def _rows_of(self, batch: int) -> range:
        start = batch * self._batch_size
        return range(start, min(start + self._batch_size, len(self.coords)))

    def release(self, batch: int) -> None:
        """Let the batch's rows be filled again."""
        with self._changed:
            self._released = batch + 1
            self._changed.notify_all()

    def stop(self, error: BaseException | None = None) -> None:
        """Let no thread take another chunk; the first error is kept."""
        with self._changed:
            if self._error is None and not self._stopped:
                self._error = error
            self._stopped = True
            self._changed.notify_all()
