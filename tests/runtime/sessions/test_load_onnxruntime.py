"""ONNX Runtime writes nothing to the terminal, and keeps no record of events."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from hagmil.errors import BundleError
from hagmil.runtime.sessions import open_session
from hagmil.runtime.sessions.load_onnxruntime import _without_log_lines
from tests.runtime.small_bundle import backbone_graph

# Recorded with onnxruntime 1.31.1: a session without CUDA's libraries, and an import on a machine with an unknown GPU.
SESSION_LINES = (
    "\x1b[1;31m2026-11-28 10:56:32.336828452 [E:onnxruntime:Default, provider_bridge_ort.cc:2458 operator()] "
    "/onnxruntime_src/onnxruntime/core/session/provider_bridge_ort.cc:2043 onnxruntime::Provider& "
    "onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library "
    "libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open shared object file: No such file or "
    "directory\n\x1b[m\n"
    "\x1b[0;93m2026-11-28 10:56:32.336898584 [W:onnxruntime:Default, onnxruntime_pybind_state.cc:1295 "
    "CreateExecutionProviderFactoryInstance] Failed to create CUDAExecutionProvider. Require cuDNN 9.* and CUDA 13.*."
    "\x1b[m\n"
)
IMPORT_LINES = (
    "\x1b[0;93m2026-11-28 11:14:27.853285125 [W:onnxruntime:Default, device_discovery.cc:322 GetGpuDevices] Failed to "
    'detect devices under "/sys/class/drm/card0": parse_string.h:116 ParseStringWithClassicLocale Failed to parse '
    'value: "4318"\x1b[m\n'
)


@pytest.mark.parametrize(
    "lines", [SESSION_LINES, IMPORT_LINES, IMPORT_LINES.replace("\x1b[0;93m", "").replace("\x1b[m", "")]
)
def test_recorded_lines_of_the_logger_are_removed_and_others_pass(
    lines: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with _without_log_lines():
        os.write(2, f"before\n{lines}after \x1b[1;31mred\x1b[m\n".encode())
    assert capfd.readouterr().err == "before\nafter \x1b[1;31mred\x1b[m\n"


def test_failures_of_a_graph_write_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    onnx.save(backbone_graph(), tmp_path / "backbone.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError):
        open_session(tmp_path / "broken.onnx")
    with pytest.raises(BundleError):
        open_session(tmp_path / "backbone.onnx").run({"patches": np.zeros((1, 8, 8, 3), np.float32)})
    assert capfd.readouterr() == ("", "")


def test_no_events_are_recorded(tmp_path: Path) -> None:
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    code = "from hagmil.runtime.sessions.load_onnxruntime import load_onnxruntime; load_onnxruntime()"
    subprocess.run([sys.executable, "-c", code], check=True, env={**environment, "HOME": str(tmp_path)})
    assert list(tmp_path.rglob("*")) == []
