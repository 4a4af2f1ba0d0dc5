"""Extract the features of every stage of a slide, with the same steps and the same backbone session as inference."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hagmil._files import OutputFolder
from hagmil.bundle import BackboneCard, open_backbone
from hagmil.errors import BundleError, UsageError
from hagmil.features import (
    FeatureHeader,
    SlideFeatures,
    StageFeatures,
    write_features,
)
from hagmil.progress import Progress
from hagmil.runtime.inference.contract import CheckedSession, backbone_contract
from hagmil.runtime.inference.device import to_host
from hagmil.runtime.inference.encode import EncodeOptions, encode_patches
from hagmil.runtime.inference.loaded_bundle import LoadedModel
from hagmil.runtime.inference.step_clock import StepClock
from hagmil.runtime.inputs import SlideRequest, slide_request
from hagmil.runtime.names import storable
from hagmil.runtime.patches.geometry import StageGeometry
from hagmil.runtime.patches.plan import lay_out, stage_specs
from hagmil.runtime.patches.quadtree import children
from hagmil.runtime.pixels import WHITE
from hagmil.runtime.results.failures import ends_run, failure_of, writing
from hagmil.runtime.results.feature_reuse import ExpectedFeatures, require_same_features, require_same_slide
from hagmil.runtime.sessions import Session, open_session
from hagmil.runtime.sessions.time_limit import time_limit
from hagmil.runtime.slides.open import open_slide
from hagmil.runtime.slides.slide import Slide
from hagmil.runtime.slides.slide_files import SlideFiles, slide_sha256
from hagmil.runtime.tissue.kernels import MaskKernels
from hagmil.spec import LARGEST_PATCH_PX, PATCHES
from hagmil.tissue_parameters import TissueParameters

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExtractOptions:
    """What to extract, and how.

    Args:
        stages: name and spacing in micrometres per pixel of every stage, coarse to fine.
        patch_px: side of a patch in pixels; None uses the backbone's.
        tissue: parameters of the tissue mask.
        half: store features as float16.
        overwrite: replace existing feature files.
        encode: batch size and reader threads.
        mask_kernels: implementation of the tissue mask (``hagmil.runtime.tissue.kernels.kernels_on``); None
            chooses by the mask's size.
        max_missing: largest number of patches of the coarsest stage that are left out of a slide because tiles of
            tissue have no bytes in the file; with more, the slide fails.
        timeout_s: seconds that a slide may take; a slide that takes longer fails. None: no limit.
    """

    stages: tuple[tuple[str, float], ...]
    patch_px: int | None = None
    tissue: TissueParameters = field(default_factory=TissueParameters)
    half: bool = False
    overwrite: bool = False
    encode: EncodeOptions = field(default_factory=EncodeOptions)
    mask_kernels: MaskKernels | None = None
    max_missing: int = 0
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class ExtractOutcome:
    """The outcome of one slide.

    Args:
        slide_id: the slide's id, which is the stem of the feature file.
        status: ``ok``, ``rejected`` or ``failed``.
        code: the reason as one stable word; empty if the status is ok.
        message: the reason for a person; empty if the status is ok.
        patches: number of patches of all stages together; 0 if the file existed.
    """

    slide_id: str
    status: Literal["ok", "rejected", "failed"]
    code: str = ""
    message: str = ""
    patches: int = 0


@dataclass(frozen=True, slots=True)
class Extractor:
    """A loaded backbone, and what to extract with it.

    Args:
        session: session of the backbone.
        backbone_name: its name.
        backbone_sha256: digest of its ONNX file.
        feature_dim: length of its feature vector.
        patch_px: side of a patch in pixels.
        options: what to extract.
    """

    session: Session
    backbone_name: str
    backbone_sha256: str
    feature_dim: int
    patch_px: int
    options: ExtractOptions

    @classmethod
    def open(
        cls, backbone: str | Path, options: ExtractOptions, *, provider: str = "cpu", threads: int | None = None
    ) -> Extractor:
        """Load a backbone.

        Args:
            backbone: a folder that ``hagmil export-backbone`` wrote.
            options: what to extract.
            provider: ``cpu`` or ``cuda``.
            threads: threads of one run on the CPU; None uses all cores.

        Raises:
            BundleError: the folder is not a backbone, or a file was altered.
            UsageError: neither the options nor the backbone give the patch size, or the backbone does not take patches
                of this size (code ``patch_px``).
        """
        folder = Path(backbone)
        card = open_backbone(folder)
        patch_px = options.patch_px or card.patch_px
        if patch_px is None:
            raise UsageError(f'backbone "{card.name}" takes patches of any size; pass --patch-px')
        if card.patch_px is not None and patch_px != card.patch_px:
            raise UsageError(
                f'backbone "{card.name}" takes patches of {card.patch_px} px, not {patch_px}; omit --patch-px',
                code="patch_px",
            )
        if not 1 <= patch_px <= LARGEST_PATCH_PX:
            raise UsageError(
                f"--patch-px is {patch_px}; patches have 1 to {LARGEST_PATCH_PX:,} pixels on a side", code="patch_px"
            )
        session = CheckedSession(
            open_session(folder / card.onnx, provider=provider, threads=threads, many_runs=True),
            backbone_contract(card.onnx, card.features, card.patch_px),
        )
        if card.patch_px is None:
            _try_patch_size(session, card, patch_px)
        return cls(session, card.name, card.sha256, card.features, patch_px, options)

    @classmethod
    def of_model(cls, model: LoadedModel, *, half: bool = False) -> Extractor:
        """Use a loaded model's backbone, stages, patch size and tissue parameters.

        Args:
            model: the loaded bundle.
            half: store features as float16.
        """
        manifest = model.bundle.manifest
        options = ExtractOptions(
            stages=tuple(stage_specs(manifest)), patch_px=manifest.patch_px, tissue=manifest.tissue, half=half
        )
        return cls(
            session=model.backbone,
            backbone_name=manifest.backbone.name,
            backbone_sha256=manifest.files[manifest.backbone.onnx].sha256,
            feature_dim=manifest.backbone.features,
            patch_px=manifest.patch_px,
            options=options,
        )


def _try_patch_size(session: Session, card: BackboneCard, patch_px: int) -> None:
    """Run the backbone on one white patch, since a graph with dynamic axes may still not take every size."""
    try:
        session.run({PATCHES.name: np.full((1, patch_px, patch_px, 3), WHITE, np.uint8)}, last=True)
    except BundleError as error:
        raise UsageError(
            f'backbone "{card.name}" does not take patches of {patch_px} px; choose another --patch-px '
            f"({error.message})",
            code="patch_px",
        ) from error


def parse_stages(text: str) -> tuple[tuple[str, float], ...]:
    """Parse a list of spacings: ``2,1,0.5`` gives the stages 2um, 1um and 0.5um.

    Raises:
        UsageError: not numbers above 0, from coarse to fine.
    """
    try:
        spacings_um = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f'stages "{text}" are not spacings such as 2,1,0.5') from error
    return stages_at(spacings_um)


def stages_at(spacings_um: Sequence[float]) -> tuple[tuple[str, float], ...]:
    """Name stages by their spacings: 2.0 gives the stage ``2um``.

    Args:
        spacings_um: micrometres per pixel, coarse to fine.

    Raises:
        UsageError: no spacings, or not numbers above 0 from coarse to fine.
    """
    if not spacings_um or min(spacings_um) <= 0 or any(coarse <= fine for coarse, fine in pairwise(spacings_um)):
        listed = ",".join(f"{spacing:g}" for spacing in spacings_um)
        raise UsageError(f'stages "{listed}" must be above 0 and in order from coarse to fine')
    return tuple((f"{spacing:g}um", spacing) for spacing in spacings_um)


def extract(
    slide: str | Path,
    *,
    backbone: str | Path | LoadedModel | Extractor,
    out: str | Path | None = None,
    stages: Sequence[float] = (2.0, 1.0, 0.5),
    patch_px: int | None = None,
    spacing_um: float | None = None,
    provider: str = "cpu",
    half: bool = False,
    overwrite: bool = False,
) -> SlideFeatures:
    """Extract the features of one slide: every tissue patch of every stage.

    For several slides, load the backbone once: pass a loaded model or an :class:`Extractor`.

    Args:
        slide: the slide file.
        backbone: a folder that ``hagmil export-backbone`` wrote; or a loaded model, whose backbone, stages, patch size
            and tissue parameters are used; or an extractor.
        out: folder for the feature file ``<slide_id>.h5``. A file of the same slide is replaced. None writes nothing.
        stages: spacings in micrometres per pixel, coarse to fine; used with a backbone's folder only.
        patch_px: side of a patch in pixels; None uses the backbone's; used with a backbone's folder only.
        spacing_um: micrometres per level-0 pixel, which overrides the file's.
        provider: ``cpu`` or ``cuda``; used with a backbone's folder only.
        half: store features as float16; not used with an extractor, whose options say so.
        overwrite: replace a feature file of another slide with the same file name.

    Returns:
        The bags, coarse to fine, with zero rows if the slide has no tissue.

    Raises:
        SlideError: the slide cannot be read, gives no spacing, is too coarse, or is not a brightfield slide.
        BundleError: the backbone cannot be used.
        EnvironmentLacks: the provider is missing on this machine, or ``out`` cannot be written.
        UsageError: invalid stages, a patch size that the backbone does not take, or a backbone for patches of any size
            without ``patch_px``.
        DataError: ``out`` has a feature file of another slide with the same file name (code ``exists``).
    """
    request = slide_request(slide, spacing_um=spacing_um)
    path = None if out is None else Path(out) / f"{request.slide_id}.h5"
    if path is not None and path.exists() and not overwrite:
        require_same_slide(path, slide_sha256(request.path))
    if isinstance(backbone, LoadedModel):
        backbone = Extractor.of_model(backbone, half=half)
    elif not isinstance(backbone, Extractor):
        options = ExtractOptions(stages=stages_at(stages), patch_px=patch_px, half=half)
        backbone = Extractor.open(backbone, options, provider=provider)
    features = extract_slide(request, backbone)
    if path is not None:
        write_features(path, features)
    return features


def extract_many(
    requests: Sequence[SlideRequest],
    extractor: Extractor,
    out: Path,
    *,
    on_outcome: Callable[[ExtractOutcome], None] | None = None,
    progress: Progress | None = None,
) -> tuple[ExtractOutcome, ...]:
    """Extract slides one after the other. A slide that fails does not stop the others.

    A slide with a feature file in ``out`` is skipped if the file is whole and has the same slide digest, backbone,
    stages, patch size, spacing, tissue parameters and type. A file that differs is replaced if the options say
    ``overwrite``; else the slide fails (code ``exists``).

    Args:
        requests: the slides.
        extractor: the loaded backbone.
        out: folder of the feature files, ``<slide_id>.h5``.
        on_outcome: called after each slide.
        progress: called after every batch of patches.

    Returns:
        One outcome for each slide, in the order of the requests.

    Raises:
        EnvironmentLacks: ``out`` cannot be written, the disk is full, or the device is lost.
    """
    output = OutputFolder.open(out)
    outcomes = []
    for request in requests:
        output.require_present()
        outcome = _attempt(request, extractor, out / f"{request.slide_id}.h5", progress)
        outcomes.append(outcome)
        if on_outcome is not None:
            on_outcome(outcome)
    return tuple(outcomes)


def extract_slide(request: SlideRequest, extractor: Extractor, *, progress: Progress | None = None) -> SlideFeatures:
    """Extract the features of every stage of one slide: the whole quadtree over its tissue.

    Args:
        request: the slide.
        extractor: the loaded backbone.
        progress: called after every batch of patches.

    Returns:
        The bags, coarse to fine, with zero rows if the slide has no tissue.

    Raises:
        SlideError: the slide cannot be read, gives no spacing, is too coarse, or is not a brightfield slide.
    """
    options = extractor.options
    files = SlideFiles.of(request.path)
    with files.unchanged(), open_slide(request.path, spacing_um=request.spacing_um) as slide:
        layout = lay_out(
            slide,
            options.stages,
            extractor.patch_px,
            options.tissue,
            options.mask_kernels,
            max_missing=options.max_missing,
        )
        plan, coords, left_out = layout.plan, layout.coords, layout.left_out
        del layout  # the overview and the mask of a large slide take tens of megabytes
        bags = []
        for index, geometry in enumerate(plan):
            if index:
                parent = plan[index - 1].patch_level0
                coords = children(coords, parent, parent // geometry.patch_level0)
            bags.append(_encode_bag(slide, geometry, coords, extractor, progress))
        return SlideFeatures(header=_header(request, slide, files.sha256(), extractor, left_out), stages=tuple(bags))


def _attempt(request: SlideRequest, extractor: Extractor, path: Path, progress: Progress | None) -> ExtractOutcome:
    try:
        if path.exists() and not extractor.options.overwrite:
            require_same_features(path, _expected(request, extractor))
            return ExtractOutcome(request.slide_id, "ok")
        with time_limit(extractor.options.timeout_s):
            features = extract_slide(request, extractor, progress=progress)
        with writing(path):
            write_features(path, features)
    except Exception as error:
        if ends_run(error):
            raise
        failure = failure_of(error, request.given)
        return ExtractOutcome(request.slide_id, failure.status, failure.code, failure.message)
    return ExtractOutcome(request.slide_id, "ok", patches=sum(len(stage.coords) for stage in features.stages))


def _expected(request: SlideRequest, extractor: Extractor) -> ExpectedFeatures:
    options = extractor.options
    return ExpectedFeatures(
        slide_sha256=slide_sha256(request.path),
        spacing_um=request.spacing_um,
        backbone_sha256=extractor.backbone_sha256,
        stages=options.stages,
        patch_px=extractor.patch_px,
        tissue=options.tissue,
        dtype="float16" if options.half else "float32",
        dim=extractor.feature_dim,
        max_missing=options.max_missing,
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
            extractor.feature_dim,
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


def _header(request: SlideRequest, slide: Slide, sha256: str, extractor: Extractor, left_out: int) -> FeatureHeader:
    assert slide.spacing_um is not None
    assert slide.spacing_source is not None
    return FeatureHeader(
        slide_id=request.slide_id,
        slide_name=storable(request.path.name),
        slide_sha256=sha256,
        slide_spacing_um=slide.spacing_um,
        spacing_source=slide.spacing_source,
        backbone_name=extractor.backbone_name,
        backbone_sha256=extractor.backbone_sha256,
        tissue=extractor.options.tissue,
        stages=tuple(name for name, _ in extractor.options.stages),
        patches_left_out=left_out,
    )
