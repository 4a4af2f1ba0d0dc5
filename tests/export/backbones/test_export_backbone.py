"""Export of backbones: contract, comparison with torch, and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from hagmil.bundle import BACKBONE_CARD_NAME, BACKBONE_ONNX_NAME, open_backbone
from hagmil.errors import BundleError, ParityError, UsageError
from hagmil.export.backbones import export_backbone as backbones
from hagmil.export.backbones.encoder import PatchEncoder
from hagmil.export.backbones.export_backbone import export_backbone, find_backbone, run_one_by_one
from hagmil.export.parity.compare import PARITY_NAME, Arrays, ParityReport
from hagmil.export.parity.synthetic_inputs import synthetic_patches
from hagmil.export.tracing import OPSET, trace
from hagmil.runtime.sessions import open_session


def _largest_difference(folder: Path, name: str, shape: tuple[int, int, int]) -> float:
    """Difference between torch and ONNX Runtime relative to the largest feature, for shape (batch, height, width)."""
    patches = synthetic_patches("tissue", *shape, seed=11)
    backbone = find_backbone(name, "random")
    module = PatchEncoder(backbone.encoder, backbone.mean, backbone.std).eval()
    with torch.inference_mode():
        expected = module(torch.from_numpy(patches)).features.numpy()
    features = open_session(folder / BACKBONE_ONNX_NAME).run({"patches": patches})["features"]
    assert features.shape == expected.shape
    assert features.dtype == np.float32
    return float(np.abs(features - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 64, 64), (7, 64, 64), (2, 16, 16), (3, 100, 52), (1, 256, 256)])
def test_tiny_gives_the_same_features_in_onnx_runtime_and_torch(
    backbone_dir: Path, shape: tuple[int, int, int]
) -> None:
    assert _largest_difference(backbone_dir, "tiny", shape) < 1e-5


def test_resnet50_trunc_gives_the_same_features_in_onnx_runtime_and_torch(tmp_path: Path) -> None:
    card = export_backbone("resnet50-trunc", "random", tmp_path / "resnet")

    assert card.features == 1024
    assert card.patch_px is None
    assert card.mean == (0.485, 0.456, 0.406)
    for shape in ((1, 64, 64), (2, 128, 128), (7, 96, 80)):
        assert _largest_difference(tmp_path / "resnet", "resnet50-trunc", shape) < 1e-5


def test_normalisation_uses_mean_and_standard_deviation(backbone_dir: Path) -> None:
    backbone = find_backbone("tiny", "random")
    patches = synthetic_patches("noise", 2, 64, 64)
    mean, std = torch.tensor(backbone.mean), torch.tensor(backbone.std)
    images = ((torch.from_numpy(patches) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = backbone.encoder(images).numpy()

    features = open_session(backbone_dir / BACKBONE_ONNX_NAME).run({"patches": patches})["features"]

    assert np.abs(features - expected).max() < 1e-5


def test_the_card_describes_the_graph(backbone_dir: Path) -> None:
    card = open_backbone(backbone_dir)

    assert card.name == "tiny"
    assert card.features == 128
    assert card.weights == "random, seed 0"
    assert card.opset == OPSET
    assert {"hagmil", "torch", "onnx", "onnxscript"} <= card.versions.keys()


def test_the_graph_casts_before_it_transposes_and_has_named_axes(backbone_dir: Path) -> None:
    model = onnx.load(backbone_dir / BACKBONE_ONNX_NAME)

    assert [node.op_type for node in model.graph.node[:2]] == ["Cast", "Transpose"]
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", "height", "width", 3]
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}


def test_the_graph_contains_nothing_about_the_machine(backbone_dir: Path) -> None:
    content = (backbone_dir / BACKBONE_ONNX_NAME).read_bytes()

    assert str(Path(backbones.__file__).parent).encode() not in content
    assert b"stack_trace" not in content


def test_exports_are_reproducible_and_progress_is_reported(backbone_dir: Path, tmp_path: Path) -> None:
    reported: list[tuple[str, int, int]] = []
    card = export_backbone("tiny", "random", tmp_path / "again", progress=lambda *step: reported.append(step))

    assert card.sha256 == open_backbone(backbone_dir).sha256
    assert reported[-1] == ("parity", len(reported), len(reported))


def test_the_report_covers_batches_sizes_and_kinds_of_patches(backbone_dir: Path) -> None:
    report = ParityReport.model_validate_json((backbone_dir / PARITY_NAME).read_bytes())

    assert {row.lengths["batch"] for row in report.rows} == {1, 2, 7}
    assert len({(row.lengths["height"], row.lengths["width"]) for row in report.rows}) == 3
    assert {row.sample for row in report.rows} == {"tissue", "noise", "white", "phantom"}
    assert all(row.passed and row.cosine is not None and row.cosine > 0.999999 for row in report.rows)


def test_a_graph_with_one_scaled_weight_is_refused_and_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong_graph(*args: Any, **kwargs: Any) -> onnx.ModelProto:
        model = trace(*args, **kwargs)
        kernel = next(weight for weight in model.graph.initializer if len(weight.dims) == 4 and weight.dims[0] > 3)
        kernel.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(kernel) * np.float32(1.01), kernel.name))
        return model

    monkeypatch.setattr(backbones, "trace", wrong_graph)

    with pytest.raises(ParityError, match=r"backbone: features is off by .* at batch \d, height \d+, width \d+"):
        export_backbone("tiny", "random", tmp_path / "wrong")

    assert list(tmp_path.iterdir()) == []


def test_a_resnet_without_weights_option_is_refused() -> None:
    with pytest.raises(UsageError, match="--weights: a file, or random"):
        find_backbone("resnet50-trunc", None)


def test_a_path_that_ends_in_random_is_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"weights file .* does not exist"):
        find_backbone("resnet50-trunc", str(tmp_path / "random"))


def test_an_unknown_name_is_refused_with_the_known_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "timm_is_installed", lambda: False)

    with pytest.raises(UsageError, match=r"resnet50-trunc, tiny or a path that ends in \.onnx, or install timm"):
        find_backbone("resnet50-trnc", "random")


def test_options_of_onnx_encoders_are_refused_for_other_backbones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="apply to ONNX encoders only"):
        export_backbone("tiny", "random", tmp_path / "out", mean=(0.5, 0.5, 0.5))
    with pytest.raises(UsageError, match="--weights and --patch-px do not apply"):
        export_backbone("encoder.onnx", "random", tmp_path / "out")


def test_an_existing_folder_is_kept_without_overwrite(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(UsageError, match="--overwrite"):
        export_backbone("tiny", "random", tmp_path)

    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_graph_that_does_not_match_its_card_is_refused(backbone_dir: Path, tmp_path: Path) -> None:
    (tmp_path / BACKBONE_CARD_NAME).write_bytes((backbone_dir / BACKBONE_CARD_NAME).read_bytes())
    (tmp_path / BACKBONE_ONNX_NAME).write_bytes((backbone_dir / BACKBONE_ONNX_NAME).read_bytes()[:-1])

    with pytest.raises(BundleError, match="does not match its digest in backbone"):
        open_backbone(tmp_path)


def test_patches_of_a_batch_run_one_by_one() -> None:
    def counting(arrays: dict[str, NDArray[Any]]) -> Arrays:
        patches = arrays["patches"]
        return {"features": np.full((len(patches), 1), len(patches))}

    alone = run_one_by_one(counting)({"patches": np.zeros((3, 8, 8, 3), np.uint8)})

    assert alone["features"].tolist() == [[1], [1], [1]]
