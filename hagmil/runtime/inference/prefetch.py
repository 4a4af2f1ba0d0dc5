"""Prepare the next slide while a GPU works on the current one.

Within a slide, nothing can be read in advance: the patches of a stage are known only after the previous stage's model
has run. But opening the next slide and finding its tissue need no GPU, which would be idle meanwhile. A CPU is never
idle, so there each slide is prepared when it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from hagmil.bundle import Manifest
from hagmil.runtime.inference.one_slide import PreparedSlide, prepare_slide
from hagmil.runtime.inference.step_clock import StepClock
from hagmil.runtime.inputs import SlideRequest
from hagmil.runtime.sessions.time_limit import time_limit
from hagmil.runtime.tissue.kernels import MaskKernels


class SlidePrefetcher:
    """Prepares slides in a thread, one slide in advance.

    Use it as a context manager. On exit, the thread ends, and a prepared slide that was not taken is closed.

    Args:
        requests: the slides, in the order in which they will be taken.
        manifest: the manifest of the bundle.
        mask_kernels: implementation of the tissue mask; None chooses by its size.
        max_missing: largest number of patches that may be left out, see
            :func:`~hagmil.runtime.inference.one_slide.prepare_slide`.
        timeout_s: seconds that the preparation may take; None for no limit.
    """

    def __init__(
        self,
        requests: Sequence[SlideRequest],
        manifest: Manifest,
        mask_kernels: MaskKernels | None = None,
        *,
        max_missing: int = 0,
        timeout_s: float | None = None,
    ) -> None:
        self._manifest, self._mask_kernels = manifest, mask_kernels
        self._max_missing, self._timeout_s = max_missing, timeout_s
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="hagmil-prefetch")
        self._waiting: Iterator[SlideRequest] = iter(requests)
        self._next: tuple[SlideRequest, StepClock, Future[PreparedSlide]] | None = None
        self._start_next()

    def take(self, request: SlideRequest, clock: StepClock) -> PreparedSlide:
        """Wait for the next slide, and start to prepare the one after it.

        Args:
            request: the next of the requests.
            clock: adds up the seconds of the slide's steps, and of waiting for them (``wait``).

        Raises:
            SlideRejected, SlideFailed: see :func:`~hagmil.runtime.inference.one_slide.prepare_slide`.
        """
        assert self._next is not None
        expected, slide_clock, prepared = self._next
        assert request == expected
        with clock.step("wait"):
            error = prepared.exception()
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
        self._worker.shutdown(wait=True, cancel_futures=True)
        if self._next is None:
            return
        prepared = self._next[2]
        if not prepared.cancelled() and prepared.exception() is None:
            prepared.result().slide.close()

    def _start_next(self) -> None:
        request = next(self._waiting, None)
        if request is None:
            self._next = None
            return
        clock = StepClock()
        self._next = (
            request,
            clock,
            self._worker.submit(self._prepare, request, clock),
        )

    def _prepare(self, request: SlideRequest, clock: StepClock) -> PreparedSlide:
        with time_limit(self._timeout_s):
            return prepare_slide(request, self._manifest, self._mask_kernels, clock, self._max_missing)
