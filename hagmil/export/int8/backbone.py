"""A backbone in int8, made from its float32 graph on patches of slides, held against it, and timed beside it.

1. Calibration patches give the graph's scales (:mod:`hagmil.export.int8.quantize`). Two graphs are made: in one the
   first
   matrix product stays float32. That one is taken where it lowers the error of step 2 by a quarter or more: it is
   slower where the first product is costly, and in some networks it is what most of the error comes from.
2. Other patches of the same slides run through both graphs: the cosine of every patch's features, and the norm of all
   differences over the norm of all features, must be within :data:`hagmil.export.parity.compare.INT8_FEATURES`.
3. Both are timed in turns on the same patches and threads, so that what else the machine does falls on both; the
   median of several turns counts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hagmil._machine import processor_name
from hagmil.bundle import Quantization, Throughput
from hagmil.errors import ParityError, UsageError
from hagmil.export.graph import copy_graph
from hagmil.export.int8.quantize import write_quantised
from hagmil.export.parity.compare import INT8_FEATURES
from hagmil.export.parity.slide_parity import MIN_KEPT_AGREEMENT, SlideParity
from hagmil.runtime.sessions import Session, open_session
from hagmil.spec import BACKBONE_FEATURES, PATCHES
from hagmil.tissue_parameters import TissueParameters

_FIRST_PRODUCTS: tuple[Literal["int8"], Literal["fp32"]] = ("int8", "fp32")
_WORTH_IT = 0.75
_TIMED_BATCH = 16
_TURNS = 5
_LEAST_TURNS = 2
_LEAST_SECONDS = 1.0
_MOST_SECONDS = 30.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PatchRequirements:
    """Which patches are wanted of slides.

    Args:
        stages: name and spacing in micrometres per pixel of every stage, coarse to fine; all are drawn from alike.
        patch_px: side of a patch in pixels.
        tissue: parameters of the mask that says where tissue is.
    """

    stages: tuple[tuple[str, float], ...]
    patch_px: int
    tissue: TissueParameters


class CalibrationPatches(Protocol):
    """Somebody who reads patches of slides, the same ones for the same slides."""

    @property
    def what(self) -> str:
        """The slides, in words."""

    def calibration(self, wanted: PatchRequirements) -> Iterator[NDArray[np.uint8]]:
        """Patches to calibrate on, in batches of uint8 (batch, patch_px, patch_px, 3)."""

    def held_out(self, wanted: PatchRequirements) -> Iterator[NDArray[np.uint8]]:
        """Other patches of the same slides, in batches as well."""


class FeatureAgreement(NamedTuple):
    """How far features agree.

    Args:
        least_cosine: smallest cosine between the features of one patch.
        relative_error: norm of all differences over the norm of all features.
    """

    least_cosine: float
    relative_error: float


def quantise_backbone(
    source: Path, graph: Path, patches: CalibrationPatches, wanted: PatchRequirements
) -> Quantization:
    """Write a backbone in int8, and prove it on patches.

    Args:
        source: the float32 graph.
        graph: the file to write.
        patches: where patches come from.
        wanted: which patches.

    Returns:
        How it was made, how far it agrees and how fast it is; verdicts are not compared yet.

    Raises:
        BundleError: the graph cannot be quantised.
        ParityError: features are off by more than is allowed.
        UsageError: there is no patch to calibrate on, or to compare on.
    """
    held_out = list(patches.held_out(wanted))
    if not held_out:
        raise UsageError(f"{patches.what} give too few patches to calibrate and to compare on; give more slides")
    compared = np.concatenate(held_out)  # (patches, patch_px, patch_px, 3)
    threads = torch.get_num_threads()
    exact = open_session(source, threads=threads)
    expected = _features(exact, compared)
    made = _make(source, graph, patches, wanted, compared, expected)  # step 1
    _enforce(made.agreement, len(compared), patches.what)  # step 2
    quantised = open_session(graph, threads=threads)
    throughput = measure_throughput(exact, quantised, compared[:_TIMED_BATCH], threads)  # step 3
    if throughput.gain < 1:
        _log.warning(
            "the backbone is slower in int8 on this machine: %.1f patches/s, %.1f in fp32",
            throughput.int8_patches_per_s,
            throughput.fp32_patches_per_s,
        )
    return Quantization(
        reduced_range=True,
        calibration=patches.what,
        calibration_patches=made.patches,
        first_product=made.first_product,
        compared_patches=len(compared),
        least_cosine=made.agreement.least_cosine,
        allowed_cosine=INT8_FEATURES.least_cosine,
        relative_error=made.agreement.relative_error,
        allowed_relative_error=INT8_FEATURES.relative_error,
        allowed_alike=MIN_KEPT_AGREEMENT["int8"],
        throughput=throughput,
    )


def with_verdicts(quantization: Quantization, slides: SlideParity) -> Quantization:
    """What is known of a quantised backbone, with what became of verdicts."""
    return quantization.model_copy(
        update={
            "compared_slides": slides.what,
            "verdicts": slides.with_verdict,
            "equal_verdicts": slides.equal_verdicts,
            "kept_alike": {stage.name: stage.kept_alike for stage in slides.stages if stage.kept_alike is not None},
        }
    )


def feature_agreement(given: NDArray[np.float32], wanted: NDArray[np.float32]) -> FeatureAgreement:
    """How far features, float32 (patches, dim), agree; a value that is not finite agrees with nothing."""
    one, other = given.astype(np.float64), wanted.astype(np.float64)
    if not np.isfinite(one).all():
        return FeatureAgreement(-1.0, float("inf"))
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    both_zero = ~one.any(axis=1) & ~other.any(axis=1)
    cosines = np.where(both_zero, 1.0, (one * other).sum(axis=1) / np.where(norms > 0, norms, 1.0))
    size = float(np.linalg.norm(other))
    difference = float(np.linalg.norm(one - other))
    return FeatureAgreement(float(cosines.min()), difference / size if size > 0 else difference)


def measure_throughput(
    exact: Session,
    quantised: Session,
    patches: NDArray[np.uint8],
    threads: int,
    *,
    turns: int = _TURNS,
    least_s: float = _LEAST_SECONDS,
) -> Throughput:
    """Time two sessions in turns.

    Args:
        exact: the float32 graph's.
        quantised: the int8 graph's.
        patches: uint8 (batch, height, width, 3), all of which one run takes.
        threads: that both sessions were opened with.
        turns: how many times each is timed; fewer where that would take long,
        least_s: and more until this many seconds have passed.
    """
    inputs = {PATCHES.name: patches}
    seconds: tuple[list[float], list[float]] = ([], [])
    for session in (exact, quantised):  # memory is taken and code is read before anything counts
        session.run(dict(inputs))
    start = perf_counter()
    while not _timed_enough(len(seconds[0]), perf_counter() - start, turns, least_s):
        for session, taken in zip((exact, quantised), seconds, strict=True):
            before = perf_counter()
            session.run(dict(inputs))
            taken.append(perf_counter() - before)
    rates = [len(patches) / median(taken) for taken in seconds]
    return Throughput(
        fp32_patches_per_s=round(rates[0], 2),
        int8_patches_per_s=round(rates[1], 2),
        batch=len(patches),
        threads=threads,
        processor=processor_name(),
    )


def _timed_enough(turn: int, passed_s: float, turns: int, least_s: float) -> bool:
    return (turn >= turns and passed_s >= least_s) or (turn >= _LEAST_TURNS and passed_s > _MOST_SECONDS)


class _Made(NamedTuple):
    """A graph that was made: what it was calibrated on, which product is not in int8, and how far it agrees."""

    patches: int
    first_product: Literal["int8", "fp32"]
    agreement: FeatureAgreement


def _make(
    source: Path,
    graph: Path,
    patches: CalibrationPatches,
    wanted: PatchRequirements,
    compared: NDArray[np.uint8],
    expected: NDArray[np.float32],
) -> _Made:
    """Step 1."""
    with TemporaryDirectory(prefix="hagmil-int8-") as folder:
        tried: dict[Literal["int8", "fp32"], tuple[Path, _Made]] = {}
        for first in _FIRST_PRODUCTS:
            target = Path(folder) / first / graph.name
            target.parent.mkdir()
            calibrated = write_quantised(
                source, target, patches.calibration(wanted), first_product_fp32=first == "fp32"
            )
            given = _features(open_session(target, threads=torch.get_num_threads()), compared)
            tried[first] = target, _Made(calibrated, first, feature_agreement(given, expected))
        errors = {first: made.agreement.relative_error for first, (_, made) in tried.items()}
        target, chosen = tried["fp32" if errors["fp32"] <= _WORTH_IT * errors["int8"] else "int8"]
        copy_graph(target, graph)
    return chosen


def _enforce(agreement: FeatureAgreement, patches: int, what: str) -> None:
    """Step 2."""
    limits = INT8_FEATURES
    if agreement.least_cosine < limits.least_cosine or not agreement.relative_error <= limits.relative_error:
        raise ParityError(
            f"backbone: features in int8 are off over {patches} patches of {what}: the smallest cosine is "
            f"{agreement.least_cosine:.4f} ({limits.least_cosine} must be), the relative error "
            f"{agreement.relative_error:.2%} ({limits.relative_error:.0%} allowed); nothing was written. "
            "Calibrate on more slides, or keep fp32"
        )


def _features(session: Session, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Features of patches, batch after batch: float32 (patches, dim)."""
    parts = [
        np.asarray(session.run({PATCHES.name: patches[start : start + _TIMED_BATCH]})[BACKBONE_FEATURES.name])
        for start in range(0, len(patches), _TIMED_BATCH)
    ]
    return np.concatenate(parts).astype(np.float32)
