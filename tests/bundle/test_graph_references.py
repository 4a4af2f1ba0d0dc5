"""External data and operator domains of graphs are found wherever ONNX allows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from hagmil.bundle.graph_references import graph_references
from hagmil.errors import BundleError


def _tensor(location: str = "w.bin", size: int = 300) -> onnx.TensorProto:
    tensor = numpy_helper.from_array(np.zeros(size, np.float32), "w")
    set_external_data(tensor, location, offset=0, length=4 * size)
    tensor.ClearField("raw_data")
    return tensor


def _node(domain: str = "") -> onnx.NodeProto:
    return helper.make_node("Relu", ["x"], ["y"], domain=domain)


def _model(*nodes: onnx.NodeProto, weights: tuple[onnx.TensorProto, ...] = ()) -> onnx.ModelProto:
    """A model with much text and many weights around what is looked for."""
    inline = numpy_helper.from_array(np.full(70_000, 1.5), "inline")
    graph = helper.make_graph(list(nodes), "g", [], [], [inline, *weights], doc_string="location " * 50)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], producer_name="location")


def _inner_graph(tensor: onnx.TensorProto, domain: str) -> onnx.GraphProto:
    return helper.make_graph([_node(domain)], "inner", [], [], [tensor])


def _in_subgraph() -> onnx.ModelProto:
    inner = _inner_graph(_tensor(), "custom")
    return _model(helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner))


def _in_function() -> onnx.ModelProto:
    constant = helper.make_node("Constant", [], ["c"], value=_tensor())
    nodes = [constant, _node("custom")]
    model = _model(_node())
    model.functions.append(helper.make_function("ai.onnx", "F", ["x"], ["y"], nodes, [helper.make_opsetid("", 20)]))
    return model


def _in_sparse_weights() -> onnx.ModelProto:
    indices = numpy_helper.from_array(np.arange(300), "i")
    model = _model(_node("custom"))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(_tensor(), indices, [900]))
    return model


def _in_training_graph() -> onnx.ModelProto:
    model = _model(_node())
    model.training_info.add().algorithm.CopyFrom(_inner_graph(_tensor(), "custom"))
    return model


def _in_tensor_list() -> onnx.ModelProto:
    return _model(helper.make_node("Odd", ["x"], ["y"], domain="custom", values=[_tensor()]))


@pytest.mark.parametrize(
    "model",
    [
        lambda: _model(_node("custom"), weights=(_tensor(),)),
        _in_subgraph,
        _in_function,
        _in_sparse_weights,
        _in_training_graph,
        _in_tensor_list,
    ],
)
def test_external_data_and_domains_are_found_in_every_place(
    tmp_path: Path, model: Callable[[], onnx.ModelProto]
) -> None:
    (tmp_path / "a.onnx").write_bytes(model().SerializeToString())
    references = graph_references(tmp_path / "a.onnx")
    assert references.data_files == {"w.bin"}
    assert references.domains == {"custom"}


def test_a_graph_of_standard_operators_with_its_own_weights_refers_to_nothing(tmp_path: Path) -> None:
    model = _model(_node(), _node("ai.onnx"))
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    references = graph_references(tmp_path / "a.onnx")
    assert (references.data_files, references.domains) == (frozenset(), frozenset())


def test_lengths_in_more_bytes_than_needed_are_followed(tmp_path: Path) -> None:
    entry = b"\x0a\x88\x00location\x12\x85\x80\x00w.bin"  # 8 and 5 as two and three bytes
    tensor = b"\x6a" + bytes([len(entry)]) + entry
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    (tmp_path / "a.onnx").write_bytes(b"\x3a" + bytes([len(graph)]) + graph)
    assert graph_references(tmp_path / "a.onnx").data_files == {"w.bin"}


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x3a\x7fshort", b"\x80" * 20, b"\x3a\x02" * 400, b"\x09\x00"])
def test_a_file_that_is_not_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(BundleError, match="cannot be read as ONNX") as caught:
        graph_references(tmp_path / "a.onnx")
    assert caught.value.code == "graph_invalid"


def test_graphs_of_all_element_types_are_read_like_the_onnx_package_does(tmp_path: Path) -> None:
    weights = [helper.make_tensor(f"w{kind}", kind, [2], [1, 0]) for kind in (TensorProto.INT64, TensorProto.DOUBLE)]
    model = _model(_node(), weights=(*weights, _tensor("b.bin", 1)))
    model.metadata_props.add(key="location", value="elsewhere.bin")
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    assert graph_references(tmp_path / "a.onnx").data_files == {"b.bin"}
