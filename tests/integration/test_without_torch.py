"""The runtime needs neither torch nor onnx."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.runtime.slide_files import save_pyramid, tissue_picture
from tests.runtime.small_bundle import write_small_bundle

BLOCK = """
import sys
for name in ("torch", "onnx", "onnxscript", "safetensors", "sklearn", "yaml"):
    sys.modules[name] = None
"""


def test_the_runtime_imports_with_torch_and_onnx_blocked() -> None:
    code = BLOCK + "import hagmil.runtime, hagmil.runtime.predict, hagmil.runtime.extract, hagmil.phantom"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_slide_gets_its_verdict_with_torch_and_onnx_blocked(tmp_path: Path) -> None:
    slide = save_pyramid(tmp_path / "tissue.tif", tissue_picture(), tile_px=256)
    bundle = write_small_bundle(tmp_path / "bundle")
    call = f"hagmil.predict_slide({str(slide)!r}, model={str(bundle)!r}, out={str(tmp_path / 'out')!r})"
    code = BLOCK + f"import hagmil\nprint({call}.status)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "ok"
