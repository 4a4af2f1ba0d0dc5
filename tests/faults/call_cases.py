"""Bundles, features, self-tests, tables and output folders, each with the error that it must end in."""

from __future__ import annotations

import json
import math
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx

from hagmil._files import OutputFolder
from hagmil.bundle import MANIFEST_NAME, open_bundle, write_manifest
from hagmil.errors import HagmilError
from hagmil.features import read_features, write_features
from hagmil.runtime.inference.loaded_bundle import load_model
from hagmil.runtime.inputs import slide_requests
from hagmil.runtime.predict import PredictOptions, predict_requests
from hagmil.runtime.results.output_folder import require_choice
from hagmil.runtime.slides.slide_files import SlideFiles
from hagmil.selftest import read_selftest
from tests import test_features, test_selftest
from tests.bundle import test_listed_files
from tests.faults.slide_cases import GOOD, HALF
from tests.runtime.sessions.test_time_limit import endless_graph
from tests.runtime.slide_files import write_tiff
from tests.runtime.small_bundle import write_small_bundle

STAGE = test_listed_files.STAGE


@dataclass(frozen=True)
class CallCase:
    """A call and its outcome.

    Args:
        section: of the table.
        name: what is wrong.
        expected: ``exit``, the exit code and the code of the error; or what the call returns.
        call: gets an empty folder.
    """

    section: str
    name: str
    expected: str
    call: Callable[[Path], object]


def _bundle(change: Callable[[Path], object]) -> Callable[[Path], object]:
    def call(folder: Path) -> object:
        change(write_small_bundle(folder / "bundle"))
        return load_model(folder / "bundle", threads=1)

    return call


def _manifest(change: Callable[[str], str]) -> Callable[[Path], object]:
    def edit(bundle: Path) -> None:
        path = bundle / MANIFEST_NAME
        path.write_text(change(path.read_text()))

    return _bundle(edit)


def _set(path: str, value: str) -> Callable[[str], str]:
    """Replace a number of the manifest, which may be one that JSON cannot express in Python."""

    def change(text: str) -> str:
        tree = json.loads(text)
        parent: Any = tree
        *names, last = path.split(".")
        for name in names:
            parent = parent[int(name) if name.isdigit() else name]
        parent[last] = "@"
        return json.dumps(tree).replace('"@"', value)

    return change


def _unlisted(bundle: Path) -> None:
    test_listed_files._write_external(bundle / STAGE, "w.bin")
    test_listed_files._sign(bundle, "w.bin")


def _altered_weights(bundle: Path) -> None:
    test_listed_files._write_external(bundle / STAGE, "w.bin")
    test_listed_files._sign(bundle)
    (-np.fromfile(bundle / "w.bin", np.float32)).tofile(bundle / "w.bin")


def _symlink(bundle: Path) -> None:
    test_listed_files._symlink(bundle / "backbone.onnx", bundle.parent / "outside")


def _hard_link(bundle: Path) -> None:
    test_listed_files._hard_link(bundle / "backbone.onnx", bundle.parent / "outside")


def _outside(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    files = {**manifest.files, "../a": manifest.files["backbone.onnx"]}
    write_manifest(bundle, manifest.model_copy(update={"files": files}))


def _features(change: Callable[[Path], None]) -> Callable[[Path], object]:
    def call(folder: Path) -> object:
        write_features(folder / "a.h5", test_features._slide())
        write_features(folder / "other.h5", test_features._slide())
        change(folder / "a.h5")
        return read_features(folder / "a.h5")

    return call


def _number(group: str, name: str, value: float) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            file[group].attrs[name] = value

    return change


def _selftest(**arrays: Any) -> Callable[[Path], object]:
    return lambda folder: read_selftest(test_selftest._write(folder / "selftest.npz", **arrays))


def _zip_bomb(folder: Path) -> object:
    with zipfile.ZipFile(folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for index in range(17):
            archive.writestr(f"a/input/{index}.npy", bytes(16 << 20))
    return read_selftest(folder / "bomb.npz")


def _table(text: str, encoding: str = "utf-8") -> Callable[[Path], object]:
    def call(folder: Path) -> object:
        (folder / "slides.csv").write_bytes(text.encode(encoding))
        return f"{len(slide_requests([], table=folder / 'slides.csv'))} slides"

    return call


def _run(folder: Path, **options: Any) -> str:
    """Run one slide; return its status and code."""
    if not (folder / "bundle").exists():
        write_small_bundle(folder / "bundle")
    slide = folder / "a.tif"
    if not slide.exists():
        write_tiff(slide, [GOOD, HALF])
    model = load_model(folder / "bundle", threads=1)
    (result,) = predict_requests(slide_requests([str(slide)]), model, folder / "out", PredictOptions(**options))
    return result.status if result.code is None else f"{result.status}: {result.code}"


def _endless(folder: Path) -> object:
    write_small_bundle(folder / "bundle")
    onnx.save(endless_graph(), folder / "bundle" / "backbone.onnx")
    test_listed_files._sign(folder / "bundle")
    return _run(folder, timeout_s=0.5)


def _results_exist(folder: Path) -> object:
    _run(folder)
    return require_choice(folder / "out", resume=False, overwrite=False)


def _replaced_before_resume(folder: Path) -> object:
    _run(folder)
    before = (folder / "out" / "a" / "result.json").read_bytes()
    write_tiff(folder / "a.tif", [GOOD])
    _run(folder, resume=True)
    return "run again" if (folder / "out" / "a" / "result.json").read_bytes() != before else "reused"


def _replaced_while_read(folder: Path) -> object:
    path = write_tiff(folder / "a.tif", [GOOD])
    with SlideFiles.of(path).unchanged():
        write_tiff(folder / "b.tif", [GOOD]).replace(path)
    return "unnoticed"


def _out_is_a_file(folder: Path) -> object:
    (folder / "out").touch()
    return _run(folder)


def _out_vanishes(folder: Path) -> object:
    output = OutputFolder.open(folder / "out")
    shutil.rmtree(folder / "out")
    return output.require_present()


BUNDLE, FEATURES, SELFTEST, TABLE, RUN = "Bundles", "Features", "Self-tests", "Tables of slides", "Runs"
INVALID, UNREADABLE, DAMAGED = "exit 4: bundle_invalid", "exit 2: features_unreadable", "exit 4: selftest_invalid"
ROWS = "slide_id,path\na,a.svs\n"
CASES = [
    CallCase(BUNDLE, "weights in a file that is not listed", "exit 4: unlisted_file", _bundle(_unlisted)),
    CallCase(BUNDLE, "weights in another file altered", "exit 4: digest_mismatch", _bundle(_altered_weights)),
    CallCase(BUNDLE, "symbolic link out of the bundle", "exit 4: linked_file", _bundle(_symlink)),
    CallCase(BUNDLE, "hard link out of the bundle", "exit 4: linked_file", _bundle(_hard_link)),
    CallCase(BUNDLE, "a path with `..`", INVALID, _bundle(_outside)),
    CallCase(BUNDLE, "duplicate key", INVALID, _manifest(lambda text: text.replace("{", '{"patch_px": 16,', 1))),
    CallCase(BUNDLE, "NaN", INVALID, _manifest(_set("temperature", "NaN"))),
    CallCase(BUNDLE, "Infinity", INVALID, _manifest(_set("temperature", "Infinity"))),
    CallCase(BUNDLE, "patches of 2^63 px", INVALID, _manifest(_set("patch_px", str(2**63)))),
    CallCase(BUNDLE, "spacing of 1e308 um/px", INVALID, _manifest(_set("stages.0.spacing_um", "1e308"))),
    CallCase(BUNDLE, "median filter of 1e300 um", INVALID, _manifest(_set("tissue.median_um", "1e300"))),
    CallCase(BUNDLE, "backbone that loops without end", "failed: timeout", _endless),
    CallCase(FEATURES, "compressed", UNREADABLE, _features(test_features._compress)),
    CallCase(FEATURES, "shape larger than the file", UNREADABLE, _features(test_features._make_huge)),
    CallCase(FEATURES, "external storage", UNREADABLE, _features(test_features._store_outside)),
    CallCase(FEATURES, "virtual dataset", UNREADABLE, _features(test_features._make_virtual)),
    CallCase(FEATURES, "external link", UNREADABLE, _features(test_features._link_to_another_file)),
    CallCase(FEATURES, "link inside the file", UNREADABLE, _features(test_features._link_inside)),
    CallCase(FEATURES, "spacing NaN", UNREADABLE, _features(_number("1um", "spacing_um", math.nan))),
    CallCase(FEATURES, "patches of 2^62 px", UNREADABLE, _features(_number("1um", "patch_size", 2**62))),
    CallCase(SELFTEST, "expands to 272 MB", DAMAGED, _zip_bomb),
    CallCase(SELFTEST, "no outputs", DAMAGED, _selftest(**{"a/output/logits": None})),
    CallCase(SELFTEST, "tolerance of 1e9", DAMAGED, _selftest(**{"a/tolerance": np.array([0.0, 1e9])})),
    CallCase(TABLE, "Latin-1", "exit 2: usage", _table("slide_id,path\nä,a.svs\n", "latin-1")),
    CallCase(TABLE, "UTF-16 with byte order mark", "1 slides", _table(ROWS, "utf-16")),
    CallCase(TABLE, "UTF-8 with byte order mark", "1 slides", _table(ROWS, "utf-8-sig")),
    CallCase(TABLE, "NUL", "exit 2: usage", _table("slide_id,path\na\0,a.svs\n")),
    CallCase(TABLE, "field of 200,000 characters", "exit 2: usage", _table(f"slide_id,path\na,{'b' * 200_000}\n")),
    CallCase(TABLE, "slide_id `..`", "exit 2: usage", _table("slide_id,path\n..,a.svs\n")),
    CallCase(TABLE, "slide_id `a/b`", "exit 2: usage", _table("slide_id,path\na/b,a.svs\n")),
    CallCase(RUN, "`--spacing-um nan`", "exit 2: usage", lambda _: slide_requests(["a.svs"], spacing_um=math.nan)),
    CallCase(RUN, "results exist, no option", "exit 2: exists", _results_exist),
    CallCase(RUN, "slide replaced before `--resume`", "run again", _replaced_before_resume),
    CallCase(RUN, "slide replaced while it is read", "exit 3: slide_changed", _replaced_while_read),
    CallCase(RUN, "OUT is a file", "exit 5: output_unwritable", _out_is_a_file),
    CallCase(RUN, "OUT vanishes", "exit 5: output_lost", _out_vanishes),
]


def outcome(case: CallCase, folder: Path) -> str:
    """What a case ends in."""
    try:
        found = case.call(folder)
    except HagmilError as error:
        return f"exit {error.exit_code}: {error.code}"
    except Exception as error:  # noqa: BLE001 - shown in the table
        return f"unexpected {type(error).__name__}"
    return found if isinstance(found, str) else "accepted"
