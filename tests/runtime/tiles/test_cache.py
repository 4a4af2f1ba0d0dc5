"""The tile cache decodes each tile once, has no deadlocks, and stays within its budget."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hagmil.runtime.tiles import cache as tile_cache
from hagmil.runtime.tiles.cache import TileCache
from hagmil.runtime.tiles.protocol import AcquiredTiles

SOON_S, NEVER_S = 10, 0.05
TILES: Any = SimpleNamespace(tile_width=16, tile_height=16)


def cache_of(*uses: int, most: int | None = None, monkeypatch: pytest.MonkeyPatch | None = None) -> TileCache:
    """A cache for tiles with the given numbers of uses, with space for ``most`` tiles."""
    if monkeypatch is not None and most is not None:
        monkeypatch.setattr(tile_cache, "_MIN_TILES", most)
    return TileCache(TILES, np.array(uses, np.int32), 0)


def acquire_in_thread(cache: TileCache, wanted: dict[int, int]) -> Future[AcquiredTiles]:
    """Acquire tiles in another thread, which must have to wait."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(cache.acquire, wanted)
    pool.shutdown(wait=False)
    with pytest.raises(TimeoutError):
        future.result(NEVER_S)
    return future


def test_tiles_without_further_uses_get_no_buffer() -> None:
    cache = cache_of(2, 1, 3)
    wanted = {0: 1, 1: 1, 2: 3}
    acquired = cache.acquire(wanted)
    assert (acquired.indices, acquired.decoded, [memory is None for memory in acquired.buffers]) == (
        [0, 1, 2],
        0,
        [False, True, True],
    )
    assert cache.held == 1
    cache.release(acquired, wanted)
    assert wanted == {}
    assert (cache.held, cache.decoded) == (1, 3)


def test_decoded_tiles_come_first_and_are_removed_after_their_last_use() -> None:
    cache = cache_of(2, 2)
    first = {1: 1}
    acquired = cache.acquire(first)
    memory = acquired.buffers[0]
    cache.release(acquired, first)
    second = {0: 1, 1: 1}
    acquired = cache.acquire(second)
    assert (acquired.indices, acquired.decoded) == ([1, 0], 1)
    assert acquired.buffers[0] is memory
    cache.release(acquired, second)
    assert (cache.held, cache.decoded) == (1, 2)


def test_a_thread_waits_only_if_all_its_tiles_are_being_decoded() -> None:
    cache = cache_of(2, 1)
    mine, theirs = {0: 1}, {0: 1, 1: 1}
    acquired = cache.acquire(mine)
    other = cache.acquire(theirs)
    assert other.indices == [1]
    cache.release(other, theirs)
    assert theirs == {0: 1}
    later = acquire_in_thread(cache, theirs)
    cache.release(acquired, mine)
    assert later.result(SOON_S).decoded == 1
    cache.release(later.result(), theirs)
    assert (cache.held, cache.decoded) == (0, 2)


def test_after_a_decoding_error_a_waiting_thread_gets_the_tile() -> None:
    cache = cache_of(3)
    acquired = cache.acquire({0: 1})
    later = acquire_in_thread(cache, {0: 1})
    cache.release_undecoded(acquired)
    assert later.result(SOON_S).decoded == 0
    cache.release_undecoded(later.result())
    assert (cache.held, cache.decoded) == (0, 0)


def test_releasing_after_an_error_keeps_tiles_decoded_before(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_of(9, 9, most=1, monkeypatch=monkeypatch)
    wanted = {0: 1}
    cache.release(cache.acquire(wanted), wanted)
    cache.release_undecoded(cache.acquire({0: 1}))
    assert cache.acquire({0: 1}).decoded == 1


def test_a_thread_waits_for_space_in_a_full_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_of(9, 9, 9, 9, most=2, monkeypatch=monkeypatch)
    wanted = {0: 1, 1: 1, 2: 1}
    acquired = cache.acquire(wanted)
    assert acquired.indices == [0, 1]
    later = acquire_in_thread(cache, {3: 1})
    cache.release(acquired, wanted)
    assert later.result(SOON_S).indices == [3]
    assert cache.held == 2
    assert cache.acquire(wanted).indices == [2]  # replaces the other unused tile
    assert cache.held == 2


def test_a_thread_that_runs_out_of_memory_first_returns_the_tiles_it_acquired(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_of(2, 1, 2)

    def fails(shape: tuple[int, ...]) -> Any:
        raise MemoryError(shape)

    monkeypatch.setattr(tile_cache, "tile_buffer", fails)
    wanted = {1: 1, 0: 1, 2: 1}
    acquired = cache.acquire(wanted)
    assert acquired.indices == [1]
    cache.release(acquired, wanted)
    with pytest.raises(MemoryError):
        cache.acquire(wanted)


def test_many_threads_decode_each_tile_once_and_empty_the_cache() -> None:
    chunks = [dict.fromkeys(range(start, start + 12), 1) for start in range(0, 300, 3)]
    uses = np.zeros(320, np.int32)
    for chunk in chunks:
        uses[list(chunk)] += 1
    cache = TileCache(TILES, uses, 1 << 30)
    start = threading.Barrier(6)

    def reads(number: int) -> None:
        start.wait(SOON_S)
        for chunk in chunks[number::6]:
            while chunk:
                cache.release(cache.acquire(chunk), chunk)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(reads, range(6)))
    assert (cache.held, cache.decoded) == (0, np.count_nonzero(uses))
