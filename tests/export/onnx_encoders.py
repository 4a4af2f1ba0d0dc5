"""Small ONNX encoders of other origin, for the tests that wrap them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ELEMENTS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}
DIM = 6


def write_encoder(
    path: Path,
    *,
    dtype: str = "float32",
    axes: Sequence[str | int] = ("N", 3, "H", "W"),
    input_name: str = "image",
    output_name: str = "embedding",
    pooled: bool = True,
    extra_output: bool = False,
    mixes_batch: bool = False,
) -> Path:
    """Write an encoder of ``DIM`` features: a convolution and average pooling.

    Args:
        path: the file to write.
        dtype: of input, weights and output; with uint8 the input is pixels, (batch, height, width, 3).
        axes: axes of the input.
        input_name: name of the input.
        output_name: name of the output.
        pooled: whether the output is (batch, dim) instead of (batch, dim, 1, 1).
        extra_output: whether the feature map before pooling is a second output.
        mixes_batch: whether the features of a patch depend on the other patches of the batch.
    """
    rng = np.random.default_rng(3)
    inner = np.float16 if dtype == "float16" else np.float32
    element = TensorProto.FLOAT16 if dtype == "float16" else TensorProto.FLOAT
    nodes: list[onnx.NodeProto] = []
    image = input_name
    if dtype == "uint8":
        nodes += [
            helper.make_node("Cast", [image], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["floats"], ["patches_first"], perm=[0, 3, 1, 2]),
        ]
        image = "patches_first"
    # "features" and "scale" are names of values inside on purpose: the contract's must not collide with them.
    nodes += [
        helper.make_node("Conv", [image, "scale"], ["features"], strides=[4, 4]),
        helper.make_node("Relu", ["features"], ["map"]),
        helper.make_node("GlobalAveragePool", ["map"], ["average"]),
    ]
    last = "average"
    if mixes_batch:
        nodes += [
            helper.make_node("ReduceMean", [last, "first_axis"], ["batch_mean"], keepdims=1),
            helper.make_node("Sub", [last, "batch_mean"], ["centred"]),
        ]
        last = "centred"
    nodes.append(
        helper.make_node("Flatten", [last], [output_name], axis=1)
        if pooled
        else helper.make_node("Identity", [last], [output_name])
    )
    shape: list[str | int] = [axes[0], DIM] if pooled else [axes[0], DIM, 1, 1]
    outputs = [helper.make_tensor_value_info(output_name, element, shape)]
    if extra_output:
        outputs.append(helper.make_tensor_value_info("map", element, [axes[0], DIM, None, None]))
    weights = [numpy_helper.from_array((rng.standard_normal((DIM, 3, 4, 4)) / 7).astype(inner), "scale")]
    if mixes_batch:
        weights.append(numpy_helper.from_array(np.array([0], np.int64), "first_axis"))
    entry = helper.make_tensor_value_info(input_name, ELEMENTS[dtype], list(axes))
    graph = helper.make_graph(nodes, "encoder", [entry], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
