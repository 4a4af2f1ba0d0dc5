"""Check an environment with hagmil and a GPU extra: ``python scripts/check_gpu_install.py gpu|tensorrt-rtx``.

1. Every library that the extra's packages need is found, except the driver's: the linker loads ONNX Runtime's CUDA
   provider or the bindings of TensorRT-RTX, or misses only the driver.
2. ``hagmil infer`` and ``doctor`` use the GPU. Without a driver they exit with 5, with a message that names the driver.
3. Nothing that ONNX Runtime logs reaches the terminal.

``make test-gpu-install`` runs this in fresh environments, on any Linux machine with a network.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from hagmil._nvidia.driver import DRIVER_LIBRARY, find_gpus
from hagmil._nvidia.libraries import LIBRARIES, load_libraries
from hagmil._tensorrt.flavour import load_flavour
from hagmil.errors import EnvironmentLacks
from hagmil.phantom import PhantomSpec, write_phantom
from hagmil.runtime.sessions.cuda import linker_problem
from hagmil.runtime.sessions.load_onnxruntime import load_onnxruntime

_ARGUMENTS = {
    "gpu": ("--provider", "cuda"),
    "tensorrt-rtx": ("--provider", "tensorrt", "--rebuild"),
}
_LACKS = 5


def lack() -> EnvironmentLacks | None:
    """What keeps this machine's GPU from being used; None if it can be used."""
    try:
        print("GPUs:", *find_gpus())
    except EnvironmentLacks as error:
        return error
    return None


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run hagmil in a terminal of usual width, and print its output."""
    command = [str(Path(sys.executable).parent / "hagmil"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"})
    print("$ hagmil", *arguments, f"\n{done.stdout}{done.stderr}exit code {done.returncode}")
    return done


def check_output(done: subprocess.CompletedProcess[str], expected: EnvironmentLacks | None) -> None:
    """Compare the exit code and the output of a command with what this machine lacks."""
    output = done.stdout + done.stderr
    assert "onnxruntime:" not in output, "ONNX Runtime wrote to the terminal"
    assert "\x1b[" not in output, "something wrote colours to a file"
    assert done.returncode == (_LACKS if expected else 0), done.returncode
    if expected:
        assert expected.message in " ".join(output.split()), f"the output does not say: {expected.message}"
        assert ".so" not in output, "the output names a library"


def main(extra: str) -> None:
    """Check one extra."""
    load_libraries(extra)
    print("found:", ", ".join(f"{name} ({package})" for name, package in LIBRARIES[extra].items()))
    expected = lack()
    if extra == "gpu":
        reason = linker_problem(load_onnxruntime())
        assert reason is None or (expected and DRIVER_LIBRARY in reason), reason
        print("ONNX Runtime's CUDA provider:", reason or "loaded")
    else:
        print("loaded:", load_flavour("tensorrt-rtx").title)
    with tempfile.TemporaryDirectory() as folder:
        slide = Path(folder) / "slide.tiff"
        write_phantom(PhantomSpec(seed=0, size_px=2048), slide)
        check_output(run("infer", str(slide), "--out", f"{folder}/results", *_ARGUMENTS[extra]), expected)
    check_output(run("doctor", *_ARGUMENTS[extra][:2], "--json"), expected)
    print(f'extra "{extra}": ok')


if __name__ == "__main__":
    main(*sys.argv[1:])
