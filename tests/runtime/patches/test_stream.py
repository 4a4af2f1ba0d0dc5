"""The stream of patches: order, bounds, errors, and threads that end."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Self

import numpy as np
import pytest
from numpy.typing import NDArray

from hagmil.errors import SlideFailed, UsageError
from hagmil.runtime.patches.geometry import StageGeometry, plan_stages
from hagmil.runtime.patches.reader import SlidePatchReader, read_into
from hagmil.runtime.patches.stream import StreamStalls, stream_patches
from hagmil.runtime.slides.open import open_slide
from hagmil.runtime.slides.slide import Slide
from hagmil.units import Level, Size
from tests.runtime.slide_files import JPEG, TiffPage, picture, write_tiff

GEOMETRY = StageGeometry("only", 0.5, 4, 4, 0, 1.0, False)
HALF, SIXTEENTH = (replace(GEOMETRY, patch_level0=4 * factor, resample=True) for factor in (2, 16))
RESIZED = replace(GEOMETRY, patch_level0=6, resample=True)


@dataclass
class Tally:
    """What all forks of a slide did."""

    opened: int = 0
    closed: int = 0
    reads: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class CountingSlide:
    """A slide whose pixel (x, y) says where it is, and that takes its time; it may fail at one place."""

    path = Path("counting.svs")
    size = Size(100_000, 100_000)
    levels = (Level(0, 100_000, 100_000, 1.0),)
    spacing_um = 0.5
    spacing_source = "metadata"
    objective_power = None
    vendor = "test"

    def __init__(self, tally: Tally, fails_at: int | None = None, error: BaseException | None = None) -> None:
        self.tally = tally
        self.fails_at = fails_at
        self.error = error
        self._random = Random(tally.opened)

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        assert level == 0
        with self.tally.lock:
            self.tally.reads += 1
        time.sleep(self._random.random() * 0.002)
        if x == self.fails_at and self.error is not None:
            raise self.error
        return np.full((height, width, 3), (x % 251, y % 251, x // 251 % 251), np.uint8)

    def encoded_tiles(self, level: int) -> None:
        assert level == 0

    def fork(self) -> Self:
        with self.tally.lock:
            self.tally.opened += 1
        return type(self)(self.tally, self.fails_at, self.error)

    def close(self) -> None:
        with self.tally.lock:
            self.tally.closed += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def column(rows: int) -> NDArray[np.int64]:
    return np.stack([np.arange(rows), np.arange(rows) * 3], axis=1).astype(np.int64)


def reader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("hagmil-reader")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> object:
    yield
    assert reader_threads() == []


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("buffers", [1, 2, 5])
@pytest.mark.parametrize(("rows", "batch_size"), [(1, 1), (5, 64), (64, 64), (100, 7), (133, 40)])
def test_rows_come_in_order_whatever_the_threads_do(threads: int, buffers: int, rows: int, batch_size: int) -> None:
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


def test_no_coordinates_give_no_batch_and_open_nothing() -> None:
    tally = Tally()
    stream = stream_patches(CountingSlide(tally), GEOMETRY, np.empty((0, 2), np.int64), batch_size=8, threads=4)
    assert list(stream) == []
    assert tally.opened == 0


def test_nothing_starts_before_the_first_batch_is_asked_for() -> None:
    tally = Tally()
    stream = stream_patches(CountingSlide(tally), GEOMETRY, column(10), batch_size=4, threads=2)
    assert (tally.opened, reader_threads()) == (0, [])
    stream.close()
    assert tally.opened == 0


@pytest.mark.parametrize("buffers", [1, 3])
def test_reading_runs_ahead_by_the_buffers_and_no_further(buffers: int) -> None:
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


def test_a_batch_is_not_overwritten_while_the_consumer_has_it() -> None:
    for batch in stream_patches(CountingSlide(Tally()), GEOMETRY, column(60), batch_size=6, threads=3, buffers=2):
        before = batch.patches.copy()
        time.sleep(0.01)
        assert (batch.patches == before).all()


@pytest.mark.parametrize("threads", [1, 4])
def test_the_first_error_stops_all_and_reaches_the_consumer(threads: int) -> None:
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


def test_an_error_of_any_kind_reaches_the_consumer() -> None:
    slide = CountingSlide(Tally(), fails_at=3, error=MemoryError("no room"))
    with pytest.raises(MemoryError, match="no room"):
        list(stream_patches(slide, GEOMETRY, column(20), batch_size=4, threads=2))


def test_a_slide_that_cannot_be_forked_is_an_error_in_the_consumer() -> None:
    class Vanished(CountingSlide):
        def fork(self) -> Self:
            raise SlideFailed("gone", code="not_found")

    with pytest.raises(SlideFailed, match="gone"):
        list(stream_patches(Vanished(Tally()), GEOMETRY, column(20), batch_size=4, threads=2))


def test_closing_early_ends_the_threads_and_closes_their_slides() -> None:
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


def test_each_threads_reader_is_closed_and_may_be_another_one() -> None:
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


def test_a_chunk_may_reach_from_one_batch_to_the_next_and_ends_with_the_buffers() -> None:
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
    assert len(taken[0]) == 40  # two of the three batches, since one is for the consumer
    assert all(chunk[0] // 60 == chunk[-1] // 60 for chunk in taken)


def test_all_buffers_are_in_the_memory_that_the_caller_gives() -> None:
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
def test_a_chunk_has_fewer_rows_where_each_takes_more_pixels(geometry: StageGeometry, rows: int) -> None:
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
def test_where_nobody_says_there_are_buffers_for_every_thread(
    threads: int, batch_size: int, geometry: StageGeometry
) -> None:
    together = threading.Barrier(threads)
    met: set[int] = set()

    class AllAtOnce:
        def __init__(self, *_: object) -> None:
            pass

        def read_into(self, _: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
            if threading.get_ident() not in met:
                together.wait(timeout=30)  # broken, so an error, where a thread has no chunk
                met.add(threading.get_ident())
            out[:] = 0

        def close(self) -> None:
            pass

    batches = stream_patches(
        CountingSlide(Tally()), geometry, column(500), batch_size=batch_size, threads=threads, make_reader=AllAtOnce
    )
    assert sum(len(batch.patches) for batch in batches) == 500
    assert len(met) == threads


def test_readers_that_wait_for_a_buffer_are_counted() -> None:
    stalls = StreamStalls()
    for _ in stream_patches(
        CountingSlide(Tally()), GEOMETRY, column(64), batch_size=16, threads=2, buffers=1, stalls=stalls
    ):
        time.sleep(0.01)  # there is no second buffer to read into
    assert stalls.seconds > 0


def test_readers_with_a_buffer_for_every_batch_never_wait() -> None:
    stalls = StreamStalls()
    for _ in stream_patches(
        CountingSlide(Tally()), GEOMETRY, column(64), batch_size=16, threads=2, buffers=4, stalls=stalls
    ):
        time.sleep(0.01)
    assert stalls.seconds == 0


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"threads": 0}, {"buffers": 0}])
def test_sizes_below_one_are_a_usage_error_at_once(wrong: dict[str, int]) -> None:
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
def test_a_real_slide_streams_what_it_reads_patch_by_patch(pyramid_path: Path, stage_um: float) -> None:
    with open_slide(pyramid_path) as slide:
        (geometry,) = plan_stages(slide.levels, 0.5, [("only", stage_um)], 32)
        side = geometry.patch_level0
        coords = np.array([(x, y) for x in range(-side, 500, side) for y in range(-side, 400, side)], np.int64)
        expected = np.empty((len(coords), 32, 32, 3), np.uint8)
        read_into(slide, geometry, coords, expected)
        for batch in stream_patches(slide, geometry, coords, batch_size=20, threads=3):
            assert (batch.patches == expected[batch.rows]).all()


def test_a_damaged_tile_ends_the_stream_with_its_place(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [TiffPage(picture(420, 300), 64, JPEG, cut=[17])])
    with open_slide(path, spacing_um=0.5) as slide:
        (geometry,) = plan_stages(slide.levels, 0.5, [("only", 0.5)], 64)
        coords = np.array([(x, y) for x in range(0, 420, 64) for y in range(0, 300, 64)], np.int64)
        with pytest.raises(SlideFailed, match="x 192, y 128") as caught:
            list(stream_patches(slide, geometry, coords, batch_size=8, threads=3))
    assert caught.value.code == "unreadable"
