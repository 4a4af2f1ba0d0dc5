"""int8 backbones: quantisation on patches of slides, comparison with float32, and timing.

1. Calibration patches determine the scales of the graph (:mod:`hagmil.export.int8.quantize`). Two graphs are made; in
   one of them the first matrix product stays float32. This one is used if it lowers the relative error of step 2 by a
   quarter or more: in some networks the first product causes most of the error, but in float32 it can be slow.
2. Held-out patches of the same slides run through the float32 and the int8 graph. The cosine of the features of each
   patch, and the norm of all differences over the norm of all features, must be within
   :data:`hagmil.export.parity.compare.INT8_FEATURES`.
3. Both graphs are timed alternately on the same patches with the same threads, so that other load affects both; the
   result is the median.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hagmil._files import temporary_folder
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
_ERROR_RATIO = 0.75  # of float32 to int8 first product; see step 1
_TIMED_BATCH = 16
_TURNS = 5
_MIN_TURNS = 2
_MIN_SECONDS = 1.0
_MAX_SECONDS = 30.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PatchRequirements:
    """The patches that a calibration needs.

    Args:
        stages: name and spacing in micrometres per pixel of every stage, coarse to fine; each gets an equal share.
        patch_px: side of a patch in pixels.
        tissue: parameters of the tissue mask.
    """

    stages: tuple[tuple[str, float], ...]
    patch_px: int
    tissue: TissueParameters


class CalibrationPatches(Protocol):
    """Reads patches of slides for calibration and comparison; deterministic."""

    @property
    def what(self) -> str:
        """Description of the slides."""

    def calibration(self, wanted: PatchRequirements) -> Iterator[NDArray[np.uint8]]:
        """Yield calibration patches in batches: uint8 (batch, patch_px, patch_px, 3)."""

    def held_out(self, wanted: PatchRequirements) -> Iterator[NDArray[np.uint8]]:
        """Yield other patches of the same slides, in batches of the same form."""


class FeatureAgreement(NamedTuple):
    """Agreement of the features of two graphs.

    Args:
        least_cosine: smallest cosine between the features of one patch.
        relative_error: norm of all differences over the norm of all features.
    """

    least_cosine: float
    relative_error: float


def quantise_backbone(
    source: Path, graph: Path, patches: CalibrationPatches, wanted: PatchRequirements
) -> Quantization:
    """Quantise a backbone to int8 and compare its features with float32.

    Args:
        source: the float32 graph.
        graph: the file to write.
        patches: reads the patches.
        wanted: the patches to read.

    Returns:
        Calibration, agreement and throughput; verdicts are not compared here.

    Raises:
        BundleError: the graph cannot be quantised.
        ParityError: the features differ by more than is allowed.
        UsageError: there are no patches to calibrate or to compare on.
    """
    held_out = list(patches.held_out(wanted))
    if not held_out:
        raise UsageError(f"{patches.what}: too few patches to calibrate and compare on; add slides to --calibration")
    compared = np.concatenate(held_out)  # (patches, patch_px, patch_px, 3)
    threads = torch.get_num_threads()
    float32 = open_session(source, threads=threads)
    expected = _features(float32, compared)
    made = _quantise(source, graph, patches, wanted, compared, expected)  # step 1
    _check_agreement(made.agreement, len(compared), patches.what)  # step 2
    quantised = open_session(graph, threads=threads)
    throughput = measure_throughput(float32, quantised, compared[:_TIMED_BATCH], threads)  # step 3
    if throughput.gain < 1:
        _log.warning(
            "the int8 backbone is slower than fp32 on this machine: %.1f and %.1f patches/s",
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
    """Add the comparison of verdicts to the record of a quantised backbone."""
    return quantization.model_copy(
        update={
            "compared_slides": slides.what,
            "verdicts": slides.with_verdict,
            "equal_verdicts": slides.equal_verdicts,
            "kept_alike": {stage.name: stage.kept_alike for stage in slides.stages if stage.kept_alike is not None},
        }
    )


def feature_agreement(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> FeatureAgreement:
    """Compare features, float32 (patches, dim); values that are not finite give cosine -1 and an infinite error."""
    one, other = actual.astype(np.float64), expected.astype(np.float64)
    if not np.isfinite(one).all():
        return FeatureAgreement(-1.0, float("inf"))
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    both_zero = ~one.any(axis=1) & ~other.any(axis=1)
    cosines = np.where(both_zero, 1.0, (one * other).sum(axis=1) / np.where(norms > 0, norms, 1.0))
    size = float(np.linalg.norm(other))
    difference = float(np.linalg.norm(one - other))
    return FeatureAgreement(float(cosines.min()), difference / size if size > 0 else difference)


def measure_throughput(
    float32: Session,
    int8: Session,
    patches: NDArray[np.uint8],
    threads: int,
    *,
    turns: int = _TURNS,
    min_seconds: float = _MIN_SECONDS,
) -> Throughput:
    """Time two sessions alternately.

    Args:
        float32: session of the float32 graph.
        int8: session of the int8 graph.
        patches: uint8 (batch, height, width, 3), the input of each run.
        threads: number of threads that both sessions were opened with.
        turns: timed runs of each session; fewer if they take longer than half a minute.
        min_seconds: minimum duration of all runs in seconds; adds runs if necessary.
    """
    inputs = {PATCHES.name: patches}
    seconds: tuple[list[float], list[float]] = ([], [])
    for session in (float32, int8):  # warm-up
        session.run(dict(inputs))
    start = perf_counter()
    while not _timed_enough(len(seconds[0]), perf_counter() - start, turns, min_seconds):
        for session, taken in zip((float32, int8), seconds, strict=True):
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


def _timed_enough(turn: int, passed_s: float, turns: int, min_seconds: float) -> bool:
    return (turn >= turns and passed_s >= min_seconds) or (turn >= _MIN_TURNS and passed_s > _MAX_SECONDS)


class _Quantised(NamedTuple):
    """A quantised graph: number of calibration patches, precision of the first product, and agreement."""

    patches: int
    first_product: Literal["int8", "fp32"]
    agreement: FeatureAgreement


def _quantise(
    source: Path,
    graph: Path,
    patches: CalibrationPatches,
    wanted: PatchRequirements,
    compared: NDArray[np.uint8],
    expected: NDArray[np.float32],
) -> _Quantised:
    """Step 1: make both graphs and copy the chosen one to ``graph``."""
    with temporary_folder("int8") as folder:
        tried: dict[Literal["int8", "fp32"], tuple[Path, _Quantised]] = {}
        for first in _FIRST_PRODUCTS:
            target = folder / first / graph.name
            target.parent.mkdir()
            calibrated = write_quantised(
                source, target, patches.calibration(wanted), first_product_fp32=first == "fp32"
            )
            actual = _features(open_session(target, threads=torch.get_num_threads()), compared)
            tried[first] = target, _Quantised(calibrated, first, feature_agreement(actual, expected))
        errors = {first: made.agreement.relative_error for first, (_, made) in tried.items()}
        target, chosen = tried["fp32" if errors["fp32"] <= _ERROR_RATIO * errors["int8"] else "int8"]
        copy_graph(target, graph)
    return chosen


def _check_agreement(agreement: FeatureAgreement, patches: int, what: str) -> None:
    """Step 2."""
    limits = INT8_FEATURES
    if agreement.least_cosine < limits.least_cosine or not agreement.relative_error <= limits.relative_error:
        raise ParityError(
            f"backbone: the int8 features differ too much from fp32 on {patches} patches of {what}: smallest cosine "
            f"{agreement.least_cosine:.4f} (at least {limits.least_cosine} required), relative error "
            f"{agreement.relative_error:.2%} (at most {limits.relative_error:.0%} allowed); nothing was written. "
            "Calibrate on more slides, or use --precision fp32"
        )


def _features(session: Session, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Run the backbone in batches: float32 (patches, dim)."""
    parts = [
        np.asarray(session.run({PATCHES.name: patches[start : start + _TIMED_BATCH]})[BACKBONE_FEATURES.name])
        for start in range(0, len(patches), _TIMED_BATCH)
    ]
    return np.concatenate(parts).astype(np.float32)
