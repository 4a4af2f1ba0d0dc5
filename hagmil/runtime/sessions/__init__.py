"""Inference sessions: one protocol, and the one place that decides which engine runs a graph.

A provider is what was asked for or an error; nothing here falls back to another.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from hagmil.errors import UsageError

Provider = Literal["cpu", "cuda", "tensorrt"]
PROVIDERS: tuple[Provider, ...] = get_args(Provider)


class Session(Protocol):
    """One graph, ready to run."""

    @property
    def provider(self) -> str:
        """The execution provider that runs the graph, as its library names it."""

    @property
    def input_shapes(self) -> dict[str, tuple[str | int, ...]]:
        """The shape of every input; words are dynamic axes."""

    @property
    def on_device(self) -> bool:
        """Whether cupy's arrays go in where they are, and the outputs then are cupy's, too."""

    def run(self, inputs: dict[str, NDArray[np.generic]], *, last: bool = False) -> dict[str, NDArray[np.generic]]:
        """Run the graph once.

        Args:
            inputs: an array for every input, by its name; where ``on_device`` is true they may all be cupy's.
            last: whether the next run is long in coming: memory that was kept for it is given back.

        Returns:
            An array for every output, by its name: of NumPy where the inputs are, else of cupy.

        Raises:
            EnvironmentLacks: the device has too little memory (code ``out_of_memory``).
            BundleError: the graph cannot run on these inputs.
        """


def open_session(onnx: Path, *, provider: str = "cpu", threads: int | None = None, many_runs: bool = False) -> Session:
    """Load a graph on the provider that was asked for.

    Args:
        onnx: the graph's file.
        provider: ``cpu``, ``cuda`` or ``tensorrt``.
        threads: threads inside one run on the CPU; as many as there are cores where none are given.
        many_runs: whether it will run again and again on inputs of one shape, while other threads prepare the next:
            then memory is kept from one run to the next, up to one that is said to be the last, and no core is kept
            busy by waiting.

    Raises:
        UsageError: no such provider.
        EnvironmentLacks: the provider, or ONNX Runtime itself, is not on this machine.
        BundleError: the graph cannot be loaded.
    """
    if provider not in PROVIDERS:
        raise UsageError(f'no provider "{provider}"; choose one of {", ".join(PROVIDERS)}')
    from hagmil.runtime.sessions.onnx import OnnxSession  # onnxruntime is imported only where a graph is run

    return OnnxSession(onnx, provider=provider, threads=threads, many_runs=many_runs)
