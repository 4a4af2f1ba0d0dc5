"""Sessions on ONNX Runtime.

A run is C code that hears no signal: Ctrl-C would be obeyed when the run is over, after half a minute in a large bag.
So the main thread, which gets the signals, leaves its runs to another one, waits, and ends the run when it is
interrupted. A run of a backbone that is expected to be over before anyone would notice is done where it is asked for:
a thread a run costs a small backbone a third of its throughput.

Arrays on a GPU are bound where they are, and outputs stay where ONNX Runtime puts them. It works on a stream of its
own, so the order is kept by waiting: before a run for the caller's stream, which also frees the outputs of the run
before to be written over; after it for its own, as ONNX Runtime does unasked. To run on the caller's stream
(``user_compute_stream``) would save a wait a batch, but it has to be known when a session is loaded, and be that of
every caller.
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
from hagmil.errors import BundleError, EnvironmentLacks
from hagmil.runtime.memory.heap import configure_malloc

_PROVIDER_NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_ERRORS_ONLY = 3
_DEVICE = "cuda"  # as I/O binding calls it
_NOT_NOTICED_S = 0.2  # what Ctrl-C may wait for the end of a run
_WITHOUT_SPINNING = ("session.intra_op.allow_spinning", "0")
_GIVE_BACK = ("memory.enable_memory_arena_shrinkage", "cpu:0")
_OUT_OF_MEMORY_SIGNS = ("failed to allocate memory", "out of memory", "bad_alloc", "bad allocation")
Result = TypeVar("Result")


def available_providers() -> list[str]:
    """The providers of this machine's ONNX Runtime, by hagmil's names.

    Raises:
        EnvironmentLacks: ONNX Runtime is not installed.
    """
    present = set(_onnxruntime().get_available_providers())
    return [name for name, full in _PROVIDER_NAMES.items() if full in present]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output as a graph declares it.

    Args:
        dtype: its element type, as NumPy writes it.
        axes: a number where fixed, a word where dynamic (None where unnamed).
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
        options: Mapping[str, str] | None = None,
        many_runs: bool = False,
    ) -> None:
        self._onnxruntime = _onnxruntime()
        configure_malloc()
        self._path = onnx
        name = _PROVIDER_NAMES[provider]
        if name not in self._onnxruntime.get_available_providers():
            raise EnvironmentLacks(
                f'provider "{provider}" was asked for, but this machine\'s ONNX Runtime has only '
                f"{', '.join(available_providers())}; for an NVIDIA GPU run: "
                'pip uninstall onnxruntime; pip install "hagmil[gpu]"',
                code="provider_missing",
            )
        self._many_runs = many_runs
        self._seconds_a_row = math.inf
        self._keeps_memory = many_runs and provider == "cpu"
        self._session = self._load(name, threads, options or {})
        if self._session.get_providers()[0] != name:
            raise EnvironmentLacks(
                f'provider "{provider}" is installed but did not start on this machine (no device, or no driver?); '
                "hagmil doctor tells more",
                code="provider_failed",
            )
        self._session.disable_fallback()
        self._device_id = int((options or {}).get("device_id", 0))
        self._outputs = [output.name for output in self._session.get_outputs()]

    @property
    def provider(self) -> str:
        """The execution provider that runs the graph, as ONNX Runtime names it."""
        return str(self._session.get_providers()[0])

    @property
    def input_shapes(self) -> dict[str, tuple[str | int, ...]]:
        """The shape of every input; words are dynamic axes."""
        return {node.name: tuple(node.shape) for node in self._session.get_inputs()}

    @property
    def on_device(self) -> bool:
        """Arrays may stay on the device, unless that is the processor."""
        return self.provider != _PROVIDER_NAMES["cpu"]

    def tensors(self) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo]]:
        """Inputs and outputs by their names, as the graph declares them."""
        nodes = self._session.get_inputs(), self._session.get_outputs()
        inputs, outputs = (
            {node.name: TensorInfo(_dtype(node.type), tuple(node.shape)) for node in each} for each in nodes
        )
        return inputs, outputs

    def run(self, inputs: dict[str, Any], *, last: bool = False) -> dict[str, Any]:
        """Run the graph once.

        Args:
            inputs: an array for every input, by its name: all of NumPy, or all on the device (cupy's, or any others
                with ``__cuda_array_interface__`` that cupy's present stream may read).
            last: whether memory that is kept between runs is given back after this one.

        Returns:
            An array for every output, by its name: of NumPy where the inputs are; of cupy where they are on the device,
            complete for every stream.

        Raises:
            EnvironmentLacks: too little memory (code ``out_of_memory``), or arrays on the device without cupy.
            BundleError: the graph cannot run on these inputs.
        """
        given = any(hasattr(array, "__cuda_array_interface__") for array in inputs.values())
        cupy = require("cupy", extra="gpu") if given and self.on_device else None
        try:
            return self._run_on_host(inputs, last) if cupy is None else self._run_on_device(cupy, inputs)
        except Exception as error:
            text = str(error)
            if any(sign in text.lower() for sign in _OUT_OF_MEMORY_SIGNS):
                raise EnvironmentLacks(f"{self._path.name}: out of memory: {text}", code="out_of_memory") from error
            raise BundleError(f"{self._path.name} cannot run on these inputs: {text}", code="graph_failed") from error

    def _run_on_host(self, inputs: dict[str, Any], last: bool) -> dict[str, Any]:
        def _run(options: Any) -> Any:
            if last and self._keeps_memory:
                options.add_run_config_entry(*_GIVE_BACK)
            return self._session.run(self._outputs, inputs, options)

        values = self._interruptibly(_run, _rows(inputs))
        return dict(zip(self._outputs, values, strict=True))

    def _run_on_device(self, cupy: ModuleType, inputs: dict[str, Any]) -> dict[str, Any]:
        arrays = {name: cupy.ascontiguousarray(cupy.asarray(array)) for name, array in inputs.items()}
        binding = self._session.io_binding()
        for name, array in arrays.items():
            binding.bind_input(name, _DEVICE, self._device_id, array.dtype.type, array.shape, array.data.ptr)
        for name in self._outputs:
            binding.bind_output(name, _DEVICE, self._device_id)
        cupy.cuda.get_current_stream().synchronize()  # of this thread: another one has another
        self._interruptibly(lambda options: self._session.run_with_iobinding(binding, options), _rows(inputs))
        return {
            name: self._as_array(cupy, binding, value)
            for name, value in zip(self._outputs, binding.get_outputs(), strict=True)
        }

    def _as_array(self, cupy: ModuleType, binding: Any, value: Any) -> Any:
        """cupy's array over an output's memory, which lives as long as the array."""
        shape, dtype = tuple(value.shape()), np.dtype(_dtype(value.data_type()))
        size_bytes = math.prod(shape) * dtype.itemsize
        memory = cupy.cuda.UnownedMemory(value.data_ptr(), size_bytes, (binding, value), self._device_id)
        return cupy.ndarray(shape, dtype, cupy.cuda.MemoryPointer(memory, 0))

    def _interruptibly(self, work: Callable[[Any], Result], rows: int) -> Result:
        """Do a run on so many rows, which gets its options, so that Ctrl-C ends it, or is heard in a moment."""
        options = self._onnxruntime.RunOptions()
        started = perf_counter()
        short = self._many_runs and self._seconds_a_row * rows < _NOT_NOTICED_S
        on_main = threading.current_thread() is threading.main_thread()
        result = self._by_another_thread(work, options) if on_main and not short else work(options)
        self._seconds_a_row = (perf_counter() - started) / max(rows, 1)
        return result

    def _by_another_thread(self, work: Callable[[Any], Result], options: Any) -> Result:
        """Do a run, and end it when this thread, the main one, is interrupted."""
        run: Future[Result] = Future()

        def _work() -> None:
            try:
                run.set_result(work(options))
            except BaseException as error:  # noqa: BLE001 - raised again by the one who waits
                run.set_exception(error)

        worker = threading.Thread(target=_work, name="hagmil-run", daemon=True)
        try:
            worker.start()
            return run.result()
        except BaseException:  # an interrupt, at whatever moment, or the run's own error
            options.terminate = True
            raise
        finally:
            if worker.is_alive():
                worker.join()

    def _load(self, provider_name: str, threads: int | None, provider_options: Mapping[str, str]) -> Any:
        options = self._onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
        # Measured on the full-size transformer, which runs once a bag: the arena takes up to twice the memory and saves
        # no time; nor does the priority-based order, which keeps more tensors at a time. Patterns of memory take 300 MB
        # more at 1,000 patches and 200 MB more at 10,000, and save no time. Reuse lets a tensor's memory wait for
        # the next one of its shape, through whole blocks of another width: 290 MB more at 10,000 patches, and 100 MB
        # more in resnet50-trunc. A backbone runs again and again on one shape: there the arena takes less memory, and
        # saves the time in which the system clears what each run asks for anew. docs/decisions/0009-pseudo-inverse.md
        # Threads that wait for the next node of a backbone keep the cores from those that read its patches: it runs
        # slower alone when they sleep, and faster beside readers.
        if self._keeps_memory:
            options.add_session_config_entry(*_WITHOUT_SPINNING)
        options.enable_cpu_mem_arena = self._keeps_memory
        options.enable_mem_pattern = False
        options.enable_mem_reuse = False
        try:
            providers = [(provider_name, dict(provider_options))]
            return self._onnxruntime.InferenceSession(str(self._path), options, providers=providers)
        except Exception as error:
            raise BundleError(f'"{self._path}" cannot be loaded: {error}', code="graph_invalid") from error


def _rows(inputs: Mapping[str, Any]) -> int:
    """Of the longest input."""
    return max((array.shape[0] for array in inputs.values() if array.shape), default=1)


def _dtype(words: str) -> str:
    """``tensor(float)``, as ONNX Runtime writes it, to ``float32``."""
    name = words.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)


def _onnxruntime() -> ModuleType:
    return require("onnxruntime", extra="cpu")
