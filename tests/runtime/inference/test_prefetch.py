"""The next slide is prepared in a thread, with the same results and errors, and every slide is closed."""

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


@pytest.mark.parametrize("on_device", [True, False])
def test_a_run_prefetches_slides_only_if_a_device_runs_the_backbone(
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
    on_device_model = LoadedModel(model.bundle, backbone, model.stages)  # type: ignore[arg-type]
    results = predict_requests(requests, on_device_model, tmp_path / "ahead", PredictOptions())
    assert [result.status for result in results] == ["ok", "failed", "ok"]
    assert [result.probabilities for result in results] == [result.probabilities for result in expected]
    assert watched.begun == (["a", "gone", "b"] if on_device else [])

    done = predict_requests(requests, on_device_model, tmp_path / "ahead", PredictOptions(resume=True))
    assert [result.status for result in done] == ["ok", "failed", "ok"]
    assert watched.begun == (["a", "gone", "b", "gone"] if on_device else [])
