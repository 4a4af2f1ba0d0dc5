"""Memory of patches and features: on the host, or on a GPU through cupy.

On a GPU:

1. Patches are read into pinned memory, so that uploads run asynchronously.
2. A batch is uploaded on a separate stream while the backbone runs on the previous batch. Two arrays on the GPU
   alternate. An upload first waits for all earlier work of the current stream, which includes the run that reads the
   array it overwrites.
3. A host buffer returns to the readers when its upload is complete.
4. Features are collected on the GPU and stay there for the stage's model.

Outputs of a stage's model are copied to the host, because results need all of them; the patches to keep are chosen
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
    """The device whose memory contains the arrays of one stage."""

    def buffers(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Allocate host memory for the readers: uint8 of this shape."""

    def upload_batches(self, batches: Batches) -> Batches:
        """Give the same batches with their patches on this device; closing the generator closes ``batches``."""

    def to_device(self, array: NDArray[Any]) -> Any:
        """Copy an array to this device, unless it is there."""

    def empty(self, shape: tuple[int, ...]) -> Any:
        """Allocate a float32 array on this device, not initialised."""

    def throttle(self) -> None:
        """Wait until all work submitted before the previous call is complete."""


class Host:
    """NumPy arrays on the host."""

    def buffers(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Allocate ordinary memory."""
        return batch_buffer(shape)

    def upload_batches(self, batches: Batches) -> Batches:
        """Return the batches unchanged."""
        return batches

    def to_device(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the array unchanged."""
        return array

    def empty(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Allocate a NumPy array."""
        return np.empty(shape, np.float32)

    def throttle(self) -> None:
        """Return at once, because work on the host is synchronous."""


class Gpu:
    """cupy arrays on the current CUDA device. Work is ordered by the current stream of the calling thread.

    Args:
        cupy: the array module.
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._submitted: Any = None

    def buffers(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Allocate pinned memory (step 1), unaligned like that of the host; see ``unaligned``."""
        wanted = math.prod(shape) + SPARE_BYTES
        memory = self._cupy.cuda.alloc_pinned_memory(wanted)
        return unaligned(np.frombuffer(memory, np.uint8)[:wanted]).reshape(shape)

    def upload_batches(self, batches: Batches) -> Batches:
        """Steps 2 and 3. Requesting the next batch may overwrite a batch, after all GPU work submitted until then."""
        uploads = self._cupy.cuda.Stream(non_blocking=True)
        arrays: list[Any] = []
        before: PatchBatch | None = None
        with closing(batches):
            try:
                for index, batch in enumerate(batches):
                    if len(arrays) < 2:
                        arrays.append(self._cupy.empty(batch.patches.shape, np.uint8))
                    patches = arrays[index % 2][: len(batch.patches)]  # the last batch may be shorter
                    uploads.wait_event(self._cupy.cuda.get_current_stream().record())
                    patches.set(batch.patches, stream=uploads)
                    if before is not None:
                        yield before
                    before = replace(batch, patches=patches)
                    uploads.synchronize()
                if before is not None:
                    yield before
            finally:
                uploads.synchronize()  # buffers must not be freed during an upload

    def to_device(self, array: NDArray[Any]) -> Any:
        """Copy an array to the GPU."""
        return self._cupy.asarray(array)

    def empty(self, shape: tuple[int, ...]) -> Any:
        """Allocate a cupy array."""
        return self._cupy.empty(shape, np.float32)

    def throttle(self) -> None:
        """Wait for the work before the previous call; later work keeps the GPU busy meanwhile."""
        earlier, self._submitted = self._submitted, self._cupy.cuda.get_current_stream().record()
        if earlier is not None:
            earlier.synchronize()


def device_of(session: Session) -> Device:
    """The device on which a session takes inputs and gives outputs without a copy.

    Raises:
        EnvironmentLacks: the session runs on a GPU, and cupy is not installed.
    """
    return Gpu(require("cupy", extra="gpu")) if session.on_device else Host()


def to_host(array: Any) -> NDArray[Any]:
    """Convert a NumPy or cupy array to a NumPy array; waits for a copy from the GPU."""
    found: NDArray[Any] = array if isinstance(array, np.ndarray) else array.get()
    return found
