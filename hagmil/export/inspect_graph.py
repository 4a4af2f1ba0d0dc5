"""Description of a bundle or an ONNX file, for ``hagmil inspect``.

The opset, the nodes and the type of the weights need the onnx package and are None without it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pydantic import ValidationError

from hagmil.bundle import MANIFEST_NAME, Bundle, open_bundle
from hagmil.errors import BundleError, UsageError
from hagmil.export.parity.compare import PARITY_NAME, ParityReport

GRAPH_SUFFIX = ".onnx"
_MOST_OPERATORS = 6
_HALF, _BFLOAT, _FLOAT, _INT8 = 10, 16, 1, 3  # onnx.TensorProto's numbers


@dataclass(frozen=True, slots=True)
class GraphView:
    """One ONNX file.

    Args:
        name: the file's name.
        bytes: size in bytes, with the onnx package including weights in other files.
        opset: opset version of the standard operators; None without the onnx package.
        nodes: number of nodes; None without the onnx package.
        operators: the most frequent operators and their counts, descending.
        weights: element type of most weights: fp32, fp16, bf16 or int8; None without the onnx package.
        inputs: name, type and axes of each input, formatted.
        outputs: the same for outputs.
    """

    name: str
    bytes: int
    opset: int | None
    nodes: int | None
    operators: tuple[tuple[str, int], ...]
    weights: str | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BundleView:
    """A bundle.

    Args:
        bundle: the bundle, without verification of its files.
        graphs: the backbone, then the stage models.
        parity: the parity report; None if the bundle has none.
    """

    bundle: Bundle
    graphs: tuple[GraphView, ...]
    parity: ParityReport | None


def inspect_path(path: Path) -> BundleView | GraphView:
    """Describe a bundle or an ONNX file.

    Args:
        path: folder of a bundle, or a file that ends in ``.onnx``.

    Raises:
        UsageError: the path is neither.
        BundleError: the bundle or file cannot be read.
    """
    if path.is_file() and path.suffix == GRAPH_SUFFIX:
        return inspect_graph(path)
    if not (path / MANIFEST_NAME).is_file():
        raise UsageError(f'"{path}" is neither a bundle (no {MANIFEST_NAME}) nor a file ending in {GRAPH_SUFFIX}')
    bundle = open_bundle(path, verify=False)
    names = (bundle.manifest.backbone.onnx, *(stage.onnx for stage in bundle.manifest.stages))
    return BundleView(bundle, tuple(inspect_graph(bundle.file(name)) for name in names), _parity(bundle))


def inspect_graph(path: Path) -> GraphView:
    """Describe an ONNX file.

    Raises:
        BundleError: the file is missing or not an ONNX file.
    """
    from hagmil.runtime.sessions.onnx import OnnxSession, TensorInfo

    def words(tensors: dict[str, TensorInfo]) -> tuple[str, ...]:
        return tuple(
            f"{name}: {one.dtype} ({', '.join('?' if axis is None else str(axis) for axis in one.axes)})"
            for name, one in tensors.items()
        )

    inputs, outputs = map(words, OnnxSession(path, threads=1).tensors())
    if find_spec("onnx") is None:
        return GraphView(path.name, path.stat().st_size, None, None, (), None, inputs, outputs)
    opset, nodes, operators, weights, beside = _inside(path)
    return GraphView(path.name, path.stat().st_size + beside, opset, nodes, operators, weights, inputs, outputs)


def _inside(path: Path) -> tuple[int, int, tuple[tuple[str, int], ...], str, int]:
    """Opset, number of nodes, their operators, the type of most weights, and the bytes of files beside the graph."""
    import onnx

    from hagmil.export.graph import data_files, opset_of

    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    operators = Counter(node.op_type for node in graph.node)
    sizes = Counter[int]()
    for tensor in graph.initializer:
        values = 1
        for length in tensor.dims:
            values *= length
        sizes[tensor.data_type] += values
    kinds = {_FLOAT: "fp32", _HALF: "fp16", _BFLOAT: "bf16", _INT8: "int8"}
    largest = max(kinds, key=lambda kind: sizes[kind])
    beside = sum(path.with_name(name).stat().st_size for name in data_files(path))
    return opset_of(model), len(graph.node), tuple(operators.most_common(_MOST_OPERATORS)), kinds[largest], beside


def _parity(bundle: Bundle) -> ParityReport | None:
    path = bundle.file(PARITY_NAME)
    if PARITY_NAME not in bundle.manifest.files or not path.is_file():
        return None
    try:
        return ParityReport.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BundleError(f'"{path}" is not valid: {error}', code="bundle_invalid") from error
