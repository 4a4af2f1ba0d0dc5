"""The next slides are prepared in threads, with the same results and errors, and every slide is closed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hagmil.errors import SlideFailed
from hagmil.runtime.inference import prefetch
from hagmil.runtime.inference.device import Host
from hagmil.runtime.inference.loaded_bundle import LoadedModel, load_model
from hagmil.runtime.inference.one_slide import PreparedSlide, prepare_slide
from hagmil.runtime.inference.prefetch import Overlap, SlidePrefetcher
from hagmil.runtime.inference.step_clock import StepClock
from hagmil.runtime.inputs import SlideRequest
from hagmil.runtime.predict import PredictOptions, predict_one, predict_requests
from hagmil.runtime.results.result import Result, read_result
from hagmil.runtime.slides.vips_reader import VipsReader

THREAD, RESULTS_THREAD = "hagmil-prefetch", "hagmil-results"


@pytest.fixture(scope="module")
def model(small_bundle: Path) -> LoadedModel:
    return load_model(small_bundle, threads=1)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith((THREAD, RESULTS_THREAD))]


class Watched:
    """Records the slides that are prepared, the threads, and the prepared slides."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.threads: set[str] = set()
        self.done: list[PreparedSlide] = []
        self.started = threading.Semaphore(0)

    def __call__(self, request: SlideRequest, *rest: object) -> PreparedSlide:
        self.begun.append(request.slide_id)
        self.threads.add(threading.current_thread().name)
        self.started.release()
        prepared = prepare_slide(request, *rest)  # type: ignore[arg-type]
        self.done.append(prepared)
        return prepared


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    watching = Watched()
    monkeypatch.setattr(prefetch, "prepare_slide", watching)
    return watching


def _requests(path: Path, *names: str) -> list[SlideRequest]:
    return [SlideRequest(name, name, path if name != "gone" else path.with_name("gone.tif"), None) for name in names]


def test_a_prefetched_slide_equals_one_prepared_directly(tissue_path: Path, model: LoadedModel) -> None:
    (request,) = _requests(tissue_path, "a")
    clock, manifest = StepClock(), model.bundle.manifest
    with SlidePrefetcher([request], manifest) as prefetcher:
        prepared = prefetcher.take(request, clock)
    direct = prepare_slide(request, manifest, None, StepClock())
    with prepared.slide, direct.slide:
        np.testing.assert_array_equal(prepared.coords, direct.coords)
        np.testing.assert_array_equal(prepared.thumbnail.pixels, direct.thumbnail.pixels)
    assert {"open", "tissue", "picture", "wait"} <= clock.seconds.keys()


def test_only_one_slide_is_prepared_in_advance(tissue_path: Path, model: LoadedModel, watched: Watched) -> None:
    first, second, third = _requests(tissue_path, "a", "b", "c")
    with SlidePrefetcher([first, second, third], model.bundle.manifest) as prefetcher:
        with prefetcher.take(first, StepClock()).slide:
            assert watched.started.acquire(timeout=20)
            assert watched.started.acquire(timeout=20)
            assert watched.begun == ["a", "b"]
        for request in (second, third):
            prefetcher.take(request, StepClock()).slide.close()
    assert watched.begun == ["a", "b", "c"]
    assert all(name.startswith(THREAD) for name in watched.threads)


def test_an_error_is_raised_when_its_slide_is_taken_and_the_next_slide_is_prepared(
    tissue_path: Path, model: LoadedModel
) -> None:
    gone, there = _requests(tissue_path, "gone", "there")
    with SlidePrefetcher([gone, there], model.bundle.manifest) as prefetcher:
        with pytest.raises(SlideFailed, match=r"gone\.tif"):
            prefetcher.take(gone, StepClock())
        prefetcher.take(there, StepClock()).slide.close()


def test_a_prepared_slide_that_is_not_taken_is_closed(
    tissue_path: Path, model: LoadedModel, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[object] = []
    first, second = _requests(tissue_path, "a", "b")
    with SlidePrefetcher([first, second], model.bundle.manifest) as prefetcher:
        prefetcher.take(first, StepClock()).slide.close()
        assert watched.started.acquire(timeout=20)
        assert watched.started.acquire(timeout=20)
        monkeypatch.setattr(VipsReader, "close", lambda reader: closed.append(reader))
    assert closed == [watched.done[1].slide]


class OnDevice:
    """A session with ``on_device`` set that takes NumPy arrays."""

    on_device = True

    def __init__(self, session: object) -> None:
        self._session = session

    def __getattr__(self, name: str) -> object:
        return getattr(self._session, name)


def test_several_slides_are_prepared_in_advance_and_taken_in_order(
    tissue_path: Path, model: LoadedModel, watched: Watched
) -> None:
    requests = _requests(tissue_path, *"abcd")
    with SlidePrefetcher(requests, model.bundle.manifest, ahead=3, threads=2) as prefetcher:
        for _ in range(3):
            assert watched.started.acquire(timeout=20)
        assert sorted(watched.begun) == ["a", "b", "c"]
        for request in requests:
            prefetcher.take(request, StepClock()).slide.close()
    assert sorted(watched.begun) == ["a", "b", "c", "d"]
    assert len(watched.threads) == 2


@pytest.mark.parametrize(
    ("on_device", "cores", "expected"), [(False, 16, (1, 1)), (True, 2, (2, 1)), (True, 16, (5, 4))]
)
def test_a_device_gets_more_slides_in_advance_by_the_number_of_cores(
    on_device: bool, cores: int, expected: tuple[int, int], model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: set(range(cores)))
    overlap = Overlap.of(_on_device(model) if on_device else model)
    assert (overlap.slides, overlap.threads) == expected


@pytest.mark.parametrize("on_device", [True, False])
def test_a_run_with_slides_in_advance_gives_the_results_of_single_slides_in_order(
    on_device: bool,
    tissue_path: Path,
    model: LoadedModel,
    watched: Watched,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("hagmil.runtime.inference.encode.device_of", lambda _session: Host())
    requests = _requests(tissue_path, "a", "gone", "b", "c")
    seen: list[Result] = []
    expected = [predict_one(request, model, None, PredictOptions()) for request in requests]
    used = _on_device(model) if on_device else model
    results = predict_requests(requests, used, tmp_path, PredictOptions(), on_result=seen.append)
    assert [result.status for result in results] == ["ok", "failed", "ok", "ok"]
    assert [result.probabilities for result in results] == [result.probabilities for result in expected]
    assert list(results) == seen == [read_result(tmp_path / request.slide_id) for request in requests]
    assert "wait" in results[-1].timing_s
    assert sorted(watched.begun) == ["a", "b", "c", "gone"]

    predict_requests(requests, used, tmp_path, PredictOptions(resume=True))
    assert watched.begun[4:] == ["gone"]


def _on_device(model: LoadedModel) -> LoadedModel:
    return LoadedModel(model.bundle, OnDevice(model.backbone), model.stages)  # type: ignore[arg-type]
