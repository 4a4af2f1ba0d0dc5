"""Parity: the numbers of a graph held against those of its source, tensor by tensor, and enforced.

1. A case is a set of inputs with a name and its lengths.
2. The reference is the source in float64; the source in float32 shows how well conditioned the case is. Where a case
   does not insist on float64, the source in float32 is the reference as long as the graph is within half of the
   tolerance of it; where it is not, float64 decides. Float64 takes more than twice as long as all else.
3. The error of a tensor is the largest absolute difference between graph and reference. A graph in half precision is
   run with every operation rounded (:mod:`hagmil.export.passes.rounded`) on every case, and as it is on those that
   insist on float64.
4. Allowed is ``absolute + relative x the reference's largest value``, or four times the error that the source
   in float32 has itself, where that is more; but never more than a hundredth of the largest value (or of 1).
5. A value that is not finite where the reference's is, or another shape, is an infinite error.
6. The first tensor out of tolerance by the largest factor is named in the error that ends the export.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hagmil._models import FrozenModel
from hagmil.bundle import Precision, Quantization
from hagmil.errors import ParityError
from hagmil.export.parity.slide_parity import SlideParity

PARITY_NAME = "parity.json"
Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[dict[str, NDArray[Any]]], Arrays]
Reference = Literal["float64", "float32", "graph"]
"""The source in torch, in float64 or float32, or the ONNX graph that another was made from."""

_SOURCE_ERRORS = 4.0
_LARGEST_SHARE = 1e-2
_BEYOND_DOUBT = 0.5


class Tolerance(FrozenModel):
    """How far a tensor may be off: ``absolute + relative x its largest value``."""

    absolute: float = Field(ge=0)
    relative: float = Field(ge=0)

    def at(self, largest: float) -> float:
        """How far a tensor may be off whose largest absolute value is this."""
        return self.absolute + self.relative * largest

    def of_shares(self) -> Tolerance:
        """The tolerance of a softmax whose scores have this one: a score's error is its share's relative error."""
        return Tolerance(absolute=0, relative=self.absolute + self.relative)


TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(absolute=2e-5, relative=2e-5),
    "fp16": Tolerance(absolute=2e-3, relative=2e-3),
}
"""By the precision of a graph; the errors that led to them stand in docs/numerics.md. int8 is for backbones alone and
has limits of its own, :data:`INT8_FEATURES`."""


class FeatureLimits(FrozenModel):
    """How far a quantised backbone's features may be off over real patches."""

    least_cosine: float = Field(ge=-1, le=1, description="of every patch")
    relative_error: float = Field(ge=0, description="norm of the difference over the norm, all patches together")


INT8_FEATURES = FeatureLimits(least_cosine=0.99, relative_error=0.05)
"""Of a backbone in int8, whose error is no rounding of single values; docs/numerics.md says what led to them."""


class ParityRow(FrozenModel):
    """One tensor of one graph on one case."""

    model: str = Field(description="backbone, or a stage's name")
    tensor: str
    sample: str = Field(description="kind of input")
    lengths: dict[str, int] = Field(description="length of each dynamic axis")
    largest: float = Field(description="largest absolute value of the reference")
    error: float | None = Field(description="largest absolute difference from the reference; null: not finite")
    source_error: float | None = Field(description="the same of the source in float32; null where there is none")
    allowed: float
    cosine: float | None = Field(description="smallest cosine between rows of a feature matrix; null for others")
    reference: Reference = Field(default="float64", description="what it was held against")
    rounded: bool = Field(default=False, description="the graph's every operation was rounded to 16 bits")
    passed: bool


class ParityReport(FrozenModel):
    """``parity.json``: every comparison that the export made."""

    format: Literal["hagmil-parity"] = "hagmil-parity"
    format_version: Literal[1] = 1
    precision: Precision
    tolerance: Tolerance = Field(description="of the rows; with precision int8 these are of float32 graphs")
    rows: tuple[ParityRow, ...]
    quantization: Quantization | None = Field(default=None, description="of the backbone; null where there is none")
    slides: SlideParity | None = Field(default=None, description="verdicts on slides; null where none were tried")


@dataclass(frozen=True, slots=True)
class ParityCase:
    """One set of inputs.

    Args:
        sample: what kind of inputs they are.
        lengths: length of each dynamic axis.
        inputs: an array for every input, by its name.
        exact: whether float64 must be the reference.
    """

    sample: str
    lengths: dict[str, int]
    inputs: dict[str, NDArray[Any]]
    exact: bool = True


@dataclass(frozen=True, slots=True)
class SourceModel:
    """What a graph was made from.

    Args:
        reference: runs it as exactly as it can be run.
        float32: runs it in float32; None where it has no such form.
        name: of the reference.
    """

    reference: Run
    float32: Run | None
    name: Reference = "float64"


@dataclass(frozen=True, slots=True)
class GraphUnderTest:
    """A graph that is held against its source.

    Args:
        graph: runs it as it is.
        rounded: runs it with every operation rounded to 16 bits; None where it is in float32.
    """

    graph: Run
    rounded: Run | None = None


class _Expected(NamedTuple):
    """The reference's outputs for one case, and float32's beside it where there are such."""

    outputs: Arrays
    own: Arrays | None
    name: Reference


def compare(
    model: str,
    cases: Iterable[ParityCase],
    *,
    graph: GraphUnderTest,
    source: SourceModel,
    tolerance: Tolerance,
    shares: Collection[str] = (),
) -> Iterator[tuple[ParityRow, ...]]:
    """Hold a graph against its source on every case.

    Args:
        model: ``backbone``, or a stage's name.
        cases: the inputs.
        graph: what is held.
        source: what it is held against.
        tolerance: how far a tensor may be off.
        shares: tensors that sum to 1 over patches; see :meth:`Tolerance.of_shares`.

    Yields:
        The rows of a case, one for each tensor of each run.
    """
    for case in cases:
        runs = [(graph.rounded, True)] if graph.rounded is not None else []
        if case.exact or not runs:
            runs.append((graph.graph, False))
        given = [(run(case.inputs), is_rounded) for run, is_rounded in runs]
        fitting = {name: tolerance.of_shares() if name in shares else tolerance for name in given[0][0]}
        wanted = _wanted(case, source, [outputs for outputs, _ in given], fitting)
        yield tuple(
            _row(model, tensor, case, wanted, outputs, fitting[tensor], is_rounded=is_rounded)
            for outputs, is_rounded in given
            for tensor in wanted.outputs
        )


def _wanted(
    case: ParityCase, source: SourceModel, given: Sequence[Arrays], tolerances: Mapping[str, Tolerance]
) -> _Expected:
    """Step 2."""
    own = source.float32(case.inputs) if source.float32 is not None else None
    if own is not None and not case.exact:
        worst = (
            _largest_difference(outputs[name], value) / (_BEYOND_DOUBT * tolerances[name].at(_largest(value)))
            for outputs in given
            for name, value in own.items()
        )
        if max(worst) <= 1:
            return _Expected(own, None, "float32")
    return _Expected(source.reference(case.inputs), own, source.name)


def enforce_parity(rows: Sequence[ParityRow]) -> None:
    """End the export where a tensor is out of tolerance.

    Raises:
        ParityError: the worst one: model, lengths, tensor, error and tolerance.
    """
    failed = [row for row in rows if not row.passed]
    if not failed:
        return
    worst = max(failed, key=_severity)  # step 6
    lengths = ", ".join(f"{axis} {length}" for axis, length in worst.lengths.items())
    error = "is not finite or of another shape" if worst.error is None else f"is off by {worst.error:.3g}"
    raise ParityError(
        f"{worst.model}: {worst.tensor} {error} at {lengths} ({worst.sample} input"
        f"{', every operation rounded' if worst.rounded else ''}), {worst.allowed:.3g} "
        f"allowed; {len(failed)} of {len(rows)} comparisons failed and nothing was written"
    )


def with_model_name(report: ParityReport, model: str) -> ParityReport:
    """A report whose every row is of a model of another name."""
    rows = tuple(row.model_copy(update={"model": model}) for row in report.rows)
    return report.model_copy(update={"rows": rows})


def worst_by_tensor(rows: Sequence[ParityRow]) -> list[tuple[ParityRow, int]]:
    """For each tensor of each graph the comparison that came nearest to its tolerance, and how many there were."""
    groups: dict[tuple[str, str], list[ParityRow]] = {}
    for row in rows:
        groups.setdefault((row.model, row.tensor), []).append(row)
    return [(max(group, key=_severity), len(group)) for group in groups.values()]


def _severity(row: ParityRow) -> float:
    if row.error is None:
        return math.inf
    return row.error / row.allowed if row.allowed else row.error


def _row(
    model: str,
    tensor: str,
    case: ParityCase,
    wanted: _Expected,
    outputs: Arrays,
    tolerance: Tolerance,
    *,
    is_rounded: bool,
) -> ParityRow:
    value, given = wanted.outputs[tensor], outputs[tensor]
    largest = _largest(value)
    error = _largest_difference(given, value)  # step 3
    source_error = None if wanted.own is None else _largest_difference(wanted.own[tensor], value)
    allowed = _allowed(largest, source_error, tolerance)
    return ParityRow(
        model=model,
        tensor=tensor,
        sample=case.sample,
        lengths=case.lengths,
        largest=largest,
        error=error if math.isfinite(error) else None,
        source_error=source_error if source_error is not None and math.isfinite(source_error) else None,
        allowed=allowed,
        cosine=_smallest_cosine(given, value) if value.ndim == 2 and value.shape == given.shape else None,
        reference=wanted.name,
        rounded=is_rounded,
        passed=error <= allowed,
    )


def _largest(values: NDArray[Any]) -> float:
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def _allowed(largest: float, source_error: float | None, tolerance: Tolerance) -> float:
    """Step 4."""
    stated = tolerance.at(largest)
    if source_error is None or not math.isfinite(source_error):
        return stated
    conditioned = min(_SOURCE_ERRORS * source_error, _LARGEST_SHARE * max(1.0, largest))
    return max(stated, conditioned)


def _largest_difference(given: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Step 5 is in here: infinite for another shape and for values that are not finite."""
    if given.shape != wanted.shape or not np.isfinite(given).all():
        return math.inf
    return float(np.abs(given.astype(np.float64) - wanted).max(initial=0.0))


def _smallest_cosine(given: NDArray[Any], wanted: NDArray[Any]) -> float | None:
    given = given.astype(np.float64)
    norms = np.linalg.norm(given, axis=1) * np.linalg.norm(wanted, axis=1)
    if not np.isfinite(norms).all() or (norms == 0).any():
        return None
    return float(((given * wanted).sum(axis=1) / norms).min())
