"""Files in the published formats from the reference weights, and a backbone with a matching number of features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from hagmil._files import sha256_of
from hagmil.bundle import BackboneCard
from tests.trainer.published_models import PublishedReference, weights

HMIL_SALT = "hagmil-hmil"
LEVELS = (2, 1, 0)


def write_published_hmil(path: Path, official: PublishedReference) -> Path:
    torch.save({"epoch": 9, "model_state_dict": weights(official, "hmil", HMIL_SALT)}, path)
    return path


def write_published_hag_mil(path: Path, official: PublishedReference) -> Path:
    state = {
        f"model{level}.{key}": weight
        for level in reversed(LEVELS)
        for key, weight in weights(official, "iat_small", f"hagmil-cascade-level{level}").items()
    }
    torch.save({"epoch": 9, "pytorch-lightning_version": "1.5.10", "state_dict": state}, path)
    return path


def write_colour_backbone(folder: Path, features: int) -> Path:
    """A backbone with any number of features: the mean colour of a patch times a fixed matrix."""
    folder.mkdir(parents=True)
    spread = np.random.default_rng(features).random((3, features)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["patches"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["floats", "top"], ["unit"]),
        helper.make_node("ReduceMean", ["unit", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "spread"], ["features"]),
    ]
    constants = [
        numpy_helper.from_array(np.array(255.0, np.float32), "top"),
        numpy_helper.from_array(np.array([1, 2], np.int64), "axes"),
        numpy_helper.from_array(spread, "spread"),
    ]
    graph = helper.make_graph(
        nodes,
        "colour",
        [helper.make_tensor_value_info("patches", TensorProto.UINT8, ["batch", "height", "width", 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", features])],
        constants,
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "backbone.onnx"
    )
    card = BackboneCard(
        name="colour",
        sha256=sha256_of(folder / "backbone.onnx"),
        features=features,
        patch_px=None,
        weights="fixed",
        mean=None,
        std=None,
        opset=20,
        versions={},
    )
    (folder / "backbone.json").write_text(card.model_dump_json())
    return folder
