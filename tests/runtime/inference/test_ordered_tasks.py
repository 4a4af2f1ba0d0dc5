"""Results of tasks in the background come in the order of submission, and an error comes in its turn."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from hagmil.runtime.inference.ordered_tasks import OrderedTasks


@pytest.fixture
def tasks() -> Iterator[OrderedTasks[int]]:
    made: OrderedTasks[int] = OrderedTasks(threads=2, behind=1, name="test")
    yield made
    made.stop()


def test_results_come_in_order_although_a_later_task_ends_first(tasks: OrderedTasks[int]) -> None:
    later = threading.Event()

    def _first() -> int:
        assert later.wait(20)
        return 1

    def _second() -> int:
        later.set()
        return 2

    tasks.submit(_first)
    assert list(tasks.take()) == []  # one may be unfinished
    tasks.submit(_second)
    tasks.add(3)
    assert list(tasks.take()) == [1, 2, 3]
    assert list(tasks.take_all()) == []


def test_an_error_is_raised_in_its_turn_and_stopping_gives_the_other_results(tasks: OrderedTasks[int]) -> None:
    def _fail() -> int:
        raise OSError("full")

    tasks.add(1)
    tasks.submit(_fail)
    tasks.add(3)
    taken = tasks.take_all()
    assert next(taken) == 1
    with pytest.raises(OSError, match="full"):
        next(taken)
    assert tasks.stop() == [3]


def test_stopping_drops_tasks_that_have_not_begun() -> None:
    tasks: OrderedTasks[int] = OrderedTasks(threads=1, behind=9, name="test")
    begun, end = threading.Event(), threading.Event()

    def _running() -> int:
        begun.set()
        assert end.wait(20)
        return 1

    tasks.submit(_running)
    tasks.submit(lambda: 2)
    assert begun.wait(20)
    threading.Timer(0.05, end.set).start()
    assert tasks.stop() == [1]
