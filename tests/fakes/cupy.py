"""The parts of cupy that hagmil uses, on a fake GPU; a test compares them with the signatures of cupy."""

from __future__ import annotations

import math
import threading
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tests.fakes.gpu import FakeEvent, FakeStream, Gpu


def fake_cupy(gpu: Gpu) -> ModuleType:
    """Return a cupy module with one GPU, for ``sys.modules``."""
    of_thread = threading.local()  # each thread has its own stack of current streams

    def current_streams() -> list[Stream]:
        streams: list[Stream] = of_thread.__dict__.setdefault("streams", [])
        return streams

    class OutOfMemoryError(MemoryError):
        """See cupy."""

    class CUDARuntimeError(RuntimeError):
        """See cupy."""

    class Memory:
        """Memory that is freed when it is no longer referenced and its stream has finished, as in cupy."""

        def __init__(self, size: int) -> None:
            try:
                self.ptr = gpu.allocate(size)
            except MemoryError as error:
                raise OutOfMemoryError(str(error)) from error
            self.stream = get_current_stream().inner

        def __del__(self) -> None:
            if hasattr(self, "stream"):
                self.stream.enqueue_or_run(partial(gpu.free, self.ptr))

    class UnownedMemory:
        """Memory that is owned and freed by another library."""

        def __init__(self, ptr: int, size: int, owner: object, device_id: int = -1) -> None:
            assert device_id == 0
            self.ptr, self.size, self.owner = ptr, size, owner

    class MemoryPointer:
        """An address in memory, with a reference to that memory."""

        def __init__(self, mem: Memory | UnownedMemory, offset: int) -> None:
            self.mem = mem
            self.ptr = mem.ptr + offset

    class PinnedMemoryPointer(bytearray):
        """Host memory that is read when a copy runs, not when it is requested."""

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
            """Return an event after the work so far."""
            assert event is None
            return FakeEvent(self.inner)

        def wait_event(self, event: FakeEvent) -> None:
            """Make later work wait for an event."""
            self.inner.enqueue(event.reach)

        def synchronize(self) -> None:
            """Wait for all work."""
            self.inner.finish()

        def __enter__(self) -> Self:
            current_streams().append(self)
            return self

        def __exit__(self, *_: object) -> None:
            current_streams().pop()

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
            self.data = memptr or alloc(self.nbytes)

        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.data.ptr, False), "version": 3}

        def __len__(self) -> int:
            return self.shape[0]

        def __getitem__(self, slices: slice | NDArray[np.int64]) -> ndarray:
            """Return a view of a range of rows, or a copy of given rows, made on the current stream."""
            if isinstance(slices, np.ndarray):
                return self._copy_of(slices)
            start, stop, step = slices.indices(len(self))
            assert step == 1
            row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
            pointer = MemoryPointer(self.data.mem, self.data.ptr - self.data.mem.ptr + start * row_bytes)
            return ndarray((stop - start, *self.shape[1:]), self.dtype, pointer)

        def _copy_of(self, rows: NDArray[np.int64]) -> ndarray:
            found, chosen = ndarray((len(rows), *self.shape[1:]), self.dtype), rows.copy()

            def work() -> None:
                source = gpu.bytes_at(self.data.ptr, self.nbytes).reshape(self.shape[0], -1)  # (rows, bytes of a row)
                gpu.bytes_at(found.data.ptr, found.nbytes).reshape(len(chosen), -1)[:] = source[chosen]

            get_current_stream().inner.enqueue(work)
            return found

        def __setitem__(self, slices: NDArray[np.int64], value: ndarray) -> None:
            """Write rows, on the current stream."""
            assert value.shape == (len(slices), *self.shape[1:])
            assert value.dtype == self.dtype
            rows, source, target = slices.copy(), value.data, self.data

            def work() -> None:
                found = gpu.bytes_at(source.ptr, value.nbytes).reshape(len(rows), -1)  # (rows, bytes of a row)
                gpu.bytes_at(target.ptr, self.nbytes).reshape(self.shape[0], -1)[rows] = found

            get_current_stream().inner.enqueue(work)

        def set(self, arr: NDArray[Any], stream: Stream | None = None) -> None:
            """Copy from the host."""
            assert arr.flags.c_contiguous
            assert arr.shape == self.shape
            assert arr.dtype == self.dtype
            gpu.copies_to_device += 1
            source, memory = arr.reshape(-1).view(np.uint8), self.data
            if not gpu.is_pinned(source):
                source = source.copy()
            (stream or get_current_stream()).inner.enqueue(
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
            """Compute capability in cupy's notation, ``89``."""
            if not gpu.capability:
                raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
            return gpu.capability

    def alloc(size: int) -> MemoryPointer:
        return MemoryPointer(Memory(size), 0)

    def alloc_pinned_memory(size: int) -> PinnedMemoryPointer:
        memory = PinnedMemoryPointer(size)
        gpu.pinned.append(memory)
        return memory

    def get_current_stream(device_id: int = -1) -> Stream:
        assert device_id == -1
        return (current_streams() or [default])[-1]

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

    default = Stream(null=True)
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
            Event=FakeEvent,
            MemoryPointer=MemoryPointer,
            UnownedMemory=UnownedMemory,
            alloc=alloc,
            alloc_pinned_memory=alloc_pinned_memory,
            get_current_stream=get_current_stream,
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            runtime=SimpleNamespace(CUDARuntimeError=CUDARuntimeError),
        ),
    }
    module.__dict__.update(contents)
    return module
