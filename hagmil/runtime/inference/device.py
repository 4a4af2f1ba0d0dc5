"""Where patches and features live: on the host, or on a GPU through cupy.

On a GPU:

1. Patches are read into pinned memory, from which the GPU fetches them while the processor goes on.
2. A batch is uploaded on a stream of its own while the backbone has the batch before it. Two arrays on the GPU take
   turns: an upload first waits for whatever was asked of the GPU before it, so also for the run that read its array.
3. A host buffer goes back to the readers when its upload is done.
4. Features are gathered on the GPU, and stay there for the stage's model.

What a stage's model gives goes to the host, for results need all of it: the patches of highest attention are chosen
there.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hagmil._optional import require
from hagmil.runtime.memory.buffers import SPARE_BYTES, batch_buffer, unaligned
from hagmil.runtime.patches.stream import PatchBatch
from hagmil.runtime.sessions import Session

Batches = Generator[PatchBatch, None, None]


class Device(Protocol):
    """Where the arrays of one stage live."""

    def buffers(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Memory of the host that patches are read into: uint8 of this shape."""

    def upload_batches(self, batches: Batches) -> Batches:
        """The same batches with their patches in this place; closes ``batches`` when it is closed."""

    def to_device(self, array: NDArray[Any]) -> Any:
        """The array in this place."""

    def empty(self, shape: tuple[int, ...]) -> Any:
        """A float32 array in this place, to be filled."""

    def throttle(self) -> None:
        """Wait until everything is done that was asked of this place before the last call."""


class Host:
    """NumPy's arrays."""

    def buffers(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Plain memory."""
        return batch_buffer(shape)

    def upload_batches(self, batches: Batches) -> Batches:
        """They are here."""
        return batches

    def to_device(self, array: NDArray[Any]) -> NDArray[Any]:
        """It is here."""
        return array

    def empty(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """A NumPy array."""
        return np.empty(shape, np.float32)

    def throttle(self) -> None:
        """Everything is done when its call returns."""


class Gpu:
    """cupy's arrays on its present device, in the order of the stream that is its present one in the calling thread.

    Args:
        cupy: the array module.
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._asked: Any = None

    def buffers(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Step 1: pinned memory, off the vectors as that of the host is."""
        wanted = math.prod(shape) + SPARE_BYTES
        memory = self._cupy.cuda.alloc_pinned_memory(wanted)
        return unaligned(np.frombuffer(memory, np.uint8)[:wanted]).reshape(shape)

    def upload_batches(self, batches: Batches) -> Batches:
        """Steps 2 and 3; asking for the next batch may overwrite one, after what the GPU was asked by then."""
        uploads = self._cupy.cuda.Stream(non_blocking=True)
        arrays: list[Any] = []
        before: PatchBatch | None = None
        with closing(batches):
            try:
                for index, batch in enumerate(batches):
                    if len(arrays) < 2:
                        arrays.append(self._cupy.empty(batch.patches.shape, np.uint8))
                    patches = arrays[index % 2][: len(batch.patches)]  # the last batch may be a short one
                    uploads.wait_event(self._cupy.cuda.get_current_stream().record())
                    patches.set(batch.patches, stream=uploads)
                    if before is not None:
                        yield before
                    before = replace(batch, patches=patches)
                    uploads.synchronize()
                if before is not None:
                    yield before
            finally:
                uploads.synchronize()  # the buffers are not freed under an upload

    def to_device(self, array: NDArray[Any]) -> Any:
        """A copy on the GPU."""
        return self._cupy.asarray(array)

    def empty(self, shape: tuple[int, ...]) -> Any:
        """A cupy array."""
        return self._cupy.empty(shape, np.float32)

    def throttle(self) -> None:
        """Wait for an earlier call's work, while that of the last call keeps the GPU busy."""
        earlier, self._asked = self._asked, self._cupy.cuda.get_current_stream().record()
        if earlier is not None:
            earlier.synchronize()


def device_of(session: Session) -> Device:
    """Where a session's inputs and outputs live best.

    Raises:
        EnvironmentLacks: the session runs on a GPU and cupy is not installed.
    """
    return Gpu(require("cupy", extra="gpu")) if session.on_device else Host()


def to_host(array: Any) -> NDArray[Any]:
    """A NumPy array, whether it is one or is on a GPU; waits until it is there."""
    found: NDArray[Any] = array if isinstance(array, np.ndarray) else array.get()
    return found
