"""Messages of the exporter, captures, and checks of graphs against the contract."""

from __future__ import annotations

import logging
import warnings
from typing import NamedTuple

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from hagmil.errors import BundleError
from hagmil.export import tracing
from hagmil.export.graph import axes_of, opset_of
from hagmil.export.passes.check_contract import check_contract
from hagmil.export.tracing import Captures, structure_of, trace
from hagmil.spec import BACKBONE_FEATURES, PATCHES, TensorSpec

ROWS = TensorSpec("features", "float32", ("patches", "dim"))
SUM = TensorSpec("logits", "float32", ("classes",))


class _Output(NamedTuple):
    logits: Tensor


class _Sum(nn.Module):
    def forward(self, features: Tensor) -> _Output:
        return _Output(features.sum(dim=0))


def test_an_export_logs_and_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        trace(_Sum().eval(), (ROWS,), (SUM,), example={"patches": 5, "dim": 4})

    assert caplog.records == []


class _Scaled(nn.Module):
    def __init__(self, times: float) -> None:
        super().__init__()
        self.times = times
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, features: Tensor) -> _Output:
        return _Output(self.times * self.linear(self.norm(features)).sum(dim=0))


def test_modules_that_differ_in_their_weights_only_share_a_capture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    captured, captures = list[nn.Module](), Captures()
    real = tracing._capture
    monkeypatch.setattr(tracing, "_capture", lambda module, *rest: captured.append(module) or real(module, *rest))
    modules = [_Scaled(2.0).eval(), _Scaled(2.0).eval(), _Scaled(3.0).eval(), _Scaled(2.0).eval()]
    lengths = {"patches": 5, "dim": 4}
    rows = TensorSpec("features", "float32", ("patches", 4))

    shared = [trace(module, (rows,), (SUM,), example=lengths, captures=captures) for module in modules]

    assert captured == [modules[0], modules[2]]
    for module, graph in zip(modules, shared, strict=True):
        alone = trace(module, (rows,), (SUM,), example=lengths, captures=Captures())
        assert graph.SerializeToString(deterministic=True) == alone.SerializeToString(deterministic=True)
    assert len({graph.SerializeToString(deterministic=True) for graph in shared}) == 4


def test_a_structure_contains_everything_but_the_values_of_weights() -> None:
    first = structure_of(_Scaled(2.0).eval())
    other_shape, held = _Scaled(2.0).eval(), _Scaled(2.0).eval()
    other_shape.linear = nn.Linear(4, 2)
    held.offset = torch.zeros(2)  # a plain tensor, which becomes part of the graph

    assert structure_of(_Scaled(2.0).eval()) == first
    for other in (_Scaled(2.5).eval(), _Scaled(2.0).train(), _Scaled(2.0).eval().half(), other_shape, held):
        assert structure_of(other) != first


def _graph(
    *, name: str = "features", element: int = TensorProto.FLOAT, axes: tuple[str | int, ...] = ("batch", 4)
) -> onnx.ModelProto:
    patches = helper.make_tensor_value_info("patches", TensorProto.UINT8, ["batch", "height", "width", 3])
    features = helper.make_tensor_value_info(name, element, axes)
    nodes = [
        helper.make_node("Cast", ["patches"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["floats"], ["reduced"]),
        helper.make_node("Cast", ["reduced"], [name], to=element),
    ]
    graph = helper.make_graph(nodes, "graph", [patches], [features])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (_graph(name="vectors"), r"outputs of the graph are \['vectors'\]"),
        (_graph(element=TensorProto.FLOAT16), "output features is float16, not float32"),
        (_graph(axes=("batch", 4, 1)), "has the axes"),
        (_graph(axes=(1, 4)), "has axis 1 where the contract has 'batch'"),
        (_graph(axes=("batch", "width")), "has axis 'width' where the contract has 'dim'"),
    ],
)
def test_a_graph_that_violates_the_contract_is_refused_with_the_reason(graph: onnx.ModelProto, message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        check_contract(graph, (PATCHES,), (BACKBONE_FEATURES,))

    assert caught.value.code == "contract"


def test_a_graph_that_follows_the_contract_passes() -> None:
    check_contract(_graph(), (PATCHES,), (BACKBONE_FEATURES,))


def test_an_invalid_graph_is_refused() -> None:
    graph = _graph()
    del graph.graph.node[0]

    with pytest.raises(BundleError, match="not a valid ONNX graph"):
        check_contract(graph, (PATCHES,), (BACKBONE_FEATURES,))


def test_axes_and_opset_are_read_from_the_graph() -> None:
    graph = _graph()

    assert axes_of(graph.graph.input[0]) == ("batch", "height", "width", 3)
    assert opset_of(graph) == 20
    graph.graph.input[0].type.tensor_type.ClearField("shape")
    assert axes_of(graph.graph.input[0]) is None
