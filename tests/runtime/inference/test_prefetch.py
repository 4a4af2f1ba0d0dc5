"""The next slide is prepared while the present one is taken: same slides, same errors, nothing left open."""

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
from hagmil.runtime.inference.prefetch import SlidePrefetcher
from hagmil.runtime.inference.step_clock import StepClock
from hagmil.runtime.inputs import SlideRequest
from hagmil.runtime.predict import PredictOptions, predict_requests
from hagmil.runtime.slides.vips_reader import VipsReader

THREAD = "hagmil-prefetch"


@pytest.fixture(scope="module")
def model(small_bundle: Path) -> LoadedModel:
    return load_model(small_bundle, threads=1)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(THREAD)]


class Watched:
    """Prepares as ever, and knows which slides, in which threads, and what became of them."""

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


def test_a_slide_is_prepared_as_in_its_turn(tissue_path: Path, model: LoadedModel) -> None:
    (request,) = _requests(tissue_path, "a")
    clock, manifest = StepClock(), model.bundle.manifest
    with SlidePrefetcher([request], manifest) as ahead:
        prepared = ahead.take(request, clock)
    in_turn = prepare_slide(request, manifest, None, StepClock())
    with prepared.slide, in_turn.slide:
        np.testing.assert_array_equal(prepared.coords, in_turn.coords)
        np.testing.assert_array_equal(prepared.thumbnail.pixels, in_turn.thumbnail.pixels)
    assert {"open", "tissue", "picture", "wait"} <= clock.seconds.keys()


def test_one_slide_is_prepared_ahead_and_no_more(tissue_path: Path, model: LoadedModel, watched: Watched) -> None:
    first, second, third = _requests(tissue_path, "a", "b", "c")
    with SlidePrefetcher([first, second, third], model.bundle.manifest) as ahead:
        with ahead.take(first, StepClock()).slide:
            assert watched.started.acquire(timeout=20)
            assert watched.started.acquire(timeout=20)
            assert watched.begun == ["a", "b"]
        for request in (second, third):
            ahead.take(request, StepClock()).slide.close()
    assert watched.begun == ["a", "b", "c"]
    assert all(name.startswith(THREAD) for name in watched.threads)


def test_an_error_comes_when_its_slide_is_taken_and_the_next_is_prepared(tissue_path: Path, model: LoadedModel) -> None:
    gone, there = _requests(tissue_path, "gone", "there")
    with SlidePrefetcher([gone, there], model.bundle.manifest) as ahead:
        with pytest.raises(SlideFailed, match=r"gone\.tif"):
            ahead.take(gone, StepClock())
        ahead.take(there, StepClock()).slide.close()


def test_a_slide_that_nobody_takes_is_closed(
    tissue_path: Path, model: LoadedModel, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[object] = []
    first, second = _requests(tissue_path, "a", "b")
    with SlidePrefetcher([first, second], model.bundle.manifest) as ahead:
        ahead.take(first, StepClock()).slide.close()
        assert watched.started.acquire(timeout=20)
        assert watched.started.acquire(timeout=20)
        monkeypatch.setattr(VipsReader, "close", lambda reader: closed.append(reader))
    assert closed == [watched.done[1].slide]


class OnDevice:
    """A session that says of itself that it is on a device, for a host's arrays."""

    on_device = True

    def __init__(self, session: object) -> None:
        self._session = session

    def __getattr__(self, name: str) -> object:
        return getattr(self._session, name)


@pytest.mark.parametrize("on_device", [True, False])
def test_a_run_looks_ahead_where_a_device_works_meanwhile(
    tissue_path: Path,
    model: LoadedModel,
    watched: Watched,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    on_device: bool,
) -> None:
    requests = _requests(tissue_path, "a", "gone", "b")
    expected = predict_requests(requests, model, tmp_path / "in_turn", PredictOptions())
    backbone = OnDevice(model.backbone) if on_device else model.backbone
    monkeypatch.setattr("hagmil.runtime.inference.encode.device_of", lambda _session: Host())
    ahead = LoadedModel(model.bundle, backbone, model.stages)  # type: ignore[arg-type]
    results = predict_requests(requests, ahead, tmp_path / "ahead", PredictOptions())
    assert [result.status for result in results] == ["ok", "failed", "ok"]
    assert [result.probabilities for result in results] == [result.probabilities for result in expected]
    assert watched.begun == (["a", "gone", "b"] if on_device else [])

    done = predict_requests(requests, ahead, tmp_path / "ahead", PredictOptions(resume=True))
    assert [result.status for result in done] == ["ok", "failed", "ok"]
    assert watched.begun == (["a", "gone", "b", "gone"] if on_device else [])
