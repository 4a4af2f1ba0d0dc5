"""One exported graph of the transformer is valid for every number of patches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as symbolic_shapes

from hagmil.trainer.models.additive import AdditiveStageModel
from hagmil.trainer.models.iat import IatConfig, IntegratedAttentionTransformer

# Small, since the time of an export grows with blocks, heads and steps; of four steps, one is early and two are late.
CONFIG = IatConfig(widths=(16, 8), heads=2, hidden_width=12, gate_width=6, pinv_iterations=4)
FEATURE_DIM = 10
COUNTS = sorted(
    {1, 2, 8, 100} | {count for m in CONFIG.landmarks for count in (m - 1, m, m + 1, 2 * m - 1, 2 * m, 2 * m + 1)}
)
DYNAMIC = {"features": {0: Dim("patches", min=1)}}


@pytest.fixture(scope="module")
def model() -> IntegratedAttentionTransformer:
    torch.manual_seed(0)
    return IntegratedAttentionTransformer(FEATURE_DIM, 3, CONFIG).eval()


# The size of the example must not matter: below, at and above the landmark counts.
@pytest.mark.parametrize("example_patches", [2, 8, 30])
def test_torch_export_accepts_any_number_of_patches_from_one(
    model: IntegratedAttentionTransformer, example_patches: int
) -> None:
    program = _export(model, example_patches)
    (bounds,) = program.range_constraints.values()
    assert bounds.lower == 1
    assert not [node for node in program.graph.nodes if "assert" in str(node.target)]
    graph = program.module()
    for patches in COUNTS:
        bag = _bag(patches)
        with torch.inference_mode():
            expected, found = model(bag), graph(bag)
        torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-6)
        torch.testing.assert_close(found.attention, expected.attention, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "count_padding"), [("transformer", True), ("transformer", False), ("independent", True)]
)
def test_torch_export_accepts_any_number_of_patches_of_an_additive_model(rows: str, count_padding: bool) -> None:
    torch.manual_seed(0)
    config = IatConfig.model_validate(
        {**CONFIG.model_dump(), "readout": "additive", "rows": rows, "count_padding": count_padding}
    )
    model = AdditiveStageModel(FEATURE_DIM, 3, config).eval()
    program = _export(model, 8)
    (bounds,) = program.range_constraints.values()
    assert bounds.lower == 1
    asserts = {str(node.target) for node in program.graph.nodes if "assert" in str(node.target)}
    assert asserts <= {"aten._assert_tensor_metadata.default"}  # of the type alone
    graph = program.module()
    for patches in COUNTS:
        with torch.inference_mode():
            expected, found = model(_bag(patches)), graph(_bag(patches))
        for name in expected._fields:
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_onnx_outputs_agree_at_and_next_to_every_multiple_of_the_landmark_counts(
    model: IntegratedAttentionTransformer, tmp_path: Path
) -> None:
    path = tmp_path / "stage.onnx"
    program = torch.onnx.export(
        model,
        (_bag(5),),
        dynamo=True,
        opset_version=20,
        dynamic_shapes=DYNAMIC,
        input_names=["features"],
        output_names=["logits", "attention"],
        verbose=False,
    )
    assert program is not None
    program.save(path)
    assert [entry.version for entry in onnx.load(path).opset_import if entry.domain == ""] == [20]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["patches", FEATURE_DIM]
    for patches in COUNTS:
        bag = _bag(patches)
        with torch.inference_mode():
            expected = model(bag)
        logits, attention = session.run(["logits", "attention"], {"features": bag.numpy()})
        np.testing.assert_allclose(logits, expected.logits.numpy(), rtol=0, atol=1e-5)
        np.testing.assert_allclose(attention, expected.attention.numpy(), rtol=0, atol=1e-5)


def _export(model: nn.Module, example_patches: int) -> ExportedProgram:
    # As in torch.onnx.export; otherwise a symbolic length is assumed to differ from 1 because that of the example does.
    with symbolic_shapes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        return torch.export.export(model, (_bag(example_patches),), dynamic_shapes=DYNAMIC)


def _bag(patches: int) -> torch.Tensor:
    return torch.randn(patches, FEATURE_DIM, generator=torch.Generator().manual_seed(patches))
