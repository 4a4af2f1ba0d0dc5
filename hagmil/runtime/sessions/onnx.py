"""Sessions on ONNX Runtime.

Python handles signals only after a run, which is C code, returns; for a large bag this takes half a minute. The main
thread, which receives the signals, therefore runs graphs in another thread, waits, and terminates the run on Ctrl-C.
Runs of a backbone that are expected to be short are made directly, because a thread for each run costs a small backbone
a third of its throughput.

Arrays on a GPU are bound without a copy, and outputs stay where ONNX Runtime allocates them. ONNX Runtime uses its own
stream, so a run is ordered by waiting: before it for the caller's stream, so that the previous run's outputs may be
overwritten, and after it for ONNX Runtime's stream, which ONNX Runtime does by default. Running on the caller's stream
(``user_compute_stream``) would save one wait per batch, but that stream must be known when the session is loaded and be
the same for all callers.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from hagmil._optional import require
from hagmil.errors import BundleError, EnvironmentLacks, SlideFailed
from hagmil.runtime.memory.heap import configure_malloc
from hagmil.runtime.sessions.cuda import cuda_failure, linker_problem, require_cuda
from hagmil.runtime.sessions.load_onnxruntime import FATAL_ONLY, load_onnxruntime
from hagmil.runtime.sessions.time_limit import ending_in_time

_PROVIDER_NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_DEVICE, _DEVICE_ID = "cuda", 0  # the name that I/O binding uses
_SHORT_RUN_S = 0.2  # acceptable delay of Ctrl-C
_NO_SPINNING = ("session.intra_op.allow_spinning", "0")
_RELEASE_MEMORY = ("memory.enable_memory_arena_shrinkage", "cpu:0")
_OUT_OF_MEMORY_SIGNS = ("failed to allocate memory", "out of memory", "bad_alloc", "bad allocation")
Result = TypeVar("Result")


def available_providers() -> list[str]:
    """The providers of the installed ONNX Runtime, by the names that hagmil uses.

    Raises:
        EnvironmentLacks: ONNX Runtime is not installed.
    """
    present = set(load_onnxruntime().get_available_providers())
    return [name for name, full in _PROVIDER_NAMES.items() if full in present]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """The declaration of an input or output of a graph.

    Args:
        dtype: NumPy's name of the element type.
        axes: the length of a fixed axis, or the name of a dynamic one (None if it has no name).
    """

    dtype: str
    axes: tuple[str | int | None, ...]


class OnnxSession:
    """One ONNX graph in ONNX Runtime; see :class:`hagmil.runtime.sessions.Session`."""

    def __init__(
        self,
        onnx: Path,
        *,
        provider: str = "cpu",
        threads: int | None = None,
        many_runs: bool = False,
    ) -> None:
        self._onnxruntime = load_onnxruntime(extra="gpu" if provider == "cuda" else "cpu")
        configure_malloc()
        self._path = onnx
        name = _PROVIDER_NAMES[provider]
        if name not in self._onnxruntime.get_available_providers():
            raise EnvironmentLacks(
                f'provider "{provider}" is missing; the installed ONNX Runtime has only '
                f"{', '.join(available_providers())}; for an NVIDIA GPU run: "
                'pip uninstall onnxruntime; pip install "hagmil[gpu]"',
                code="provider_missing",
            )
        if provider == "cuda":
            require_cuda()
        self._many_runs = many_runs
        self._seconds_a_row = math.inf
        self._keeps_memory = many_runs and provider == "cpu"
        self._session = self._load(name, threads)
        if self._session.get_providers()[0] != name:
            reason = linker_problem(self._onnxruntime) or "ONNX Runtime gives no reason"
            raise EnvironmentLacks(f'provider "{provider}" did not start: {reason}', code="provider_failed")
        self._outputs = [output.name for output in self._session.get_outputs()]

    @property
    def provider(self) -> str:
        """The provider that runs the graph, as ONNX Runtime names it."""
        return str(self._session.get_providers()[0])

    @property
    def input_shapes(self) -> dict[str, tuple[str | int, ...]]:
        """The shape of every input; a dynamic axis is given by its name."""
        return {node.name: tuple(node.shape) for node in self._session.get_inputs()}

    @property
    def on_device(self) -> bool:
        """Whether the session takes cupy arrays without a copy: with every provider but the CPU's."""
        return self.provider != _PROVIDER_NAMES["cpu"]

    def tensors(self) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo]]:
        """The declared inputs and outputs of the graph, by their names."""
        nodes = self._session.get_inputs(), self._session.get_outputs()
        inputs, outputs = (
            {node.name: TensorInfo(_dtype(node.type), tuple(node.shape)) for node in each} for each in nodes
        )
        return inputs, outputs

    def run(self, inputs: dict[str, Any], *, last: bool = False) -> dict[str, Any]:
        """Run the graph once.

        Args:
            inputs: an array for every input, by its name: all NumPy arrays, or all arrays on the device (cupy arrays,
                or others with ``__cuda_array_interface__`` that cupy's current stream may read).
            last: whether memory that is kept between runs is released after this one.

        Returns:
            An array for every output, by its name: NumPy arrays for NumPy inputs, else cupy arrays, which all streams
            may read.

        Raises:
            EnvironmentLacks: not enough memory (code ``out_of_memory``), or arrays on the device while cupy is missing.
            BundleError: the graph cannot run on these inputs.
            SlideFailed: the time of the slide is over (code ``timeout``).
        """
        from_device = any(hasattr(array, "__cuda_array_interface__") for array in inputs.values())
        cupy = require("cupy", extra="gpu") if from_device and self.on_device else None
        try:
            return self._run_on_host(inputs, last) if cupy is None else self._run_on_device(cupy, inputs)
        except SlideFailed:
            raise
        except Exception as error:
            lack = self._lack(str(error))
            if lack is not None:
                raise lack from error
            raise BundleError(f"{self._path.name} cannot run on these inputs: {error}", code="graph_failed") from error

    def _lack(self, text: str) -> EnvironmentLacks | None:
        """The error for a message that is about the machine and not about the graph."""
        if any(sign in text.lower() for sign in _OUT_OF_MEMORY_SIGNS):
            return EnvironmentLacks(f"{self._path.name}: out of memory: {text}", code="out_of_memory")
        return cuda_failure(text)

    def _run_on_host(self, inputs: dict[str, Any], last: bool) -> dict[str, Any]:
        def _run(options: Any) -> Any:
            if last and self._keeps_memory:
                options.add_run_config_entry(*_RELEASE_MEMORY)
            return self._session.run(self._outputs, inputs, options)

        values = self._run_interruptibly(_run, _rows(inputs))
        return dict(zip(self._outputs, values, strict=True))

    def _run_on_device(self, cupy: ModuleType, inputs: dict[str, Any]) -> dict[str, Any]:
        arrays = {name: cupy.ascontiguousarray(cupy.asarray(array)) for name, array in inputs.items()}
        binding = self._session.io_binding()
        for name, array in arrays.items():
            binding.bind_input(name, _DEVICE, _DEVICE_ID, array.dtype.type, array.shape, array.data.ptr)
        for name in self._outputs:
            binding.bind_output(name, _DEVICE, _DEVICE_ID)
        cupy.cuda.get_current_stream().synchronize()  # here, because each thread has its own current stream
        self._run_interruptibly(lambda options: self._session.run_with_iobinding(binding, options), _rows(inputs))
        return {
            name: self._as_array(cupy, binding, value)
            for name, value in zip(self._outputs, binding.get_outputs(), strict=True)
        }

    def _as_array(self, cupy: ModuleType, binding: Any, value: Any) -> Any:
        """Make a cupy array of an output's memory, which is freed with the array."""
        shape, dtype = tuple(value.shape()), np.dtype(_dtype(value.data_type()))
        size_bytes = math.prod(shape) * dtype.itemsize
        memory = cupy.cuda.UnownedMemory(value.data_ptr(), size_bytes, (binding, value), _DEVICE_ID)
        return cupy.ndarray(shape, dtype, cupy.cuda.MemoryPointer(memory, 0))

    def _run_interruptibly(self, work: Callable[[Any], Result], rows: int) -> Result:
        """Call ``work`` with run options for this number of rows so that Ctrl-C takes effect without long delay."""
        options = self._onnxruntime.RunOptions()
        started = perf_counter()
        short = self._many_runs and self._seconds_a_row * rows < _SHORT_RUN_S
        on_main = threading.current_thread() is threading.main_thread()
        with ending_in_time(lambda: _terminate(options)):
            result = self._run_in_thread(work, options) if on_main and not short else work(options)
        self._seconds_a_row = (perf_counter() - started) / max(rows, 1)
        return result

    def _run_in_thread(self, work: Callable[[Any], Result], options: Any) -> Result:
        """Call ``work`` in another thread, and terminate its run if the main thread is interrupted."""
        run: Future[Result] = Future()

        def _work() -> None:
            try:
                run.set_result(work(options))
            except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
                run.set_exception(error)

        worker = threading.Thread(target=_work, name="hagmil-run", daemon=True)
        try:
            worker.start()
            return run.result()
        except BaseException:  # an interrupt, or the error of the run
            options.terminate = True
            raise
        finally:
            if worker.is_alive():
                worker.join()

    def _load(self, provider_name: str, threads: int | None) -> Any:
        options = self._onnxruntime.SessionOptions()
        options.log_severity_level = FATAL_ONLY
        options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
        # Measured with the full-size transformer, which runs once per bag: the arena takes up to twice the memory and
        # saves no time; the priority-based order keeps more tensors and saves no time either. Memory patterns take
        # 300 MB more at 1,000 patches and 200 MB more at 10,000, and save no time. Memory reuse holds a tensor's memory
        # for the next tensor of its shape, across blocks of another width: 290 MB more at 10,000 patches, and 100 MB
        # more in resnet50-trunc. A backbone runs many times on one shape: there the arena takes less memory, and saves
        # the time to clear new pages in each run. See docs/decisions/0009-pseudo-inverse.md.
        # Threads that spin between the nodes of a backbone take cores from the threads that read patches. Without
        # spinning, a backbone is slower alone, but faster beside readers.
        if self._keeps_memory:
            options.add_session_config_entry(*_NO_SPINNING)
        options.enable_cpu_mem_arena = self._keeps_memory
        options.enable_mem_pattern = False
        options.enable_mem_reuse = False
        try:
            return self._onnxruntime.InferenceSession(
                str(self._path), options, providers=[provider_name], enable_fallback=0
            )
        except Exception as error:
            lack = self._lack(str(error))
            if lack is not None:
                raise lack from error
            raise BundleError(f'"{self._path}" cannot be loaded: {error}', code="graph_invalid") from error


def _terminate(options: Any) -> None:
    options.terminate = True


def _rows(inputs: Mapping[str, Any]) -> int:
    """The number of rows of the longest input."""
    return max((array.shape[0] for array in inputs.values() if array.shape), default=1)


def _dtype(onnx_type: str) -> str:
    """Convert ONNX Runtime's ``tensor(float)`` to NumPy's ``float32``."""
    name = onnx_type.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)
