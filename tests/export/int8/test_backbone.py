"""int8 backbones: quantisation, comparison with float32, and errors."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from hagmil.errors import BundleError, ParityError, UsageError
from hagmil.export.backbones.export_backbone import export_backbone
from hagmil.export.backbones.onnx_encoder import load_onnx_encoder
from hagmil.export.int8.backbone import PatchRequirements, feature_agreement, measure_throughput, quantise_backbone
from hagmil.export.int8.quantize import write_quantised
from hagmil.export.parity.synthetic_inputs import PatchKind, synthetic_patches
from hagmil.export.passes.check_contract import check_contract
from hagmil.runtime.sessions import open_session
from hagmil.spec import BACKBONE_INPUTS, BACKBONE_OUTPUTS
from hagmil.tissue_parameters import TissueParameters
from tests.export.graphs import example_graph

PATCH_PX = 64
WANTED = PatchRequirements((("fine", 0.5),), PATCH_PX, TissueParameters())


@dataclass(frozen=True)
class Patches:
    """Calibration patches of one kind, and comparison patches of another."""

    calibrated: PatchKind = "phantom"
    compared: PatchKind = "phantom"
    count: int = 20
    what: str = "two slides"

    def calibration(self, wanted: PatchRequirements) -> Iterator[NDArray[np.uint8]]:
        patches = synthetic_patches(self.calibrated, 24, wanted.patch_px, wanted.patch_px, seed=1)
        return (patches[start : start + 8] for start in range(0, 24, 8))

    def held_out(self, wanted: PatchRequirements) -> Iterator[NDArray[np.uint8]]:
        if self.count:
            yield synthetic_patches(self.compared, self.count, wanted.patch_px, wanted.patch_px, seed=2)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph of the tiny backbone with its shipped weights."""
    folder = tmp_path_factory.mktemp("tiny") / "backbone"
    export_backbone("tiny", None, folder)
    return folder / "backbone.onnx"


def _operators(graph: Path) -> list[str]:
    return [node.op_type for node in onnx.load(graph).graph.node]


def _weights(graph: Path) -> list[NDArray[np.int8]]:
    tensors = onnx.load(graph).graph.initializer
    return [
        numpy_helper.to_array(tensor)
        for tensor in tensors
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
    ]


def test_the_graph_follows_the_contract_and_has_weights_of_seven_bits(tiny: Path, tmp_path: Path) -> None:
    graph = tmp_path / "int8.onnx"
    assert write_quantised(tiny, graph, Patches().calibration(WANTED)) == 24

    model = onnx.load(graph)
    check_contract(model, BACKBONE_INPUTS, BACKBONE_OUTPUTS)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    weights = _weights(graph)
    assert len(weights) == 4
    assert all(int(np.abs(weight.astype(np.int16)).max()) <= 64 for weight in weights)  # 2 x 255 x 64 < 2**15


def test_normalisation_and_pooling_stay_in_float32(tiny: Path, tmp_path: Path) -> None:
    write_quantised(tiny, tmp_path / "int8.onnx", Patches().calibration(WANTED))
    operators = _operators(tmp_path / "int8.onnx")
    first = operators.index("QuantizeLinear")

    assert [operator for operator in operators[:first] if operator != "DequantizeLinear"] == [
        "Cast", "Transpose", "Mul", "Add",
    ]  # fmt: skip
    last = max(place for place, operator in enumerate(operators) if operator == "QuantizeLinear")
    assert {"ReduceMean", "Sqrt", "Concat"} <= set(operators[last:])


def test_the_first_product_stays_float32_on_request(tiny: Path, tmp_path: Path) -> None:
    write_quantised(tiny, tmp_path / "int8.onnx", Patches().calibration(WANTED), first_product_fp32=True)
    operators = _operators(tmp_path / "int8.onnx")

    assert len(_weights(tmp_path / "int8.onnx")) == 3
    assert operators.index("Conv") < operators.index("QuantizeLinear")


def test_quantisation_is_reproducible(tiny: Path, tmp_path: Path) -> None:
    for name in ("one.onnx", "other.onnx"):
        write_quantised(tiny, tmp_path / name, Patches().calibration(WANTED))
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "other.onnx").read_bytes()


def test_only_matrix_products_of_a_transformer_are_quantised(tmp_path: Path) -> None:
    onnx.save(example_graph("ViT, small", "fp32"), tmp_path / "vit.onnx")
    patches = synthetic_patches("phantom", 8, 32, 32)
    write_quantised(tmp_path / "vit.onnx", tmp_path / "int8.onnx", iter([patches]))

    exact, given = (open_session(tmp_path / name).run({"patches": patches}) for name in ("vit.onnx", "int8.onnx"))
    assert feature_agreement(given["features"], exact["features"]).relative_error < 0.05
    graph = onnx.load(tmp_path / "int8.onnx").graph
    from_int8 = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    reads = {node.op_type for node in graph.node if from_int8 & set(node.input)}
    assert {"Conv", "MatMul"} <= reads <= {"Conv", "MatMul", "Gemm"}


def test_a_backbone_is_compared_on_other_patches_than_the_calibration_patches(tiny: Path, tmp_path: Path) -> None:
    made = quantise_backbone(tiny, tmp_path / "int8.onnx", Patches(), WANTED)

    assert (made.calibration_patches, made.compared_patches, made.calibration) == (24, 20, "two slides")
    assert made.allowed_cosine < made.least_cosine <= 1
    assert 0 < made.relative_error < made.allowed_relative_error
    assert made.reduced_range
    assert made.throughput.batch == 16
    assert made.throughput.fp32_patches_per_s > 0 < made.throughput.int8_patches_per_s
    assert len(_weights(tmp_path / "int8.onnx")) == (3 if made.first_product == "fp32" else 4)


def test_calibration_on_glass_only_is_refused_with_the_measured_agreement(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ParityError,
        match=r"^backbone: the int8 features differ too much from fp32 on 20 patches of two slides: .*cosine",
    ):
        quantise_backbone(tiny, tmp_path / "int8.onnx", Patches(calibrated="white"), WANTED)


def test_too_few_patches_to_compare_is_an_error(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two slides: too few patches"):
        quantise_backbone(tiny, tmp_path / "int8.onnx", Patches(count=0), WANTED)


def test_a_quantised_graph_is_refused(tiny: Path, tmp_path: Path) -> None:
    write_quantised(tiny, tmp_path / "int8.onnx", Patches().calibration(WANTED))
    with pytest.raises(BundleError, match="already quantised"):
        write_quantised(tmp_path / "int8.onnx", tmp_path / "again.onnx", Patches().calibration(WANTED))


def test_an_opset_without_scales_per_channel_is_refused(tiny: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny)
    model.opset_import[0].version = 12
    onnx.save(model, tmp_path / "old.onnx")
    with pytest.raises(BundleError, match=r"opset 12.*opset 13 or later"):
        write_quantised(tmp_path / "old.onnx", tmp_path / "int8.onnx", Patches().calibration(WANTED))


def test_an_int8_graph_can_be_loaded_as_an_onnx_encoder(tiny: Path, tmp_path: Path) -> None:
    write_quantised(tiny, tmp_path / "int8.onnx", Patches().calibration(WANTED))
    shutil.copy(tmp_path / "int8.onnx", tmp_path / "taken.onnx")
    assert load_onnx_encoder(tmp_path / "taken.onnx").features == 128


def test_agreement_is_measured_by_cosine_and_norm() -> None:
    wanted = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)

    assert feature_agreement(wanted, wanted) == (pytest.approx(1.0), 0.0)
    turned = feature_agreement(np.array([[4.0, 3.0], [0.0, 0.0]], np.float32), wanted)
    assert turned == (pytest.approx(0.96), pytest.approx(2**0.5 / 5))
    assert feature_agreement(np.array([[3.0, 4.0], [1.0, 0.0]], np.float32), wanted).least_cosine == 0.0
    assert feature_agreement(np.array([[3.0, np.nan], [0.0, 0.0]], np.float32), wanted) == (-1.0, float("inf"))


def test_sessions_are_timed_alternately() -> None:
    turns: list[str] = []

    class Counted:
        provider = "fake"
        input_shapes: dict[str, tuple[str | int, ...]] = {}  # noqa: RUF012

        def __init__(self, name: str) -> None:
            self.name = name

        def run(self, inputs: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
            turns.append(self.name)
            return dict(inputs)

    measure_throughput(Counted("a"), Counted("b"), np.zeros((2, 8, 8, 3), np.uint8), 1, turns=2, min_seconds=0)
    assert turns == ["a", "b", "a", "b", "a", "b"]  # the first pair does not count
