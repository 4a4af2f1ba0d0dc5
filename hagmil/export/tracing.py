"""Torch modules to ONNX graphs, by torch's exporter, with the contract's names and dynamic axes.

Dynamic axes are *named* dimensions: where torch would have to fix the length of one, or to narrow it, it refuses,
instead of writing a graph that is right for some lengths and wrong for others. That refusal is torch.export's. Given a
module, torch.onnx.export catches it, takes the narrower lengths that torch.export suggests, and goes on in silence;
therefore the module is captured here, and the ONNX exporter gets what was captured.

Modules that differ in their weights alone, as a cascade's stages do, are captured once (:data:`Captures`): capturing
and converting the full-size transformer takes most of its export.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as symbolic_config

from hagmil.errors import BundleError
from hagmil.export.graph import opset_of
from hagmil.export.passes.check_contract import check_contract
from hagmil.export.passes.fold_constants import fold_constants
from hagmil.export.passes.strip_metadata import strip_metadata
from hagmil.spec import DYNAMIC_AXES, TensorSpec

OPSET = 20
_DTYPES = {"uint8": torch.uint8, "float32": torch.float32}
_LONGEST = 1 << 20
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


Captures = dict[str, torch.onnx.ONNXProgram]
"""Graphs of modules before they are optimised, by :func:`structure_of` the module: to be used again for others that
differ from it in their weights alone."""


def trace(
    module: nn.Module,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    *,
    example: Mapping[str, int],
    least: Mapping[str, int] | None = None,
    captures: Captures | None = None,
) -> onnx.ModelProto:
    """Export a module to a graph that keeps the contract.

    Args:
        module: takes tensors in the order of ``inputs``, gives a tuple of them in that of ``outputs``; in
            evaluation mode.
        inputs: the graph's inputs; words among their axes that :data:`~hagmil.spec.DYNAMIC_AXES` lists become
            dynamic, all others are fixed at the example's length.
        outputs: the graph's outputs.
        example: a length for every axis that is a word; none of the dynamic ones may be 0 or 1.
        least: the smallest length of a dynamic axis; 1 where none is given.
        captures: of modules that were exported with the same inputs, outputs and lengths; gets this one's. Nodes get
            other names than without, so that the graph has another digest; a backbone's must not change.

    Returns:
        The graph, without a trace of the machine that made it.

    Raises:
        BundleError: the module cannot be exported with its axes dynamic, or the graph breaks the contract.
    """
    convert = partial(_convert, module, inputs, outputs, example, least or {})
    if captures is None:
        program = convert(optimise=True)
    else:
        key = structure_of(module)
        if key not in captures:
            captures[key] = convert(optimise=False)
        program = _optimised(captures[key], module)
    fold_constants(program.model)
    model = program.model_proto
    strip_metadata(model)
    check_contract(model, inputs, outputs)
    if opset_of(model) != OPSET:
        raise BundleError(f"the exporter left opset {opset_of(model)}, not {OPSET}", code="export_failed")
    return model


def structure_of(module: nn.Module) -> str:
    """All of a module but the values of its weights: what its parts are, the numbers they hold, and shapes.

    Modules of the same structure compute the same of their weights; of different structures they may as well, for what
    is written with its place in memory differs each time.
    """
    lines = []
    for name, part in module.named_modules():
        plain = {key: value for key, value in vars(part).items() if key not in _OF_EVERY_MODULE}
        held = [f"tensor at {id(value)}" if isinstance(value, Tensor) else repr(value) for value in plain.values()]
        lines.append(f"{name}: {type(part).__module__}.{type(part).__qualname__} {part.training} {list(plain)} {held}")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        lines.append(f"{name}: {tuple(tensor.shape)} {tensor.dtype}")
    return "\n".join(lines)


def _convert(
    module: nn.Module,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    example: Mapping[str, int],
    least: Mapping[str, int],
    *,
    optimise: bool,
) -> torch.onnx.ONNXProgram:
    """Capture a module, and make a graph of it; unless it is optimised, weights have their names in the module."""
    names = {axis for spec in inputs for axis in spec.axes if isinstance(axis, str) and axis in DYNAMIC_AXES}
    dims = {name: torch.export.Dim(name, min=least.get(name, 1), max=_LONGEST) for name in names}
    dynamic = tuple(
        {index: dims[axis] for index, axis in enumerate(spec.axes) if isinstance(axis, str) and axis in dims}
        for spec in inputs
    )
    examples = tuple(_example(spec, example) for spec in inputs)
    with _quiet_exporter():
        try:
            captured = _capture(module, examples, dynamic)
            program = torch.onnx.export(
                captured,
                input_names=[spec.name for spec in inputs],
                output_names=[spec.name for spec in outputs],
                opset_version=OPSET,
                dynamic_shapes=dynamic,
                dynamo=True,
                external_data=False,
                verbose=False,
                optimize=optimise,
            )
        except (torch.onnx.errors.OnnxExporterError, torch._dynamo.exc.UserError, ValueError) as error:
            raise BundleError(
                f"{type(module).__name__} cannot be exported with dynamic {', '.join(sorted(names))}: "
                f"{_root_cause(error)}",
                code="export_failed",
            ) from error
    assert program is not None  # the exporter gives None only for its legacy form
    return program


def _optimised(converted: torch.onnx.ONNXProgram, module: nn.Module) -> torch.onnx.ONNXProgram:
    """A graph with a module's weights, optimised."""
    program = torch.onnx.ONNXProgram(converted.model.clone(), None)
    weights = program.model.graph.initializers
    program.apply_weights({name: tensor for name, tensor in module.state_dict().items() if name in weights})
    fold_constants(program.model)  # first: the exporter's patterns are tried on each node that is left
    program.optimize()
    return program


def _capture(
    module: nn.Module, examples: tuple[Tensor, ...], dynamic: tuple[dict[int, Any], ...]
) -> torch.export.ExportedProgram:
    """Capture a module, or fail where an axis cannot stay as dynamic as it is wanted.

    Torch asks of every length whether it is 1, to simplify strides, and would call the answer a narrowing where a
    length may become 1 (rows per landmark, in a bag smaller than its landmarks); it is told that nothing is known.
    """
    with symbolic_config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        return torch.export.export(module, examples, dynamic_shapes=dynamic, strict=False)


def _example(spec: TensorSpec, lengths: Mapping[str, int]) -> Tensor:
    shape = [axis if isinstance(axis, int) else lengths[axis] for axis in spec.axes]
    return torch.zeros(shape, dtype=_DTYPES[spec.dtype])


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    narrowings = [line.strip(" -") for line in lines if line.startswith("  - ")]  # as torch.export lists them
    return (narrowings or lines)[0]


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hush what torch says of itself at every export: an optional package, and its own deprecated call."""
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    registry.addFilter(_not_about_torchvision)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    finally:
        registry.removeFilter(_not_about_torchvision)


def _not_about_torchvision(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("torchvision is not installed")
