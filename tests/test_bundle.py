"""Bundles: manifest, digests and folders."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from hagmil.bundle import (
    Backbone,
    Hierarchy,
    Manifest,
    Provenance,
    Stage,
    file_entries,
    manifest_schema,
    new_folder,
    open_bundle,
    write_manifest,
)
from hagmil.errors import BundleError, UsageError
from hagmil.tissue_parameters import TissueParameters
from tests.conftest import REPOSITORY


def _manifest(folder: Path, **changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "kind": "hag-mil",
        "classes": ("normal", "tumour"),
        "patch_px": 64,
        "stages": (
            Stage(name="2um", spacing_um=2.0, keep=4, onnx="2um.onnx"),
            Stage(name="1um", spacing_um=1.0, onnx="1um.onnx"),
        ),
        "backbone": Backbone(onnx="backbone.onnx", features=8, name="tiny"),
        "tissue": TissueParameters(),
        "precision": "fp32",
        "files": file_entries(folder),
        "provenance": Provenance(
            created=datetime(2026, 1, 1, tzinfo=UTC),
            hagmil="0",
            versions={},
            checkpoint_sha256="0" * 64,
            backbone_weights="random",
        ),
        "intended_use": "tests",
    }
    return Manifest(**{**values, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("2um.onnx", "1um.onnx", "backbone.onnx"):
        (tmp_path / name).write_bytes(b"\x12\x64" + (name.encode() * 100)[:100])  # ONNX with a producer only
    return tmp_path


def test_an_unaltered_bundle_opens(folder: Path) -> None:
    manifest = _manifest(folder)
    write_manifest(folder, manifest)
    assert open_bundle(str(folder)).manifest == manifest


def test_a_flipped_bit_is_rejected(folder: Path) -> None:
    write_manifest(folder, _manifest(folder))
    data = bytearray((folder / "1um.onnx").read_bytes())
    data[17] ^= 1
    (folder / "1um.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"1um\.onnx was altered") as caught:
        open_bundle(folder)
    assert caught.value.code == "digest_mismatch"


def test_the_error_names_a_missing_file(folder: Path) -> None:
    write_manifest(folder, _manifest(folder))
    (folder / "2um.onnx").unlink()
    with pytest.raises(BundleError, match=r"2um\.onnx is missing"):
        open_bundle(folder)


def test_a_changed_manifest_changes_the_digest_of_the_bundle(folder: Path) -> None:
    write_manifest(folder, _manifest(folder))
    before = open_bundle(folder).sha256
    write_manifest(folder, _manifest(folder, intended_use="something else"))
    assert open_bundle(folder).sha256 != before


def test_a_folder_with_a_missing_or_invalid_manifest_is_rejected(folder: Path) -> None:
    with pytest.raises(BundleError, match=r"has no bundle\.json"):
        open_bundle(folder)
    (folder / "bundle.json").write_text('{"format": "hagmil-bundle"}')
    with pytest.raises(BundleError, match=r"bundle\.json is not valid: kind"):
        open_bundle(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {
                "stages": (
                    Stage(name="a", spacing_um=1.0, keep=4, onnx="1um.onnx"),
                    Stage(name="b", spacing_um=2.0, onnx="2um.onnx"),
                )
            },
            "from coarse to fine",
        ),
        ({"stages": (Stage(name="a", spacing_um=1.0, keep=4, onnx="1um.onnx"),)}, "keep must be null"),
        (
            {"stages": (Stage(name="a", spacing_um=1.0, onnx="other.onnx"),)},
            r"not listed in files: other\.onnx",
        ),
        ({"kind": "hmil"}, "kind hmil requires a hierarchy"),
        (
            {"hierarchy": Hierarchy(coarse=("a", "b"), fine=("c", "d"), fine_to_coarse=(0, 1))},
            "classes must be the hierarchy's fine classes",
        ),
    ],
)
def test_an_inconsistent_manifest_is_rejected(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        _manifest(folder, **changes)


def test_every_fine_class_needs_a_coarse_class() -> None:
    with pytest.raises(ValidationError, match="for each fine class"):
        Hierarchy(coarse=("a", "b"), fine=("c", "d", "e"), fine_to_coarse=(0, 1))
    with pytest.raises(ValidationError, match="every coarse class"):
        Hierarchy(coarse=("a", "b"), fine=("c", "d"), fine_to_coarse=(0, 0))


def test_the_published_schema_is_current_and_accepts_a_manifest(folder: Path) -> None:
    published = REPOSITORY / "docs" / "schemas" / "bundle.schema.json"
    assert published.read_text() == manifest_schema()
    jsonschema.validate(json.loads(_manifest(folder).model_dump_json()), json.loads(published.read_text()))


def test_a_new_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with pytest.raises(ZeroDivisionError), new_folder(target) as staging:
        (staging / "a").write_text(str(1 / 0))
    assert not list(tmp_path.iterdir())
    with new_folder(target) as staging:
        (staging / "a").write_text("a")
        assert not target.exists()
    assert (target / "a").read_text() == "a"


def test_an_existing_folder_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(UsageError, match="exists; choose another folder"), new_folder(target):
        pass
    with new_folder(target, overwrite=True) as staging:
        (staging / "new").write_text("new")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
