"""Stage models as ONNX: correct at every bag size, refused if a size would be fixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from hagmil.bundle import Precision
from hagmil.errors import BundleError, ParityError
from hagmil.export.graph import opset_of, save
from hagmil.export.parity.compare import enforce_parity
from hagmil.export.parity.stages import (
    check_stage_parity,
    has_squares,
    landmark_counts,
    patch_counts,
    stage_case_count,
    stage_cases,
    stage_graph,
    structure_sha256,
)
from hagmil.export.parity.synthetic_inputs import BAG_KINDS
from hagmil.export.tracing import OPSET
from hagmil.runtime.sessions import open_session
from hagmil.trainer.models.hmil import HierarchicalMil
from hagmil.trainer.models.iat import IntegratedAttentionTransformer
from hagmil.trainer.models.transmil import TransMil, TransMilConfig
from tests.export.checkpoints import SMALL, WIDTHS

DIM = 24
LANDMARKS = tuple(width // 2 for width in WIDTHS)


@pytest.fixture(scope="module")
def model() -> IntegratedAttentionTransformer:
    torch.manual_seed(0)
    return IntegratedAttentionTransformer(DIM, 3, SMALL).eval()


@pytest.fixture(scope="module")
def graph(model: IntegratedAttentionTransformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "fine.onnx"
    save(stage_graph(model, DIM, "hag-mil"), path)
    return path


@pytest.fixture(scope="module")
def half_graph(model: IntegratedAttentionTransformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "half.onnx"
    save(stage_graph(model, DIM, "hag-mil", "fp16"), path)
    return path


def test_bag_sizes_surround_every_number_of_landmarks(model: IntegratedAttentionTransformer) -> None:
    assert landmark_counts(model) == LANDMARKS == (8, 16)
    assert patch_counts(LANDMARKS) == (1, 2, 7, 8, 9, 15, 16, 17, 32, 3000)
    assert patch_counts((1,)) == (1, 2, 3000)


@pytest.mark.parametrize("patches", [*patch_counts(LANDMARKS), 24, 48, 100])
def test_onnx_runtime_and_torch_give_the_same_outputs(
    model: IntegratedAttentionTransformer, graph: Path, patches: int
) -> None:
    features = np.random.default_rng(patches).standard_normal((patches, DIM)).astype(np.float32)
    with torch.inference_mode():
        expected = model(torch.from_numpy(features))

    outputs = open_session(graph).run({"features": features})

    assert outputs["logits"].shape == (3,)
    assert outputs["attention"].shape == (patches,)
    np.testing.assert_allclose(np.asarray(outputs["logits"], np.float32), expected.logits.numpy(), atol=1e-5)
    np.testing.assert_allclose(np.asarray(outputs["attention"], np.float32), expected.attention.numpy(), atol=1e-5)


def test_the_graph_is_one_file_with_the_opset_and_a_named_patch_axis(graph: Path) -> None:
    loaded = onnx.load(graph, load_external_data=False)

    assert [path.name for path in graph.parent.iterdir()] == [graph.name]
    assert opset_of(loaded) == OPSET
    assert loaded.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "patches"
    assert loaded.graph.input[0].type.tensor_type.shape.dim[1].dim_value == DIM
    assert b"stack_trace" not in graph.read_bytes()


def test_every_bag_size_is_compared_and_every_tensor_passes(model: IntegratedAttentionTransformer, graph: Path) -> None:
    rows = [row for case in check_stage_parity("fine", model, graph, DIM, "hag-mil") for row in case]

    assert {row.lengths["patches"] for row in rows} == set(patch_counts(LANDMARKS))
    assert {row.tensor for row in rows} == {"logits", "attention"}
    assert {row.sample for row in rows} == set(BAG_KINDS)
    assert len(rows) == 2 * stage_case_count(model)
    assert {row.lengths["patches"] for row in rows if row.reference == "float64"} >= {15, 3000}
    assert all((row.source_error is not None) == (row.reference == "float64") for row in rows)
    enforce_parity(rows)


def test_known_nodes_are_compared_at_three_sizes_and_the_long_form_at_two_more(
    model: IntegratedAttentionTransformer,
) -> None:
    def counts(**how: Any) -> list[int]:
        cases = stage_cases(LANDMARKS, 1, **how)
        return [case.lengths["patches"] for case in cases if case.sample == "clustered"]

    assert counts(every_count=False) == [1, 15, 3000]
    assert counts() == list(patch_counts(LANDMARKS))
    assert counts(form="long") == [*patch_counts(LANDMARKS), 10_000, 40_000]
    assert stage_case_count(model, every_count=False) == 3 + len(BAG_KINDS) - 1


def test_graphs_have_equal_structures_for_other_weights_but_not_for_other_sizes(graph: Path, half_graph: Path) -> None:
    torch.manual_seed(5)
    twin = stage_graph(IntegratedAttentionTransformer(DIM, 3, SMALL), DIM, "hag-mil")
    wider = SMALL.model_copy(update={"widths": (16, 48)})
    other = stage_graph(IntegratedAttentionTransformer(DIM, 3, wider), DIM, "hag-mil")

    assert structure_sha256(twin) == structure_sha256(onnx.load(graph))
    assert structure_sha256(other) != structure_sha256(twin)
    assert structure_sha256(onnx.load(half_graph)) != structure_sha256(twin)


def test_half_precision_is_compared_with_every_operation_rounded(
    model: IntegratedAttentionTransformer, half_graph: Path
) -> None:
    rows = [row for case in check_stage_parity("fine", model, half_graph, DIM, "hag-mil", "fp16") for row in case]

    assert {row.lengths["patches"] for row in rows if row.rounded} == set(patch_counts(LANDMARKS))
    assert {row.lengths["patches"] for row in rows if not row.rounded} == {15, 3000}
    assert max(row.error or 0 for row in rows if row.rounded) > 1e-5  # half precision is not float32
    enforce_parity(rows)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_hmil_is_compared_with_a_relative_tolerance_for_attention(precision: Precision, tmp_path: Path) -> None:
    torch.manual_seed(0)
    hmil = HierarchicalMil(DIM, 2, 3).eval()
    save(stage_graph(hmil, DIM, "hmil", precision), tmp_path / "hmil.onnx")

    rows = [
        row for case in check_stage_parity("all", hmil, tmp_path / "hmil.onnx", DIM, "hmil", precision) for row in case
    ]

    enforce_parity(rows)
    attention = next(row for row in rows if row.tensor == "fine_attention" and row.lengths["patches"] == 3000)
    assert attention.allowed < attention.largest


def test_a_comparison_does_not_change_the_model(model: IntegratedAttentionTransformer, graph: Path) -> None:
    next(iter(check_stage_parity("fine", model, graph, DIM, "hag-mil")))

    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("weight", ["to_qkv", "score", "classifier"])
def test_a_scaled_weight_is_detected(
    model: IntegratedAttentionTransformer, graph: Path, tmp_path: Path, weight: str
) -> None:
    wrong = onnx.load(graph)
    _scale(wrong, model, weight)
    save(wrong, tmp_path / "wrong.onnx")

    with pytest.raises(ParityError, match=r"fine: (logits|attention) is off by .* at patches \d+"):
        enforce_parity(
            [row for case in check_stage_parity("fine", model, tmp_path / "wrong.onnx", DIM, "hag-mil") for row in case]
        )


def _scale(graph: onnx.ModelProto, model: nn.Module, weight: str) -> None:
    """Increase the first weight matrix with this name, or the part of its rows in the graph, by one per cent."""
    name, tensor = next((n, t) for n, t in model.state_dict().items() if n.endswith(f"{weight}.weight"))
    values = tensor.numpy()
    for entry in graph.graph.initializer:
        stored = numpy_helper.to_array(entry)
        rows, columns = stored.shape if stored.ndim == 2 else (0, 0)
        if (rows and np.array_equal(stored, values[:rows])) or (columns and np.array_equal(stored, values[:columns].T)):
            entry.CopyFrom(numpy_helper.from_array(stored * np.float32(1.01), entry.name))
            return
    raise AssertionError(f"{name} is not in the graph")


class _Output(NamedTuple):
    logits: Tensor
    attention: Tensor


class _PadsNowAndThen(nn.Module):
    """Pads only if the number of rows is not a multiple of 8; a graph would be wrong at the other sizes."""

    def forward(self, features: Tensor) -> _Output:
        rest = features.shape[0] % 8
        if rest > 0:
            features = nn.functional.pad(features, (0, 0, 8 - rest, 0))
        means = features.reshape(8, -1, DIM).mean(dim=1)  # (8 x rows, dim) -> (8, rows, dim)
        return _Output(means.mean(dim=0)[:3], features[:, 0])


class _HasItsPatchesBuiltIn(nn.Module):
    """Contains a fixed number of patches."""

    def forward(self, features: Tensor) -> _Output:
        return _Output(features.mean(dim=0)[:3], features.expand(1009, -1)[:, 0])


@pytest.mark.parametrize(
    "broken", [_PadsNowAndThen(), _HasItsPatchesBuiltIn()], ids=lambda module: type(module).__name__
)
def test_a_model_that_would_fix_its_bag_size_is_refused(broken: nn.Module) -> None:
    with pytest.raises(BundleError, match="cannot be exported with dynamic patches") as caught:
        stage_graph(broken, DIM, "hag-mil")

    assert caught.value.code == "export_failed"


class _GivesOneTensor(nn.Module):
    def forward(self, features: Tensor) -> tuple[Tensor]:
        return (features.mean(dim=0),)


def test_a_model_without_the_contracts_outputs_is_refused() -> None:
    with pytest.raises(BundleError) as caught:
        stage_graph(_GivesOneTensor(), DIM, "hag-mil")

    assert caught.value.code in ("contract", "export_failed")


def test_models_over_squares_of_patches_are_compared_around_squares() -> None:
    counts = patch_counts((), squares=True)
    assert {3, 4, 5, 8, 9, 10, 143, 144, 145} <= set(counts)
    assert has_squares(TransMil(4, 2, TransMilConfig(hidden_widths=(8,), heads=2)))
    assert not has_squares(nn.Linear(1, 1))
