"""Writing and copying graphs, with weights in one or two files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from hagmil._tensorrt.builder import BuildRequest, build_engine
from hagmil._tensorrt.flavour import load_flavour
from hagmil._tensorrt.profiles import Range, bag_profiles
from hagmil.bundle import BackboneCard, open_backbone
from hagmil.errors import BundleError
from hagmil.export.backbones import export_backbone as backbones
from hagmil.export.backbones.export_backbone import export_backbone
from hagmil.export.graph import DATA_SUFFIX, copy_graph, data_files, save
from hagmil.export.parity.stages import stage_graph
from hagmil.export.parity.synthetic_inputs import synthetic_bag
from hagmil.export.passes.half_precision import to_half
from hagmil.export.pipeline import export_bundle
from hagmil.runtime.sessions import open_session
from hagmil.runtime.verify import verify_bundle
from hagmil.trainer.models.hmil import HierarchicalMil
from tests.export.checkpoints import write_small_checkpoint

DIM = 10


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    """The graph of a model with large weights."""
    torch.manual_seed(0)
    return stage_graph(HierarchicalMil(DIM, 2, 3), DIM, "hmil")


def _logits(path: Path) -> list[float]:
    bag = {"features": synthetic_bag("clustered", 40, DIM)}
    return np.asarray(open_session(path, threads=1).run(bag)["fine_logits"]).tolist()  # type: ignore[no-any-return]


def test_large_weights_in_a_second_file_give_the_same_outputs(model: onnx.ModelProto, tmp_path: Path) -> None:
    save(model, tmp_path / "whole.onnx")
    save(model, tmp_path / "parted.onnx", largest_bytes=1000)

    assert data_files(tmp_path / "whole.onnx") == ()
    assert data_files(tmp_path / "parted.onnx") == ("parted.onnx" + DATA_SUFFIX,)
    assert (tmp_path / "parted.onnx").stat().st_size < (tmp_path / "whole.onnx").stat().st_size
    assert _logits(tmp_path / "parted.onnx") == _logits(tmp_path / "whole.onnx")


def test_the_graph_contains_the_digest_of_its_weight_file(model: onnx.ModelProto, tmp_path: Path) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(model)
    largest = max(other.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    largest.raw_data = bytes(len(largest.raw_data))
    for name, graph in (("one", model), ("again", model), ("other", other)):
        (tmp_path / name).mkdir()
        save(graph, tmp_path / name / "fine.onnx", largest_bytes=1000)
    one, again, other_bytes = ((tmp_path / name / "fine.onnx").read_bytes() for name in ("one", "again", "other"))

    assert one == again
    assert one != other_bytes


def test_a_copy_includes_the_weight_file(model: onnx.ModelProto, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    save(model, tmp_path / "fine.onnx", largest_bytes=1000)
    copy_graph(tmp_path / "fine.onnx", tmp_path / "copy" / "fine.onnx")
    expected = _logits(tmp_path / "fine.onnx")
    (tmp_path / ("fine.onnx" + DATA_SUFFIX)).unlink()

    assert _logits(tmp_path / "copy" / "fine.onnx") == expected


def test_tensorrt_reads_the_weight_file(model: onnx.ModelProto, tmp_path: Path) -> None:
    save(to_half(model), tmp_path / "fine.onnx", largest_bytes=1000)
    request = BuildRequest(tmp_path / "fine.onnx", bag_profiles(DIM, (Range(1, 10, 100),)), ("8.9",))

    assert len(build_engine(load_flavour("tensorrt-rtx"), request).data) > 1000


def test_a_bundle_includes_the_weight_file_of_its_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "save", lambda model, path: save(model, path, largest_bytes=1000))
    card = export_backbone("tiny", "random", tmp_path / "backbone")
    write_small_checkpoint(tmp_path / "checkpoint", card, stages=("fine",))

    assert list(card.weights_files) == ["backbone.onnx.data"]
    assert BackboneCard.model_validate_json(card.model_dump_json()) == card
    report = export_bundle(tmp_path / "checkpoint", tmp_path / "backbone", tmp_path / "bundle")
    assert "backbone.onnx.data" in report.bundle.manifest.files
    assert verify_bundle(tmp_path / "bundle", threads=1).passed

    altered = Path(shutil.copytree(tmp_path / "backbone", tmp_path / "altered"))
    data = bytearray((altered / "backbone.onnx.data").read_bytes())
    data[len(data) // 2] ^= 1
    (altered / "backbone.onnx.data").write_bytes(data)
    with pytest.raises(BundleError, match=r'backbone\.onnx\.data" does not match its digest in backbone'):
        open_backbone(altered)
