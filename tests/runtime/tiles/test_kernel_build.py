"""The compiled tile kernel: build, libraries, and the NumPy kernel as its replacement."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from hagmil.runtime.doctor.installed import find_installed
from hagmil.runtime.tiles import kernel as tile_kernel
from hagmil.runtime.tiles.filter_weights import linear_filter
from tests.conftest import REPOSITORY
from tests.runtime.slide_files import picture
from tests.runtime.tiles.encoded_level import (
    NOT_COMPILED,
    UNTOUCHED,
    Level,
    compiled_only,
)

SOURCE = REPOSITORY / "hagmil" / "runtime" / "tiles" / "_tile_kernel.c"


@pytest.fixture
def compile_kernel() -> list[str]:
    """Command that compiles the kernel; skips the test if the compiler or headers are missing."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    command = [compiler, f"-I{sysconfig.get_paths()['include']}", str(SOURCE)]
    found = subprocess.run([*command, "-E", "-o", os.devnull], capture_output=True, check=False)
    if found.returncode:
        pytest.skip(f"libjpeg-turbo's or Python's headers are missing: {found.stderr.decode().splitlines()[0]}")
    return command


@pytest.mark.usefixtures("compile_kernel")
def test_the_kernel_is_compiled_if_possible() -> None:
    assert tile_kernel.why_not_compiled is None, tile_kernel.why_not_compiled


@compiled_only
def test_the_kernel_without_vector_instructions_gives_the_same_pixels(
    tmp_path: Path, level: Level, compile_kernel: list[str]
) -> None:
    """As on processors other than x86."""
    built = tmp_path / "_tile_kernel.so"
    subprocess.run([*compile_kernel, "-shared", "-fPIC", "-O1", "-U__SSE2__", "-ldl", "-o", built], check=True)
    spec = importlib.util.spec_from_file_location("without_vectors._tile_kernel", built)
    assert spec is not None
    assert spec.loader is not None
    kernel = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernel)
    kernel.open_library(tile_kernel.library)
    corners, patches = np.array([[-5, 3], [70, 70]], np.int64), np.full((2, 64, 64, 3), UNTOUCHED, np.uint8)
    level.read(kernel, corners, patches)
    assert (patches == level.expected(corners, 64, 64)).all()
    pixels, out, wanted = picture(90, 90), np.empty((37, 37, 3), np.uint8), np.empty((37, 37, 3), np.uint8)
    axis = linear_filter(90, 3.5, 80.25, 37)
    assert axis is not None
    kernel.resample_pixels(pixels, axis.first, axis.weights, axis.first, axis.weights, out)
    tile_kernel.resample_pixels(pixels, (3.5, 3.5, 80.25, 80.25), wanted)
    assert (out == wanted).all()


def test_doctor_and_reports_name_the_tile_kernel() -> None:
    (finding,) = [finding for finding in find_installed() if finding.name == "tile kernel"]
    assert finding.state == ("optional" if NOT_COMPILED else "ok")
    assert (tile_kernel.REMEDY if NOT_COMPILED else tile_kernel.kernel_name()) in finding.detail
    assert tile_kernel.kernel_name().startswith("NumPy" if NOT_COMPILED else "compiled, libjpeg-turbo ")


@compiled_only
def test_every_libjpeg_turbo_gives_the_same_pixels(level: Level) -> None:
    corners, chosen = np.random.default_rng(8).integers(-60, 200, (40, 2)), tile_kernel.library
    assert chosen is not None
    try:
        for path in tile_kernel.libraries():
            try:
                tile_kernel.open_first([path])
            except OSError:
                continue  # not on this machine
            patches = np.full((len(corners), 64, 64, 3), UNTOUCHED, np.uint8)
            for patch in range(len(corners)):  # one by one, so that other rows and columns of the tiles are needed
                level.read(tile_kernel, corners[patch : patch + 1], patches[patch : patch + 1])
            np.testing.assert_array_equal(patches, level.expected(corners, 64, 64))
    finally:
        tile_kernel.open_first([chosen])


@compiled_only
def test_an_unsuitable_library_is_rejected_and_the_next_one_tried(tmp_path: Path) -> None:
    chosen, text = tile_kernel.library, tmp_path / "text.so"
    assert chosen is not None
    text.write_text("no library")
    assert tile_kernel.open_first([str(text), "libc.so.6", chosen]) == chosen
    with pytest.raises(OSError, match=r"text\.so.*; libc\.so\.6 has no jpeg_std_error"):
        tile_kernel.open_first([str(text), "libc.so.6"])


@compiled_only
def test_libjpeg_turbo_of_pillow_is_preferred_and_numpy_is_used_without_any() -> None:
    code = (
        "import sys; from pathlib import Path; from unittest import mock\n"
        "with mock.patch.object(Path, 'glob', lambda *_: iter(['/nowhere.so'])):\n"
        "    from hagmil.runtime.tiles import kernel as tile_kernel\n"
        "print(tile_kernel.kernel_name(), tile_kernel.why_not_compiled)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(("compiled, libjpeg-turbo of the system", "NumPy, simplejpeg"))
    wheel = any("pillow.libs" in path for path in tile_kernel.libraries())
    assert tile_kernel.kernel_name().endswith("of Pillow") is wheel


def test_without_the_compiled_kernel_numpy_is_used_and_doctor_gives_the_remedy() -> None:
    code = (
        "import sys; sys.modules['hagmil.runtime.tiles._tile_kernel'] = None\n"
        "from hagmil.runtime.tiles import kernel as tile_kernel, kernel_numpy\n"
        "from hagmil.runtime.doctor.installed import find_installed\n"
        "assert tile_kernel.read_tiles is kernel_numpy.read_tiles\n"
        "print(tile_kernel.kernel_name(), find_installed()[-1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("NumPy, simplejpeg")
    assert "headers" in done.stdout


def test_reading_tiles_does_not_import_torch() -> None:
    code = "import sys; sys.modules['torch'] = sys.modules['onnx'] = None; import hagmil.runtime.patches.tile_reader"
    subprocess.run([sys.executable, "-c", code], check=True)
