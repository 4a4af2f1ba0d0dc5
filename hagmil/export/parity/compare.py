"""Numerical comparison of an exported graph with its source, tensor by tensor.

1. A case is one set of inputs.
2. The reference is the source model in float64. Its float32 outputs show how well conditioned a case is. Where a case
   does not require float64, the float32 outputs are the reference if the graph is within half of the tolerance of
   them; otherwise float64 is used. Float64 takes more than twice as long as everything else.
3. The error of a tensor is the largest absolute difference between graph and reference. A half-precision graph runs
   with every operation rounded to 16 bits (:mod:`hagmil.export.passes.rounded`) on every case, and unmodified on the
   cases that require float64.
4. The allowed error is ``absolute + relative x largest reference value``. If four times the float32 error of the source
   is larger, that is allowed instead, up to a hundredth of the largest value (or of 1, if that is larger).
5. The error is infinite if shapes differ or a value of the graph is not finite.
6. If a tensor is out of tolerance, the export stops; the error names the one with the largest ratio of error to allowed
   error.
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
from hagmil.softmax import softmax
from hagmil.spec import ATTENTION, EVIDENCE

PARITY_NAME = "parity.json"
Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[dict[str, NDArray[Any]]], Arrays]
Reference = Literal["float64", "float32", "graph"]
"""What a graph is compared with: the torch model in float64 or float32, or the ONNX graph it was made from."""

_SOURCE_ERROR_FACTOR = 4.0
_MAX_ALLOWED_SHARE = 1e-2
_FLOAT32_SHARE = 0.5


class Tolerance(FrozenModel):
    """Allowed error of a tensor: ``absolute + relative x largest value``."""

    absolute: float = Field(ge=0)
    relative: float = Field(ge=0)

    def at(self, largest: float) -> float:
        """Return the allowed error of a tensor with this largest absolute value."""
        return self.absolute + self.relative * largest

    def of_shares(self) -> Tolerance:
        """Return the tolerance of a softmax of scores that have this tolerance.

        An absolute error of a score is a relative error of its share.
        """
        return Tolerance(absolute=0, relative=self.absolute + self.relative)

    def of_evidence(self, largest_weight: float) -> Tolerance:
        """Return the tolerance of the evidence of patches: their share of the attention times their logits.

        The error of a share is that of :meth:`of_shares`; the error of a logit, which has this tolerance, is multiplied
        by the share.

        Args:
            largest_weight: largest share of the attention.
        """
        return Tolerance(absolute=self.absolute * largest_weight, relative=self.absolute + 2 * self.relative)


TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(absolute=2e-5, relative=2e-5),
    "fp16": Tolerance(absolute=2e-3, relative=2e-3),
}
"""By the precision of the graph; see docs/numerics.md for the measured errors. int8 backbones use
:data:`INT8_FEATURES` instead."""


class FeatureLimits(FrozenModel):
    """Required agreement of the features of a quantised backbone on real patches."""

    least_cosine: float = Field(ge=-1, le=1, description="minimum over patches")
    relative_error: float = Field(
        ge=0, description="norm of the difference over the norm of the features, over all patches"
    )


INT8_FEATURES = FeatureLimits(least_cosine=0.99, relative_error=0.05)
"""Limits for int8 backbones, whose errors are not rounding errors of single values; see docs/numerics.md."""


class ParityRow(FrozenModel):
    """Comparison of one tensor of one graph on one case."""

    model: str = Field(description="backbone, or the name of a stage")
    tensor: str
    sample: str = Field(description="kind of input")
    lengths: dict[str, int] = Field(description="length of each dynamic axis")
    largest: float = Field(description="largest absolute value of the reference")
    error: float | None = Field(description="largest absolute difference from the reference; null: not finite")
    source_error: float | None = Field(description="the same for the source in float32; null if not computed")
    allowed: float
    cosine: float | None = Field(description="smallest cosine between rows of a feature matrix; null for other tensors")
    reference: Reference = Field(default="float64", description="what the graph was compared with")
    rounded: bool = Field(default=False, description="every operation of the graph was rounded to 16 bits")
    passed: bool

    @property
    def is_raised(self) -> bool:
        """Whether the allowed error was raised because of the float32 error of the source (step 4)."""
        return self.source_error is not None and 0 < self.allowed <= _SOURCE_ERROR_FACTOR * self.source_error


class ParityReport(FrozenModel):
    """``parity.json``: every comparison of an export."""

    format: Literal["hagmil-parity"] = "hagmil-parity"
    format_version: Literal[1] = 1
    precision: Precision
    tolerance: Tolerance = Field(description="of the rows; with precision int8 the rows are of float32 graphs")
    rows: tuple[ParityRow, ...]
    quantization: Quantization | None = Field(default=None, description="of the backbone; null if it is not quantised")
    slides: SlideParity | None = Field(default=None, description="verdicts on slides; null if not compared")


@dataclass(frozen=True, slots=True)
class ParityCase:
    """One set of inputs.

    Args:
        sample: kind of the inputs, such as ``clustered``.
        lengths: length of each dynamic axis, by name.
        inputs: arrays by input name.
        exact: whether the reference must be float64.
    """

    sample: str
    lengths: dict[str, int]
    inputs: dict[str, NDArray[Any]]
    exact: bool = True


@dataclass(frozen=True, slots=True)
class SourceModel:
    """The model that a graph was made from.

    Args:
        reference: runs the model in the highest precision that it supports.
        float32: runs the model in float32; None if ``reference`` is its only form.
        name: what ``reference`` is.
    """

    reference: Run
    float32: Run | None
    name: Reference = "float64"


@dataclass(frozen=True, slots=True)
class GraphUnderTest:
    """A graph to compare with its source.

    Args:
        run: runs the graph unmodified.
        run_rounded: runs the graph with every operation rounded to 16 bits; None for float32 graphs.
    """

    run: Run
    run_rounded: Run | None = None


class _Expected(NamedTuple):
    """Outputs of the reference for one case, and of the source in float32 if it ran."""

    outputs: Arrays
    float32: Arrays | None
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
    """Compare a graph with its source on every case.

    Args:
        model: ``backbone``, or the name of a stage.
        cases: the inputs.
        graph: the graph to compare.
        source: the model that it was made from.
        tolerance: allowed error of a tensor.
        shares: names of tensors that sum to 1 over patches; see :meth:`Tolerance.of_shares`.

    Yields:
        The rows of each case, one per tensor and run.
    """
    for case in cases:
        runs = [(graph.run_rounded, True)] if graph.run_rounded is not None else []
        if case.exact or not runs:
            runs.append((graph.run, False))
        actual = [(run(case.inputs), is_rounded) for run, is_rounded in runs]
        tolerances = {name: tolerance.of_shares() if name in shares else tolerance for name in actual[0][0]}
        if EVIDENCE.name in tolerances:
            weights = softmax(actual[0][0][ATTENTION.name])
            tolerances[EVIDENCE.name] = tolerance.of_evidence(float(weights.max(initial=0.0)))
        expected = _expected(case, source, [outputs for outputs, _ in actual], tolerances)
        yield tuple(
            _row(model, tensor, case, expected, outputs, tolerances[tensor], is_rounded=is_rounded)
            for outputs, is_rounded in actual
            for tensor in expected.outputs
        )


def _expected(
    case: ParityCase, source: SourceModel, actual: Sequence[Arrays], tolerances: Mapping[str, Tolerance]
) -> _Expected:
    """Step 2."""
    float32 = source.float32(case.inputs) if source.float32 is not None else None
    if float32 is not None and not case.exact:
        worst = (
            _largest_difference(outputs[name], value) / (_FLOAT32_SHARE * tolerances[name].at(_largest(value)))
            for outputs in actual
            for name, value in float32.items()
        )
        if max(worst) <= 1:
            return _Expected(float32, None, "float32")
    return _Expected(source.reference(case.inputs), float32, source.name)


def enforce_parity(rows: Sequence[ParityRow]) -> None:
    """Raise an error if a tensor is out of tolerance (step 6).

    Raises:
        ParityError: a comparison failed; the message describes the worst one.
    """
    failed = [row for row in rows if not row.passed]
    if not failed:
        return
    worst = max(failed, key=_severity)
    lengths = ", ".join(f"{axis} {length}" for axis, length in worst.lengths.items())
    error = "is not finite or has another shape" if worst.error is None else f"is off by {worst.error:.3g}"
    raise ParityError(
        f"{worst.model}: {worst.tensor} {error} at {lengths} ({worst.sample} input"
        f"{', every operation rounded' if worst.rounded else ''}); {worst.allowed:.3g} "
        f"is allowed; {len(failed)} of {len(rows)} comparisons failed, nothing was written"
    )


def with_model_name(report: ParityReport, model: str) -> ParityReport:
    """Return a copy of a report with another model name in every row."""
    rows = tuple(row.model_copy(update={"model": model}) for row in report.rows)
    return report.model_copy(update={"rows": rows})


def worst_by_tensor(rows: Sequence[ParityRow]) -> list[tuple[ParityRow, int]]:
    """Return, for each tensor of each graph, the comparison closest to its tolerance and the number of comparisons."""
    groups: dict[tuple[str, str], list[ParityRow]] = {}
    for row in rows:
        groups.setdefault((row.model, row.tensor), []).append(row)
    return [(max(group, key=_severity), len(group)) for group in groups.values()]


def _severity(row: ParityRow) -> float:
    """The error in units of the allowed error."""
    if row.error is None:
        return math.inf
    return row.error / row.allowed if row.allowed else row.error


def _row(
    model: str,
    tensor: str,
    case: ParityCase,
    expected: _Expected,
    outputs: Arrays,
    tolerance: Tolerance,
    *,
    is_rounded: bool,
) -> ParityRow:
    value, actual = expected.outputs[tensor], outputs[tensor]
    largest = _largest(value)
    error = _largest_difference(actual, value)  # step 3
    source_error = None if expected.float32 is None else _largest_difference(expected.float32[tensor], value)
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
        cosine=_smallest_cosine(actual, value) if value.ndim == 2 and value.shape == actual.shape else None,
        reference=expected.name,
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
    conditioned = min(_SOURCE_ERROR_FACTOR * source_error, _MAX_ALLOWED_SHARE * max(1.0, largest))
    return max(stated, conditioned)


def _largest_difference(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """Steps 3 and 5."""
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return math.inf
    return float(np.abs(actual.astype(np.float64) - expected).max(initial=0.0))


def _smallest_cosine(actual: NDArray[Any], expected: NDArray[Any]) -> float | None:
    actual = actual.astype(np.float64)
    norms = np.linalg.norm(actual, axis=1) * np.linalg.norm(expected, axis=1)
    if not np.isfinite(norms).all() or (norms == 0).any():
        return None
    return float(((actual * expected).sum(axis=1) / norms).min())
