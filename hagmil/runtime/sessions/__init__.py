"""Inference sessions: one protocol for all providers.

If the requested provider is missing, opening a session fails; it never uses another provider instead.
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
    """A loaded graph. Several threads may run it at once."""

    @property
    def provider(self) -> str:
        """The provider that runs the graph, as its library names it."""

    @property
    def input_shapes(self) -> dict[str, tuple[str | int, ...]]:
        """The shape of every input; a dynamic axis is given by its name."""

    @property
    def on_device(self) -> bool:
        """Whether the session takes cupy arrays without a copy; the outputs are then cupy arrays too."""

    def run(self, inputs: dict[str, NDArray[np.generic]], *, last: bool = False) -> dict[str, NDArray[np.generic]]:
        """Run the graph once.

        Args:
            inputs: an array for every input, by its name; all NumPy arrays, or all cupy arrays if ``on_device``.
            last: whether no run follows soon; memory that is kept between runs is then released.

        Returns:
            An array for every output, by its name; NumPy or cupy arrays like the inputs.

        Raises:
            EnvironmentLacks: not enough memory on the device (code ``out_of_memory``).
            BundleError: the graph cannot run on these inputs.
        """


def open_session(onnx: Path, *, provider: str = "cpu", threads: int | None = None, many_runs: bool = False) -> Session:
    """Load a graph on ONNX Runtime; :mod:`hagmil.runtime.sessions.engines` runs a bundle's TensorRT engines.

    Args:
        onnx: the graph's file.
        provider: ``cpu`` or ``cuda``.
        threads: threads of one run on the CPU; None uses all cores.
        many_runs: whether the graph runs many times on inputs of one shape while other threads prepare the next inputs.
            The session then keeps memory between runs, until a run with ``last``, and its threads do not spin while
            they wait.

    Raises:
        UsageError: no such provider, or one that runs the engines of a bundle only.
        EnvironmentLacks: the provider or ONNX Runtime is missing on this machine.
        BundleError: the graph cannot be loaded.
    """
    if provider not in PROVIDERS:
        raise UsageError(f'no provider "{provider}"; choose one of {", ".join(PROVIDERS)}')
    if provider == "tensorrt":
        raise UsageError('provider "tensorrt" runs the engines of a bundle, not a single graph; choose cpu or cuda')
    from hagmil.runtime.sessions.onnx import OnnxSession  # imports onnxruntime

    return OnnxSession(onnx, provider=provider, threads=threads, many_runs=many_runs)
