"""Export of stage models to ONNX, and their comparison with the torch models over many bag sizes.

1. Every kind of bag is compared at one size. Clustered bags, the most similar to real features, are compared at 1, 2
   and 3000 patches and around every number of landmarks, where a length that the exporter fixed in the graph shows.
   TransMIL, which arranges patches in a square, is also compared around several squares.
2. Fixed lengths depend on the nodes of a graph, not on its weights. A stage whose graph has the same nodes as one that
   was compared at every size is compared at three sizes.
3. The long form adds bags of 10,000 and 40,000 patches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import onnx
import torch
from onnx import TensorProto
from torch import nn

from hagmil.bundle import Precision
from hagmil.errors import UsageError
from hagmil.export.parity.compare import TOLERANCES, ParityCase, ParityRow, SourceModel, compare
from hagmil.export.parity.graph_under_test import open_under_test
from hagmil.export.parity.synthetic_inputs import BAG_KINDS, synthetic_bag
from hagmil.export.parity.torch_reference import torch_run
from hagmil.export.stage_half_precision import with_precision
from hagmil.export.tracing import Captures, trace
from hagmil.spec import BAG, COARSE_ATTENTION, FINE_ATTENTION, STAGE_INPUTS, Kind
from hagmil.trainer.models.nystrom import NystromAttention
from hagmil.trainer.models.registry import output_specs
from hagmil.trainer.models.transmil import PositionEncoding

ParityForm = Literal["default", "long"]
FORMS: tuple[ParityForm, ...] = get_args(ParityForm)

_LARGE_COUNT = 3000
_ALWAYS = (1, 2, _LARGE_COUNT)
_MIDDLE_COUNT = 500  # for models without landmarks
_LONG = (10_000, 40_000)
_EXAMPLE_PATCHES = 1009  # a prime, so that no other length in the graph equals it
_SQUARE_SIDES = (2, 3, 12)
_SHARES = (COARSE_ATTENTION.name, FINE_ATTENTION.name)


def parse_parity_form(text: str) -> ParityForm:
    """Parse the value of ``--parity``.

    Raises:
        UsageError: the value is unknown.
    """
    for form in FORMS:
        if text == form:
            return form
    raise UsageError(f'unknown value "{text}" of --parity; choose one of {", ".join(FORMS)}')


def stage_graph(
    model: nn.Module,
    feature_dim: int,
    kind: Kind,
    precision: Precision = "fp32",
    captures: Captures | None = None,
) -> onnx.ModelProto:
    """Export a stage model to a graph with a dynamic number of patches.

    Args:
        model: maps float32 (patches, feature_dim) to the output tensors of its kind, in order.
        feature_dim: length of a feature vector.
        kind: kind of the model.
        precision: of the graph's inner values; its inputs and outputs are float32.
        captures: captured programs of stage models with the same kind and feature length, for reuse; models with equal
            structure may differ in their weights only.

    Raises:
        BundleError: the model cannot be exported.
    """
    example = {"patches": _EXAMPLE_PATCHES, "dim": feature_dim}
    reduced = with_precision(model.eval(), precision)
    captures = {} if captures is None else captures
    return trace(reduced, STAGE_INPUTS, output_specs(model, kind), example=example, captures=captures)


def structure_sha256(model: onnx.ModelProto) -> str:
    """Return the SHA-256 digest of the nodes and integer constants of a graph, without its weights (step 2)."""
    digest = hashlib.sha256()
    for node in model.graph.node:
        digest.update(node.SerializeToString(deterministic=True))
    for tensor in model.graph.initializer:
        if tensor.data_type in (TensorProto.INT32, TensorProto.INT64):
            digest.update(tensor.SerializeToString(deterministic=True))
    return digest.hexdigest()


def landmark_counts(model: nn.Module) -> tuple[int, ...]:
    """Return the numbers of landmarks in the attention layers of a model, unique and ascending."""
    counts = {module.landmarks for module in model.modules() if isinstance(module, NystromAttention)}
    return tuple(sorted(counts))


def has_squares(model: nn.Module) -> bool:
    """Whether a model arranges the patches of a bag in a square."""
    return any(isinstance(module, PositionEncoding) for module in model.modules())


def patch_counts(landmarks: tuple[int, ...], *, squares: bool = False) -> tuple[int, ...]:
    """Return the bag sizes to compare at.

    Args:
        landmarks: see :func:`landmark_counts`.
        squares: see :func:`has_squares`.

    Returns:
        1, 2, 3000; for each number of landmarks m, m - 1, m, m + 1 and 2 m; with squares, k² - 1, k² and k² + 1 for
        several k.
    """
    around = {count for marks in landmarks for count in (marks - 1, marks, marks + 1, 2 * marks)}
    if squares:
        around |= {side * side + step for side in _SQUARE_SIDES for step in (-1, 0, 1)}
    return tuple(sorted(count for count in {*_ALWAYS, *around} if count >= 1))


def stage_cases(
    landmarks: tuple[int, ...],
    feature_dim: int,
    *,
    every_count: bool = True,
    form: ParityForm = "default",
    squares: bool = False,
) -> Iterator[ParityCase]:
    """Yield the bags to compare a stage model on (steps 1 to 3).

    Args:
        landmarks: see :func:`landmark_counts`.
        feature_dim: length of a feature vector.
        every_count: every bag size; False for three sizes, if a graph with the same nodes was compared at every size.
        form: default or long.
        squares: see :func:`has_squares`.
    """
    counts = patch_counts(landmarks, squares=squares)
    middle = counts[len(counts) // 2] if landmarks else _MIDDLE_COUNT
    chosen = sorted({*counts, middle}) if every_count else (counts[0], middle, _LARGE_COUNT)
    for count in dict.fromkeys((*chosen, *(_LONG if form == "long" else ()))):
        bag = synthetic_bag("clustered", count, feature_dim)
        yield ParityCase("clustered", {"patches": count}, {BAG.name: bag}, exact=count in (middle, _LARGE_COUNT))
    for kind in BAG_KINDS:
        if kind != "clustered":
            yield ParityCase(
                kind, {"patches": middle}, {BAG.name: synthetic_bag(kind, middle, feature_dim)}, exact=False
            )


def stage_case_count(model: nn.Module, *, every_count: bool = True, form: ParityForm = "default") -> int:
    """Return the number of cases that :func:`check_stage_parity` runs for a model."""
    squares = has_squares(model)
    return sum(1 for _ in stage_cases(landmark_counts(model), 1, every_count=every_count, form=form, squares=squares))


def check_stage_parity(
    name: str,
    model: nn.Module,
    graph: Path,
    feature_dim: int,
    kind: Kind,
    precision: Precision = "fp32",
    *,
    every_count: bool = True,
    form: ParityForm = "default",
) -> Iterator[tuple[ParityRow, ...]]:
    """Compare the graph of a stage model with the torch model over many bag sizes.

    Args:
        name: name of the stage.
        model: the torch model, in float32.
        graph: the ONNX file.
        feature_dim: length of a feature vector.
        kind: kind of the model.
        precision: of the graph's inner values.
        every_count: see :func:`stage_cases`.
        form: default or long.

    Returns:
        An iterator over cases: the rows of each, one per tensor and run.
    """
    outputs = output_specs(model, kind)
    source = SourceModel(
        reference=torch_run(model, STAGE_INPUTS, outputs, dtype=torch.float64),
        float32=torch_run(model, STAGE_INPUTS, outputs, dtype=torch.float32),
    )
    return compare(
        name,
        stage_cases(
            landmark_counts(model), feature_dim, every_count=every_count, form=form, squares=has_squares(model)
        ),
        graph=open_under_test(graph, precision),
        source=source,
        tolerance=TOLERANCES[precision],
        shares=_SHARES,
    )
