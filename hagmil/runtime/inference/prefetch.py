"""Prepare the next slides while the current one runs.

Within a slide, nothing can be read in advance: the patches of a stage are known only after the previous stage's model
has run. But opening the next slides and finding their tissue needs no device, which would be idle meanwhile.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from hagmil.bundle import Manifest
from hagmil.runtime.inference.loaded_bundle import LoadedModel
from hagmil.runtime.inference.one_slide import PreparedSlide, prepare_slide
from hagmil.runtime.inference.step_clock import StepClock
from hagmil.runtime.inputs import SlideRequest
from hagmil.runtime.sessions.time_limit import time_limit
from hagmil.runtime.tissue.kernels import MaskKernels

_CORES_PER_THREAD = 4


@dataclass(frozen=True, slots=True)
class Overlap:
    """How far a run prepares slides in advance, and writes their results later.

    Args:
        slides: number of slides in advance, and of slides whose results are not yet written.
        threads: number of slides that are prepared at the same time, and as many that are written.
    """

    slides: int
    threads: int

    @classmethod
    def of(cls, model: LoadedModel) -> Overlap:
        """Choose the numbers for a model.

        On a CPU, the backbone uses all cores, and one slide of each kind fills the time in which it does not. A device
        is many times as fast, so that more slides are needed to keep it busy; each takes tens of megabytes.
        """
        if not model.backbone.on_device:
            return cls(slides=1, threads=1)
        threads = max(1, len(os.sched_getaffinity(0)) // _CORES_PER_THREAD)
        return cls(slides=threads + 1, threads=threads)


class SlidePrefetcher:
    """Prepares slides in threads, a bounded number of slides in advance.

    Use it as a context manager. On exit, the threads end, and prepared slides that were not taken are closed.

    Args:
        requests: the slides, in the order in which they will be taken.
        manifest: the manifest of the bundle.
        mask_kernels: implementation of the tissue mask; None chooses by its size.
        max_missing: largest number of patches that may be left out, see
            :func:`~hagmil.runtime.inference.one_slide.prepare_slide`.
        timeout_s: seconds that the preparation may take; None for no limit.
        ahead: number of slides that are prepared in advance.
        threads: number of slides that are prepared at the same time.
    """

    def __init__(
        self,
        requests: Sequence[SlideRequest],
        manifest: Manifest,
        mask_kernels: MaskKernels | None = None,
        *,
        max_missing: int = 0,
        timeout_s: float | None = None,
        ahead: int = 1,
        threads: int = 1,
    ) -> None:
        self._manifest, self._mask_kernels = manifest, mask_kernels
        self._max_missing, self._timeout_s = max_missing, timeout_s
        self._workers = ThreadPoolExecutor(threads, thread_name_prefix="hagmil-prefetch")
        self._waiting: Iterator[SlideRequest] = iter(requests)
        self._started: deque[tuple[SlideRequest, StepClock, Future[PreparedSlide]]] = deque()
        for _ in range(ahead):
            self._start_next()

    def take(self, request: SlideRequest, clock: StepClock) -> PreparedSlide:
        """Wait for the next slide, and start to prepare one more.

        Args:
            request: the next of the requests.
            clock: adds up the seconds of the slide's steps, and of waiting for them (``wait``).

        Raises:
            SlideRejected, SlideFailed: see :func:`~hagmil.runtime.inference.one_slide.prepare_slide`.
        """
        expected, slide_clock, prepared = self._started[0]
        assert request == expected
        with clock.step("wait"):
            error = prepared.exception()
        self._started.popleft()
        self._start_next()
        for name, seconds in slide_clock.seconds.items():
            clock.seconds[name] = clock.seconds.get(name, 0.0) + seconds
        if error is not None:
            raise error
        return prepared.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._workers.shutdown(wait=True, cancel_futures=True)
        for _, _, prepared in self._started:
            if not prepared.cancelled() and prepared.exception() is None:
                prepared.result().slide.close()

    def _start_next(self) -> None:
        request = next(self._waiting, None)
        if request is None:
            return
        clock = StepClock()
        self._started.append((request, clock, self._workers.submit(self._prepare, request, clock)))

    def _prepare(self, request: SlideRequest, clock: StepClock) -> PreparedSlide:
        with time_limit(self._timeout_s):
            return prepare_slide(request, self._manifest, self._mask_kernels, clock, self._max_missing)
