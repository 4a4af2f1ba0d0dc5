"""A bundle consists of the files that its manifest lists, and of nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.external_data_helper import set_external_data

from hagmil._files import sha256_of
from hagmil.bundle import BackboneCard, file_entries, open_backbone, open_bundle, write_manifest
from hagmil.errors import BundleError
from hagmil.runtime.inference import loaded_bundle
from hagmil.runtime.inference.loaded_bundle import load_model
from hagmil.runtime.sessions import open_session
from hagmil.runtime.verify import verify_bundle
from tests.runtime.small_bundle import stage_graph, write_small_bundle

STAGE = "0.5um.onnx"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_small_bundle(tmp_path / "bundle")


def _sign(folder: Path, *without: str, **changes: object) -> None:
    manifest = open_bundle(folder, verify=False).manifest
    files = {name: entry for name, entry in file_entries(folder).items() if name not in without}
    write_manifest(folder, manifest.model_copy(update={"files": files, **changes}))


def _write_external(path: Path, location: str) -> None:
    """A stage model whose weights ``weights`` are in another file."""
    model = stage_graph()
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "weights")
    weights = onnx.numpy_helper.to_array(tensor)
    set_external_data(tensor, location, offset=0, length=weights.nbytes)
    tensor.ClearField("raw_data")
    path.write_bytes(model.SerializeToString())
    target = path.parent / location
    target.parent.mkdir(exist_ok=True)
    weights.tofile(target)


def _refused(bundle: Path) -> str:
    """The code with which both ways of opening refuse a bundle."""
    with pytest.raises(BundleError) as caught:
        load_model(bundle)
    assert not verify_bundle(bundle).passed
    return caught.value.code


def test_external_weights_that_the_manifest_lists_are_read_and_covered_by_their_digest(bundle: Path) -> None:
    _write_external(bundle / STAGE, "w.bin")
    _sign(bundle)
    outputs = load_model(bundle).stages[-1].run({"features": np.full((2, 3), 0.25, np.float32)})
    np.testing.assert_allclose(outputs["logits"], [0.25, 0.75])
    weights = np.fromfile(bundle / "w.bin", np.float32)
    (-weights).tofile(bundle / "w.bin")
    assert _refused(bundle) == "digest_mismatch"


def test_external_weights_that_the_manifest_does_not_list_are_refused(bundle: Path) -> None:
    _write_external(bundle / STAGE, "w.bin")
    _sign(bundle, "w.bin")
    assert _refused(bundle) == "unlisted_file"


@pytest.mark.parametrize("location", ["../w.bin", "sub/../w.bin", "./w.bin", "", "/etc/hostname"])
def test_external_weights_must_have_a_plain_path(bundle: Path, location: str) -> None:
    _write_external(bundle / STAGE, "w.bin")
    model = onnx.load(bundle / STAGE, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    (bundle / STAGE).write_bytes(model.SerializeToString())
    _sign(bundle)
    assert _refused(bundle) == "unlisted_file"


def _symlink(path: Path, outside: Path) -> None:
    path.rename(outside)
    path.symlink_to(outside)


def _hard_link(path: Path, outside: Path) -> None:
    os.link(path, outside)


def _linked_folder(path: Path, outside: Path) -> None:
    path.unlink()
    outside.mkdir()
    (outside / "w.bin").write_bytes(b"w")
    (path.parent / "sub").symlink_to(outside, target_is_directory=True)


@pytest.mark.parametrize("link", [_symlink, _hard_link])
@pytest.mark.parametrize("name", ["w.bin", "backbone.onnx"])
def test_a_file_with_a_link_out_of_the_bundle_is_refused(
    bundle: Path, link: Callable[[Path, Path], None], name: str
) -> None:
    _write_external(bundle / STAGE, "w.bin")
    _sign(bundle)
    link(bundle / name, bundle.parent / "outside")
    assert _refused(bundle) == "linked_file"


def test_a_file_in_a_linked_folder_is_refused(bundle: Path) -> None:
    (bundle / "sub").mkdir()
    (bundle / "sub" / "a.txt").write_text("a")
    _sign(bundle)
    (bundle / "sub").rename(bundle.parent / "outside")
    (bundle / "sub").symlink_to(bundle.parent / "outside")
    assert _refused(bundle) == "linked_file"


def test_hard_links_between_listed_files_and_a_link_to_the_bundle_are_accepted(bundle: Path) -> None:
    (bundle / "1um.onnx").unlink()
    os.link(bundle / "2um.onnx", bundle / "1um.onnx")
    _sign(bundle)
    (bundle.parent / "current").symlink_to(bundle)
    assert len(load_model(bundle.parent / "current").stages) == 3


@pytest.mark.parametrize("name", ["../a", "/a", "a//b", "./a", "a/..", "", "a\\b", "c:a", "a\nb", "a\0"])
def test_paths_in_a_manifest_are_plain_and_relative(bundle: Path, name: str) -> None:
    manifest = open_bundle(bundle).manifest
    entry = manifest.files["backbone.onnx"]
    write_manifest(bundle, manifest.model_copy(update={"files": {**manifest.files, name: entry}}))
    assert _refused(bundle) == "bundle_invalid"


def test_operators_outside_of_the_standard_domain_must_be_listed(bundle: Path) -> None:
    model = stage_graph()
    model.graph.node.insert(0, helper.make_node("Gelu", ["features"], ["unused"], domain="com.microsoft"))
    (bundle / STAGE).write_bytes(model.SerializeToString())  # ONNX Runtime knows the domain without opset_import
    _sign(bundle)
    assert _refused(bundle) == "unlisted_operators"
    _sign(bundle, domains=("com.microsoft",))
    assert load_model(bundle).bundle.manifest.domains == ("com.microsoft",)


def test_a_backbone_refers_to_listed_files_only(tmp_path: Path) -> None:
    _write_external(tmp_path / "backbone.onnx", "w.bin")
    model = onnx.load(tmp_path / "backbone.onnx", load_external_data=False)
    model.metadata_props.add(key="weights_sha256", value=sha256_of(tmp_path / "w.bin"))
    (tmp_path / "backbone.onnx").write_bytes(model.SerializeToString())
    digests = {name: entry.sha256 for name, entry in file_entries(tmp_path).items()}
    card = BackboneCard(
        name="a",
        sha256=digests["backbone.onnx"],
        weights_files={"w.bin": digests["w.bin"]},
        features=3,
        patch_px=None,
        weights="none",
        mean=None,
        std=None,
        opset=20,
        versions={},
    )
    (tmp_path / "backbone.json").write_text(card.model_dump_json())
    assert open_backbone(tmp_path) == card
    (tmp_path / "backbone.json").write_text(card.model_copy(update={"weights_files": {}}).model_dump_json())
    with pytest.raises(BundleError) as caught:
        open_backbone(tmp_path)
    assert caught.value.code == "unlisted_file"
    (tmp_path / "w.bin").write_bytes(bytes(24))
    other = card.model_copy(update={"weights_files": {"w.bin": sha256_of(tmp_path / "w.bin")}})
    (tmp_path / "backbone.json").write_text(other.model_dump_json())
    with pytest.raises(BundleError, match="its own digest does not cover") as caught:
        open_backbone(tmp_path)
    assert caught.value.code == "digest_mismatch"


def test_a_file_that_is_replaced_while_a_bundle_is_loaded_is_noticed(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_and_replace(*arguments: Any, **options: Any) -> Any:
        other = (bundle / STAGE).read_bytes()
        (bundle / "copy").write_bytes(other)
        (bundle / "copy").replace(bundle / STAGE)
        return open_session(*arguments, **options)

    monkeypatch.setattr(loaded_bundle, "open_session", open_and_replace)
    with pytest.raises(BundleError, match="changed while it was loaded"):
        load_model(bundle)
