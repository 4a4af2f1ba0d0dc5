"""Stage models to ONNX, and held against their source at the patch counts where such exports go wrong.

1. Bags of every kind are held at one count; clustered ones, which are most like features, at 1, 2, 3000, and around
   every landmark count: there a length that was built in shows.
2. Whether lengths were built in is a matter of a graph's nodes, not of its weights. A stage whose graph has the nodes
   of one that was held at every count is held at three of them.
3. The long form adds 10,000 and 40,000 patches.
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
from hagmil.spec import BAG, COARSE_ATTENTION, FINE_ATTENTION, STAGE_INPUTS, STAGE_OUTPUTS, Kind
from hagmil.trainer.models.nystrom import NystromAttention

ParityForm = Literal["default", "long"]
FORMS: tuple[ParityForm, ...] = get_args(ParityForm)

_LARGE_COUNT = 3000
_ALWAYS = (1, 2, _LARGE_COUNT)
_MIDDLE_COUNT = 500  # where no landmarks say where the middle is
_LONG = (10_000, 40_000)
_EXAMPLE_PATCHES = 1009  # a prime, so that no length inside the graph can be mistaken for it
_SHARES = (COARSE_ATTENTION.name, FINE_ATTENTION.name)


def parse_parity_form(text: str) -> ParityForm:
    """Read ``--parity``.

    Raises:
        UsageError: it is none of the words that there are.
    """
    for form in FORMS:
        if text == form:
            return form
    raise UsageError(f'no form of parity "{text}"; choose one of {", ".join(FORMS)}')


def stage_graph(
    model: nn.Module,
    feature_dim: int,
    kind: Kind,
    precision: Precision = "fp32",
    captures: Captures | None = None,
) -> onnx.ModelProto:
    """Export a stage's model with any number of patches.

    Args:
        model: takes float32 (patches, feature_dim), gives the tensors of the contract in order.
        feature_dim: length of a feature vector.
        kind: which tensors those are.
        precision: of the graph's insides; its inputs and outputs are float32.
        captures: of stages of the same kind and feature length, which may differ in their weights alone.

    Raises:
        BundleError: the model cannot be exported so.
    """
    example = {"patches": _EXAMPLE_PATCHES, "dim": feature_dim}
    reduced = with_precision(model.eval(), precision)
    captures = {} if captures is None else captures
    return trace(reduced, STAGE_INPUTS, STAGE_OUTPUTS[kind], example=example, captures=captures)


def structure_sha256(model: onnx.ModelProto) -> str:
    """Digest of a graph's nodes and of its whole numbers (step 2): of all but its weights."""
    digest = hashlib.sha256()
    for node in model.graph.node:
        digest.update(node.SerializeToString(deterministic=True))
    for tensor in model.graph.initializer:
        if tensor.data_type in (TensorProto.INT32, TensorProto.INT64):
            digest.update(tensor.SerializeToString(deterministic=True))
    return digest.hexdigest()


def landmark_counts(model: nn.Module) -> tuple[int, ...]:
    """Landmarks of every attention of a model, each number once, from small to large."""
    counts = {module.landmarks for module in model.modules() if isinstance(module, NystromAttention)}
    return tuple(sorted(counts))


def patch_counts(landmarks: tuple[int, ...]) -> tuple[int, ...]:
    """The bag sizes that parity is held at: 1, 2, 3000, each landmark count, one less, one more, twice it."""
    around = {count for marks in landmarks for count in (marks - 1, marks, marks + 1, 2 * marks)}
    return tuple(sorted(count for count in {*_ALWAYS, *around} if count >= 1))


def stage_cases(
    landmarks: tuple[int, ...], feature_dim: int, *, every_count: bool = True, form: ParityForm = "default"
) -> Iterator[ParityCase]:
    """Steps 1 to 3: clustered bags of many sizes, and one of every other kind.

    Args:
        landmarks: see :func:`landmark_counts`.
        feature_dim: length of a feature vector.
        every_count: every size; False for three of them, where the graph's nodes were held at every size before.
        form: default or long.
    """
    counts = patch_counts(landmarks)
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
    """How many cases :func:`check_stage_parity` holds a model at."""
    return sum(1 for _ in stage_cases(landmark_counts(model), 1, every_count=every_count, form=form))


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
    """Hold a stage's graph against its model, at every bag size.

    Args:
        name: the stage's name.
        model: the source, in float32.
        graph: the ONNX file.
        feature_dim: length of a feature vector.
        kind: of the model.
        precision: of the graph's insides.
        every_count: see :func:`stage_cases`.
        form: default or long.

    Returns:
        For each bag, as it is held, its rows: one for each tensor of each run.
    """
    outputs = STAGE_OUTPUTS[kind]
    source = SourceModel(
        reference=torch_run(model, STAGE_INPUTS, outputs, dtype=torch.float64),
        float32=torch_run(model, STAGE_INPUTS, outputs, dtype=torch.float32),
    )
    return compare(
        name,
        stage_cases(landmark_counts(model), feature_dim, every_count=every_count, form=form),
        graph=open_under_test(graph, precision),
        source=source,
        tolerance=TOLERANCES[precision],
        shares=_SHARES,
    )
