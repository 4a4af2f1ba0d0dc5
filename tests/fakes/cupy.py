"""The few names of cupy that hagmil calls, on a GPU that is none; held against cupy's own signatures by a test."""

from __future__ import annotations

import math
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tests.fakes.gpu import FakeEvent, FakeStream, Gpu


def fake_cupy(gpu: Gpu) -> ModuleType:
    """cupy on one GPU; to be put into ``sys.modules``."""
    present: list[Stream] = []

    class OutOfMemoryError(MemoryError):
        """As cupy's."""

    class CUDARuntimeError(RuntimeError):
        """As cupy's."""

    class MemoryPointer:
        """Memory that is free when nobody holds it."""

        def __init__(self, size: int) -> None:
            try:
                self.ptr = gpu.allocate(size)
            except MemoryError as error:
                raise OutOfMemoryError(str(error)) from error

        def __del__(self) -> None:
            if hasattr(self, "ptr"):
                gpu.free(self.ptr)

    class Stream:
        """A stream."""

        def __init__(
            self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: int | None = None
        ) -> None:
            assert not ptds
            assert priority is None
            assert null != non_blocking
            self.inner = FakeStream(gpu)
            self.ptr = self.inner.handle

        def record(self, event: FakeEvent | None = None) -> FakeEvent:
            """An event at the end of the work so far."""
            assert event is None
            return FakeEvent(self.inner)

        def wait_event(self, event: FakeEvent) -> None:
            """Let later work wait for an event."""
            self.inner.give(event.reach)

        def synchronize(self) -> None:
            """Wait for all work."""
            self.inner.finish()

        def __enter__(self) -> Self:
            present.append(self)
            return self

        def __exit__(self, *_: object) -> None:
            present.pop()

    class ndarray:
        """An array on the device, C-contiguous."""

        def __init__(
            self,
            shape: tuple[int, ...],
            dtype: DTypeLike = float,
            memptr: MemoryPointer | None = None,
            strides: tuple[int, ...] | None = None,
            order: str = "C",
        ) -> None:
            assert strides is None
            assert order == "C"
            self.shape, self.dtype = shape, np.dtype(dtype)
            self.nbytes = math.prod(shape) * self.dtype.itemsize
            self.data = memptr or MemoryPointer(self.nbytes)

        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.data.ptr, False), "version": 3}

        def set(self, arr: NDArray[Any], stream: Stream | None = None) -> None:
            """Copy from the host."""
            assert arr.flags.c_contiguous
            assert arr.shape == self.shape
            assert arr.dtype == self.dtype
            gpu.copies_to_device += 1
            source, memory = arr.view(np.uint8).reshape(-1).copy(), self.data
            (stream or get_current_stream()).inner.give(
                lambda: gpu.bytes_at(memory.ptr, source.size).__setitem__(slice(None), source)
            )

        def get(
            self,
            stream: Stream | None = None,
            order: str = "C",
            out: NDArray[Any] | None = None,
            blocking: bool = True,
        ) -> NDArray[Any]:
            """Copy to the host."""
            assert order == "C"
            assert out is None
            assert blocking
            gpu.copies_to_host += 1
            (stream or get_current_stream()).synchronize()
            return gpu.bytes_at(self.data.ptr, self.nbytes).copy().view(self.dtype).reshape(self.shape)

    class Device:
        """The GPU."""

        def __init__(self, device: int | None = None) -> None:
            assert device is None

        @property
        def compute_capability(self) -> str:
            """As cupy writes it: ``89``."""
            if not gpu.capability:
                raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
            return gpu.capability

    def alloc(size: int) -> MemoryPointer:
        return MemoryPointer(size)

    def get_current_stream(device_id: int = -1) -> Stream:
        assert device_id == -1
        return present[-1]

    def empty(shape: tuple[int, ...], dtype: DTypeLike = float, order: str = "C") -> ndarray:
        return ndarray(shape, dtype, None, None, order)

    def asarray(a: Any, dtype: None = None, order: None = None) -> ndarray:
        assert (dtype, order) == (None, None)
        if isinstance(a, ndarray):
            return a
        array = ndarray(a.shape, a.dtype)
        array.set(np.ascontiguousarray(a))
        return array

    def ascontiguousarray(a: ndarray, dtype: None = None) -> ndarray:
        assert dtype is None
        return a

    present.append(Stream(null=True))
    module = ModuleType("cupy")
    module.__spec__ = ModuleSpec("cupy", None)
    contents = {
        "ndarray": ndarray,
        "empty": empty,
        "asarray": asarray,
        "ascontiguousarray": ascontiguousarray,
        "cuda": SimpleNamespace(
            Stream=Stream,
            Device=Device,
            alloc=alloc,
            get_current_stream=get_current_stream,
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            runtime=SimpleNamespace(CUDARuntimeError=CUDARuntimeError),
        ),
    }
    module.__dict__.update(contents)
    return module
