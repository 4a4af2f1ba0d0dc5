"""A bundle with the smallest graphs that meet the contract, written without torch."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hagmil.bundle import Backbone, Manifest, Provenance, Stage, file_entries, write_manifest
from hagmil.tissue_parameters import TissueParameters

PATCH_PX = 16
FEATURES = 4
KEEP = 5_000  # of the coarse stage; the fine stage then has up to 20,000 patches and two profiles


def write_small_bundle(folder: Path, *, gain: float = 1.0, half: bool = False) -> Path:
    """Write a bundle of two stages.

    Args:
        folder: output folder.
        gain: factor of all weights, to make different models.
        half: whether the stage models have float16 weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    onnx.save(_backbone(gain * rng.standard_normal((3, FEATURES))), folder / "backbone.onnx")
    for name in ("coarse", "fine"):
        weights = gain * rng.standard_normal((FEATURES, 3))
        onnx.save(_stage(weights.astype(np.float16 if half else np.float32)), folder / f"{name}.onnx")
    manifest = Manifest(
        kind="hag-mil",
        classes=("normal", "tumour"),
        patch_px=PATCH_PX,
        stages=(
            Stage(name="coarse", spacing_um=1.0, keep=KEEP, onnx="coarse.onnx"),
            Stage(name="fine", spacing_um=0.5, keep=None, onnx="fine.onnx"),
        ),
        backbone=Backbone(onnx="backbone.onnx", features=FEATURES, name="smallest"),
        tissue=TissueParameters(),
        precision="fp16" if half else "fp32",
        files=file_entries(folder),
        provenance=Provenance(
            created=datetime(2026, 1, 1, tzinfo=UTC),
            hagmil="0",
            versions={},
            checkpoint_sha256="0" * 64,
            backbone_weights="random",
        ),
        intended_use="Tests.",
    )
    write_manifest(folder, manifest)
    return folder


def _backbone(weights: NDArray[np.float64]) -> onnx.ModelProto:
    """Mean colour of each patch, followed by a linear layer."""
    nodes = [
        helper.make_node("Cast", ["patches"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "sides"], ["colour"], keepdims=0),
        helper.make_node("MatMul", ["colour", "weights"], ["features"]),
    ]
    return _model(
        nodes,
        helper.make_tensor_value_info("patches", TensorProto.UINT8, ["batch", "height", "width", 3]),
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", FEATURES])],
        {"weights": weights.astype(np.float32), "sides": np.array([1, 2], np.int64)},
    )


def _stage(weights: NDArray[np.floating]) -> onnx.ModelProto:
    """A score per patch, and a linear layer on the mean of the patches."""
    kind = helper.np_dtype_to_tensor_dtype(weights.dtype)
    nodes = [
        helper.make_node("Cast", ["features"], ["rows"], to=kind),
        helper.make_node("MatMul", ["rows", "score"], ["column"]),
        helper.make_node("Reshape", ["column", "flat"], ["scores"]),
        helper.make_node("Cast", ["scores"], ["attention"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["rows", "first"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "classifier"], ["verdict"]),
        helper.make_node("Cast", ["verdict"], ["logits"], to=TensorProto.FLOAT),
    ]
    return _model(
        nodes,
        helper.make_tensor_value_info("features", TensorProto.FLOAT, ["patches", FEATURES]),
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [2]),
            helper.make_tensor_value_info("attention", TensorProto.FLOAT, ["patches"]),
        ],
        {
            "score": weights[:, :1],
            "classifier": weights[:, 1:],
            "flat": np.array([-1], np.int64),
            "first": np.array([0], np.int64),
        },
    )


def _model(
    nodes: list[onnx.NodeProto],
    entry: onnx.ValueInfoProto,
    outputs: list[onnx.ValueInfoProto],
    weights: dict[str, NDArray[np.generic]],
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "graph", [entry], outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model
