from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from hagmil.errors import DataError
from hagmil.trainer.checkpoints.checkpoint import LAST, WEIGHTS_NAME
from hagmil.trainer.data.cohort import CohortSlide
from hagmil.trainer.data.feature_summary import FeatureSummary
from hagmil.trainer.data.prefetch import read_ahead
from hagmil.trainer.training.loop import train
from tests.trainer.cohorts import configured, write_cohort

WAIT_S = 20.0


class RecordingSource:
    """A source that records which slides are read, and in which threads."""

    def __init__(self, bad: str = "") -> None:
        self.bad = bad
        self.started: list[str] = []
        self.threads: set[str] = set()
        self.second_started = threading.Event()

    def summaries(self, slide_ids: Sequence[str]) -> dict[str, FeatureSummary]:
        raise NotImplementedError

    def read(self, slide_id: str) -> tuple[torch.Tensor, ...]:
        self.started.append(slide_id)
        self.threads.add(threading.current_thread().name)
        if len(self.started) == 2:
            self.second_started.set()
        if slide_id == self.bad:
            raise DataError(f'slide "{slide_id}" cannot be read')
        return (torch.full((1, 2), float(slide_id)),)


def _slides(source: RecordingSource, count: int = 6) -> list[CohortSlide]:
    return [CohortSlide(str(number), number % 2, source) for number in range(count)]


@pytest.mark.parametrize("ahead", [0, 1, 3, 20])
@pytest.mark.parametrize("count", [0, 1, 6])
def test_bags_are_read_in_order_and_once(ahead: int, count: int) -> None:
    with read_ahead(_slides(RecordingSource(), count), ahead=ahead) as bags:
        found = [(bag.slide_id, bag.label, bag.features[0][0, 0].item()) for bag in bags]
    assert found == [(str(number), number % 2, float(number)) for number in range(count)]
    assert not _readers()


def test_a_thread_reads_the_next_bag_and_no_more_while_the_current_one_is_used() -> None:
    source = RecordingSource()
    with read_ahead(_slides(source), ahead=1) as bags:
        next(bags)
        assert source.second_started.wait(WAIT_S)
        assert source.started == ["0", "1"]
        next(bags)
    assert len(source.started) <= 3
    assert threading.main_thread().name not in source.threads


def test_without_prefetching_a_bag_is_read_when_it_is_due_in_the_same_thread() -> None:
    source = RecordingSource()
    with read_ahead(_slides(source), ahead=0) as bags:
        next(bags)
        assert source.started == ["0"]
    assert source.threads == {threading.current_thread().name}


@pytest.mark.parametrize("ahead", [0, 1, 4])
def test_an_error_is_raised_when_its_bag_is_due(ahead: int) -> None:
    with read_ahead(_slides(RecordingSource(bad="2")), ahead=ahead) as bags:
        assert [next(bags).slide_id, next(bags).slide_id] == ["0", "1"]
        with pytest.raises(DataError, match='slide "2" cannot be read'):
            next(bags)
    assert not _readers()


def test_the_thread_ends_if_the_block_ends_early() -> None:
    with read_ahead(_slides(RecordingSource()), ahead=2) as bags:
        next(bags)
        assert _readers()
    assert not _readers()


def test_the_thread_ends_if_the_training_fails() -> None:
    source = RecordingSource()
    with pytest.raises(KeyError, match="0"), read_ahead(_slides(source), ahead=2) as bags:
        raise KeyError(next(bags).slide_id)
    assert source.started[0] == "0"
    assert not _readers()


@pytest.mark.parametrize("prefetch", [0, 3])
def test_prefetching_does_not_change_the_weights(tmp_path: Path, prefetch: int) -> None:
    tree: dict[str, Any] = write_cohort(tmp_path)
    usual = configured(tree, out=str(tmp_path / "usual"), schedule={"max_epochs": 2})
    other = configured(tree, data={**tree["data"], "prefetch": prefetch}, schedule={"max_epochs": 1})
    train(usual)
    train(other)
    longer = other.model_copy(update={"data": usual.data, "schedule": usual.schedule})
    train(longer, resume=True)  # prefetch may change when a run is resumed
    weights = [(config.out / LAST / WEIGHTS_NAME) for config in (usual, other)]
    assert _tensors(weights[0]) == _tensors(weights[1])
    assert not _readers()


def _readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("hagmil-prefetch")]


def _tensors(path: Path) -> dict[str, list[float]]:
    from safetensors.torch import load_file

    return {name: tensor.flatten().tolist() for name, tensor in load_file(path).items()}
