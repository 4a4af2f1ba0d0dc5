"""Export of torch modules to ONNX graphs with the contract's names and dynamic axes.

Dynamic axes are named dimensions: torch.export raises an error if it has to fix or restrict the length of one, instead
of making a graph that is correct for some lengths only. torch.onnx.export catches this error and silently uses the
restricted lengths. Therefore this module calls torch.export itself and passes the captured program to the exporter.

Modules that differ in their weights only, such as the stage models of a cascade, are captured once (:data:`Captures`):
capture and conversion take most of the time of exporting the full-size transformer.
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
_MAX_LENGTH = 1 << 20
_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))


Captures = dict[str, torch.onnx.ONNXProgram]
"""Unoptimised graphs by :func:`structure_of` their module, for reuse with modules that differ in their weights only."""


def trace(
    module: nn.Module,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    *,
    example: Mapping[str, int],
    least: Mapping[str, int] | None = None,
    captures: Captures | None = None,
) -> onnx.ModelProto:
    """Export a module to a graph that follows the contract.

    Args:
        module: takes tensors in the order of ``inputs`` and returns a tuple of tensors in the order of ``outputs``; in
            evaluation mode.
        inputs: the inputs of the graph. Named axes listed in :data:`~hagmil.spec.DYNAMIC_AXES` become dynamic; all
            others are fixed at the length of the example.
        outputs: the outputs of the graph.
        example: a length for every named axis; dynamic axes need a length of 2 or more.
        least: minimum length of dynamic axes; 1 by default.
        captures: captured graphs of modules with the same inputs, outputs and lengths; the graph of this module is
            added. Node names, and so the digest of the graph, differ from an export without ``captures``.

    Returns:
        The graph, without metadata about the machine that made it.

    Raises:
        BundleError: the module cannot be exported with dynamic axes, or the graph violates the contract.
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
        raise BundleError(f"the exporter wrote opset {opset_of(model)} instead of {OPSET}", code="export_failed")
    return model


def structure_of(module: nn.Module) -> str:
    """Describe a module without the values of its weights: types, attributes and shapes of all submodules.

    Modules with equal descriptions compute the same function of their weights. The converse does not hold: attributes
    that are described by their memory address always differ.
    """
    lines = []
    for name, part in module.named_modules():
        plain = {key: value for key, value in vars(part).items() if key not in _MODULE_ATTRIBUTES}
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
    """Capture a module and convert it to ONNX; without ``optimise``, weights keep their names in the module."""
    names = {axis for spec in inputs for axis in spec.axes if isinstance(axis, str) and axis in DYNAMIC_AXES}
    dims = {name: torch.export.Dim(name, min=least.get(name, 1), max=_MAX_LENGTH) for name in names}
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
    assert program is not None  # only the legacy exporter returns None
    return program


def _optimised(converted: torch.onnx.ONNXProgram, module: nn.Module) -> torch.onnx.ONNXProgram:
    """Insert the weights of a module into a captured graph and optimise it."""
    program = torch.onnx.ONNXProgram(converted.model.clone(), None)
    weights = program.model.graph.initializers
    program.apply_weights({name: tensor for name, tensor in module.state_dict().items() if name in weights})
    fold_constants(program.model)  # before optimize, which tries every pattern on every remaining node
    program.optimize()
    return program


def _capture(
    module: nn.Module, examples: tuple[Tensor, ...], dynamic: tuple[dict[int, Any], ...]
) -> torch.export.ExportedProgram:
    """Capture a module; torch.export raises an error if an axis cannot stay dynamic.

    To simplify strides, torch tests whether each length is 1, and treats the result as a restriction if the length can
    become 1 (rows per landmark, in a bag smaller than the number of landmarks). ``backed_size_oblivious`` turns this
    off.
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
    """Suppress two messages of every export: a missing optional package, and a deprecated call inside torch."""
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    registry.addFilter(_is_not_about_torchvision)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    finally:
        registry.removeFilter(_is_not_about_torchvision)


def _is_not_about_torchvision(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("torchvision is not installed")
