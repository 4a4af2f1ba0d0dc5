"""The next slide is opened and masked while the device works on the present one.

A bag is whole before its stage's model can say which patches come next, so within a slide there is nothing to read
ahead. Between slides there is: opening, masking and laying out need no device, which would stand idle meanwhile. On a
CPU nothing stands idle, and slides are prepared when their turn comes.
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
from hagmil.runtime.tissue.kernels import MaskKernels


class SlidePrefetcher:
    """Prepares slides one ahead of the one that is taken, in a thread of its own.

    Use it as a context: however it is left, its thread has ended and no slide stays open that nobody took.

    Args:
        requests: the slides that will be taken, in this order.
        manifest: of the bundle that they go through.
        mask_kernels: what makes masks; None chooses by their size.
    """

    def __init__(
        self, requests: Sequence[SlideRequest], manifest: Manifest, mask_kernels: MaskKernels | None = None
    ) -> None:
        self._manifest, self._mask_kernels = manifest, mask_kernels
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="hagmil-ahead")
        self._waiting: Iterator[SlideRequest] = iter(requests)
        self._next: tuple[SlideRequest, StepClock, Future[PreparedSlide]] | None = None
        self._start_next()

    def take(self, request: SlideRequest, clock: StepClock) -> PreparedSlide:
        """The next slide, as soon as it is prepared; the one after it is begun.

        Args:
            request: the slide, the next of those that were announced.
            clock: gets the seconds that its steps took, and those of waiting for them (``wait``).

        Raises:
            SlideRejected, SlideFailed: as ``prepare``.
        """
        assert self._next is not None
        announced, its_clock, prepared = self._next
        assert announced == request
        with clock.step("wait"):
            error = prepared.exception()
        self._start_next()
        for name, seconds in its_clock.seconds.items():
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
            self._worker.submit(prepare_slide, request, self._manifest, self._mask_kernels, clock),
        )
