"""Existing ONNX encoders as backbones, wrapped if they do not follow the contract.

1. The graph must have one RGB input with four axes and a dynamic first axis (the batch).
2. The contract's input is uint8 (batch, height, width, 3). For float input (batch, 3, height, width), add a cast,
   a transpose and the normalisation, which the user must specify.
3. The output with one vector per patch becomes ``features``, float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.compose import add_prefix

from hagmil._files import sha256_of
from hagmil.bundle import Precision
from hagmil.errors import BundleError, UsageError
from hagmil.export.backbones.encoder import Channels, normalisation
from hagmil.export.graph import axes_of, dtype_of
from hagmil.export.parity.compare import Run
from hagmil.export.passes.strip_metadata import strip_metadata
from hagmil.runtime.sessions import open_session
from hagmil.spec import BACKBONE_FEATURES, PATCHES

SUFFIX = ".onnx"
_PREFIX = "encoder/"
ANY_SIZE_PX = 224
"""Patch size for trying encoders that accept any size, in pixels."""


@dataclass(frozen=True, slots=True)
class OnnxEncoder:
    """An ONNX encoder that follows the contract.

    Args:
        name: name in cards and manifests.
        model: the graph, with the contract's input and output.
        features: length of the feature vector.
        mean: mean of each channel, of pixels in 0..1; None if the encoder normalises its input.
        std: standard deviation of each channel, of pixels in 0..1; None if the encoder normalises its input.
        weights: description of the origin of the weights.
        patch_px: the only patch size that it accepts, in pixels; None for any size.
        precision: of its weights.
        reference: runs the original file on the contract's input.
    """

    name: str
    model: onnx.ModelProto
    features: int
    mean: Channels | None
    std: Channels | None
    weights: str
    patch_px: int | None
    precision: Precision
    reference: Run


def load_onnx_encoder(
    path: Path, *, mean: Channels | None = None, std: Channels | None = None, output: str | None = None
) -> OnnxEncoder:
    """Load an existing ONNX encoder.

    Args:
        path: the ONNX file.
        mean: mean of each channel, of pixels in 0..1; required for float input.
        std: standard deviation of each channel, of pixels in 0..1; required for float input.
        output: name of the output to use, if the graph has several.

    Raises:
        UsageError: the file or the output does not exist; mean and std are missing or do not apply.
        BundleError: the graph cannot be a backbone.
    """
    if not path.is_file():
        raise UsageError(f'ONNX file "{path}" does not exist', code="no_backbone")
    source = _load(path)
    entry = _only_input(source, path)
    is_contract = _takes_pixels(entry, path)
    if is_contract and (mean or std):
        raise UsageError(f'"{path}" takes uint8 pixels and normalises them; remove --mean and --std')
    if not is_contract and (mean is None or std is None):
        raise UsageError(
            f'"{path}" takes float input; pass --mean and --std, its normalisation of pixels in 0..1',
            code="normalisation_missing",
        )
    affine = normalisation(mean, std) if mean and std else None
    chosen = _choose_output(source, output, path)
    patch_px = _patch_px(entry, path, pixels_last=is_contract)
    run = _source_run(path, entry, affine, chosen)
    probe = _probe(run, patch_px or ANY_SIZE_PX, path)

    def reference(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        features = run(arrays[PATCHES.name]).astype(np.float32)
        return {BACKBONE_FEATURES.name: features.reshape(len(features), -1)}  # (batch, dim, 1, 1) -> (batch, dim)

    return OnnxEncoder(
        name=f"onnx:{path.stem}",
        model=_wrap(source, entry, chosen, probe, affine, patch_px),
        features=probe.shape[1],
        mean=mean,
        std=std,
        weights=f"file {path.name}, sha256 {sha256_of(path)}",
        patch_px=patch_px,
        precision=_precision(source),
        reference=reference,
    )


def _load(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path)
    except Exception as error:  # protobuf and the reader of external data raise many types
        raise BundleError(f'"{path}" cannot be read as ONNX: {error}', code="graph_invalid") from error


def _only_input(model: onnx.ModelProto, path: Path) -> onnx.ValueInfoProto:
    """Step 1."""
    weights = {tensor.name for tensor in model.graph.initializer}  # old files list weights among the inputs
    entries: list[onnx.ValueInfoProto] = [v for v in model.graph.input if v.name not in weights]
    if len(entries) != 1:
        raise BundleError(f'"{path}" has {len(entries)} inputs; a backbone has one, the patches', code="not_a_backbone")
    axes = axes_of(entries[0])
    if axes is None or len(axes) != 4:
        raise BundleError(f'"{path}": the input has the axes {axes}; a backbone needs four axes', code="not_a_backbone")
    if isinstance(axes[0], int):
        raise BundleError(
            f'"{path}": the batch size is fixed at {axes[0]}; export the model with a dynamic first axis',
            code="batch_fixed",
        )
    return entries[0]


def _takes_pixels(entry: onnx.ValueInfoProto, path: Path) -> bool:
    """Return whether the input is the contract's; False if it is float input that can be wrapped (step 2)."""
    axes, dtype = axes_of(entry), dtype_of(entry)
    assert axes is not None
    if dtype == "uint8" and axes[3] == 3:
        return True
    if dtype in ("float32", "float16") and axes[1] == 3:
        return False
    raise BundleError(
        f'"{path}" takes {dtype} {axes}; a backbone takes uint8 (batch, height, width, 3) '
        "or float (batch, 3, height, width)",
        code="not_a_backbone",
    )


def _patch_px(entry: onnx.ValueInfoProto, path: Path, *, pixels_last: bool) -> int | None:
    axes = axes_of(entry)
    assert axes is not None
    height, width = axes[1:3] if pixels_last else axes[2:4]
    if isinstance(height, int) and isinstance(width, int) and height == width:
        return height
    if isinstance(height, int) or isinstance(width, int):
        raise BundleError(
            f'"{path}" takes patches of {height} x {width} pixels, not square patches',
            code="not_a_backbone",
        )
    return None


def _choose_output(model: onnx.ModelProto, wanted: str | None, path: Path) -> str:
    names = [value.name for value in model.graph.output]
    if wanted is not None and wanted not in names:
        raise UsageError(f'"{path}" has no output "{wanted}", only {", ".join(names)}', code="no_output")
    if wanted is None and len(names) != 1:
        raise UsageError(
            f'"{path}" has {len(names)} outputs; choose one with --output: {", ".join(names)}',
            code="no_output",
        )
    return wanted or names[0]


def _source_run(
    path: Path, entry: onnx.ValueInfoProto, affine: tuple[Channels, Channels] | None, output: str
) -> Callable[[NDArray[np.uint8]], NDArray[Any]]:
    """Return a function from uint8 (batch, height, width, 3) to the output of the file."""
    session = open_session(path)
    dtype = dtype_of(entry)

    def run(patches: NDArray[np.uint8]) -> NDArray[Any]:
        if affine is None:
            return session.run({entry.name: patches})[output]
        scale, shift = (np.array(values, np.float32) for values in affine)
        images = (patches * scale + shift).transpose(0, 3, 1, 2)  # (batch, 3, height, width)
        return session.run({entry.name: np.ascontiguousarray(images.astype(dtype))})[output]

    return run


def _probe(run: Callable[[NDArray[np.uint8]], NDArray[Any]], side_px: int, path: Path) -> NDArray[Any]:
    """Run the file on two patches and check that the output has one vector per patch."""
    probe = run(np.zeros((2, side_px, side_px, 3), np.uint8))
    is_vector = probe.ndim == 2 or (probe.ndim == 4 and probe.shape[2:] == (1, 1))
    if not is_vector or len(probe) != 2 or probe.dtype.kind != "f":
        raise BundleError(
            f'"{path}" returns {probe.dtype} {probe.shape} for two patches; a backbone returns a vector per patch',
            code="no_feature_vector",
        )
    return probe


def _wrap(
    source: onnx.ModelProto,
    entry: onnx.ValueInfoProto,
    output: str,
    probe: NDArray[Any],
    affine: tuple[Channels, Channels] | None,
    patch_px: int | None,
) -> onnx.ModelProto:
    """Steps 2 and 3: add the contract's input and output, and the missing nodes between."""
    model = add_prefix(source, _PREFIX)  # so that no inner name equals one of the contract's
    graph = model.graph
    front = _front(f"{_PREFIX}{entry.name}", affine, dtype_of(entry))
    back = _back(f"{_PREFIX}{output}", probe)
    body = list(graph.node)
    weights = {tensor.name for tensor in graph.initializer}
    rest = [value for value in graph.input if value.name in weights]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend([*front, *body, *back])
    side: tuple[str | int, str | int] = (patch_px, patch_px) if patch_px else ("height", "width")
    patches = helper.make_tensor_value_info(PATCHES.name, TensorProto.UINT8, ["batch", *side, 3])
    features = helper.make_tensor_value_info(BACKBONE_FEATURES.name, TensorProto.FLOAT, ["batch", probe.shape[1]])
    graph.input.extend([patches, *rest])
    graph.output.append(features)
    if affine is not None:
        graph.initializer.extend(
            numpy_helper.from_array(np.array(values, np.float32).reshape(1, 3, 1, 1), name)
            for name, values in zip(("scale", "shift"), affine, strict=True)
        )
    strip_metadata(model)
    return model


def _precision(model: onnx.ModelProto) -> Precision:
    halves = any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)
    return "fp16" if halves else "fp32"


def _front(target: str, affine: tuple[Channels, Channels] | None, dtype: str) -> list[onnx.NodeProto]:
    if affine is None:
        return [helper.make_node("Identity", [PATCHES.name], [target])]
    element = TensorProto.FLOAT16 if dtype == "float16" else TensorProto.FLOAT
    return [
        helper.make_node("Cast", [PATCHES.name], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["images"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["images", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["normalised"]),
        helper.make_node("Cast", ["normalised"], [target], to=element),
    ]


def _back(source: str, probe: NDArray[Any]) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Cast", [source], ["vectors"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["vectors"], [BACKBONE_FEATURES.name], axis=1)
        if probe.ndim == 4
        else helper.make_node("Identity", ["vectors"], [BACKBONE_FEATURES.name]),
    ]
