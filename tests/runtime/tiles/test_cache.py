"""The tile cache: lends by the chunk, lets nobody decode twice or wait for ever, and keeps to its budget."""

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
    """A cache of so many uses of each tile; room for ``most`` of them."""
    if monkeypatch is not None and most is not None:
        monkeypatch.setattr(tile_cache, "_MIN_TILES", most)
    return TileCache(TILES, np.array(uses, np.int32), 0)


def asked_beside(cache: TileCache, wanted: dict[int, int]) -> Future[AcquiredTiles]:
    """What another thread gets; it must not have it yet."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(cache.acquire, wanted)
    pool.shutdown(wait=False)
    with pytest.raises(TimeoutError):
        future.result(NEVER_S)
    return future


def test_tiles_that_nobody_else_needs_get_no_memory() -> None:
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


def test_decoded_tiles_come_first_and_are_let_go_after_their_last_use() -> None:
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


def test_a_tile_that_is_being_decoded_is_left_for_later_and_waited_for_alone() -> None:
    cache = cache_of(2, 1)
    mine, theirs = {0: 1}, {0: 1, 1: 1}
    acquired = cache.acquire(mine)
    other = cache.acquire(theirs)
    assert other.indices == [1]
    cache.release(other, theirs)
    assert theirs == {0: 1}
    later = asked_beside(cache, theirs)
    cache.release(acquired, mine)
    assert later.result(SOON_S).decoded == 1
    cache.release(later.result(), theirs)
    assert (cache.held, cache.decoded) == (0, 2)


def test_who_waits_for_a_tile_that_cannot_be_decoded_tries_himself() -> None:
    cache = cache_of(3)
    acquired = cache.acquire({0: 1})
    later = asked_beside(cache, {0: 1})
    cache.release_undecoded(acquired)
    assert later.result(SOON_S).decoded == 0
    cache.release_undecoded(later.result())
    assert (cache.held, cache.decoded) == (0, 0)


def test_an_abandoned_loan_leaves_what_was_decoded_before(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_of(9, 9, most=1, monkeypatch=monkeypatch)
    wanted = {0: 1}
    cache.release(cache.acquire(wanted), wanted)
    cache.release_undecoded(cache.acquire({0: 1}))
    assert cache.acquire({0: 1}).decoded == 1


def test_no_more_is_lent_than_there_is_room_for_and_room_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_of(9, 9, 9, 9, most=2, monkeypatch=monkeypatch)
    wanted = {0: 1, 1: 1, 2: 1}
    acquired = cache.acquire(wanted)
    assert acquired.indices == [0, 1]
    later = asked_beside(cache, {3: 1})
    cache.release(acquired, wanted)
    assert later.result(SOON_S).indices == [3]
    assert cache.held == 2
    assert cache.acquire(wanted).indices == [2]  # the other one that nobody uses makes room
    assert cache.held == 2


def test_memory_that_runs_out_is_an_error_of_a_thread_that_has_nothing_on_loan(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_many_threads_decode_each_tile_once_and_leave_nothing() -> None:
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
