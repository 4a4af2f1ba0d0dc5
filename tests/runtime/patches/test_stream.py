"""The stream of patches: order, bounded memory, errors, and the end of its threads."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Self

import numpy as np
import pytest
from numpy.typing import NDArray

from hagmil.errors import SlideFailed, UsageError
from hagmil.runtime.patches.geometry import StageGeometry, plan_stages
from hagmil.runtime.patches.reader import SlidePatchReader, read_into
from hagmil.runtime.patches.stream import StreamStalls, stream_patches
from hagmil.runtime.slides.open import open_slide
from hagmil.runtime.slides.slide import Slide, SlideMetadata
from hagmil.runtime.slides.spacing import Spacing
from hagmil.units import Level
from tests.runtime.slide_files import JPEG, TiffPage, picture, write_tiff

GEOMETRY = StageGeometry("only", 0.5, 4, 4, 0, 1.0, False)
HALF, SIXTEENTH = (replace(GEOMETRY, patch_level0=4 * factor, resample=True) for factor in (2, 16))
RESIZED = replace(GEOMETRY, patch_level0=6, resample=True)


@dataclass
class Tally:
    """Counts over all forks of a slide."""

    opened: int = 0
    closed: int = 0
    reads: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class CountingSlide(Slide):
    """A slow slide whose pixels encode their position. Reading at x = ``fails_at`` raises an error."""

    def __init__(self, tally: Tally, fails_at: int | None = None, error: BaseException | None = None) -> None:
        metadata = SlideMetadata("test", (Level(0, 100_000, 100_000, 1.0),), (0.5, 0.5), None)
        super().__init__(Path("counting.svs"), metadata, Spacing(0.5, "metadata"))
        self.tally = tally
        self.fails_at = fails_at
        self.error = error
        self._random = Random(tally.opened)

    def _read_inside(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        assert level == 0
        with self.tally.lock:
            self.tally.reads += 1
        time.sleep(self._random.random() * 0.002)
        if x == self.fails_at and self.error is not None:
            raise self.error
        return np.full((height, width, 3), (x % 251, y % 251, x // 251 % 251), np.uint8)

    def fork(self) -> Self:
        with self.tally.lock:
            self.tally.opened += 1
        return type(self)(self.tally, self.fails_at, self.error)

    def close(self) -> None:
        with self.tally.lock:
            self.tally.closed += 1


def column(rows: int) -> NDArray[np.int64]:
    return np.stack([np.arange(rows), np.arange(rows) * 3], axis=1).astype(np.int64)


def reader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("hagmil-reader")]


@pytest.fixture(autouse=True)
def no_reader_thread_is_left() -> object:
    yield
    assert reader_threads() == []


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("buffers", [1, 2, 5])
@pytest.mark.parametrize(("rows", "batch_size"), [(1, 1), (5, 64), (64, 64), (100, 7), (133, 40)])
def test_rows_are_in_order_for_any_number_of_threads_and_buffers(
    threads: int, buffers: int, rows: int, batch_size: int
) -> None:
    tally = Tally()
    coords = column(rows)
    seen: list[list[int]] = []
    for batch in stream_patches(
        CountingSlide(tally), GEOMETRY, coords, batch_size=batch_size, threads=threads, buffers=buffers
    ):
        assert batch.rows.start == len(seen)
        assert batch.rows.stop - batch.rows.start == len(batch.patches) <= batch_size
        seen.extend(batch.patches[:, 0, 0].tolist())
    expected = [[x % 251, y % 251, x // 251 % 251] for x, y in coords.tolist()]
    assert seen == expected
    assert tally.reads == rows
    assert tally.opened == tally.closed <= threads


def test_without_patches_there_is_no_batch_and_no_fork() -> None:
    tally = Tally()
    stream = stream_patches(CountingSlide(tally), GEOMETRY, np.empty((0, 2), np.int64), batch_size=8, threads=4)
    assert list(stream) == []
    assert tally.opened == 0


def test_no_thread_starts_before_the_first_batch_is_requested() -> None:
    tally = Tally()
    stream = stream_patches(CountingSlide(tally), GEOMETRY, column(10), batch_size=4, threads=2)
    assert (tally.opened, reader_threads()) == (0, [])
    stream.close()
    assert tally.opened == 0


@pytest.mark.parametrize("buffers", [1, 3])
def test_reading_ahead_is_limited_by_the_buffers(buffers: int) -> None:
    tally = Tally()
    with closing(
        stream_patches(CountingSlide(tally), GEOMETRY, column(400), batch_size=10, threads=3, buffers=buffers)
    ) as stream:
        addresses = set()
        for count, batch in enumerate(stream):
            addresses.add(batch.patches.__array_interface__["data"][0])
            if count == 4:
                time.sleep(0.2)
                assert tally.reads <= (count + buffers) * 10
            if count == 9:
                break
    assert len(addresses) == buffers


def test_a_batch_is_not_overwritten_while_the_consumer_uses_it() -> None:
    for batch in stream_patches(CountingSlide(Tally()), GEOMETRY, column(60), batch_size=6, threads=3, buffers=2):
        before = batch.patches.copy()
        time.sleep(0.01)
        assert (batch.patches == before).all()


@pytest.mark.parametrize("threads", [1, 4])
def test_the_first_error_stops_all_threads_and_is_raised_in_the_consumer(threads: int) -> None:
    tally = Tally()
    error = SlideFailed("tile 37 is damaged", code="unreadable")
    slide = CountingSlide(tally, fails_at=37, error=error)
    ends: list[int] = []
    stream = stream_patches(slide, GEOMETRY, column(5000), batch_size=10, threads=threads)
    with pytest.raises(SlideFailed, match="tile 37") as caught:
        ends.extend(batch.rows.stop for batch in stream)
    assert caught.value is error
    assert max(ends, default=0) <= 30
    assert tally.reads < 500
    assert tally.opened == tally.closed


def test_errors_of_any_type_are_raised_in_the_consumer() -> None:
    slide = CountingSlide(Tally(), fails_at=3, error=MemoryError("no room"))
    with pytest.raises(MemoryError, match="no room"):
        list(stream_patches(slide, GEOMETRY, column(20), batch_size=4, threads=2))


def test_an_error_of_fork_is_raised_in_the_consumer() -> None:
    class Vanished(CountingSlide):
        def fork(self) -> Self:
            raise SlideFailed("gone", code="not_found")

    with pytest.raises(SlideFailed, match="gone"):
        list(stream_patches(Vanished(Tally()), GEOMETRY, column(20), batch_size=4, threads=2))


def test_closing_the_stream_early_ends_the_threads_and_closes_their_slides() -> None:
    tally = Tally()
    stream = stream_patches(CountingSlide(tally), GEOMETRY, column(5000), batch_size=10, threads=4)
    next(stream)
    assert reader_threads() != []
    stream.close()
    assert reader_threads() == []
    assert 0 < tally.opened == tally.closed
    assert tally.reads < 500


def test_an_interrupt_in_the_consumer_ends_the_threads() -> None:
    tally = Tally()

    def consume() -> None:
        stream = stream_patches(CountingSlide(tally), GEOMETRY, column(5000), batch_size=10, threads=4)
        with closing(stream):
            for _ in stream:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert reader_threads() == []
    assert tally.opened == tally.closed


def test_an_interrupt_while_waiting_for_a_batch_ends_the_threads() -> None:
    tally = Tally()
    stream = stream_patches(CountingSlide(tally), GEOMETRY, column(5000), batch_size=10, threads=2)
    next(stream)
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt)
    assert reader_threads() == []
    assert tally.opened == tally.closed


def test_each_thread_has_a_reader_of_its_own_which_is_closed() -> None:
    made: list[Recorder] = []

    class Recorder:
        def __init__(self, slide: Slide, geometry: StageGeometry) -> None:
            self.slide, self.geometry, self.closed = slide, geometry, False
            made.append(self)

        def read_into(self, coords: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
            out[:] = coords[:, 0].astype(np.uint8)[:, None, None, None]  # (rows, 1, 1, 1)

        def close(self) -> None:
            self.closed = True

    slide = CountingSlide(Tally())
    batches = stream_patches(slide, GEOMETRY, column(100), batch_size=32, threads=3, make_reader=Recorder)
    assert [value for batch in batches for value in batch.patches[:, 0, 0, 0].tolist()] == list(range(100))
    assert all(reader.closed for reader in made)
    assert 1 <= len({id(reader.slide) for reader in made}) == len(made) <= 3


def test_a_chunk_may_extend_over_several_batches_but_not_beyond_the_ring() -> None:
    taken: list[list[int]] = []

    class Recorder:
        def __init__(self, slide: Slide, geometry: StageGeometry) -> None:
            self.inner = SlidePatchReader(slide, geometry)

        def read_into(self, coords: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
            taken.append(coords[:, 0].tolist())
            self.inner.read_into(coords, out)

        def close(self) -> None:
            pass

    batches = stream_patches(
        CountingSlide(Tally()), GEOMETRY, column(200), batch_size=20, threads=1, buffers=3, make_reader=Recorder
    )
    found = [(batch.rows, batch.patches[:, 0, 0, 0].tolist()) for batch in batches]
    assert [rows for rows, _ in found] == [slice(start, start + 20) for start in range(0, 200, 20)]
    assert [value for _, values in found for value in values] == list(range(200))
    assert [row for chunk in taken for row in chunk] == list(range(200))
    assert len(taken[0]) == 40  # two of the three batches, since the consumer holds one
    assert all(chunk[0] // 60 == chunk[-1] // 60 for chunk in taken)


def test_batches_use_the_memory_that_the_caller_allocates() -> None:
    given: list[NDArray[np.uint8]] = []

    def allocate(shape: tuple[int, ...]) -> NDArray[np.uint8]:
        given.append(np.empty(shape, np.uint8))
        return given[-1]

    for batch in stream_patches(
        CountingSlide(Tally()), GEOMETRY, column(50), batch_size=8, threads=2, buffers=3, allocate=allocate
    ):
        assert np.shares_memory(batch.patches, given[0])
    assert [buffers.shape for buffers in given] == [(24, 4, 4, 3)]


@pytest.mark.parametrize(("geometry", "rows"), [(GEOMETRY, 128), (HALF, 32), (SIXTEENTH, 1), (RESIZED, 4)])
def test_a_chunk_has_fewer_rows_if_a_patch_covers_more_pixels(geometry: StageGeometry, rows: int) -> None:
    chunks: list[int] = []

    class Counting:
        def __init__(self, *_: object) -> None:
            pass

        def read_into(self, coords: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
            chunks.append(len(coords))
            out[:] = 0

        def close(self) -> None:
            pass

    for _ in stream_patches(
        CountingSlide(Tally()), geometry, column(1000), batch_size=128, threads=1, make_reader=Counting
    ):
        pass
    assert max(chunks) == rows
    assert sum(chunks) == 1000


@pytest.mark.parametrize("geometry", [GEOMETRY, HALF, SIXTEENTH, RESIZED])
@pytest.mark.parametrize(("threads", "batch_size"), [(8, 16), (7, 20), (3, 4), (9, 1), (2, 64)])
def test_by_default_there_are_enough_buffers_for_every_thread(
    threads: int, batch_size: int, geometry: StageGeometry
) -> None:
    together = threading.Barrier(threads)
    met: set[int] = set()

    class AllAtOnce:
        def __init__(self, *_: object) -> None:
            pass

        def read_into(self, _: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
            if threading.get_ident() not in met:
                together.wait(timeout=30)  # raises an error if a thread has no chunk
                met.add(threading.get_ident())
            out[:] = 0

        def close(self) -> None:
            pass

    batches = stream_patches(
        CountingSlide(Tally()), geometry, column(500), batch_size=batch_size, threads=threads, make_reader=AllAtOnce
    )
    assert sum(len(batch.patches) for batch in batches) == 500
    assert len(met) == threads


def test_the_time_that_readers_wait_for_a_buffer_is_counted() -> None:
    stalls = StreamStalls()
    for _ in stream_patches(
        CountingSlide(Tally()), GEOMETRY, column(64), batch_size=16, threads=2, buffers=1, stalls=stalls
    ):
        time.sleep(0.01)  # the only buffer is in use
    assert stalls.seconds > 0


def test_readers_do_not_wait_if_there_is_a_buffer_for_every_batch() -> None:
    stalls = StreamStalls()
    for _ in stream_patches(
        CountingSlide(Tally()), GEOMETRY, column(64), batch_size=16, threads=2, buffers=4, stalls=stalls
    ):
        time.sleep(0.01)
    assert stalls.seconds == 0


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"threads": 0}, {"buffers": 0}])
def test_sizes_below_one_are_a_usage_error_before_the_first_batch(wrong: dict[str, int]) -> None:
    sizes = {"batch_size": 4, "threads": 2, "buffers": 2} | wrong
    with pytest.raises(UsageError, match=f"{next(iter(wrong))} must be at least 1"):
        stream_patches(
            CountingSlide(Tally()),
            GEOMETRY,
            column(4),
            batch_size=sizes["batch_size"],
            threads=sizes["threads"],
            buffers=sizes["buffers"],
        )


def test_coordinates_of_another_shape_are_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"\(patches, 2\)"):
        stream_patches(CountingSlide(Tally()), GEOMETRY, np.zeros(6, np.int64), batch_size=4, threads=2)


@pytest.mark.parametrize("stage_um", [0.5, 1.0, 1.3])
def test_streamed_patches_equal_those_read_one_by_one(pyramid_path: Path, stage_um: float) -> None:
    with open_slide(pyramid_path) as slide:
        (geometry,) = plan_stages(slide.levels, 0.5, [("only", stage_um)], 32)
        side = geometry.patch_level0
        coords = np.array([(x, y) for x in range(-side, 500, side) for y in range(-side, 400, side)], np.int64)
        expected = np.empty((len(coords), 32, 32, 3), np.uint8)
        read_into(slide, geometry, coords, expected)
        for batch in stream_patches(slide, geometry, coords, batch_size=20, threads=3):
            assert (batch.patches == expected[batch.rows]).all()


def test_a_damaged_tile_is_an_error_that_gives_its_position(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [TiffPage(picture(420, 300), 64, JPEG, cut=[17])])
    with open_slide(path, spacing_um=0.5) as slide:
        (geometry,) = plan_stages(slide.levels, 0.5, [("only", 0.5)], 64)
        coords = np.array([(x, y) for x in range(0, 420, 64) for y in range(0, 300, 64)], np.int64)
        with pytest.raises(SlideFailed, match="x 192, y 128") as caught:
            list(stream_patches(slide, geometry, coords, batch_size=8, threads=3))
    assert caught.value.code == "unreadable"
