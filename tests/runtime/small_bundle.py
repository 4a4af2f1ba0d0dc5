"""A bundle whose outputs can be computed by hand, made of a few ONNX nodes per graph, without torch.

The features of a patch are its mean red, green and blue, from 0 to 1. A stage's attention is the negative green of each
patch; its logits are (mean green of the bag, 1 - mean green).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hagmil._files import sha256_of
from hagmil.bundle import Backbone, BackboneCard, Manifest, Provenance, Stage, file_entries, write_manifest
from hagmil.spec import Readout
from hagmil.tissue_parameters import TissueParameters

CLASSES = ("pale", "dark")
OPSET = 20


def backbone_graph(side: int | str = "side") -> onnx.ModelProto:
    """Make the graph of the backbone: uint8 (batch, side, side, 3) to the mean of each channel, float32 (batch, 3)."""
    nodes = [
        helper.make_node("Cast", ["patches"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["floats", "top"], ["unit"]),
        helper.make_node("ReduceMean", ["unit", "axes"], ["features"], keepdims=0),
    ]
    constants = [
        numpy_helper.from_array(np.array(255.0, np.float32), "top"),
        numpy_helper.from_array(np.array([1, 2], np.int64), "axes"),
    ]
    patches = helper.make_tensor_value_info("patches", TensorProto.UINT8, ["batch", side, side, 3])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 3])
    return _model(nodes, [patches], [features], constants)


def write_small_backbone(folder: Path) -> BackboneCard:
    """Write a backbone whose features are the mean colour of a patch; return its card."""
    folder.mkdir(exist_ok=True)
    onnx.save(backbone_graph(), folder / "backbone.onnx")
    card = BackboneCard(
        name="mean-colour",
        sha256=sha256_of(folder / "backbone.onnx"),
        features=3,
        patch_px=None,
        weights="none",
        mean=None,
        std=None,
        opset=20,
        versions={},
    )
    (folder / "backbone.json").write_text(card.model_dump_json())
    return card


def stage_graph(sign: float = -1.0) -> onnx.ModelProto:
    """Make the graph of a stage model: attention is ``sign`` times green; logits are (green, 1 - green) of the mean."""
    nodes = [
        helper.make_node("MatMul", ["features", "pick"], ["attention"]),
        helper.make_node("ReduceMean", ["features", "axes"], ["bag"], keepdims=0),
        helper.make_node("Gemm", ["bag_row", "weights", "bias"], ["logits_row"]),
        helper.make_node("Unsqueeze", ["bag", "axes"], ["bag_row"]),
        helper.make_node("Squeeze", ["logits_row", "axes"], ["logits"]),
    ]
    nodes = [nodes[0], nodes[1], nodes[3], nodes[2], nodes[4]]
    constants = [
        numpy_helper.from_array(np.array([0.0, sign, 0.0], np.float32), "pick"),
        numpy_helper.from_array(np.array([0], np.int64), "axes"),
        numpy_helper.from_array(np.array([[0, 0], [1, -1], [0, 0]], np.float32), "weights"),
        numpy_helper.from_array(np.array([0.0, 1.0], np.float32), "bias"),
    ]
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["patches", 3])
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, [2]),
        helper.make_tensor_value_info("attention", TensorProto.FLOAT, ["patches"]),
    ]
    return _model(nodes, [features], outputs, constants)


def additive_stage_graph(reduce: str = "ReduceSum") -> onnx.ModelProto:
    """Make the graph of an additive stage model.

    Attention is the negative green of each patch, its evidence (green, -green); the logits are the sum of the evidence,
    plus (0, 1).

    Args:
        reduce: operator that reduces the evidence to logits; any but ``ReduceSum`` breaks the contract.
    """
    nodes = [
        helper.make_node("MatMul", ["features", "pick"], ["attention"]),
        helper.make_node("MatMul", ["features", "weights"], ["of_rows"]),
        helper.make_node("Transpose", ["of_rows"], ["evidence"]),
        helper.make_node(reduce, ["evidence", "axes"], ["sums"], keepdims=0),
        helper.make_node("Add", ["sums", "bias"], ["logits"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([0, -1, 0], np.float32), "pick"),
        numpy_helper.from_array(np.array([1], np.int64), "axes"),
        numpy_helper.from_array(np.array([[0, 0], [1, -1], [0, 0]], np.float32), "weights"),
        numpy_helper.from_array(np.array([0, 1], np.float32), "bias"),
    ]
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["patches", 3])
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, [2]),
        helper.make_tensor_value_info("attention", TensorProto.FLOAT, ["patches"]),
        helper.make_tensor_value_info("evidence", TensorProto.FLOAT, [2, "patches"]),
    ]
    return _model(nodes, [features], outputs, constants)


def write_small_bundle(
    folder: Path,
    *,
    patch_px: int = 16,
    spacings_um: Sequence[float] = (2.0, 1.0, 0.5),
    keep: int = 2,
    tissue: TissueParameters | None = None,
    readout: Readout = "pooled",
) -> Path:
    """Write the bundle. The stages are named ``<spacing>um``."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(backbone_graph(), folder / "backbone.onnx")
    stages = []
    for index, spacing_um in enumerate(spacings_um):
        name = f"{spacing_um:g}um"
        onnx.save(stage_graph() if readout == "pooled" else additive_stage_graph(), folder / f"{name}.onnx")
        last = index == len(spacings_um) - 1
        stages.append(Stage(name=name, spacing_um=spacing_um, keep=None if last else keep, onnx=f"{name}.onnx"))
    manifest = Manifest(
        kind="hag-mil",
        readout=readout,
        classes=CLASSES,
        patch_px=patch_px,
        stages=tuple(stages),
        backbone=Backbone(onnx="backbone.onnx", features=3, name="mean-colour"),
        tissue=tissue or TissueParameters(),
        precision="fp32",
        files=file_entries(folder),
        provenance=Provenance(
            created=datetime(2026, 1, 1, tzinfo=UTC),
            hagmil="0",
            versions={},
            checkpoint_sha256="0" * 64,
            backbone_weights="none",
        ),
        intended_use="Tests.",
    )
    write_manifest(folder, manifest)
    return folder


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: list[onnx.TensorProto],
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "small", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model)
    return model
