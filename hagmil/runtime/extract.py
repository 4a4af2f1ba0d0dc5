"""Features of every stage of a slide, through the same steps and the same backbone session as inference."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hagmil._files import sha256_of
from hagmil.bundle import BackboneCard, open_backbone
from hagmil.errors import DataError, SlideError, SlideRejected, UsageError
from hagmil.features import FeatureHeader, SlideFeatures, StageFeatures, read_header, write_features
from hagmil.progress import Progress
from hagmil.runtime.inference.device import to_host
from hagmil.runtime.inference.encode import EncodeOptions, encode_patches
from hagmil.runtime.inference.step_clock import StepClock
from hagmil.runtime.inputs import SlideRequest
from hagmil.runtime.patches.geometry import StageGeometry
from hagmil.runtime.patches.plan import plan_slide
from hagmil.runtime.patches.quadtree import children, coarse_grid
from hagmil.runtime.sessions import Session, open_session
from hagmil.runtime.slides.overview import read_overview
from hagmil.runtime.slides.slide import Slide, open_slide
from hagmil.runtime.tissue.kernels import MaskKernels
from hagmil.runtime.tissue.segment import find_tissue
from hagmil.tissue_parameters import TissueParameters

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExtractOptions:
    """What is extracted, and how.

    Args:
        stages: name and spacing in micrometres per pixel of every stage, coarse to fine.
        patch_px: side of a patch in pixels; None takes the backbone's.
        tissue: parameters of the tissue mask.
        half: store features as float16.
        overwrite: extract again what is there already.
        encode: batch size and reader threads.
        mask_kernels: what makes tissue masks (``hagmil.runtime.tissue.kernels.kernels_on``); None
            chooses by the mask's size.
    """

    stages: tuple[tuple[str, float], ...]
    patch_px: int | None = None
    tissue: TissueParameters = field(default_factory=TissueParameters)
    half: bool = False
    overwrite: bool = False
    encode: EncodeOptions = field(default_factory=EncodeOptions)
    mask_kernels: MaskKernels | None = None


@dataclass(frozen=True, slots=True)
class ExtractOutcome:
    """What became of one slide.

    Args:
        slide_id: its id; the feature file's stem.
        status: ``ok``, ``rejected`` or ``failed``.
        code: why not, in one stable word; empty where it is ok.
        message: why not, for a person; empty where it is ok.
        patches: rows of all stages together.
    """

    slide_id: str
    status: Literal["ok", "rejected", "failed"]
    code: str = ""
    message: str = ""
    patches: int = 0


@dataclass(frozen=True, slots=True)
class Extractor:
    """A backbone with its session open, and what to extract with it."""

    card: BackboneCard
    session: Session
    options: ExtractOptions
    patch_px: int

    @classmethod
    def open(
        cls, backbone: Path, options: ExtractOptions, *, provider: str = "cpu", threads: int | None = None
    ) -> Extractor:
        """Load a backbone.

        Args:
            backbone: a folder that ``hagmil export-backbone`` wrote.
            options: what is extracted.
            provider: ``cpu``, ``cuda`` or ``tensorrt``.
            threads: threads inside one run on the CPU; all cores where none are given.

        Raises:
            BundleError: no backbone, or altered.
            UsageError: neither the options nor the backbone say how large a patch is, or they disagree.
        """
        card = open_backbone(backbone)
        patch_px = options.patch_px or card.patch_px
        if patch_px is None:
            raise UsageError(f'backbone "{card.name}" takes patches of any size; say which with --patch-px')
        session = open_session(backbone / card.onnx, provider=provider, threads=threads, many_runs=True)
        return cls(card=card, session=session, options=options, patch_px=patch_px)


def parse_stages(text: str) -> tuple[tuple[str, float], ...]:
    """Stages from a list of spacings: ``2,1,0.5`` is 2um, 1um and 0.5um.

    Raises:
        UsageError: not numbers, or not from coarse to fine.
    """
    try:
        spacings = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f'stages "{text}" are not spacings such as 2,1,0.5') from error
    if min(spacings) <= 0 or any(coarse <= fine for coarse, fine in pairwise(spacings)):
        raise UsageError(f'stages "{text}" must be above 0 and run from coarse to fine')
    return tuple((f"{spacing:g}um", spacing) for spacing in spacings)


def extract_many(
    requests: Sequence[SlideRequest],
    extractor: Extractor,
    out: Path,
    *,
    on_outcome: Callable[[ExtractOutcome], None] | None = None,
    progress: Progress | None = None,
) -> tuple[ExtractOutcome, ...]:
    """Extract slides one after the other; a bad one is told of and does not stop the rest.

    Args:
        requests: the slides.
        extractor: the backbone and what to extract.
        out: folder of the feature files, ``<slide_id>.h5``.
        on_outcome: called after each slide.
        progress: called after every batch of patches.

    Returns:
        One outcome a slide, in the order asked for.
    """
    outcomes = []
    for request in requests:
        outcome = _attempt(request, extractor, out / f"{request.slide_id}.h5", progress)
        outcomes.append(outcome)
        if on_outcome is not None:
            on_outcome(outcome)
    return tuple(outcomes)


def extract_slide(request: SlideRequest, extractor: Extractor, *, progress: Progress | None = None) -> SlideFeatures:
    """Features of every stage of one slide, the whole quadtree over its tissue.

    Args:
        request: the slide.
        extractor: the backbone and what to extract.
        progress: called after every batch of patches.

    Returns:
        The bags, coarse to fine; of zero rows where the slide shows no tissue.

    Raises:
        SlideError: the slide cannot be read, gives no spacing, is too coarse, or is no brightfield slide.
    """
    options = extractor.options
    with open_slide(request.path, spacing_um=request.spacing_um) as slide:
        plan = plan_slide(slide, options.stages, extractor.patch_px)
        mask = find_tissue(read_overview(slide, options.tissue.spacing_um), options.tissue, options.mask_kernels)
        coords = coarse_grid(slide.size, plan[0].patch_level0, mask, options.tissue.min_share)
        bags = []
        for index, geometry in enumerate(plan):
            if index:
                parent = plan[index - 1].patch_level0
                coords = children(coords, parent, parent // geometry.patch_level0)
            bags.append(_encode_bag(slide, geometry, coords, extractor, progress))
        return SlideFeatures(header=_header(request, slide, extractor), stages=tuple(bags))


def _attempt(request: SlideRequest, extractor: Extractor, path: Path, progress: Progress | None) -> ExtractOutcome:
    try:
        if path.exists() and not extractor.options.overwrite:
            _check_same(path, extractor)
            return ExtractOutcome(request.slide_id, "ok")
        features = extract_slide(request, extractor, progress=progress)
    except SlideError as error:
        status: Literal["rejected", "failed"] = "rejected" if isinstance(error, SlideRejected) else "failed"
        return ExtractOutcome(request.slide_id, status, error.code, error.message)
    write_features(path, features)
    return ExtractOutcome(request.slide_id, "ok", patches=sum(len(stage.coords) for stage in features.stages))


def _check_same(path: Path, extractor: Extractor) -> None:
    header = read_header(path)
    stages = tuple(name for name, _ in extractor.options.stages)
    if (header.backbone_sha256, header.stages) != (extractor.card.sha256, stages):
        raise DataError(
            f'features "{path}" are there already, of backbone {header.backbone_name} and stages '
            f"{', '.join(header.stages)}; choose another folder or pass --overwrite",
            code="exists",
        )


def _encode_bag(
    slide: Slide,
    geometry: StageGeometry,
    coords: NDArray[np.int64],
    extractor: Extractor,
    progress: Progress | None,
) -> StageFeatures:
    features = to_host(
        encode_patches(
            slide,
            geometry,
            coords,
            extractor.session,
            extractor.card.features,
            extractor.options.encode,
            clock=StepClock(),
            progress=progress,
        )
    )
    return StageFeatures(
        name=geometry.name,
        coords=coords,
        features=features.astype(np.float16) if extractor.options.half else features,
        patch_px=geometry.patch_px,
        patch_level0=geometry.patch_level0,
        spacing_um=geometry.spacing_um,
    )


def _header(request: SlideRequest, slide: Slide, extractor: Extractor) -> FeatureHeader:
    assert slide.spacing_um is not None
    assert slide.spacing_source is not None
    return FeatureHeader(
        slide_id=request.slide_id,
        slide_name=request.path.name,
        slide_sha256=sha256_of(request.path),
        slide_spacing_um=slide.spacing_um,
        spacing_source=slide.spacing_source,
        backbone_name=extractor.card.name,
        backbone_sha256=extractor.card.sha256,
        tissue=extractor.options.tissue,
        stages=tuple(name for name, _ in extractor.options.stages),
    )
