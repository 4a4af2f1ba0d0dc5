"""Feature files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hagmil.errors import DataError
from hagmil.features import (
    FeatureHeader,
    SlideFeatures,
    StageFeatures,
    StageOutline,
    read_features,
    read_header,
    read_outline,
    write_features,
)
from hagmil.tissue_parameters import TissueParameters


def _stage(name: str, rows: int, dtype: type, spacing_um: float) -> StageFeatures:
    generator = np.random.default_rng(rows)
    return StageFeatures(
        name=name,
        coords=generator.integers(0, 1000, (rows, 2)),
        features=generator.standard_normal((rows, 8)).astype(dtype),
        patch_px=64,
        patch_level0=int(128 * spacing_um),
        spacing_um=spacing_um,
    )


def _slide(rows: int = 5, dtype: type = np.float32) -> SlideFeatures:
    header = FeatureHeader(
        slide_id="a",
        slide_name="a.svs",
        slide_sha256="0" * 64,
        slide_spacing_um=0.25,
        spacing_source="metadata",
        backbone_name="tiny",
        backbone_sha256="1" * 64,
        tissue=TissueParameters(spacing_um=4.0),
        stages=("2um", "1um"),
    )
    return SlideFeatures(header, (_stage("2um", rows, dtype, 2.0), _stage("1um", 4 * rows, dtype, 1.0)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_read_features_returns_what_write_features_wrote(tmp_path: Path, rows: int, dtype: type) -> None:
    slide = _slide(rows, dtype)
    write_features(str(tmp_path / "a.h5"), slide)
    back = read_features(str(tmp_path / "a.h5"))
    assert back.header == slide.header == read_header(tmp_path / "a.h5")
    for stage, original in zip(back.stages, slide.stages, strict=True):
        np.testing.assert_array_equal(stage.coords, original.coords)
        np.testing.assert_array_equal(stage.features, original.features)
        assert stage.features.dtype == dtype
        assert (stage.patch_px, stage.patch_level0, stage.spacing_um) == (
            original.patch_px,
            original.patch_level0,
            original.spacing_um,
        )


def test_a_feature_file_has_the_names_of_the_contract(tmp_path: Path) -> None:
    write_features(tmp_path / "a.h5", _slide())
    with h5py.File(tmp_path / "a.h5") as file:
        assert list(file) == ["2um", "1um"]
        assert file["2um/coords"].dtype == np.int64
        assert {"patch_size", "patch_size_level0", "spacing_um"} <= set(file["2um"].attrs)
        assert {"format_version", "slide_sha256", "backbone_name", "backbone_sha256"} <= set(file.attrs)


def test_a_single_stage_can_be_read(tmp_path: Path) -> None:
    write_features(tmp_path / "a.h5", _slide())
    back = read_features(tmp_path / "a.h5", ["1um"])
    assert [stage.name for stage in back.stages] == ["1um"]
    with pytest.raises(DataError, match="no stage 4um; its stages are 2um, 1um"):
        read_features(tmp_path / "a.h5", ["4um"])


def test_coords_and_features_of_different_lengths_are_rejected(tmp_path: Path) -> None:
    slide = _slide()
    broken = replace(slide.stages[0], coords=slide.stages[0].coords[:-1])
    with pytest.raises(DataError, match="2um: 5 rows of features, but coords"):
        write_features(tmp_path / "a.h5", replace(slide, stages=(broken, slide.stages[1])))
    assert not list(tmp_path.iterdir())


def test_a_missing_damaged_or_foreign_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_features(tmp_path / "a.h5")
    (tmp_path / "b.h5").write_bytes(b"no HDF5")
    with pytest.raises(DataError, match="cannot be read"):
        read_features(tmp_path / "b.h5")
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.attrs["format"] = "something"
    with pytest.raises(DataError, match="not a feature file of hagmil"):
        read_header(tmp_path / "c.h5")


def test_a_cut_off_file_raises_only_a_data_error(tmp_path: Path) -> None:
    write_features(tmp_path / "a.h5", _slide())
    whole = (tmp_path / "a.h5").read_bytes()
    for length in range(0, len(whole), 211):
        (tmp_path / "a.h5").write_bytes(whole[:length])
        with pytest.raises(DataError):
            read_features(tmp_path / "a.h5")


@pytest.mark.parametrize("shape", [(4, 8), (5,), (5, 8, 1)])
def test_features_that_do_not_fit_their_coords_are_rejected(tmp_path: Path, shape: tuple[int, ...]) -> None:
    write_features(tmp_path / "a.h5", _slide())
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["2um/features"]
        file["2um/features"] = np.zeros(shape, np.float32)
    for read in (read_features, read_outline):
        with pytest.raises(DataError, match="2um: features of shape"):
            read(tmp_path / "a.h5")
    assert len(read_features(tmp_path / "a.h5", ["1um"]).stages[0].coords) == 20


def test_the_outline_has_the_sizes_of_the_stages(tmp_path: Path) -> None:
    write_features(tmp_path / "a.h5", _slide(dtype=np.float16))
    header, stages = read_outline(tmp_path / "a.h5")
    assert header == _slide().header
    assert stages[1] == StageOutline("1um", 20, 8, "float16", 64, 1.0)


def _replace(path: Path, name: str, **options: object) -> None:
    with h5py.File(path, "r+") as file:
        del file[name]
        file.create_dataset(name, **options)


def _compress(path: Path) -> None:
    _replace(path, "1um/features", data=np.zeros((20, 8), np.float32), chunks=(20, 8), compression="gzip")


def _make_huge(path: Path) -> None:
    _replace(path, "1um/features", shape=(10**7, 16_384), dtype=np.float32, chunks=(1024, 1024))


def _store_outside(path: Path) -> None:
    _replace(path, "1um/coords", shape=(20, 2), dtype=np.int64, external=[("/dev/zero", 0, 320)])


def _make_virtual(path: Path) -> None:
    layout = h5py.VirtualLayout((20, 8), np.float32)
    layout[...] = h5py.VirtualSource("/etc/passwd", "features", (20, 8))
    with h5py.File(path, "r+") as file:
        del file["1um/features"]
        file["1um"].create_virtual_dataset("features", layout)


def _link_to_another_file(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["1um"]
        file["1um"] = h5py.ExternalLink("other.h5", "1um")


def _link_inside(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["1um"]
        file["1um"] = h5py.SoftLink("/2um")


def _use_complex_numbers(path: Path) -> None:
    _replace(path, "1um/features", data=np.zeros((20, 8), np.complex64))


def _move_coords(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["1um/coords"][0, 0] = -5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_compress, "features is compressed or in another file"),
        (_make_huge, "larger than the file"),
        (_store_outside, "coords is compressed or in another file"),
        (_make_virtual, "features is compressed or in another file"),
        (_link_to_another_file, "1um is missing or a link"),
        (_link_inside, "1um is missing or a link"),
        (_use_complex_numbers, "features is not a dataset of float16 or float32"),
        (_move_coords, "coords are outside 0 to"),
    ],
)
def test_only_values_that_are_in_the_file_are_read(tmp_path: Path, change: Callable[[Path], None], words: str) -> None:
    write_features(tmp_path / "a.h5", _slide())
    write_features(tmp_path / "other.h5", _slide())
    change(tmp_path / "a.h5")
    with pytest.raises(DataError, match=words) as caught:
        read_features(tmp_path / "a.h5")
    assert caught.value.code == "features_unreadable"


@pytest.mark.parametrize(
    ("group", "name", "value", "words"),
    [
        ("/", "slide_spacing_um", 1e308, "attribute slide_spacing_um is 1e\\+308, outside 0.001 to 1,000"),
        ("1um", "spacing_um", float("nan"), "attribute spacing_um is nan, outside"),
        ("1um", "patch_size", 2**63 - 1, "attribute patch_size is 9223372036854775807, outside 1 to 4,096"),
        ("1um", "patch_size_level0", 0, "attribute patch_size_level0 is 0, outside 1 to 2,147,483,648"),
        ("1um", "patch_size", [64, 64], "attribute patch_size is"),
        ("/", "stages", ["1um"] * 2, "it has 2 stages; 1 to 16"),
        ("/", "stages", ["1um/../2um"], "it has 1 stages; 1 to 16"),
        ("/", "tissue", '{"median_um": 1e300}', "outside 0 to 1,000"),
    ],
)
def test_numbers_have_bounds(tmp_path: Path, group: str, name: str, value: Any, words: str) -> None:
    write_features(tmp_path / "a.h5", _slide())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file[group].attrs[name] = value
    with pytest.raises(DataError, match=words):
        read_features(tmp_path / "a.h5")
